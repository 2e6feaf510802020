"""Writes every duel of a run before it is asked, and every answer before anything learns from it.

The journal is one SQLite file per run. It can be read while the run writes. Each call is one transaction that
is on the disk when the call returns: `synchronous=FULL` keeps it through a power failure, as WAL mode alone
would not. Imports no JAX.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sea_jax.errors import InputError, StorageError
from sea_jax.labels import damage

FILE = "labels.sqlite"
LAYOUT = 2  # of the tables; `PRAGMA user_version`
ASKED, ANSWERED, UNANSWERED = "asked", "answered", "unanswered"
# As policy_step: of labels that were bought elsewhere; as step: of those that no step has used yet.
ELSEWHERE = -1
_BUSY_SECONDS = 30.0  # to wait for a process that reads
_READ_AGAIN = 20_000  # duels that are checked when a run opens its journal: more than it reads again
_TABLES = """
CREATE TABLE duels (
  id INTEGER PRIMARY KEY,
  step INTEGER NOT NULL,            -- t, from 0; -1: an imported label that no step has used yet
  row INTEGER NOT NULL,             -- of the step's batch
  policy_step INTEGER NOT NULL,     -- steps that the policy that wrote them had learned from; -1: elsewhere
  prompt TEXT NOT NULL,
  first TEXT NOT NULL,              -- shown first; to a judge, in an order drawn from the texts
  second TEXT NOT NULL,
  first_tokens BLOB NOT NULL,       -- token ids, int32, little-endian; empty: unknown
  second_tokens BLOB NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('asked', 'answered', 'unanswered')),
  times_asked INTEGER NOT NULL,
  asked_at REAL NOT NULL,           -- seconds since 1970, UTC
  labelled_by TEXT NOT NULL,
  probability REAL,                 -- P(first ≻ second | x)
  prefers_first INTEGER,            -- the label
  cost REAL,                        -- US dollars; NULL: unknown
  seconds REAL,                     -- that the batch of this duel was waited for
  answered_at REAL,
  checksum INTEGER                  -- of the columns above; NULL in rows of layout 1
) STRICT;
CREATE INDEX duels_of_a_step ON duels (step, row);
CREATE TABLE proposals (step INTEGER PRIMARY KEY, content BLOB NOT NULL, checksum INTEGER) STRICT;
"""


class Question(NamedTuple):
    """A duel that an oracle is asked about."""

    row: int  # of the step's batch
    prompt: str
    first: str
    second: str
    first_tokens: np.ndarray  # [n] int32, without padding; empty: unknown
    second_tokens: np.ndarray


class Entry(NamedTuple):
    """A duel as the journal holds it."""

    id: int
    state: str
    probability: float | None
    prefers_first: bool | None


class Answer(NamedTuple):
    """The outcome of a question: a label, or none."""

    id: int
    answered: bool
    probability: float
    prefers_first: bool
    labelled_by: str = ""  # empty: whom the journal names


class Journal:
    """The label journal of one run; only its main process opens it.

    Args:
        folder: the run's; made if absent. A journal that it holds is continued.
        labelled_by: who answers, as 'judge gpt-4o-mini'; no secret.
        name: of the file.

    Raises:
        InputError: the file is no journal, is damaged, or was written by a newer version.
        StorageError: it cannot be written.
    """

    def __init__(self, folder: Path, labelled_by: str, name: str = FILE):
        self._file, self._labelled_by = folder / name, labelled_by
        with _storage(self._file):
            folder.mkdir(parents=True, exist_ok=True)
            self._db = connect(self._file)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._make_tables()
        require_whole(self._db, self._file, _READ_AGAIN)

    def _make_tables(self) -> None:
        """Makes the tables of a new file, and the checksums of one of an older version."""
        (layout,) = self._db.execute("PRAGMA user_version").fetchone()
        if layout == 0:
            self._db.executescript(f"BEGIN; {_TABLES} PRAGMA user_version={LAYOUT}; COMMIT")
        elif layout < LAYOUT:
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                damage.add_checksums(self._db)
                self._db.execute(f"PRAGMA user_version={LAYOUT}")

    def ask(self, step: int, policy_step: int, questions: Sequence[Question], proposal: bytes) -> list[Entry]:
        """Writes the questions of a step that are not answered yet.

        A question is known by its step, row and texts; one that was answered elsewhere by step and row, as
        its tokens may decode to another text. One that was asked before and has no answer is asked again,
        which raises times_asked.

        Args:
            step: t.
            policy_step: steps that the policy had learned from when it wrote the responses.
            questions: B duels.
            proposal: the prompts and responses that the duels were chosen from, or nothing. A run that is
                restored at an earlier step reads them, so that it asks the same duels though its sampler
                writes others.

        Returns:
            One entry for each question.
        """
        now, entries = time.time(), []
        with self.writing() as db:
            if proposal:
                self._keep_proposal(step, proposal)
            for q in questions:
                entry = self._find(step, q)
                if entry is None:
                    tokens = (pack_tokens(q.first_tokens), pack_tokens(q.second_tokens))
                    row = (step, q.row, policy_step, q.prompt, q.first, q.second, *tokens, now)
                    added = db.execute(
                        "INSERT INTO duels (step, row, policy_step, prompt, first, second, first_tokens, "
                        "second_tokens, asked_at, state, times_asked, labelled_by) "
                        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'asked', 1, ?)",
                        (*row, self._labelled_by),
                    )
                    entry = Entry(_id(added), ASKED, None, None)
                elif entry.state == ASKED:
                    again = "UPDATE duels SET times_asked = times_asked + 1, asked_at = ? WHERE id = ?"
                    db.execute(again, (now, entry.id))
                entries.append(entry)
            self._db.executemany(damage.SEAL_DUEL, [(entry.id,) for entry in entries])
        return entries

    def answer(self, answers: Sequence[Answer], seconds: float, cost: float | None = None) -> None:
        """Writes the answers to questions; they are on the disk when this returns.

        Args:
            answers: of `ask`'s entries.
            seconds: waited for all of them.
            cost: of all of them, in US dollars; None: unknown.
        """
        now, each = time.time(), None if cost is None else cost / max(len(answers), 1)
        rows = [
            (ANSWERED, a.probability, int(a.prefers_first), each, seconds, now, a.labelled_by, a.id)
            if a.answered
            else (UNANSWERED, None, None, each, seconds, now, a.labelled_by, a.id)
            for a in answers
        ]
        with self.writing() as db:
            db.executemany(
                "UPDATE duels SET state = ?, probability = ?, prefers_first = ?, cost = ?, seconds = ?, "
                "answered_at = ?, labelled_by = coalesce(nullif(?, ''), labelled_by) WHERE id = ?",
                rows,
            )
            self._db.executemany(damage.SEAL_DUEL, [(a.id,) for a in answers])

    def keep_proposal(self, step: int, content: bytes) -> None:
        """Keeps the prompts and responses of a step that has not begun."""
        with self.writing():
            self._keep_proposal(step, content)

    def _keep_proposal(self, step: int, content: bytes) -> None:
        self._db.execute("INSERT OR REPLACE INTO proposals (step, content) VALUES (?, ?)", (step, content))
        self._db.execute(damage.SEAL_PROPOSAL, (step,))

    def proposals(self, first: int) -> dict[int, bytes]:
        """Returns the prompts and responses of the steps from `first` on, by step."""
        with _storage(self._file):
            return dict(self._db.execute("SELECT step, content FROM proposals WHERE step >= ?", (first,)))

    def forget_proposals(self, before: int) -> None:
        """Deletes the proposals of the steps before one, which no restored run reads again."""
        with self.writing() as db:
            db.execute("DELETE FROM proposals WHERE step < ?", (before,))

    @property
    def file(self) -> Path:
        """The journal's file."""
        return self._file

    def count(self) -> int:
        """Returns the number of labels, without imported ones that no step uses yet."""
        query = "SELECT count(*) FROM duels WHERE state = 'answered' AND step >= 0"
        with _storage(self._file):
            return self._db.execute(query).fetchone()[0]

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _find(self, step: int, q: Question) -> Entry | None:
        found = self._db.execute(
            "SELECT id, state, probability, prefers_first FROM duels "
            "WHERE step = ? AND row = ? AND (policy_step = ? OR (prompt = ? AND first = ? AND second = ?))",
            (step, q.row, ELSEWHERE, q.prompt, q.first, q.second),
        ).fetchone()
        if found is None:
            return None
        number, state, probability, first = found
        return Entry(number, state, probability, None if first is None else bool(first))

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Makes one transaction of what happens inside."""
        with _storage(self._file), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Turns errors of SQLite inside into one line that names the file."""
        with _storage(self._file):
            yield self._db


