"""Bars on a clock of their own: what the estimate counts, and what is shown meanwhile."""

import io
import sys

import pytest

from sea_jax.runtime import progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds, as tqdm reads them; a test moves them on."""
    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


@pytest.fixture
def terminal():
    """What is drawn on it."""
    stream = io.StringIO()
    stream.isatty = lambda: True
    return stream


@pytest.fixture
def bar(terminal, monkeypatch):
    """Makes bars on the terminal, and closes them after the test."""
    made = []

    def make(*args, **options):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", terminal)
            made.append(progress.bar(*args, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def drawn(stream):
    """The last drawing."""
    return stream.getvalue().rstrip().split("\r")[-1]


def test_the_estimate_leaves_out_the_first_step(clock, terminal, bar):
    """100 s of compilation, then 4 queries a second: 1,016 queries are left, 254 s."""
    queries = bar(None, "sea seed 0", "query", True, total=1024)
    clock[0] += 100
    queries.update(4)
    assert " 4/1024 [00:00<?, ?query/s]" in drawn(terminal)
    clock[0] += 1
    queries.update(4)
    assert " 8/1024 [00:01<04:14,  4.00query/s]" in drawn(terminal)


def test_a_first_step_without_progress_is_left_out_too(clock, terminal, bar):
    queries = bar(None, "passive", "query", True, total=100)
    clock[0] += 60
    queries.update(0)
    clock[0] += 2
    queries.update(4)
    assert " 4/100 [00:02<00:48,  2.00query/s]" in drawn(terminal)


def test_what_is_compiled_is_shown_until_something_moves(clock, terminal, bar):
    queries = bar(None, "sea seed 0", "query", True, total=100)
    queries.compiling("the sampler")
    assert drawn(terminal).startswith("sea seed 0: compiling the sampler:   0%")
    queries.update(4)
    assert drawn(terminal).startswith("sea seed 0:   4%")


def test_a_later_compilation_is_left_out(clock, terminal, bar):
    """2 s a step, but for the 500 s of the third."""
    queries = bar(None, "sea seed 0", "query", True, total=20)
    for seconds in (30, 2, 500, 2):
        if seconds == 500:
            queries.compiling("synthetic labels")
            assert "compiling synthetic labels" in drawn(terminal)
        clock[0] += seconds
        queries.update(4)
    assert drawn(terminal).startswith("sea seed 0:  80%")
    assert " 16/20 [00:04<00:02,  2.00query/s]" in drawn(terminal)


def test_a_loop_counts_its_steps_as_they_end(clock, terminal, bar):
    seen = []
    for i in bar(range(5), "SFT", "step", True):
        seen.append((i, drawn(terminal).split("|")[0]))
        clock[0] += 40 if i == 0 else 1
    assert [i for i, _ in seen] == list(range(5))
    assert [shown for _, shown in seen[:2]] == ["SFT:   0%", "SFT:  20%"]
    assert " 5/5 [00:04<00:00,  1.00step/s]" in drawn(terminal)


def test_a_log_gets_a_line_for_each_drawing(clock, terminal, bar):
    terminal.isatty = lambda: False
    queries = bar(None, "sea", "query", True, total=100)
    queries.compiling("the update")
    for _ in range(40):
        clock[0] += 1
        queries.update(1)
    queries.close()
    lines = terminal.getvalue().splitlines()
    assert "\r" not in terminal.getvalue() and [line.split("|")[0] for line in lines] == [
        "sea:   0%", "sea: compiling the update:   0%", "sea:   1%", "sea:  31%", "sea:  40%",
    ]  # fmt: skip


def test_a_bar_that_is_not_shown_says_nothing(clock, terminal, bar):
    queries = bar(None, "sea", "query", False, total=100)
    queries.compiling("the sampler")
    queries.update(4)
    queries.set_postfix(win="0.5")
    assert list(bar(range(3), "SFT", "step", False)) == [0, 1, 2]
    assert terminal.getvalue() == ""
