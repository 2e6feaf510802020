"""Keeps the pairs of answers that users of a chat saw, what they chose, and what its operators asked for.

`python -m sea_jax.serve` writes and reads it, and so do its commands, also while it runs. Every call is one
transaction that is on the disk when it returns. Imports no JAX.
"""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import NamedTuple

from sea_jax.labels.question_tables import BOTH_BAD, FIRST, SECOND, SKIP, TIE
from sea_jax.labels.store import SESSIONS, Layout, Store

FILE = "chat.sqlite"
LEFT, RIGHT = "left", "right"
CHOICES = (LEFT, RIGHT, TIE, BOTH_BAD, SKIP)
_TABLES = """
CREATE TABLE duels (
  id INTEGER PRIMARY KEY,
  user TEXT NOT NULL,
  prompt TEXT NOT NULL,             -- the conversation
  first TEXT NOT NULL,
  second TEXT NOT NULL,
  first_tokens BLOB NOT NULL,       -- token ids, int32, little-endian
  second_tokens BLOB NOT NULL,
  version INTEGER NOT NULL,         -- steps that the policy that wrote them had learned from
  reference INTEGER,                -- the starting policy wrote the first (0) or second (1); NULL: neither
  first_on_left INTEGER NOT NULL,
  shown_at REAL NOT NULL,           -- seconds since 1970, UTC
  until REAL NOT NULL,              -- a choice is taken until then
  verdict TEXT CHECK (verdict IN ('first', 'second', 'tie', 'both_bad', 'skip')),
  given_at REAL,
  step INTEGER,                     -- that learned from it
  row INTEGER
) STRICT;
CREATE UNIQUE INDEX duels_of_a_step ON duels (step, row);
CREATE INDEX fresh_duels ON duels (verdict, given_at, id) WHERE step IS NULL;
CREATE TABLE rollbacks (
  id INTEGER PRIMARY KEY,
  version INTEGER NOT NULL,         -- whose policy is taken up again
  asked_at REAL NOT NULL,
  step INTEGER,                     -- before which it was done; NULL: not yet
  failure TEXT NOT NULL DEFAULT ''  -- why it could not be done
) STRICT;
CREATE TABLE pauses (id INTEGER PRIMARY KEY, paused INTEGER NOT NULL, since REAL NOT NULL) STRICT;
"""
_LAYOUT = Layout("file of a chat", 1, _TABLES + SESSIONS, "rollbacks")


class Pair(NamedTuple):
    """Two answers for a user to compare."""

    prompt: str
    first: str
    second: str
    first_tokens: bytes
    second_tokens: bytes
    version: int
    reference: int | None = None  # the starting policy wrote the first (0) or the second (1)


class ShownPair(NamedTuple):
    """A pair as the user sees it."""

    duel: int
    left: str
    right: str


class Chosen(NamedTuple):
    """A pair with a choice, as a row of a batch."""

    id: int
    row: int
    user: str
    prompt: str
    first: str
    second: str
    first_tokens: bytes
    second_tokens: bytes
    version: int
    verdict: str  # 'first', 'second' or 'tie'


class Rollback(NamedTuple):
    """A request to take up an earlier policy again."""

    id: int
    version: int


class Totals(NamedTuple):
    """Numbers of pairs of a work directory."""

    shown: int
    answered: int
    ties: int  # of the answered, also 'both_bad'
    learned: int


class Online(NamedTuple):
    """Comparisons of the policy with the one that it began from, by users who do not know which is which."""

    compared: int
    wins: float  # a tie counts ½

    @property
    def rate(self) -> float | None:
        """The win rate; None before there is a comparison."""
        return self.wins / self.compared if self.compared else None


class NotYoursError(Exception):
    """A choice cannot be taken; the message says why, for the user."""


