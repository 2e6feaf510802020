"""Tests names and hashes of functions that are passed as objects."""

import functools
import os
import subprocess
import sys

import jax
import pytest
from helpers import ROOT

from sea_jax.oracles import identity

SOURCE = """\
WEIGHT, WORDS, RECORD, NUMBER = 2, ("a", "b"), [], 0
def rate(text):
    return len(text) * WEIGHT
def score(prompts, responses, most=9):
    return [min(rate(y), most) for y in responses if y not in {"x", "y"}]
"""


def made(source=SOURCE, name="score"):
    names = {"__name__": "rules"}
    exec(compile(source, "<stdin>", "exec"), names)
    return names[name]


def test_what_changes_a_function_and_what_does_not():
    before = identity.digest(made())
    assert before == identity.digest(made()) and len(before) == 12
    for old, new, same in (
        ("    return [min", "    # best first\n\n    return [min", True),
        ("RECORD, NUMBER = 2", "OTHER, NUMBER = 2", True),
        ('("a", "b"), []', '("a", "c"), [3]', True),  # not read
        ("most=9", "most=8", False),
        ("min(", "max(", False),
        ('"y"}', '"z"}', False),
        ("NUMBER = 2", "NUMBER = 3", False),  # read by a function that it calls
        ("len(text) *", "len(text) +", False),
    ):
        assert old in SOURCE
        assert (identity.digest(made(SOURCE.replace(old, new))) == before) == same, new


def test_what_a_function_writes_itself_is_left_out():
    """A count or a record of its calls, in a module or around it."""

    def counting():
        calls, record = 0, []

        def score(prompts, responses):
            nonlocal calls
            calls += 1
            record.append(calls)
            return [0.0 for _ in prompts]

        return score

    score = counting()
    before = identity.digest(score)
    score(["x"], ["y"])
    assert identity.digest(score) == before
    source = "NUMBER = 0\ndef score(prompts, responses):\n    global NUMBER\n    NUMBER += 1\n"
    score = made(source)
    before = identity.digest(score)
    score([], [])
    assert score.__globals__["NUMBER"] == 1 and identity.digest(score) == before


def test_closures_partials_methods_and_objects():
    def scaled(scale):
        return lambda prompts, responses: [scale for _ in prompts]

    class Rater:
        def score(self, prompts, responses):
            return [1.0 for _ in prompts]

        def __call__(self, prompts, responses):
            return [2.0 for _ in prompts]

    def base(prompts, responses, scale):
        return [scale for _ in prompts]

    calls = [scaled(1), scaled(2), functools.partial(base, scale=1), functools.partial(base, scale=2), base,
             Rater().score, Rater(), jax.jit(base), len]  # fmt: skip
    assert len({identity.digest(call) for call in calls}) == len(calls) - 1  # jit computes the same
    assert identity.digest(scaled(1)) == identity.digest(scaled(1))
    here = f"{__name__}.test_closures_partials_methods_and_objects.<locals>"
    assert identity.name_of(calls[2]) == f"{here}.base" and identity.name_of(calls[6]) == f"{here}.Rater"
    assert identity.name_of(calls[5]) == f"{here}.Rater.score"
    assert [identity.file_of(call) for call in calls] == [__file__] * 8 + [""]


def test_a_function_that_calls_itself():
    source = "def score(prompts, responses):\n    return score(prompts[1:], responses[1:])\n"
    assert identity.digest(made(source)) == identity.digest(made(source))


@pytest.mark.parametrize("seed", ["1", "2"])
def test_the_order_of_sets_does_not_matter(seed):
    code = f"from sea_jax.oracles import identity\nexec({SOURCE!r})\nprint(identity.digest(score))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60,
        env=os.environ | {"PYTHONHASHSEED": seed},
    )  # fmt: skip
    names = {"__name__": "__main__"}
    exec(SOURCE, names)
    assert done.stdout.strip() == identity.digest(names["score"]), done.stderr
