"""A SQLite file of a work directory that threads of several processes share, and who is logged in."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

from filelock import FileLock

from sea_jax.errors import InputError, StorageError

_BUSY_SECONDS = 30.0
SESSIONS = """
CREATE TABLE sessions (
  digest TEXT PRIMARY KEY,          -- SHA-256 of the key in the cookie
  annotator TEXT NOT NULL,          -- who is logged in
  csrf TEXT NOT NULL,
  since REAL NOT NULL
) STRICT;
"""


class Layout(NamedTuple):
    """The tables of a file."""

    name: str  # of such files, for errors
    version: int  # `PRAGMA user_version`
    tables: str  # SQL that makes them
    table: str  # one of them, by which a file is known


class Store:
    """A SQLite file; thread-safe. Every transaction is on the disk when it ends.

    Args:
        file: made if absent, with its folder.
        layout: see `Layout`; `SESSIONS` is among its tables.

    Raises:
        InputError: the file has other tables, is damaged, or was written by a newer version.
        StorageError: it cannot be written.
    """

    def __init__(self, file: Path, layout: Layout):
        self.file, self._lock = file, threading.RLock()
        self._db = _connect(file, layout)

    def add_session(self, digest: str, name: str, csrf: str) -> None:
        """Logs somebody in; the session's key itself is kept nowhere, only its SHA-256."""
        with self._writing() as db:
            db.execute("INSERT INTO sessions VALUES (?, ?, ?, ?)", (digest, name, csrf, time.time()))

    def session(self, digest: str) -> tuple[str, str] | None:
        """Returns name and CSRF token of a session; None if there is none."""
        with self.reading() as db:
            return db.execute("SELECT annotator, csrf FROM sessions WHERE digest = ?", (digest,)).fetchone()

    def end_session(self, digest: str) -> None:
        """Logs somebody out."""
        with self._writing() as db:
            db.execute("DELETE FROM sessions WHERE digest = ?", (digest,))

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Makes one transaction of what happens inside."""
        with self.reading() as db, db:
            db.execute("BEGIN IMMEDIATE")
            yield db

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Turns errors of SQLite inside into one line that names the file; one thread at a time."""
        with self._lock, _storage(self.file):
            yield self._db


def _connect(file: Path, layout: Layout) -> sqlite3.Connection:
    """Opens a file, made if absent; raises as `Store`."""
    with _storage(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    with _storage(file), FileLock(f"{file}.lock"):  # a run and its page may both make the tables
        db = sqlite3.connect(file, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if version > layout.version:
            raise InputError(f"{file}: layout {version}, of a newer version; valid: at most {layout.version}")
        if version == 0 and not tables:
            db.executescript(f"BEGIN; {layout.tables} PRAGMA user_version={layout.version}; COMMIT")
        elif layout.table not in tables:
            raise InputError(f"{file}: no {layout.name}; valid: the {file.name} of a work directory")
    return db


@contextlib.contextmanager
def _storage(file: Path) -> Iterator[None]:
    """Turns an error of SQLite into one line that names the file."""
    try:
        yield
    except (sqlite3.OperationalError, OSError) as error:
        raise StorageError(f"{file}: {error}") from error
    except sqlite3.DatabaseError as error:
        raise InputError(f"{file}: damaged ({error}); valid: a whole one") from error
