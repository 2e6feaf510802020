"""The tables behind the questions that runs ask people, in one SQLite file per work directory."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from sea_jax.errors import InputError, StorageError

FILE = "questions.sqlite"
LAYOUT = 1  # of the tables; `PRAGMA user_version`
FIRST, SECOND, TIE, BOTH_BAD, SKIP = VERDICTS = ("first", "second", "tie", "both_bad", "skip")
_BUSY_SECONDS = 30.0
_TABLES = """
CREATE TABLE questions (
  id INTEGER PRIMARY KEY,
  run TEXT NOT NULL,
  duel INTEGER NOT NULL,            -- id in the run's journal
  prompt TEXT NOT NULL,
  first TEXT NOT NULL,
  second TEXT NOT NULL,
  step INTEGER NOT NULL,            -- of the run; the earliest is handed out first
  uncertainty REAL NOT NULL,        -- of the posterior; within a step the largest is handed out first
  votes INTEGER NOT NULL,           -- verdicts that close it
  offered_at REAL NOT NULL,         -- seconds since 1970, UTC
  closed_at REAL,                   -- it has its verdicts, or was skipped too often
  taken_at REAL,                    -- the run has read them
  withdrawn INTEGER NOT NULL DEFAULT 0   -- the run asks it no more
) STRICT;
CREATE UNIQUE INDEX questions_of_a_run ON questions (run, duel) WHERE NOT withdrawn;
CREATE INDEX open_questions ON questions (step, uncertainty DESC, id)
  WHERE closed_at IS NULL AND NOT withdrawn;
CREATE TABLE verdicts (
  id INTEGER PRIMARY KEY,
  question INTEGER NOT NULL REFERENCES questions,
  annotator TEXT NOT NULL,
  verdict TEXT NOT NULL CHECK (verdict IN ('first', 'second', 'tie', 'both_bad', 'skip')),
  first_on_left INTEGER NOT NULL,
  shown_at REAL NOT NULL,
  given_at REAL NOT NULL,
  seconds REAL NOT NULL,            -- that the annotator's page showed it
  undone_at REAL
) STRICT;
CREATE UNIQUE INDEX verdict_of_an_annotator ON verdicts (question, annotator) WHERE undone_at IS NULL;
CREATE VIEW standing AS SELECT * FROM verdicts WHERE undone_at IS NULL;
CREATE VIEW votes AS SELECT * FROM standing WHERE verdict != 'skip';
CREATE TABLE leases (
  question INTEGER NOT NULL REFERENCES questions,
  annotator TEXT NOT NULL,
  until REAL NOT NULL,
  shown INTEGER NOT NULL,           -- 0: only loaded ahead, so that another may have it
  first_on_left INTEGER NOT NULL,
  since REAL NOT NULL,
  PRIMARY KEY (question, annotator)
) STRICT;
CREATE TABLE sessions (
  digest TEXT PRIMARY KEY,          -- SHA-256 of the key in the annotator's cookie
  annotator TEXT NOT NULL,
  csrf TEXT NOT NULL,
  since REAL NOT NULL
) STRICT;
CREATE TABLE budgets (run TEXT PRIMARY KEY, labels INTEGER NOT NULL, since REAL NOT NULL) STRICT;
"""


def connect(file: Path) -> sqlite3.Connection:
    """Opens the file, made if absent; every transaction is on the disk when it ends.

    Raises:
        InputError: it is no file of questions, is damaged, or was written by a newer version.
        StorageError: it cannot be written.
    """
    with storage(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    with storage(file), FileLock(f"{file}.lock"):  # a run and its page may both make the tables
        db = sqlite3.connect(file, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        (layout,) = db.execute("PRAGMA user_version").fetchone()
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if layout > LAYOUT:
            raise InputError(f"{file}: layout {layout}, of a newer version; valid: at most {LAYOUT}")
        if layout == 0 and not tables:
            db.executescript(f"BEGIN; {_TABLES} PRAGMA user_version={LAYOUT}; COMMIT")
        elif "questions" not in tables:
            raise InputError(f"{file}: no file of questions; valid: the {FILE} of a work directory")
    return db


@contextlib.contextmanager
def storage(file: Path) -> Iterator[None]:
    """Turns an error of SQLite into one line that names the file."""
    try:
        yield
    except (sqlite3.OperationalError, OSError) as error:
        raise StorageError(f"{file}: {error}") from error
    except sqlite3.DatabaseError as error:
        raise InputError(f"{file}: damaged ({error}); valid: a file of questions") from error
