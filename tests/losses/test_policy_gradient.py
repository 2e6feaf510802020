"""RLOO against loops and against the exact gradient of the objective, by enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from helpers import log_softmax

from sea_jax.losses.policy_gradient import leave_one_out, rloo_loss

rng = np.random.default_rng(0)
V, G, BETA = 3, 2, 0.3
LOGITS, REF, REWARD = (rng.normal(size=V) for _ in range(3))


def test_leave_one_out_by_loops():
    rewards = rng.normal(size=(2, 4))
    expected = [[r[g] - np.delete(r, g).mean() for g in range(4)] for r in rewards]
    np.testing.assert_allclose(leave_one_out(jnp.asarray(rewards)), expected, rtol=1e-5, atol=1e-6)


def objective(logits):
    """E[r] − β KL of one categorical choice."""
    logp = log_softmax(logits)
    return np.exp(logp) @ (REWARD - BETA * (logp - log_softmax(REF)))


def test_the_expected_gradient_is_the_objectives():
    """Over all pairs of responses with their probabilities, against finite differences."""

    def loss(logits, drawn):
        logps, ref_logps = (jax.nn.log_softmax(x)[drawn] for x in (logits, jnp.asarray(REF)))
        return rloo_loss(logps[None], ref_logps[None], jnp.asarray(REWARD)[drawn][None], BETA)[0]

    gradient = jax.jit(jax.grad(loss))
    probability = np.exp(log_softmax(LOGITS))
    mean = sum(
        probability[list(drawn)].prod() * np.asarray(gradient(jnp.asarray(LOGITS), jnp.array(drawn)))
        for drawn in itertools.product(range(V), repeat=G)
    )
    step = 1e-5 * np.eye(V)
    exact = [(objective(LOGITS + s) - objective(LOGITS - s)) / 2e-5 for s in step]
    np.testing.assert_allclose(-mean, exact, atol=1e-5)
    assert np.abs(exact).max() > 0.05
