"""Finds the columns that hold prompts, references and preferences, and reads their texts.

References:
    Stiennon et al. (2020), Learning to summarize from human feedback, arXiv:2009.01325: the TL;DR prompt.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from sea_jax.errors import InputError
from sea_jax.tasks.protocol import utf8
from sea_jax.tasks.sources import Row, Table

PROMPTS = ("prompt", "query")  # the first that exists
REFERENCES = ("reference", "completion", "reference_response", "summary")
PREFERENCES = dict(chosen_column="chosen", rejected_column="rejected")  # field -> the column by default
POST = ("subreddit", "title", "post")  # the parts of a prompt, where it has no column of its own
NONE = "none"  # as a reference column: read no references
TLDR_PROMPT = "SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"
KNOWN = frozenset((*PROMPTS, *REFERENCES, *POST, "info"))
_MARKS = ("<|endoftext|>", "[PAD]")  # found in the references of some TL;DR sets


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of prompt and reference.

    Attributes:
      prompt: a column of texts, or of conversations; None: the three columns of a Reddit post.
      reference: a column of responses or of conversations; None: there are no references.
      summaries: True for TL;DR: cleans the references and puts a space between them and "TL;DR:".
    """

    prompt: str | None
    reference: str | None
    summaries: bool

    def pair(self, row: Row) -> tuple[str, str]:
        """Reads prompt and reference of a row; '' where one is absent.

        A conversation as a prompt must have one turn; longer ones count as absent. A conversation as a
        reference gives its last turn.

        Raises:
          InputError: a column holds other values than text; names the row.
        """
        with _named(row):
            return self._pair(_with_info(row))

    def first(self, row: dict[str, Any]) -> str:
        """Reads the prompt of a row alone."""
        return self._pair(_with_info(row))[0]

    def _pair(self, row: dict[str, Any]) -> tuple[str, str]:
        if self.prompt is not None:
            turns = _turns(row.get(self.prompt), self.prompt)
            prompt = turns[0] if len(turns) == 1 else ""
        else:
            parts = {name: "".join(_turns(row.get(name), name)) for name in POST}
            prompt = TLDR_PROMPT.format(**parts) if parts["post"] else ""
        reference = ([""] + (_turns(row.get(self.reference), self.reference) if self.reference else []))[-1]
        return prompt, _summary(reference) if self.summaries else reference


@dataclasses.dataclass(frozen=True)
class PairColumns:
    """The columns of prompt, preferred response and other response.

    Attributes:
      prompt: the prompt's column; None: it is the first turn of the conversations.
      chosen, rejected: columns of texts, or of conversations that end with the response.
      summaries: as in `Columns`.
    """

    prompt: Columns | None
    chosen: str
    rejected: str
    summaries: bool

    def read(self, row: Row) -> tuple[str, str, str] | str:
        """Reads prompt, y+ and y−; or returns the reason to drop the row: 'without a prompt', …

        Raises:
          InputError: a column holds other values than text; names the row.
        """
        with _named(row):
            return self._read(row)

    def _read(self, row: Row) -> tuple[str, str, str] | str:
        turns = [_turns(row.get(column), column) for column in (self.chosen, self.rejected)]
        if self.prompt is not None:
            prompt = self.prompt.first(row)
        else:
            prompt = turns[0][0] if len(turns[0]) > 1 else ""
        if not prompt.strip():
            return "without a prompt"
        if any([t.strip() for t in talk[:-1]] not in ([], [prompt.strip()]) for talk in turns):
            return "that go on from another conversation than the prompt"
        chosen, rejected = (talk[-1] if talk else "" for talk in turns)
        if self.summaries:
            chosen, rejected = _summary(chosen), _summary(rejected)
        if not chosen.strip() or not rejected.strip():
            return "without a response"
        if chosen.strip() == rejected.strip():
            return "of equal responses"
        return prompt, chosen, rejected


def find(table: Table, prompt: str, reference: str, summaries: bool, where: str) -> Columns:
    """Finds the columns of a table.

    Args:
      table: the split that is trained on.
      prompt: the column's name; empty: the first of PROMPTS, else of POST.
      reference: likewise; empty: the first of REFERENCES, if any; NONE: none.
      summaries: see `Columns`.
      where: names the data in errors.

    Raises:
      InputError: a named column, or every column that could hold prompts, is missing.
    """
    present = table.columns | _with_info(table.rows[0]).keys()
    for field, name in (("prompt_column", prompt), ("reference_column", reference)):
        if name and name not in (present if field == "prompt_column" else {*present, NONE}):
            raise InputError(f"config.task.{field}={name!r}: valid is one of {sorted(present)}, "
                             f"the columns of {where}")  # fmt: skip
    found = prompt or _first(PROMPTS, present)
    if found is None and not present.issuperset(POST):
        raise InputError(f"config.task.prompt_column='': valid is one of {sorted(present)}, the columns of "
                         f"{where}, as it has none of {PROMPTS}")  # fmt: skip
    reference = reference or _first(REFERENCES, present) or NONE
    return Columns(found, None if reference == NONE else reference, summaries)


def find_pairs(table: Table, given: dict[str, str], summaries: bool, where: str) -> PairColumns:
    """Finds the columns of a preference set.

    Args:
      table: the split that is trained on.
      given: prompt_column, chosen_column and rejected_column; empty: as in `find`, or as PREFERENCES.
      summaries, where: as in `find`.

    Raises:
      InputError: a column is missing.
    """
    present = table.columns | _with_info(table.rows[0]).keys()
    names = []
    for field, default in PREFERENCES.items():
        name = given[field] or default
        if name not in table.columns:
            why = "" if given[field] else f", as it has no {default!r}"
            raise InputError(f"config.task.{field}={given[field]!r}: valid is one of "
                             f"{sorted(table.columns)}, the columns of {where}{why}")  # fmt: skip
        names.append(name)
    prompt = given["prompt_column"]
    if prompt or _first(PROMPTS, present) or present.issuperset(POST):
        return PairColumns(find(table, prompt, NONE, summaries, where), names[0], names[1], summaries)
    return PairColumns(None, names[0], names[1], summaries)


def _first(known: Sequence[str], present: set[str]) -> str | None:
    return next((name for name in known if name in present), None)


def _summary(text: str) -> str:
    for mark in _MARKS:
        text = text.replace(mark, "")
    return text.strip() and f" {text.strip()}"


@contextlib.contextmanager
def _named(row: Row) -> Iterator[None]:
    """Adds the row's place to an InputError."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{row.place}: {error}") from None


def _with_info(row: dict[str, Any]) -> dict[str, Any]:
    """Merges a row with its `info`, where openai/summarize_from_feedback has the post."""
    info = row.get("info")
    return info | row if isinstance(info, dict) else row


def _turns(value: Any, column: str) -> list[str]:
    """Returns the texts of a conversation; a single text counts as one turn."""
    if value is None:
        return []
    if isinstance(value, str):
        return [utf8(value)]
    try:
        turns = [message["content"] for message in value]
    except (TypeError, KeyError):
        turns = [None]
    if not all(isinstance(turn, str) for turn in turns):
        raise InputError(f"column {column!r}: holds {repr(value)[:60]}; valid: texts")
    return [utf8(turn) for turn in turns]  # pyright: ignore[reportArgumentType]
