"""Reads label journals: rows, summaries and faults. Imports no JAX, and writes nothing."""

from __future__ import annotations

import contextlib
import datetime
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sea_jax.errors import InputError
from sea_jax.labels import damage
from sea_jax.labels.journal import ANSWERED, ASKED, ELSEWHERE, FILE, UNANSWERED, connect, require_whole
from sea_jax.runtime.run_folder import is_finished, read_summary

COLUMNS = (
    "run", "step", "row", "policy_step", "prompt", "first", "second", "first_tokens", "second_tokens",
    "chosen", "probability", "labelled_by", "times_asked", "cost", "seconds", "asked_at", "answered_at",
)  # fmt: skip


class RunLabels(NamedTuple):
    """The labels of one run, counted."""

    run: str  # name of its folder
    labels: int  # bought or imported
    imported: int
    unanswered: int  # the oracle gave no usable answer
    waiting: int  # asked, and not answered yet
    cost: float | None  # of those that were bought, US dollars; None: unknown
    labelled_by: str
    last: str  # time of the last answer; empty without one


def journals(folder: Path) -> list[Path]:
    """Returns the journals of a run's folder, or of all runs of a work directory.

    Raises:
        InputError: there is none.
    """
    found = sorted([*folder.glob(FILE), *folder.glob(f"runs/*/{FILE}")])
    if not found:
        raise InputError(f"{folder}: holds no {FILE}; valid: a run's folder, or a --workdir of runs")
    return found


def labels(file: Path) -> Iterator[dict[str, Any]]:
    """Yields the labels of a journal in the order in which they were asked, with the names in `COLUMNS`."""
    with _reading(file) as db:
        names = [name for name in COLUMNS if name not in ("run", "chosen")]
        query = f"SELECT {', '.join(names)}, prefers_first FROM duels WHERE state = ? ORDER BY id"
        for *values, first in db.execute(query, (ANSWERED,)):
            row = dict(zip(names, values, strict=True))
            row |= {
                name: np.frombuffer(row[name], "<i4").tolist() for name in row if name.endswith("_tokens")
            }
            row |= {name: _instant(row[name]) for name in ("asked_at", "answered_at")}
            row |= {"run": file.parent.name, "chosen": "first" if first else "second"}
            yield {name: row[name] for name in COLUMNS}


def summary(file: Path) -> RunLabels:
    """Counts the labels of a journal."""
    with _reading(file) as db:
        counts = dict(db.execute("SELECT state, count(*) FROM duels GROUP BY state"))
        elsewhere = f"policy_step = {ELSEWHERE}"
        cost, last, imported = db.execute(
            f"SELECT sum(cost) FILTER (WHERE NOT {elsewhere}), max(answered_at), count(*) FILTER (WHERE "
            f"{elsewhere}) FROM duels"
        ).fetchone()
        names = [name for (name,) in db.execute("SELECT DISTINCT labelled_by FROM duels")]
    bought, unanswered, waiting = (counts.get(state, 0) for state in (ANSWERED, UNANSWERED, ASKED))
    when = _instant(last) if last else ""
    return RunLabels(file.parent.name, bought, imported, unanswered, waiting, cost, ", ".join(names), when)


def faults(file: Path) -> list[str]:
    """Returns what is wrong with a journal, one line each; empty if nothing is."""
    with _reading(file, whole=False) as db:
        found = [f"{file}: {line}" for line in damage.find(db)]
        for meaning, condition in _FAULTS.items():
            (count,) = db.execute(f"SELECT count(*) FROM duels WHERE {condition}").fetchone()
            if count:
                found.append(f"{file}: {count} duels {meaning}")
        used = f"state = '{ANSWERED}' AND step >= 0"
        places = f"SELECT 1 FROM duels WHERE {used} GROUP BY step, row HAVING count(*) > 1"
        (count,) = db.execute(f"SELECT count(*) FROM ({places})").fetchone()
        (learned,) = db.execute(f"SELECT count(*) FROM duels WHERE {used}").fetchone()
    if count:
        found.append(f"{file}: {count} places of a batch have two labels")
    if is_finished(file.parent) and (counted := read_summary(file.parent).queries) != learned:
        found.append(f"{file}: {learned} labels; its run counted {counted}")
    return found


_FAULTS = {"have two equal responses": "length(first_tokens) AND first_tokens = second_tokens"}


@contextlib.contextmanager
def _reading(file: Path, whole: bool = True) -> Iterator[sqlite3.Connection]:
    """Opens a journal to read it; one that is damaged only where it need not be whole."""
    db = connect(file, read_only=True)
    try:
        if whole:
            require_whole(db, file)
        yield db
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: damaged ({error}); valid: a copy of it") from error
    finally:
        db.close()


def _instant(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="milliseconds")
