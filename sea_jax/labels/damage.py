"""Finds damage in a label journal: by SQLite's own checks, and by a checksum of every row. Imports no JAX."""

from __future__ import annotations

import sqlite3
import zlib
from typing import Any

import msgpack

_DUEL = (
    "id", "step", "row", "policy_step", "prompt", "first", "second", "first_tokens", "second_tokens",
    "state", "times_asked", "asked_at", "labelled_by", "probability", "prefers_first", "cost", "seconds",
    "answered_at",
)  # fmt: skip
_SUM_OF_DUEL, _SUM_OF_PROPOSAL = f"checksum_of({', '.join(_DUEL)})", "checksum_of(step, content)"
SEAL_DUEL = f"UPDATE duels SET checksum = {_SUM_OF_DUEL} WHERE id = ?"
SEAL_PROPOSAL = f"UPDATE proposals SET checksum = {_SUM_OF_PROPOSAL} WHERE step = ?"
_LAST_INSTANT = 253_402_300_799  # of the year 9999
# What no run writes, of rows without a checksum too: those of an older version.
_NEVER = {
    "have an answer without a label": "state = 'answered' AND coalesce(prefers_first, 2) NOT IN (0, 1)",
    "have an answer without a probability": "state = 'answered' "
    "AND NOT coalesce(probability, 2) BETWEEN 0 AND 1",
    "have a label without an answer": "state != 'answered' AND prefers_first IS NOT NULL",
    "have token ids that are no int32": "length(first_tokens) % 4 OR length(second_tokens) % 4",
    "have times that are none": f"NOT (asked_at BETWEEN 0 AND {_LAST_INSTANT} "
    f"AND coalesce(answered_at, 0) BETWEEN 0 AND {_LAST_INSTANT}) "
    "OR (state = 'answered' AND answered_at IS NULL)",
}


def prepare(db: sqlite3.Connection) -> None:
    """Lets a connection compute checksums."""
    db.create_function("checksum_of", -1, _checksum, deterministic=True)


def _checksum(*row: Any) -> int:
    return zlib.crc32(msgpack.packb(row) or b"")


def add_checksums(db: sqlite3.Connection) -> None:
    """Adds the columns of checksums to the tables of an older version; their rows have none."""
    for table in ("duels", "proposals"):
        db.execute(f"ALTER TABLE {table} ADD COLUMN checksum INTEGER")


def find(db: sqlite3.Connection, newest: int = 0) -> list[str]:
    """Returns what is damaged, one line each.

    Args:
        db: the journal.
        newest: of a journal with more duels only so many, the newest, are looked at, and SQLite's own checks,
            which read the whole file, are left out; 0: all.

    Raises:
        sqlite3.DatabaseError: the file is damaged such that it cannot be read on.
    """
    (last,) = db.execute("SELECT coalesce(max(id), 0) FROM duels").fetchone()
    first, found = max(last - newest, 0) if newest else 0, []
    if not first:
        found = [" ".join(line.split()) for (line,) in db.execute("PRAGMA integrity_check") if line != "ok"]
    conditions, proposals = dict(_NEVER), {}
    if _has_checksums(db):
        conditions["differ from their checksum"] = f"checksum != {_SUM_OF_DUEL}"
        proposals["differ from their checksum"] = f"checksum != {_SUM_OF_PROPOSAL}"
    duels = f"duels WHERE id > {first}"
    return found + _count(db, duels, conditions) + _count(db, "proposals", proposals)


def _count(db: sqlite3.Connection, rows: str, conditions: dict[str, str]) -> list[str]:
    """Returns a line for each condition that rows of a table meet; reads them once."""
    if not conditions:
        return []
    sums = ", ".join(f"total({condition})" for condition in conditions.values())
    counts, table = db.execute(f"SELECT {sums} FROM {rows}").fetchone(), rows.split()[0]
    return [f"{n:.0f} {table} {meaning}" for meaning, n in zip(conditions, counts, strict=True) if n]


def _has_checksums(db: sqlite3.Connection) -> bool:
    return "checksum" in [name for _, name, *_ in db.execute("PRAGMA table_info(duels)")]
