"""Reads how far a run is from its folder, while it runs; for the page."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import sqlite3
import time
from pathlib import Path
from typing import Any

from sea_jax.labels.journal import FILE

_FRESH_S = 1.0  # for which what was read is not read again
_TAIL = 262_144  # bytes of metrics.jsonl that are looked at
_WIN_RATES = ("eval/win_rate_reference", "eval/win_rate_sft")


def of_run(workdir: Path, run: str) -> dict[str, Any]:
    """Returns a run's number of labels, and the win rate of its last evaluation; None where there is none.

    Args:
        workdir: of the runs.
        run: name of the run's folder.
    """
    return dict(_of_run(workdir / "runs" / run, int(time.monotonic() / _FRESH_S)))


@functools.lru_cache(4)
def _of_run(folder: Path, moment: int) -> dict[str, Any]:
    del moment
    return dict(labels=_labels(folder / FILE), win_rate=_win_rate(folder / "metrics.jsonl"))


def _labels(journal: Path) -> int:
    """Counts the labels that steps of a run have used."""
    try:
        with contextlib.closing(sqlite3.connect(f"{journal.absolute().as_uri()}?mode=ro", uri=True)) as db:
            query = "SELECT count(*) FROM duels WHERE state = 'answered' AND step >= 0"
            return db.execute(query).fetchone()[0]
    except sqlite3.Error:  # not made yet, or damaged, which the run itself reports
        return 0


def _win_rate(metrics: Path) -> float | None:
    """Returns the newest win rate at the end of metrics.jsonl."""
    try:
        with open(metrics, "rb") as file:
            file.seek(max(metrics.stat().st_size - _TAIL, 0))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except ValueError:  # cut by the seek, or being written
            continue
        found = [row[name] for name in _WIN_RATES if isinstance(row, dict) and name in row]
        if found and isinstance(found[0], float) and math.isfinite(found[0]):
            return found[0]
    return None
