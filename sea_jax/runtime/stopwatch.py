"""Seconds per stage of a step."""

import time
from typing import Any

import jax


class Stopwatch:
    """Adds up seconds per stage; a lap ends when its arrays are computed."""

    def __init__(self, seconds: dict[str, float]):
        self.seconds, self._last = dict(seconds), time.perf_counter()

    def lap(self, stage: str, arrays: Any = ()) -> None:
        """Waits for the arrays and counts the time since the last lap to the stage."""
        jax.block_until_ready(arrays)
        now = time.perf_counter()
        self.seconds[stage], self._last = self.seconds.get(stage, 0.0) + now - self._last, now
