"""Bounded waiting for other processes: retries with back-off, many requests at once, a rate limit.

Every wait ends with a reply, or with a ServiceError that names what was awaited.
"""

from __future__ import annotations

import contextlib
import contextvars
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

import tenacity
from absl import logging

from sea_jax.credentials import redact
from sea_jax.errors import ServiceError

T = TypeVar("T")
_BACKOFF = tenacity.wait_exponential(multiplier=0.1, max=5.0)  # seconds; doubles with every attempt
_LOG_EVERY_S = 10
_CHECK_EVERY_S = 0.5  # while a wait lasts
_check: contextvars.ContextVar[Callable[[], None]] = contextvars.ContextVar("check", default=lambda: None)


@contextlib.contextmanager
def breaks_off(check: Callable[[], None]) -> Iterator[None]:
    """Calls `check` twice a second while this thread waits for requests; what it raises ends the wait."""
    token = _check.set(check)
    try:
        yield
    finally:
        _check.reset(token)


def pause(seconds: float) -> None:
    """Sleeps, after the call that `breaks_off` asks for."""
    _check.get()()
    time.sleep(seconds)


class RetryableError(Exception):
    """A failed attempt that may succeed later.

    Args:
        reason: what went wrong, for people.
        retry_after_s: seconds that the other side asked to wait.
        malformed: True: there was a reply, and it cannot be used. A few such replies are retried; a missing
            reply is retried until the deadline.
    """

    def __init__(self, reason: str, retry_after_s: float = 0.0, malformed: bool = False):
        super().__init__(redact(reason))  # it is logged
        self.retry_after_s, self.malformed = retry_after_s, malformed


def retry(
    attempt: Callable[[float], T], awaited: str, patience_s: float, attempts: int, stop: threading.Event
) -> T:
    """Calls `attempt` until it returns, with growing, jittered pauses.

    Args:
        attempt: takes the seconds that are left; raises RetryableError where another attempt may succeed.
        awaited: what is awaited, for messages.
        patience_s: seconds for all attempts and pauses, from now.
        attempts: number of malformed replies after which to give up.
        stop: set when nobody waits for the reply any more.

    Returns:
        The result of `attempt`.

    Raises:
        ServiceError: the deadline has passed, too many replies were malformed, or `stop` was set. Other
            errors of `attempt` are not caught.
    """
    start, malformed = time.monotonic(), 0
    is_late = tenacity.stop_before_delay(patience_s)

    def is_exhausted(state: tenacity.RetryCallState) -> bool:
        nonlocal malformed
        malformed += _error(state).malformed
        return malformed >= attempts

    def give_up(state: tenacity.RetryCallState) -> NoReturn:
        last = _error(state)
        if malformed >= attempts:
            raise ServiceError(f"{awaited}: {malformed} malformed replies; the last: {last}")
        tries = f"{state.attempt_number} attempts; the last: {last}"
        raise ServiceError(f"{awaited}: no answer within {patience_s:g} s ({tries})")

    def log(state: tenacity.RetryCallState) -> None:
        text = "%s: %s; retrying for up to %g s"
        logging.log_every_n_seconds(
            logging.WARNING, text, _LOG_EVERY_S, redact(awaited), _error(state), patience_s
        )

    def sleep(seconds: float) -> None:
        if stop.wait(seconds):
            raise ServiceError(f"{awaited}: given up, since another request failed")

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(RetryableError), wait=_pause,
        stop=lambda state: is_exhausted(state) or is_late(state),
        sleep=sleep, before_sleep=log, retry_error_callback=give_up,
    )  # fmt: skip
    return retrying(lambda: attempt(max(patience_s - (time.monotonic() - start), 0.001)))


def _pause(state: tenacity.RetryCallState) -> float:
    """Returns the seconds until the next attempt, no fewer than the other side asked for."""
    return max(_error(state).retry_after_s, _BACKOFF(state) * random.uniform(0.5, 1.0))


def _error(state: tenacity.RetryCallState) -> RetryableError:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, RetryableError)
    return error


