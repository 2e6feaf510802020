"""The coordinates of the features, and the loss that trains them."""

import types

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax

from sea_jax.ensemble import features, heads
from sea_jax.pretraining import backbone as backbone_lib


def test_a_standard_normal_head_has_the_familys_covariance():
    """P Pᵀ is the covariance of the family's heads, plus the scaled outer product of their mean."""
    heads = np.random.default_rng(0).normal(size=(6, 40)) + np.arange(6)[:, None]
    projection = backbone_lib.prior_projection(heads, 7, mean_scale=0.5)
    mean = heads.mean(1)
    expected = np.cov(heads, ddof=0) + 0.25 * np.outer(mean, mean)
    np.testing.assert_allclose(projection @ projection.T, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(projection[:, -1], 0.5 * mean, rtol=1e-6)


def test_fewer_columns_keep_the_leading_directions():
    heads = np.diag([3.0, 2.0, 1.0]) @ np.random.default_rng(1).normal(size=(3, 4000))
    projection = backbone_lib.prior_projection(heads, 3, mean_scale=0.0)
    np.testing.assert_allclose(np.sort((projection**2).sum(0)), [0, 4, 9], rtol=0.1, atol=1e-6)


def small_backbone():
    """A backbone of random weights whose features have 4 columns, and 30 prompts with 5 responses each."""
    model, params = helpers.decoder()
    pooling = features.GatedPooling(4, helpers.TINY["vocab_size"], 4)
    states, ones = jnp.zeros((1, 1, 2, 16)), jnp.ones((1, 1, 1))
    frozen = {
        "decoder": params, "projection": 3 * jnp.eye(4), "mean": jnp.zeros(4),
        "pooling": jax.jit(pooling.init)(jax.random.key(0), states, ones.astype(int), ones, ones)["params"],
    }  # fmt: skip
    prompts = helpers.batch([3] * 30, 3, "left", 11)
    tokens, mask = (x.reshape(30, 5, 4) for x in helpers.batch([4] * 150, 4, "right", 11, seed=1))
    return features.Backbone(model, pooling, frozen), (*prompts, tokens, mask)


def test_prior_heads_learn_one_reward_each_up_to_a_constant_of_the_prompt():
    backbone, data = small_backbone()
    # The program that `train_prior_heads` also calls.
    phi = np.asarray(features.extract_fn(backbone.model, backbone.pooling)(backbone.params, *data))
    rng = np.random.default_rng(0)
    rewards = phi @ rng.normal(size=(4, 3)).astype(np.float32) + rng.normal(size=(30, 1, 3)) * 10
    config = types.SimpleNamespace(num_heads=2, steps=300, batch_size=16)
    params = backbone_lib.train_prior_heads(config, (16, 16), backbone, data, rewards, jax.random.key(1))
    learned = np.asarray(jax.jit(heads.rewards)(params, phi))  # [2, 30, 5]
    centred = lambda r: r - r.mean(-1, keepdims=True)  # noqa: E731
    learned, target = centred(learned), centred(rewards.transpose(2, 0, 1))
    share = [[1 - ((a - b) ** 2).sum() / (b**2).sum() for b in target] for a in learned]
    assert share[0][0] > 0.95 and share[1][1] > 0.95, share
    assert max(share[0][1:]) < 0.9 and share[1][0] < 0.9 and share[1][2] < 0.9, share


def test_the_linear_prior_is_the_familys_mean_and_covariance():
    """Rewards that are linear in the features, up to a constant of the prompt: their coefficients' moments."""
    backbone, data = small_backbone()
    phi = np.asarray(features.extract_fn(backbone.model, backbone.pooling)(backbone.params, *data))
    rng = np.random.default_rng(0)
    coefficients = (rng.normal(size=(200, 4)) @ np.diag([1, 2, 0.5, 1]) + [0, 3, -1, 0]).T
    rewards = phi @ coefficients + rng.normal(size=(30, 1, 200)) * 10
    prior = backbone_lib.fit_linear_prior(backbone, data, rewards)
    np.testing.assert_allclose(prior["mean"], coefficients.mean(1), rtol=0.05, atol=0.05)
    covariance = np.cov(coefficients)
    expected = 0.9 * covariance + 0.1 * np.trace(covariance) / 4 * np.eye(4)
    np.testing.assert_allclose(np.linalg.inv(prior["precision"]), expected, rtol=0.1, atol=0.05)


def test_a_prior_is_drawn_from_the_family_without_repeats_and_scaled():
    head = heads.Head((5, 4), prior_scale=2.0)
    family = heads.init(jax.random.key(0), heads.Head((5, 4)), 7, 3, optax.adam(1.0)).params
    x = jax.random.normal(jax.random.key(1), (6, 3))
    rewards = jax.jit(heads.rewards)
    known = np.asarray(rewards(family, x))  # [7, 6]
    init = jax.jit(lambda key: heads.init(key, head, 4, 3, optax.adam(1.0), family))
    draws = []
    for seed in range(3):
        state = init(jax.random.key(seed))
        drawn = np.asarray(rewards(state.params, x))
        found = [int(np.argmin(np.abs(2 * known - row).max(1))) for row in drawn]
        np.testing.assert_allclose(drawn, 2 * known[found], rtol=1e-5)
        np.testing.assert_array_equal(rewards(state.anchor, x), drawn)
        assert len(set(found)) == 4
        draws.append(tuple(found))
    assert len(set(draws)) > 1
