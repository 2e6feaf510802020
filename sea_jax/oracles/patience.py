"""Waiting for others, always with a bound: retries with back-off, and many requests at once in order.

Every wait ends: by an answer, or by a ServiceError that names what was awaited.
"""

from __future__ import annotations

import itertools
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from absl import logging

from sea_jax.errors import ServiceError

T = TypeVar("T")
_FIRST, _LONGEST = 0.1, 5.0  # seconds between attempts: the first wait, doubled up to the longest


class Retry(Exception):  # noqa: N818  (it is a wish, not an error)
    """An attempt that failed in a way that may pass.

    Args:
        why: what came instead of an answer, for people.
        after_s: the other side asked not to come back earlier.
        faulty: there was an answer, and it was none; these are allowed a few times, not for long.
    """

    def __init__(self, why: str, after_s: float = 0.0, faulty: bool = False):
        super().__init__(why)
        self.after_s, self.faulty = after_s, faulty


def persist(
    attempt: Callable[[float], T], what: str, patience_s: float, attempts: int, stop: threading.Event
) -> T:
    """Calls `attempt` until it returns, with growing and jittered pauses.

    Args:
        attempt: of the seconds that are left; raises Retry where another attempt may do.
        what: is awaited, for people.
        patience_s: seconds, from now, that all attempts and pauses may take.
        attempts: how many faulty answers are borne.
        stop: set where nobody waits for the answer any more.

    Raises:
        ServiceError: patience or attempts are spent. Whatever else `attempt` raises goes through.
    """
    start, pause, faults = time.monotonic(), _FIRST, 0
    for tries in itertools.count(1):
        try:
            return attempt(max(patience_s - (time.monotonic() - start), 0.001))
        except Retry as error:
            last = error
        faults += last.faulty
        if faults >= attempts:
            raise ServiceError(f"{what}: {faults} answers that are none; the last: {last}")
        wait = max(last.after_s, pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, _LONGEST)
        if time.monotonic() - start + wait >= patience_s:
            raise ServiceError(
                f"{what}: no answer within {patience_s:g} s ({tries} attempts; the last: {last})"
            )
        said = "%s: %s; trying again for up to %g s"
        logging.log_every_n_seconds(logging.WARNING, said, 10, what, last, patience_s)
        if stop.wait(wait):
            break
    raise ServiceError(f"{what}: given up, since another request failed")


def in_order(
    function: Callable[[Any, threading.Event], T],
    items: Sequence[Any],
    at_once: int,
    bound_s: float,
    what: str,
) -> list[T]:
    """[function(item, stop) for item in items], some at once; the first error ends it.

    The threads are daemons, so that one which is stuck beyond the bound does not keep the process.

    Args:
        function: of an item, and of an event that is set once nobody waits any more.
        items: n of them.
        at_once: how many are under way at most.
        bound_s: seconds for all of it.
        what: is awaited, for people.

    Raises:
        ServiceError: beyond the bound. Whatever `function` raises goes through.
    """
    todo, lock, stop = iter(enumerate(items)), threading.Lock(), threading.Event()
    done: queue.SimpleQueue = queue.SimpleQueue()

    def work() -> None:
        while not stop.is_set():
            with lock:
                taken = next(todo, None)
            if taken is None:
                return
            try:
                done.put((taken[0], function(taken[1], stop), None))
            except BaseException as error:  # the caller's thread raises it
                done.put((taken[0], None, error))
                return

    for _ in range(min(at_once, len(items))):
        threading.Thread(target=work, daemon=True).start()
    results: dict[int, T] = {}
    end = time.monotonic() + bound_s
    try:
        while len(results) < len(items):
            try:
                index, result, error = done.get(timeout=max(end - time.monotonic(), 0.001))
            except queue.Empty:
                missing = len(items) - len(results)
                said = f"{what}: {missing} of {len(items)} requests not answered within {bound_s:g} s"
                raise ServiceError(said) from None
            if error is not None:
                raise error
            assert index not in results
            results[index] = result
    finally:
        stop.set()
    return [results[i] for i in range(len(items))]


class Pace:
    """At most so many calls a minute, evenly spaced; safe among threads.

    Args:
        per_minute: calls; 0 for no limit.
    """

    def __init__(self, per_minute: float):
        self._interval = 60.0 / per_minute if per_minute else 0.0
        self._lock, self._next = threading.Lock(), 0.0

    def wait(self, stop: threading.Event) -> None:
        """Returns at this call's turn, or at once where `stop` is set."""
        with self._lock:
            at = max(time.monotonic(), self._next)
            self._next = at + self._interval
        if (pause := at - time.monotonic()) > 0:
            stop.wait(pause)