def connect(file: Path, read_only: bool = False) -> sqlite3.Connection:
    """Opens a journal.

    Raises:
        InputError: it is no journal of this layout, or damaged.
        StorageError: it cannot be opened.
    """
    address = f"{file.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
    with _storage(file):
        db = sqlite3.connect(address, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)
        damage.prepare(db)
        (layout,) = db.execute("PRAGMA user_version").fetchone()
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if layout > LAYOUT:
        raise InputError(f"{file}: layout {layout}, written by a newer version; valid: at most {LAYOUT}")
    if (layout or read_only or tables) and not {"duels", "proposals"} <= tables:
        raise InputError(f"{file}: no label journal; valid: the {FILE} of a run")
    return db


def require_whole(db: sqlite3.Connection, file: Path, newest: int = 0) -> None:
    """Raises InputError if a journal is damaged, with the first damage; `newest` as in `damage.find`."""
    with _storage(file):
        found = damage.find(db, newest)
    if found:
        raise _damaged(file, f"{found[0]}; python -m sea_jax.labels verify {file.parent} names all")


@contextlib.contextmanager
def _storage(file: Path) -> Iterator[None]:
    """Turns an error of SQLite into one line that names the file."""
    try:
        yield
    except (sqlite3.OperationalError, OSError) as error:
        code = getattr(error, "sqlite_errorcode", None)
        if isinstance(error, sqlite3.OperationalError) and code in (None, sqlite3.SQLITE_ERROR):
            raise _damaged(file, str(error)) from error  # such as a text that is none, or an unknown table
        raise StorageError(f"{file}: {error}") from error
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        raise _damaged(file, str(error)) from error


def _damaged(file: Path, what: str) -> InputError:
    valid = f"valid: a copy of it; without it the run begins anew and its labels are lost, so keep {file}"
    return InputError(f"{file}: damaged ({' '.join(what.split())}); {valid}")


def pack_tokens(tokens: Any) -> bytes:
    """Returns token ids as the journal stores them."""
    return np.asarray(tokens, "<i4").tobytes()


def _id(cursor: sqlite3.Cursor) -> int:
    assert cursor.lastrowid is not None
    return cursor.lastrowid