def map_in_order(
    function: Callable[[Any, threading.Event], T],
    items: Sequence[Any],
    max_workers: int,
    timeout_s: float,
    awaited: str,
    arrived: Callable[[int, T], None] = lambda index, result: None,
    grace_s: float = 0.0,
) -> list[T]:
    """Returns [function(item, stop) for item in items], computed in threads; the first error ends it.

    After an error no item is begun any more, and the results of those under way are waited for: they may have
    been paid for.

    `concurrent.futures` does the same, but the interpreter joins its threads at exit: one stuck request would
    keep the process. These threads are daemons.

    Args:
        function: takes an item, and an event that is set when nobody waits any more.
        items: n items.
        max_workers: number of threads.
        timeout_s: seconds for all items.
        awaited: what is awaited, for messages.
        arrived: called in this thread with the index and result of each item, as soon as it is there.
        grace_s: seconds for the items that are under way when another one fails.

    Returns:
        n results, in the order of the items.

    Raises:
        ServiceError: not all items were done in time. Errors of `function` are not caught.
    """
    threads, results = _Threads(function, items, max_workers), {}
    try:
        for index, result, error in threads.take(len(items), timeout_s, awaited):
            if error is not None:
                with contextlib.suppress(ServiceError):
                    for late, answer, failure in threads.take(threads.under_way, grace_s, awaited):
                        if failure is None:
                            arrived(late, answer)
                raise error
            results[index] = result
            arrived(index, result)
    finally:
        threads.end()
    return [results[i] for i in range(len(items))]


class _Threads:
    """Daemon threads that compute items; what they did waits in a queue."""

    def __init__(
        self, function: Callable[[Any, threading.Event], Any], items: Sequence[Any], max_workers: int
    ):
        self._function, self._todo = function, iter(enumerate(items))
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._done: queue.SimpleQueue = queue.SimpleQueue()
        self.under_way = 0  # items that were begun and not taken
        for _ in range(min(max_workers, len(items))):
            threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                index, item = (None, None) if self._stop.is_set() else next(self._todo, (None, None))
                self.under_way += index is not None
            if index is None:
                return
            try:
                self._done.put((index, self._function(item, self._stop), None))
            except BaseException as error:  # raised again in the caller's thread
                self.end()
                self._done.put((index, None, error))
                return

    def end(self) -> None:
        """Begins no further item."""
        with self._lock:
            self._stop.set()

    def take(self, count: int, timeout_s: float, awaited: str) -> Iterator[Any]:
        """Yields `count` tuples (index, result, error); raises ServiceError if they are late."""
        end = time.monotonic() + timeout_s
        for missing in range(count, 0, -1):
            one = self._next(end)
            if one is None:
                late = f"{missing} of {count} requests not answered within {timeout_s:g} s"
                raise ServiceError(f"{awaited}: {late}")
            with self._lock:
                self.under_way -= 1
            yield one

    def _next(self, end: float) -> Any:
        """Waits for one tuple, until an instant of the monotonic clock; None if there is none by then."""
        while True:
            _check.get()()
            left = end - time.monotonic()
            with contextlib.suppress(queue.Empty):
                return self._done.get(timeout=min(max(left, 0.001), _CHECK_EVERY_S))
            if left <= _CHECK_EVERY_S:
                return None


class RateLimiter:
    """Spaces calls evenly, so that no more than `per_minute` begin in a minute; thread-safe.

    No package that we depend on has one: tenacity spaces the attempts of one call, not calls.

    Args:
        per_minute: calls per minute; 0 for no limit.
    """

    def __init__(self, per_minute: float):
        self._interval_s = 60.0 / per_minute if per_minute else 0.0
        self._lock, self._next = threading.Lock(), 0.0

    def wait(self, stop: threading.Event) -> None:
        """Waits for this call's turn, or until `stop` is set."""
        with self._lock:
            turn = max(time.monotonic(), self._next)
            self._next = turn + self._interval_s
        if (pause := turn - time.monotonic()) > 0:
            stop.wait(pause)
