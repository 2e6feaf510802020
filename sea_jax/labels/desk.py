"""Hands questions out to annotators, and writes their verdicts. Imports no JAX."""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sea_jax.errors import InputError
from sea_jax.labels.question_tables import BOTH_BAD, FIRST, SECOND, SKIP, TIE
from sea_jax.labels.questions import Questions

# A question that others have loaded ahead may be shown to somebody else, but not be loaded ahead by them too.
_NEXT = """
SELECT id FROM questions AS q
WHERE closed_at IS NULL AND NOT withdrawn AND id != :besides
  AND NOT EXISTS (SELECT 1 FROM standing WHERE question = q.id AND annotator = :me)
  AND votes > (SELECT count(*) FROM votes WHERE question = q.id)
    + (SELECT count(*) FROM leases WHERE question = q.id AND annotator != :me AND (shown OR NOT :shown))
ORDER BY
  (SELECT 1 + shown FROM leases WHERE question = q.id AND annotator = :me) DESC NULLS LAST,
  EXISTS (SELECT 1 FROM leases WHERE question = q.id),
  step, uncertainty DESC, id
LIMIT 1
"""


class Shown(NamedTuple):
    """A question as one annotator sees it."""

    id: int
    prompt: str
    left: str
    right: str


class Verdict(NamedTuple):
    """A verdict that was given elsewhere."""

    question: int
    annotator: str
    verdict: str  # one of VERDICTS
    first_on_left: bool
    place: str  # file and row, for errors


class NotLeasedError(Exception):
    """An annotator's verdict cannot be taken; the message says why, for the annotator."""