class ChatDuels(Store):
    """The pairs of a work directory; thread-safe, and shared by several processes.

    Args:
        folder: the work directory; made if absent.
        answer_s: seconds for which a user can choose.

    Raises:
        InputError, StorageError: as `Store`.
    """

    def __init__(self, folder: Path, answer_s: float = 300.0):
        super().__init__(folder / FILE, _LAYOUT)
        self._answer_s = answer_s

    def show(self, user: str, pair: Pair) -> ShownPair:
        """Writes a pair before the user sees it, with sides drawn at random."""
        now, first_on_left = time.time(), secrets.randbelow(2)
        with self._writing() as db:
            added = db.execute(
                "INSERT INTO duels (user, prompt, first, second, first_tokens, second_tokens, version, "
                "reference, first_on_left, shown_at, until) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (user, *pair, first_on_left, now, now + self._answer_s),
            )
            assert added.lastrowid is not None
        sides = (pair.first, pair.second) if first_on_left else (pair.second, pair.first)
        return ShownPair(added.lastrowid, *sides)

    def choose(self, duel: int, user: str, choice: str) -> str:
        """Writes a user's choice, one of CHOICES; the same one twice is written once.

        Returns:
            The verdict, one of `question_tables.VERDICTS`.

        Raises:
            NotYoursError: the user was not shown the pair, has chosen otherwise, or its time is over.
        """
        now = time.time()
        with self._writing() as db:
            row = db.execute(
                "SELECT first_on_left, verdict, until FROM duels WHERE id = ? AND user = ?", (duel, user)
            ).fetchone()
            if row is None:
                raise NotYoursError("no such pair was shown to you")
            first_on_left, given, until = row
            verdict = choice
            if choice in (LEFT, RIGHT):
                verdict = FIRST if (choice == LEFT) == bool(first_on_left) else SECOND
            if given is not None and given != verdict:
                raise NotYoursError("you have chosen already")
            if given is None and now > until:
                raise NotYoursError("the time to choose is over")
            if given is None:
                db.execute("UPDATE duels SET verdict = ?, given_at = ? WHERE id = ?", (verdict, now, duel))
        return verdict

    def take(self, step: int, size: int, with_ties: bool = False) -> list[Chosen]:
        """Returns the choices that step t learns from: those it had before, else the oldest that no step has.

        Args:
            step: t.
            size: choices of a batch; a batch is given out whole.
            with_ties: takes ties too; without, they say nothing.

        Returns:
            The batch; empty if there are not enough choices.
        """
        usable = _usable(with_ties)
        with self._writing() as db:
            if not db.execute("SELECT 1 FROM duels WHERE step = ?", (step,)).fetchone():
                fresh = db.execute(
                    "SELECT id FROM duels WHERE step IS NULL AND verdict IN (?, ?, ?) ORDER BY given_at, id "
                    "LIMIT ?",
                    (*usable, size),
                ).fetchall()
                if len(fresh) < size:
                    return []
                places = [(step, row, id) for row, (id,) in enumerate(fresh)]
                db.executemany("UPDATE duels SET step = ?, row = ? WHERE id = ?", places)
            return self._of_step(step)

    def waiting(self, with_ties: bool = False) -> int:
        """Counts the pairs that wait for a choice, or to be learned from."""
        with self.reading() as db:
            (found,) = db.execute(
                "SELECT count(*) FILTER (WHERE verdict IS NOT NULL OR until >= ?) FROM duels "
                "WHERE step IS NULL AND (verdict IS NULL OR verdict IN (?, ?, ?))",
                (time.time(), *_usable(with_ties)),
            ).fetchone()
        return found

    def of_step(self, step: int) -> list[Chosen]:
        """Returns the choices that step t learns from."""
        with self.reading():
            return self._of_step(step)

    def _of_step(self, step: int) -> list[Chosen]:
        columns = ", ".join(Chosen._fields)
        rows = self._db.execute(f"SELECT {columns} FROM duels WHERE step = ? ORDER BY row", (step,))
        return [Chosen(*row) for row in rows]

    def totals(self) -> Totals:
        """Counts the pairs."""
        with self.reading() as db:
            return Totals(
                *db.execute(
                    "SELECT count(*), count(verdict), count(*) FILTER (WHERE verdict IN (?, ?)), count(step) "
                    "FROM duels",
                    (TIE, BOTH_BAD),
                ).fetchone()
            )

    def online(self, last: int = 0) -> Online:
        """Measures the policy against the one that it began from, on the last so many comparisons; 0: all."""
        with self.reading() as db:
            rows = db.execute(
                "SELECT reference, verdict FROM duels WHERE reference IS NOT NULL AND verdict IN (?, ?, ?) "
                "ORDER BY given_at DESC, id DESC LIMIT ?",
                (FIRST, SECOND, TIE, last or -1),
            ).fetchall()
        of_policy = {0: SECOND, 1: FIRST}
        wins = sum(0.5 if said == TIE else float(said == of_policy[by]) for by, said in rows)
        return Online(len(rows), wins)

    def set_paused(self, paused: bool) -> None:
        """Asks the learner to pause, or to go on."""
        with self._writing() as db:
            db.execute("INSERT INTO pauses (paused, since) VALUES (?, ?)", (int(paused), time.time()))

    def paused(self) -> bool:
        """Tells whether the learner is to pause."""
        with self.reading() as db:
            row = db.execute("SELECT paused FROM pauses ORDER BY id DESC LIMIT 1").fetchone()
        return bool(row and row[0])

    def ask_rollback(self, version: int) -> None:
        """Asks the learner to take up the policy of a version again."""
        with self._writing() as db:
            db.execute("INSERT INTO rollbacks (version, asked_at) VALUES (?, ?)", (version, time.time()))

    def rollbacks(self, step: int | None = None) -> list[Rollback]:
        """Returns the rollbacks that were done before a step; with None those that are yet to be done."""
        with self.reading() as db:
            query = "SELECT id, version FROM rollbacks WHERE step IS ? AND failure = '' ORDER BY id"
            return [Rollback(*row) for row in db.execute(query, (step,))]

    def end_rollback(self, rollback: Rollback, step: int, failure: str = "") -> None:
        """Writes before which step a rollback was done, or why it was not."""
        with self._writing() as db:
            db.execute(
                "UPDATE rollbacks SET step = ?, failure = ? WHERE id = ?", (step, failure, rollback.id)
            )

    def last_rollback(self) -> tuple[int, int | None, str] | None:
        """Returns version, step and failure of the newest rollback; None without one."""
        with self.reading() as db:
            query = "SELECT version, step, failure FROM rollbacks ORDER BY id DESC LIMIT 1"
            return db.execute(query).fetchone()


def _usable(with_ties: bool) -> tuple[str, str, str]:
    """Returns the verdicts that say something."""
    return (FIRST, SECOND, TIE) if with_ties else (FIRST, SECOND, FIRST)
