"""How a run begins: copies, anchors, and the policy's learning rate."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import draw_ensemble

from sea_jax.state import init_state, policy_optimizer, step_keys


def steps_of(config, gradients, queries):
    """The steps of one parameter, each after so many queries."""
    optimizer = policy_optimizer(types.SimpleNamespace(**config))
    p = jnp.zeros(2)
    opt_state, seen = optimizer.init(p), []
    step = jax.jit(optimizer.update)
    for g, bought in zip(gradients, queries, strict=True):
        update, opt_state = step(jnp.array(g, jnp.float32), opt_state, p, num_queries=jnp.int32(bought))
        seen.append(-np.asarray(update))
    return np.array(seen)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_learning_rate_goes_by_queries_not_steps(schedule):
    """Under a constant gradient Adam's steps are the rates: from 2/5 up to 2 over 40 queries, then
    flat, or half a cosine down to 0 at the budget of 100; steps that buy nothing do not count."""
    config = dict(
        learning_rate=2.0, warmup_queries=40, schedule=schedule, max_grad_norm=1e9, query_budget=100
    )
    queries = [0, 10, 10, 20, 40, 55, 55, 70, 85, 100]
    steps = steps_of(config, [[3.0, -3.0]] * len(queries), queries)
    c = 2**0.5 / 2
    rest = [2.0] * 6 if schedule == "constant" else [2, 1 + c, 1 + c, 1, 1 - c, 0]
    expected = np.array([0.4, 0.8, 0.8, 1.2, *rest])
    np.testing.assert_allclose(steps, expected[:, None] * [1, -1], atol=1e-4)


def test_gradients_are_clipped_by_their_norm():
    """(30, 40) of norm 50 becomes (3, 4): Adam's second step, on (3, −4), by hand.

    m̂ = (0.09·3 + 0.1·3, 0.09·4 − 0.1·4) / 0.19 = (3, −0.210526); v̂ = (9, 16).
    """
    config = dict(
        learning_rate=1.0, warmup_queries=0, schedule="constant", max_grad_norm=5.0, query_budget=10
    )
    steps = steps_of(config, [[30.0, 40.0], [3.0, -4.0]], [0, 2])
    np.testing.assert_allclose(steps, [[1, 1], [1, -0.210526 / 4]], rtol=1e-4)


def test_initial_state():
    """θ⁰ is a copy of π_ref in buffers of its own, Φ⁰ its own anchor, D_0 empty, counters 0."""
    ref = {"w": jnp.ones((2, 3))}
    draw = functools.partial(draw_ensemble, capacity=6)
    state = init_state(jax.random.key(0), ref, optax.adam(1.0), draw)
    np.testing.assert_array_equal(state.policy.params["w"], ref["w"])
    pointers = [x.unsafe_buffer_pointer() for x in (state.policy.params["w"], ref["w"])]
    assert pointers[0] != pointers[1]
    ours, anchor = state.ensemble.params["out"]["kernel"], state.ensemble.anchor["out"]["kernel"]
    np.testing.assert_array_equal(ours, anchor)
    assert ours.unsafe_buffer_pointer() != anchor.unsafe_buffer_pointer()
    assert ours.shape == (2, 4, 1) and state.experience.features.shape == (6, 2, 3)
    counters = state.experience.size, state.experience.cursor, state.step, state.num_queries
    assert [int(c) for c in counters] == [0] * 4


def test_every_draw_of_every_step_has_its_own_key():
    """On the host, where the step is an int, as under jit, where it is traced."""
    key = jax.random.key(5)
    seen = set()
    for step in range(4):
        host, device = step_keys(key, step), jax.jit(step_keys)(key, jnp.int32(step))
        assert host._fields == ("sample", "select", "route", "label", "ensemble", "evaluate")
        for a, b in zip(host, device, strict=True):
            np.testing.assert_array_equal(jax.random.key_data(a), jax.random.key_data(b))
            seen.add(tuple(np.asarray(jax.random.key_data(a)).tolist()))
    assert len(seen) == 24 and tuple(np.asarray(jax.random.key_data(key)).tolist()) not in seen


def test_a_run_without_an_ensemble_has_no_experience():
    state = init_state(jax.random.key(0), {"w": jnp.ones(2)}, optax.adam(1.0))
    assert state.ensemble is None and state.experience is None
    with_one = init_state(jax.random.key(0), {"w": jnp.ones(2)}, optax.adam(1.0), draw_ensemble)
    np.testing.assert_array_equal(*(jax.random.key_data(s.key) for s in (state, with_one)))
