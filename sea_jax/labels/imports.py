"""Takes labels that exist already into a journal, so that a run uses them before it buys any.

A work directory keeps them in `imported.sqlite`, from which every run of it copies them into its own journal.
Such a label has policy_step −1, as another policy wrote its responses, and times_asked 0.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sea_jax.errors import InputError
from sea_jax.labels import damage, reading
from sea_jax.labels.journal import ANSWERED, ELSEWHERE, Journal, pack_tokens

FILE = "imported.sqlite"
_PREFERENCE = ("prompt", "chosen", "rejected")  # the columns of a preference set, all of them texts
_DUEL = ("prompt", "first", "second")


class Label(NamedTuple):
    """A label that was bought elsewhere."""

    prompt: str
    first: str
    second: str
    prefers_first: bool
    probability: float  # P(first ≻ second | x)
    labelled_by: str
    first_tokens: Sequence[int] = ()  # empty: unknown
    second_tokens: Sequence[int] = ()
    cost: float | None = None  # US dollars
    answered_at: float = 0.0  # seconds since 1970, UTC


class Duel(NamedTuple):
    """An imported label as the journal holds it."""

    id: int
    step: int  # −1: no step has used it yet
    row: int
    prompt: str
    first: str
    second: str
    first_tokens: bytes
    second_tokens: bytes


def open_imported(workdir: Path) -> Journal:
    """Opens the imported labels of a work directory; makes the file if absent."""
    return Journal(workdir, labelled_by="", name=FILE)


def read(source: Path) -> Iterator[Label]:
    """Reads the labels of a file, of a run's folder, or of all runs of a work directory.

    Args:
        source: a folder with journals, or a file .jsonl, .csv or .parquet. Its columns are those of
            `python -m sea_jax.labels export` (prompt, first, second, and chosen or probability; the others
            may be absent), or those of a preference set: prompt, chosen and rejected, all texts.

    Raises:
        InputError: nothing can be read there, or a row is no label; with the file and the row.
    """
    if source.is_dir():
        rows = itertools.chain.from_iterable(map(reading.labels, reading.journals(source)))
        for number, row in enumerate(rows, 1):
            if row["first"] != row["second"]:  # such a label says nothing; older runs bought some
                yield _label(row, f"{source}, row {number}", source.name)
        return
    from sea_jax.tasks import sources  # imports JAX, which takes seconds

    for row in sources.read_file(source, {*reading.COLUMNS, *_PREFERENCE}).rows:
        yield _label(row, row.place, source.name)


def add(journal: Journal, labels: Iterable[Label]) -> tuple[int, int]:
    """Adds labels to a journal.

    A label that the journal has already, bought or imported, is left out, so that importing twice changes
    nothing. Repeated labels of one source are kept: people may answer a question several times.

    Args:
        journal: of a run, or of a work directory.
        labels: to add.

    Returns:
        How many were added, and how many were there already.
    """
    known, left_out = _known(journal), 0

    def fresh() -> Iterator[tuple[Any, ...]]:
        nonlocal left_out
        for label in labels:
            key = _key(label.prompt, label.first, label.second, label.prefers_first, label.labelled_by)
            if known[key] > 0:
                known[key] -= 1
                left_out += 1
            else:
                tokens = pack_tokens(label.first_tokens), pack_tokens(label.second_tokens)
                when = label.answered_at
                yield (
                    *label[:3], *tokens, when, label.labelled_by, label.probability, int(label.prefers_first),
                    label.cost, when,
                )  # fmt: skip

    with journal.writing() as db:
        (last,) = db.execute("SELECT coalesce(max(id), 0) FROM duels").fetchone()
        db.executemany(
            "INSERT INTO duels (step, row, policy_step, prompt, first, second, first_tokens, second_tokens, "
            "asked_at, state, times_asked, labelled_by, probability, prefers_first, cost, answered_at) "
            f"VALUES ({ELSEWHERE}, 0, {ELSEWHERE}, ?, ?, ?, ?, ?, ?, '{ANSWERED}', 0, ?, ?, ?, ?, ?)",
            fresh(),
        )
        added = [id for (id,) in db.execute("SELECT id FROM duels WHERE id > ?", (last,))]
        db.executemany(damage.SEAL_DUEL, [(id,) for id in added])
        return len(added), left_out


def stored(workdir: Path) -> Iterator[Label]:
    """Reads the imported labels of a work directory; none where nothing was imported."""
    if (workdir / FILE).exists():
        for number, row in enumerate(reading.labels(workdir / FILE), 1):
            yield _label(row, f"{workdir / FILE}, row {number}", FILE)


def duels(journal: Journal, first_step: int) -> list[Duel]:
    """Returns the imported labels that steps from `first_step` on use, and those that no step uses yet."""
    columns = ", ".join(Duel._fields)
    query = f"SELECT {columns} FROM duels WHERE policy_step = ? AND (step >= ? OR step = ?) ORDER BY id"
    with journal.reading() as db:
        return [Duel(*row) for row in db.execute(query, (ELSEWHERE, first_step, ELSEWHERE))]


def place(journal: Journal, ids: Sequence[int], first_step: int, batch_size: int) -> None:
    """Gives imported labels to steps, B each: the first ones that nothing was written for.

    Args:
        journal: of a run.
        ids: of `duels`.
        first_step: the earliest, t.
        batch_size: B.
    """
    with journal.writing() as db:
        for table in ("duels", "proposals"):
            (last,) = db.execute(f"SELECT max(step) FROM {table}").fetchone()
            first_step = max(first_step, (-1 if last is None else last) + 1)
        places = [(first_step + i // batch_size, i % batch_size, id) for i, id in enumerate(ids)]
        db.executemany("UPDATE duels SET step = ?, row = ? WHERE id = ?", places)
        db.executemany(damage.SEAL_DUEL, [(id,) for id in ids])


def _known(journal: Journal) -> Counter[bytes]:
    """Counts the labels of a journal by content."""
    query = "SELECT prompt, first, second, prefers_first, labelled_by FROM duels WHERE state = ?"
    with journal.reading() as db:
        return Counter(_key(*row) for row in db.execute(query, (ANSWERED,)))


def _key(prompt: str, first: str, second: str, prefers_first: Any, labelled_by: str) -> bytes:
    texts = json.dumps([prompt, first, second, bool(prefers_first), labelled_by])
    return hashlib.blake2b(texts.encode(), digest_size=16).digest()


def _label(row: dict[str, Any], where: str, source: str) -> Label:
    """Reads a row of either kind of columns; raises InputError that names the row and the column."""
    row = {name: value for name, value in row.items() if value not in (None, "") or name in _DUEL}
    if row.keys() >= {*_DUEL}:
        probability = _number(row, "probability", where, 1.0)
        chosen = row.get("chosen")
        if chosen not in ("first", "second", None) or (chosen is None and probability in (None, 0.5)):
            raise InputError(f"{where}: chosen={chosen!r}; valid: 'first' or 'second', or a probability that "
                             "is not 0.5")  # fmt: skip
        if chosen is None:
            assert probability is not None
            chosen = "first" if probability > 0.5 else "second"
        prefers_first = chosen == "first"
        texts = [row[name] for name in _DUEL]
    elif row.keys() >= {*_PREFERENCE}:
        prefers_first, probability, texts = True, None, [row[name] for name in _PREFERENCE]
    else:
        raise InputError(f"{where}: columns {sorted(row)}; valid: {_DUEL} and 'chosen', or {_PREFERENCE}")
    for name, text in zip(_DUEL, texts, strict=True):
        if not isinstance(text, str):
            raise InputError(f"{where}: {name}={repr(text)[:60]}; valid: a text")
    if texts[1] == texts[2]:
        raise InputError(f"{where}: two equal responses, {texts[1][:60]!r}; valid: two different ones")
    return Label(
        texts[0], texts[1], texts[2], prefers_first,
        float(prefers_first) if probability is None else probability,
        str(row.get("labelled_by", f"file {source}")),
        _tokens(row, "first_tokens", where), _tokens(row, "second_tokens", where),
        cost=_number(row, "cost", where, np.inf), answered_at=_instant(row, "answered_at", where),
    )  # fmt: skip


def _number(row: dict[str, Any], name: str, where: str, most: float) -> float | None:
    """Returns a number in [0, most], None where the column is absent."""
    if name not in row:
        return None
    try:
        value = float(row[name])
    except (TypeError, ValueError):
        value = np.nan
    if not 0 <= value <= most or not np.isfinite(value):
        valid = "a number from 0 to 1" if most == 1 else "a number, at least 0"
        raise InputError(f"{where}: {name}={repr(row[name])[:60]}; valid: {valid}")
    return value


def _tokens(row: dict[str, Any], name: str, where: str) -> list[int]:
    """Returns token ids; empty where the column is absent."""
    value = row.get(name, [])
    try:
        ids = json.loads(value) if isinstance(value, str) else value
        if not isinstance(ids, list) or not all(type(id) is int and 0 <= id < 2**31 for id in ids):
            raise ValueError
    except ValueError:
        raise InputError(f"{where}: {name}={repr(value)[:60]}; valid: a list of token ids") from None
    return ids


def _instant(row: dict[str, Any], name: str, where: str) -> float:
    """Returns seconds since 1970; now where the column is absent."""
    value = row.get(name)
    try:
        return time.time() if value is None else datetime.datetime.fromisoformat(value).timestamp()
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{where}: {name}={repr(value)[:60]}; valid: a time as 2026-01-31T12:00") from None
