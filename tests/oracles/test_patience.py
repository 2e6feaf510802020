"""Tests bounded waits: retries, order, and that no call hangs."""

import threading
import time

import pytest

from sea_jax.errors import ServiceError
from sea_jax.oracles import patience
from sea_jax.oracles.patience import RateLimiter, RetryableError, map_in_order, retry


class Clock:
    """A stop event and a clock in one: waits return immediately and are recorded."""

    def __init__(self, monkeypatch):
        self.now, self.waits = 100.0, []
        monkeypatch.setattr(patience.time, "monotonic", lambda: self.now)

    def wait(self, seconds):
        self.now += seconds
        self.waits.append(seconds)
        return False


def failing(times, **kind):
    """Returns an attempt that fails `times` times, and the seconds left that each call received."""
    calls = []

    def attempt(left):
        calls.append(left)
        if len(calls) <= times:
            raise RetryableError("no luck", **kind)
        return "answer"

    return attempt, calls


def test_an_attempt_is_repeated_until_it_succeeds_with_growing_pauses(monkeypatch):
    clock, (attempt, calls) = Clock(monkeypatch), failing(9)
    assert retry(attempt, "it", 60, 1, clock) == "answer"
    longest = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5]
    assert len(clock.waits) == 9 and len(set(clock.waits)) == 9
    assert all(most / 2 <= wait <= most for wait, most in zip(clock.waits, longest, strict=True))
    assert calls[0] == 60 and calls[-1] == pytest.approx(60 - sum(clock.waits))


def test_patience_ends_with_what_was_awaited(monkeypatch):
    clock, (attempt, calls) = Clock(monkeypatch), failing(10**6)
    with pytest.raises(
        ServiceError, match=r"the oracle: no answer within 30 s \(\d+ attempts; the last: no luck\)"
    ):
        retry(attempt, "the oracle", 30, 1, clock)
    assert 20 < clock.now - 100 < 30 and min(calls) > 0


def test_and_really_ends():
    start = time.monotonic()
    with pytest.raises(ServiceError, match=r"no answer within 0\.5 s"):
        retry(failing(10**6)[0], "it", 0.5, 1, threading.Event())
    assert 0.1 < time.monotonic() - start < 5


def test_malformed_replies_are_retried_a_few_times(monkeypatch):
    clock = Clock(monkeypatch)
    attempt, calls = failing(10**6, malformed=True)
    with pytest.raises(ServiceError, match="it: 3 malformed replies; the last: no luck"):
        retry(attempt, "it", 60, 3, clock)
    assert len(calls) == 3
    attempt, calls = failing(2, malformed=True)
    assert retry(attempt, "it", 60, 3, clock) == "answer"


def test_the_other_side_may_ask_for_a_longer_pause(monkeypatch):
    clock = Clock(monkeypatch)
    retry(failing(1, retry_after_s=4.0)[0], "it", 10, 1, clock)
    assert clock.waits == [4.0]
    with pytest.raises(ServiceError, match="no answer within 10 s"):
        retry(failing(1, retry_after_s=40.0)[0], "it", 10, 1, clock)  # immediately: waiting does not help
    assert clock.waits == [4.0]


def test_other_errors_go_through_and_a_stop_ends_the_waiting():
    with pytest.raises(ZeroDivisionError):
        retry(lambda left: 1 // 0, "it", 10, 1, threading.Event())
    stop = threading.Event()
    stop.set()
    with pytest.raises(ServiceError, match="given up, since another request failed"):
        retry(failing(9)[0], "it", 10, 1, stop)


def test_results_are_in_order_whatever_ends_first():
    under_way, most, lock = [0], [0], threading.Lock()

    def slow(item, stop):
        with lock:
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
        time.sleep(0.02 * (5 - item % 5))
        with lock:
            under_way[0] -= 1
        return item * 10

    assert map_in_order(slow, range(23), 4, 10, "it") == [10 * i for i in range(23)]
    assert most[0] == 4
    assert map_in_order(slow, [], 4, 10, "it") == []


def test_the_first_error_ends_all():
    seen = []

    def fails_at_three(item, stop):
        seen.append(item)
        if item == 3:
            raise ServiceError("three")
        stop.wait(5)
        return item

    start = time.monotonic()
    with pytest.raises(ServiceError, match="three"):
        map_in_order(fails_at_three, range(100), 4, 60, "it")
    assert time.monotonic() - start < 5 and len(seen) <= 4


def test_results_are_told_as_they_come_and_those_under_way_after_an_error():
    """Item 3 fails while 0 to 2 are under way; 0 and 1 end, 2 is stuck beyond the grace."""
    release, told = threading.Event(), []

    def work(item, stop):
        if item == 3:
            raise ServiceError("three")
        stop.wait(10)
        if item == 2:
            release.wait(20)
        return item * 10

    with pytest.raises(ServiceError, match="three"):
        map_in_order(work, range(100), 4, 60, "it", lambda *one: told.append(one), grace_s=0.5)
    release.set()
    assert sorted(told) == [(0, 0), (1, 10)]
    told.clear()
    assert map_in_order(lambda item, _: -item, range(9), 4, 60, "it", lambda *one: told.append(one))
    assert sorted(told) == [(item, -item) for item in range(9)]


def test_what_is_stuck_does_not_hold_the_caller():
    release = threading.Event()
    start = time.monotonic()
    with pytest.raises(ServiceError, match=r"the judge: 2 of 3 requests not answered within 0\.3 s"):
        map_in_order(lambda item, stop: item or release.wait(20), [1, 0, 0], 3, 0.3, "the judge")
    assert time.monotonic() - start < 10
    release.set()


def test_calls_are_spaced(monkeypatch):
    clock = Clock(monkeypatch)
    pace = RateLimiter(1200)  # 50 ms
    for _ in range(3):
        pace.wait(clock)
    clock.now += 10
    pace.wait(clock)
    assert clock.waits == pytest.approx([0.05, 0.05])
    for _ in range(3):
        RateLimiter(0).wait(clock)
    assert len(clock.waits) == 2


def test_calls_of_many_threads_are_spaced():
    pace, start = RateLimiter(1200), time.monotonic()
    map_in_order(lambda _, stop: pace.wait(stop), range(9), 4, 30, "it")
    assert time.monotonic() - start >= 0.4
