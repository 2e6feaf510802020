"""Answers that are written a few tokens at a time, against `models.generate`."""

import jax
import numpy as np
import pytest
from small_run import small_parts

from sea_jax.models.generate import make_sampler, unstack_layers
from sea_jax.serve.decoding import programs

T = 12


@pytest.fixture(scope="module")
def parts():
    task, model, params, _ = small_parts(16)
    return model, params, unstack_layers(model, params), *task.encode_prompts(task.prompts["train"][:3])


def written(parts, chunk, M=1, temperature=1.0, wanted=(True, True, True), key=5):
    model, _, weights, tokens, mask = parts
    begin, advance = programs(model, T, 1)
    found = begin(weights, tokens, mask, jax.random.key(key), np.full(3, temperature, np.float32), M)
    for _ in range(0, T, chunk):
        found = advance(weights, found, np.array(wanted), chunk)
    return np.moveaxis(np.array(found.state.tokens), 0, -1), np.array(found.state.length)


def sampled(parts, M=1, temperature=1.0, key=5):
    model, params, _, tokens, mask = parts
    out = make_sampler(model, M, T, temperature, 1, 0)(params, tokens, mask, jax.random.key(key))
    return np.array(out.tokens), np.array(out.mask)


@pytest.mark.parametrize(
    ("M", "chunk", "temperature"), [(1, 1, 1.0), (1, 5, 1.0), (3, T, 1.0), (1, 4, 0.0), (2, 3, 0.7)]
)
def test_equals_the_sampler_of_runs(parts, M, chunk, temperature):
    """To the token, however many are drawn at a time."""
    tokens, length = written(parts, chunk, M, temperature)
    expected, mask = sampled(parts, M, temperature)
    np.testing.assert_array_equal(length, mask.sum(-1))
    np.testing.assert_array_equal(np.where(mask, tokens, 0), expected)


def test_each_prompt_has_its_own_temperature(parts):
    model, _, weights, tokens, mask = parts
    begin, advance = programs(model, T, 1)
    found = begin(weights, tokens, mask, jax.random.key(5), np.array([0.0, 1.0, 0.0], np.float32), 1)
    found = advance(weights, found, np.ones(3, bool), T)
    mixed = np.moveaxis(np.array(found.state.tokens), 0, -1)
    greedy, warm = written(parts, T, temperature=0.0)[0], written(parts, T)[0]
    np.testing.assert_array_equal(mixed[[0, 2]], greedy[[0, 2]])
    np.testing.assert_array_equal(mixed[1], warm[1])
    assert (greedy[1] != warm[1]).any()


def test_an_answer_that_nobody_wants_ends(parts):
    _, all_of_them = written(parts, 4)
    _, length = written(parts, 4, wanted=(True, False, True))
    assert length[1] == 1 and (length[[0, 2]] == all_of_them[[0, 2]]).all() and all_of_them[1] > 1