class Desk(Questions):
    """The questions of a work directory, as annotators get them; thread-safe.

    Args:
        folder: the work directory; made if absent.
        lease_s: seconds for which a question that is shown belongs to one annotator.
        skips: skips after which a question is closed without a label.

    Raises:
        InputError, StorageError: as `Questions`.
    """

    def __init__(self, folder: Path, lease_s: float = 300.0, skips: int = 1):
        super().__init__(folder)
        self._lease_s, self._skips = lease_s, skips

    def next(
        self,
        annotator: str,
        shown: bool = True,
        besides: int = 0,
        present: Sequence[str] | None = None,
    ) -> Shown | None:
        """Hands out the open question of the earliest step that the posterior is least sure of.

        A question that the annotator was handed before, and has not answered, comes first. One that is shown
        to as many as it still needs is handed to no other.

        Args:
            annotator: name.
            shown: False: the page loads it ahead; another annotator may have it if there is no other.
            besides: id of a question that is not wanted; 0: none.
            present: annotators whose pages are open. Where there is no other question, those of the absent
                are handed out; None: nobody is absent.

        Returns:
            The question; None if there is none for this annotator.
        """
        now = time.time()
        with self._writing() as db:
            db.execute("DELETE FROM leases WHERE until < ?", (now,))
            wanted = dict(me=annotator, besides=besides, shown=int(shown))
            row = db.execute(_NEXT, wanted).fetchone()
            if row is None and present is not None:
                names = json.dumps([*present, annotator])
                db.execute(
                    "DELETE FROM leases WHERE annotator NOT IN (SELECT value FROM json_each(?))", (names,)
                )
                row = db.execute(_NEXT, wanted).fetchone()
            if row is None:
                return None
            return self._lease(db, row[0], annotator, shown, now)

    def show(self, question: int, annotator: str) -> Shown | None:
        """Shows a question that was loaded ahead, or another one if somebody else has it by now."""
        with self._writing() as db:
            leased = "SELECT 1 FROM leases WHERE question = ? AND annotator = ? AND until >= ?"
            if db.execute(leased, (question, annotator, time.time())).fetchone():
                return self._lease(db, question, annotator, True, time.time())
        return self.next(annotator)

    def _lease(self, db: sqlite3.Connection, question: int, annotator: str, shown: bool, now: float) -> Shown:
        """Leases a question, anew or again; takes it from those who only loaded it ahead.

        Sides are drawn at random; an annotator who took back a verdict sees the same ones again.
        """
        if shown:
            db.execute(
                "DELETE FROM leases WHERE question = ? AND annotator != ? AND NOT shown AND "
                "(SELECT count(*) FROM leases WHERE question = ?) + (SELECT count(*) FROM votes WHERE "
                "question = ?) >= (SELECT votes FROM questions WHERE id = ?)",
                (question, annotator, question, question, question),
            )
        db.execute(
            "INSERT INTO leases (question, annotator, until, shown, first_on_left, since) "
            "VALUES (?1, ?2, ?3, ?4, coalesce((SELECT first_on_left FROM verdicts WHERE question = ?1 AND "
            "annotator = ?2 LIMIT 1), ?5), ?6) ON CONFLICT DO UPDATE SET until = excluded.until, "
            "since = CASE WHEN leases.shown THEN leases.since ELSE excluded.since END, "
            "shown = max(leases.shown, excluded.shown)",
            (question, annotator, now + self._lease_s, int(shown), secrets.randbelow(2), now),
        )
        first_on_left, prompt, *pair = db.execute(
            "SELECT first_on_left, prompt, first, second FROM leases JOIN questions ON questions.id = "
            "question WHERE question = ? AND annotator = ?",
            (question, annotator),
        ).fetchone()
        return Shown(question, prompt, *(pair if first_on_left else reversed(pair)))

    def answer(self, question: int, annotator: str, choice: str, seconds: float = 0.0) -> str:
        """Writes a verdict; the same one twice is written once.

        Args:
            question: id.
            annotator: who has it.
            choice: 'left', 'right', or one of the last three of VERDICTS.
            seconds: that the page showed it.

        Returns:
            The verdict, one of VERDICTS.

        Raises:
            NotLeasedError: the annotator does not have the question, or has given another verdict.
        """
        now = time.time()
        with self._writing() as db:
            given = db.execute(
                "SELECT verdict, first_on_left FROM standing WHERE question = ? AND annotator = ?",
                (question, annotator),
            ).fetchone()
            if given is not None:
                if given[0] == _verdict(choice, given[1]):
                    return given[0]
                raise NotLeasedError("you have answered this one already")
            leased = db.execute(
                "SELECT first_on_left, since FROM leases JOIN questions ON questions.id = question WHERE "
                "question = ? AND annotator = ? AND until >= ? AND closed_at IS NULL AND NOT withdrawn",
                (question, annotator, now),
            ).fetchone()
            if leased is None:
                raise NotLeasedError("this one is somebody else's by now; here is another")
            first_on_left, since = leased
            verdict = _verdict(choice, first_on_left)
            db.execute(
                "INSERT INTO verdicts (question, annotator, verdict, first_on_left, shown_at, given_at, "
                "seconds) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (question, annotator, verdict, first_on_left, since, now, seconds),
            )
            db.execute("DELETE FROM leases WHERE question = ? AND annotator = ?", (question, annotator))
            self._close(db, question, now)
        return verdict

    def add(self, verdicts: Sequence[Verdict]) -> tuple[int, int]:
        """Writes verdicts that were given elsewhere: all of them, or none where one is not valid.

        Args:
            verdicts: on questions that were asked. One that is there already is left out.

        Returns:
            How many were written, and how many were there already.

        Raises:
            InputError: an annotator's verdict contradicts an earlier one, or the question is closed; with the
                file and row.
        """
        now, added = time.time(), 0
        with self._writing() as db:
            for one in verdicts:
                given = db.execute(
                    "SELECT verdict FROM standing WHERE question = ? AND annotator = ?", one[:2]
                ).fetchone()
                if given == (one.verdict,):
                    continue
                (is_open,) = db.execute(
                    "SELECT closed_at IS NULL AND NOT withdrawn FROM questions WHERE id = ?", one[:1]
                ).fetchone()
                if given is not None or not is_open:
                    said = f"answered twice by {one.annotator}" if given is not None else "closed already"
                    raise InputError(f"{one.place}: question {one.question}: {said}; valid: one answer")
                db.execute(
                    "INSERT INTO verdicts (question, annotator, verdict, first_on_left, shown_at, given_at, "
                    "seconds) VALUES (?, ?, ?, ?, ?, ?, 0)",
                    (*one[:3], int(one.first_on_left), now, now),
                )
                db.execute("DELETE FROM leases WHERE question = ? AND annotator = ?", one[:2])
                self._close(db, one.question, now)
                added += 1
        return added, len(verdicts) - added

    def _close(self, db: sqlite3.Connection, question: int, now: float) -> None:
        """Closes a question that has its verdicts or was skipped too often; opens it where it has not."""
        skips, given, votes = db.execute(
            f"SELECT total(verdict = '{SKIP}'), total(verdict != '{SKIP}'), (SELECT votes FROM questions "
            "WHERE id = ?) FROM standing WHERE question = ?",
            (question, question),
        ).fetchone()
        closed = now if given >= votes or skips >= self._skips else None
        db.execute("UPDATE questions SET closed_at = ? WHERE id = ?", (closed, question))

    def undo(self, annotator: str) -> Shown | None:
        """Takes back the annotator's last verdict, and hands out its question again.

        Returns:
            The question; None if there is none, or a run has learned from it.
        """
        now = time.time()
        with self._writing() as db:
            last = db.execute(
                "SELECT standing.id, question, taken_at FROM standing JOIN questions ON questions.id = "
                "question WHERE annotator = ? ORDER BY standing.id DESC LIMIT 1",
                (annotator,),
            ).fetchone()
            if last is None or last[2] is not None:
                return None
            verdict, question, _ = last
            db.execute("UPDATE verdicts SET undone_at = ? WHERE id = ?", (now, verdict))
            self._close(db, question, now)
            return self._lease(db, question, annotator, True, now)

    def count_of(self, annotator: str) -> int:
        """Returns the number of an annotator's verdicts, without skips."""
        with self.reading() as db:
            return db.execute("SELECT count(*) FROM votes WHERE annotator = ?", (annotator,)).fetchone()[0]


def _verdict(choice: str, first_on_left: int) -> str:
    """Returns the verdict, one of VERDICTS, of a choice on the page."""
    if choice in ("left", "right"):
        return FIRST if (choice == "left") == bool(first_on_left) else SECOND
    if choice not in (TIE, BOTH_BAD, SKIP):
        raise ValueError(f"choice: {choice!r}; valid: 'left', 'right', {TIE!r}, {BOTH_BAD!r}, {SKIP!r}")
    return choice
