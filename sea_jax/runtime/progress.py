"""Progress bars: one line that moves where somebody looks on, and a line now and then in a log."""

import sys
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from sea_jax.runtime.mesh import is_main

_SECONDS = 30.0  # between the lines of a log


def bar(steps: Sequence[Any] | None, name: str, unit: str, shown: bool, total: int | None = None) -> tqdm:
    """A bar over `steps`, or over a `total` that the caller counts; of several processes the main one's.

    Args:
        steps: what is gone through.
        name: before the bar.
        unit: of what is counted.
        shown: whether at all.
        total: of units, without `steps`.
    """
    stream = sys.stderr
    log: dict[str, Any] = {}
    if not stream.isatty():
        log = dict(file=_Lines(stream), mininterval=_SECONDS, maxinterval=_SECONDS)
    return tqdm(steps, total=total, desc=name, unit=unit, disable=not (shown and is_main()), **log)


class _Lines:
    """A stream in which what would be drawn over the line before is a line of its own."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> None:
        text = text.replace("\r", "").strip()
        if text:
            self._stream.write(text + "\n")

    def flush(self) -> None:
        self._stream.flush()
