"""Counts the calls and US dollars that a judge costs, over all commands on a work directory; limits them."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from sea_jax.errors import InputError, SpendLimitError, StorageError

FILE = "spending.jsonl"


class Spending:
    """Calls and their cost; thread-safe.

    A call is counted before it is made, so that no process that dies makes calls beyond the limit. Dollars
    are known with the reply: calls that are under way when the limit is reached may exceed it.

    Args:
        folder: keeps spending.jsonl, a line per call or reply; None: this process alone counts.
        max_calls, max_usd: limits; 0: none.

    Raises:
        InputError: a line of the file is damaged.
    """

    def __init__(self, folder: Path | None = None, max_calls: int = 0, max_usd: float = 0.0):
        self._max_calls, self._max_usd, self._lock = max_calls, max_usd, threading.Lock()
        self._file = None if folder is None else folder / FILE
        self.calls, self.usd = 0, 0.0
        if self._file is not None and self._file.exists():
            self._read(self._file)

    def _read(self, file: Path) -> None:
        *lines, last = file.read_text("utf-8", "replace").split("\n")  # one that is cut has no end of line
        del last
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                calls, usd = int(row["calls"]), float(row["usd"])
            except (ValueError, TypeError, KeyError):
                valid = 'valid: {"calls": 1, "usd": 0.0}'
                raise InputError(f"{file}, line {number}: {line[:60]!r}; {valid}") from None
            self.calls, self.usd = self.calls + calls, self.usd + usd

    def call(self) -> None:
        """Counts a call that is about to be made.

        Raises:
            SpendLimitError: a limit is reached, and the call is not to be made.
        """
        with self._lock:
            if self._max_calls and self.calls >= self._max_calls:
                raise _reached(f"{self.calls} calls", f"max_calls={self._max_calls}")
            if self._max_usd and self.usd >= self._max_usd:
                raise _reached(f"{self.usd:.4f} $", f"max_usd={self._max_usd:g}")
            self._add(1, 0.0)

    def pay(self, usd: float) -> None:
        """Counts the dollars of a reply."""
        with self._lock:
            self._add(0, usd)

    def _add(self, calls: int, usd: float) -> None:
        self.calls, self.usd = self.calls + calls, self.usd + usd
        if self._file is None or not (calls or usd):
            return
        try:
            with open(self._file, "a") as file:
                file.write(json.dumps(dict(calls=calls, usd=usd)) + "\n")
        except OSError as error:
            raise StorageError(f"{self._file}: {error.strerror}") from error


def _reached(spent: str, limit: str) -> SpendLimitError:
    return SpendLimitError(
        f"the judge has cost {spent}: config.oracle.{limit} is reached; the same command with a larger one "
        "goes on, with all answers"
    )
