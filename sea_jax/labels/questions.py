"""Keeps the questions that runs ask people, and every verdict with its annotator, time and order of sides.

A run offers duels and takes those that are closed. The page, in a process of its own, hands them out and
writes verdicts (`Desk`). Every call is one transaction that is on the disk when it returns. Imports no JAX.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sea_jax.labels.question_tables import FILE, LAYOUT
from sea_jax.labels.store import Store

# Of a verdict in exports; instants are seconds since 1970, UTC.
COLUMNS = (
    "run", "duel", "question", "prompt", "first", "second", "annotator", "verdict", "first_on_left",
    "shown_at", "given_at", "seconds", "undone_at",
)  # fmt: skip


class Question(NamedTuple):
    """A duel that a run offers to people."""

    duel: int  # id in the run's journal
    prompt: str
    first: str
    second: str
    step: int = 0  # t; the run waits for the earliest
    uncertainty: float = 0.0
    votes: int = 1  # verdicts that close it


class Open(NamedTuple):
    """A question as it was asked."""

    id: int
    prompt: str
    first: str
    second: str


class Closed(NamedTuple):
    """A question that needs no more verdicts."""

    duel: int
    verdicts: tuple[tuple[str, str], ...]  # annotator and verdict, without skips; empty: it was skipped


class Counts(NamedTuple):
    """Numbers of questions and verdicts of a work directory."""

    open: int
    closed: int
    verdicts: int  # without skips
    annotators: int


class Questions(Store):
    """The questions of a work directory; thread-safe.

    Args:
        folder: the work directory; made if absent.
        undo_s: seconds for which a verdict that closes a question can be taken back.

    Raises:
        InputError: the file is no file of questions, is damaged, or was written by a newer version.
        StorageError: it cannot be written.
    """

    def __init__(self, folder: Path, undo_s: float = 0.0):
        super().__init__(folder / FILE, LAYOUT)
        self._undo_s = undo_s

    def offer(self, run: str, questions: Sequence[Question]) -> None:
        """Offers duels to people; those that were offered before stay as they are.

        Args:
            run: name of the run's folder.
            questions: of the run's journal.
        """
        now = time.time()
        with self._writing() as db:
            for q in questions:
                known = db.execute(
                    "SELECT id, prompt, first, second FROM questions WHERE run = ? AND duel = ? "
                    "AND NOT withdrawn",
                    (run, q.duel),
                ).fetchone()
                if known is not None and known[1:] == (q.prompt, q.first, q.second):
                    continue
                if known is not None:  # of a journal that was deleted
                    db.execute("UPDATE questions SET withdrawn = 1 WHERE id = ?", known[:1])
                db.execute(
                    "INSERT INTO questions (run, duel, prompt, first, second, step, uncertainty, votes, "
                    "offered_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (run, *q, now),
                )

    def take(self, run: str, duels: Sequence[int]) -> list[Closed]:
        """Returns those of some duels that are closed; from now on nobody takes back their verdicts.

        A duel that was taken before is returned again, so that a run that died in between finds it.
        """
        found, now = [], time.time()
        with self._writing() as db:
            for duel in duels:
                row = db.execute(
                    "SELECT id FROM questions WHERE run = ? AND duel = ? AND NOT withdrawn "
                    "AND (taken_at IS NOT NULL OR closed_at <= ?)",
                    (run, duel, now - self._undo_s),
                ).fetchone()
                if row is None:
                    continue
                db.execute("UPDATE questions SET taken_at = coalesce(taken_at, ?) WHERE id = ?", (now, *row))
                votes = db.execute("SELECT annotator, verdict FROM votes WHERE question = ? ORDER BY id", row)
                found.append(Closed(duel, tuple(votes)))
        return found

    def withdraw(self, run: str, duels: Sequence[int]) -> None:
        """Asks some duels no more; whoever has one on the page cannot answer it."""
        with self._writing() as db:
            for duel in duels:
                db.execute(
                    "UPDATE questions SET withdrawn = 1 WHERE run = ? AND duel = ? AND NOT withdrawn",
                    (run, duel),
                )

    def asked(self, only_open: bool = False) -> list[Open]:
        """Returns the questions that are open, as they are handed out one by one; or all ever asked."""
        where = "WHERE closed_at IS NULL AND NOT withdrawn" if only_open else ""
        query = f"SELECT id, prompt, first, second FROM questions {where} ORDER BY step, uncertainty DESC, id"
        with self.reading() as db:
            return [Open(*row) for row in db.execute(query)]

    def set_budget(self, run: str, labels: int) -> None:
        """Tells the page how many labels a run may have; the newest run is the one that it shows."""
        with self._writing() as db:
            db.execute("INSERT OR REPLACE INTO budgets VALUES (?, ?, ?)", (run, labels, time.time()))

    def counts(self) -> Counts:
        """Counts questions and verdicts."""
        with self.reading() as db:
            open_, closed = db.execute(
                "SELECT count(*) - count(closed_at), count(closed_at) FROM questions WHERE NOT withdrawn"
            ).fetchone()
            verdicts, annotators = db.execute(
                "SELECT count(*), count(DISTINCT annotator) FROM votes"
            ).fetchone()
        return Counts(open_, closed, verdicts, annotators)

    def budget(self) -> tuple[str, int] | None:
        """Returns the newest run and how many labels it may have; None before there is one."""
        with self.reading() as db:
            return db.execute("SELECT run, labels FROM budgets ORDER BY since DESC LIMIT 1").fetchone()

    def votes(self) -> list[tuple[int, str, str]]:
        """Returns question, annotator and verdict of all verdicts but skips."""
        with self.reading() as db:
            return db.execute("SELECT question, annotator, verdict FROM votes ORDER BY id").fetchall()

    def verdicts(self) -> Iterator[dict[str, Any]]:
        """Yields all verdicts, also skips and those that were taken back, with the names in `COLUMNS`."""
        query = f"SELECT {', '.join(COLUMNS)} FROM verdicts JOIN questions ON questions.id = question"
        with self.reading() as db:
            for row in db.execute(f"{query} ORDER BY verdicts.id"):
                yield dict(zip(COLUMNS, row, strict=True))
