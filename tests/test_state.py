"""How a run begins: copies, anchors, and the policy's learning rate."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sea_jax.ensemble import Head
from sea_jax.state import init_state, policy_optimizer


def rates(config, gradients, total_steps):
    """The size of each step on one parameter."""
    optimizer = policy_optimizer(types.SimpleNamespace(**config), total_steps)
    p = jnp.zeros(2)
    opt_state, seen = optimizer.init(p), []
    step = jax.jit(optimizer.update)
    for g in gradients:
        update, opt_state = step(jnp.array(g, jnp.float32), opt_state, p)
        seen.append(-np.asarray(update))
    return np.array(seen)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_learning_rate(schedule):
    """Under a constant gradient Adam's steps are the rates: from 2/4 up to 2 over 4 steps, then
    flat, or half a cosine down to 0 at step 10."""
    config = dict(learning_rate=2.0, warmup_steps=4, schedule=schedule, max_grad_norm=1e9)
    steps = rates(config, [[3.0, -3.0]] * 11, total_steps=10)
    t = np.arange(7) / 6
    rest = np.full(7, 2.0) if schedule == "constant" else 1 + np.cos(np.pi * t)
    expected = np.concatenate([[0.5, 0.875, 1.25, 1.625], rest])
    np.testing.assert_allclose(steps, expected[:, None] * [1, -1], atol=1e-4)


def test_gradients_are_clipped_by_their_norm():
    """(30, 40) of norm 50 becomes (3, 4): Adam's second step, on (3, −4), by hand.

    m̂ = (0.09·3 + 0.1·3, 0.09·4 − 0.1·4) / 0.19 = (3, −0.210526); v̂ = (9, 16).
    """
    config = dict(learning_rate=1.0, warmup_steps=0, schedule="constant", max_grad_norm=5.0)
    steps = rates(config, [[30.0, 40.0], [3.0, -4.0]], total_steps=10)
    np.testing.assert_allclose(steps, [[1, 1], [1, -0.210526 / 4]], rtol=1e-4)


def test_initial_state():
    """θ⁰ is a copy of π_ref in buffers of its own, Φ⁰ its own anchor, D_0 empty, counters 0."""
    ref = {"w": jnp.ones((2, 3))}
    state = init_state(
        jax.random.key(0), ref, optax.adam(1.0), Head((4,)), optax.adam(1.0),
        num_members=2, feature_width=3, capacity=6,
    )  # fmt: skip
    np.testing.assert_array_equal(state.policy.params["w"], ref["w"])
    pointers = [x.unsafe_buffer_pointer() for x in (state.policy.params["w"], ref["w"])]
    assert pointers[0] != pointers[1]
    ours, anchor = state.ensemble.params["out"]["kernel"], state.ensemble.anchor["out"]["kernel"]
    np.testing.assert_array_equal(ours, anchor)
    assert ours.unsafe_buffer_pointer() != anchor.unsafe_buffer_pointer()
    assert ours.shape == (2, 4, 1) and state.experience.features.shape == (6, 2, 3)
    counters = state.experience.size, state.experience.cursor, state.step, state.num_queries
    assert [int(c) for c in counters] == [0] * 4
