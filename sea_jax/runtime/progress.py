"""Shows progress: a bar that moves in a terminal, and a line now and then in a log."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

from sea_jax.runtime.mesh import is_main

_LOG_SECONDS = 30.0  # between two lines of a log


class ProgressBar(tqdm):
    """A tqdm bar whose rate and remaining time leave compilation out.

    The first step of a loop compiles its programs, which takes many times as long as a later step. Counted
    in, it makes the first estimates hours too long. So the clock starts when the first step has been done,
    and the time of a later step that `compiling` announces is left out as well.
    """

    def __init__(self, steps: Iterable[Any] | None, name: str, **options: Any):
        self._name = name
        self._left_out = True  # the step under way is not timed
        super().__init__(steps, desc=name, **options)
        self._last_update = getattr(self, "start_t", 0.0)  # a disabled bar has no clock

    def compiling(self, program: str) -> None:
        """Shows "compiling <program>" until the next `update`, and leaves the time until then out.

        Args:
            program: what is compiled, as 'the sampler'.
        """
        self._left_out = True
        if not self.disable:
            self._show(f"{self._name}: compiling {program}")

    def update(self, n: float | None = 1) -> bool | None:
        """Counts n more units; returns whether the bar was drawn."""
        if self.disable:
            return None
        n = n or 0
        if not self._left_out:
            drawn = super().update(n)
            self._last_update = self._now()
            return drawn
        now = self._now()
        self.start_t += now - self._last_update
        self.n += n
        self.initial += n  # tqdm's rate is (n - initial) / elapsed
        self.last_print_n, self.last_print_t = self.n, now
        self._last_update, self._left_out = now, False
        self._show(self._name)
        return True

    def __iter__(self) -> Iterator[Any]:
        """Yields the steps and counts each when it is done."""
        try:
            for step in self.iterable:
                yield step
                self.update()
        finally:
            self.close()

    def _now(self) -> float:
        return self.start_t + self.format_dict["elapsed"]

    def _show(self, description: str) -> None:
        self.set_description_str(description, refresh=False)
        self.refresh()


def bar(
    steps: Iterable[Any] | None, name: str, unit: str, shown: bool, total: int | None = None, done: int = 0
) -> ProgressBar:
    """Makes a progress bar; in a run on several hosts only that of the main process is drawn.

    Args:
        steps: iterated over by the bar; None where the caller counts by `update`.
        name: shown before the bar.
        unit: name of a unit, as 'step'.
        shown: False draws nothing.
        total: number of units, where `steps` is None.
        done: units of an earlier process.
    """
    stream = sys.stderr
    drawing: dict[str, Any] = dict(file=stream)
    if not stream.isatty():
        drawing = dict(file=_Lines(stream), mininterval=_LOG_SECONDS, maxinterval=_LOG_SECONDS)
    drawing |= dict(total=total, unit=unit, initial=done)
    return ProgressBar(steps, name, disable=not (shown and is_main()), **drawing)


class _Lines:
    """A stream that turns each redrawing of a bar into a line of its own."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> None:
        text = text.replace("\r", "").strip()
        if text:
            self._stream.write(text + "\n")

    def flush(self) -> None:
        self._stream.flush()
