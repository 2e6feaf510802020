"""Turns SIGTERM and Ctrl-C into a request to end after the step under way."""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """A request to stop, once there is one.

    Attributes:
        signal: name of the first signal, as 'SIGTERM'; empty without one.
    """

    def __init__(self) -> None:
        self.signal = ""
        self._came = 0.0

    @property
    def number(self) -> int:
        """The number of that signal; 0 without one."""
        return signal.Signals[self.signal].value if self.signal else 0

    def overdue(self, grace_s: float) -> bool:
        """Tells whether the first signal came that many seconds ago, or more."""
        return bool(self.signal) and time.monotonic() - self._came >= grace_s

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.signal:
            raise KeyboardInterrupt
        self.signal, self._came = signal.Signals(number).name, time.monotonic()
        message = f"{self.signal}: the run ends after this step; a second signal ends it at once"
        print(message, file=sys.stderr, flush=True)


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Catches the signals while the context lasts; only the main thread can."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request._note) for number in _SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
