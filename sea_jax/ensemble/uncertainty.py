"""Variances of rewards [K, B, M] over the members of the ensemble (ddof 0), and what labels say of them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sea_jax.losses import mean_or_nan
from sea_jax.types import Array


def preference_variance(rewards: Array, first: Array) -> Array:
    """Computes V_φ[σ(r_φ(y_t) − r_φ(b))] for every b in S_t (Alg. 2, line 7).

    Args:
        rewards: [K, B, M] f32.
        first: [B] int32, y_t.

    Returns:
        [B, M] f32, in probability squared; 0 at y_t itself.
    """
    chosen = jnp.take_along_axis(rewards, first[None, :, None], axis=2)
    return jnp.var(jax.nn.sigmoid(chosen - rewards), axis=0)


def duel_variance(rewards: Array, first: Array, second: Array) -> Array:
    """Computes V_φ[σ(r_φ(y) − r_φ(y'))] of each duel, what the posterior does not know of its outcome.

    Args:
        rewards: [K, B, M] f32.
        first, second: [B] int32, y and y'.

    Returns:
        [B] f32, in probability squared.
    """
    return preference_variance(rewards, first)[jnp.arange(len(second)), second]


def logit_variance(rewards: Array, first: Array) -> Array:
    """Computes V_φ[r_φ(y_t) − r_φ(b)], the first implementation's choice for line 7, in logits²."""
    chosen = jnp.take_along_axis(rewards, first[None, :, None], axis=2)
    return jnp.var(chosen - rewards, axis=0)


def pair_preferences(rewards: Array) -> Array:
    """Computes E_φ[σ(r_φ(b) − r_φ(b'))] of all pairs: [K, B, M] -> [B, M, M] f32."""
    return _pair_moments(rewards)[0]


def pair_preference_variance(rewards: Array) -> Array:
    """Computes V_φ[σ(r_φ(b) − r_φ(b'))] of all pairs: [K, B, M] -> [B, M, M] f32, in probability squared."""
    mean, square = _pair_moments(rewards)
    return jnp.maximum(square - mean**2, 0.0)


def pair_information(rewards: Array) -> Array:
    """Computes what a label of each pair tells of the member, H(E_φ[p]) − E_φ[H(p)] (BALD).

    p is σ(r_φ(b) − r_φ(b')), and H the entropy of a label with that probability.

    References:
        Houlsby et al. (2011), arXiv:1112.5745.

    Args:
        rewards: [K, B, M] f32.

    Returns:
        [B, M, M] f32 nats, ≥ 0.
    """
    mean, entropy = _pair_means(rewards, lambda margin: (jax.nn.sigmoid(margin), _label_entropy(margin)))
    logit = jnp.log(mean) - jnp.log1p(-mean)
    return jnp.maximum(_label_entropy(logit) - entropy, 0.0)


def _label_entropy(margin: Array) -> Array:
    """Returns the entropy of a label of probability σ(margin), in nats; also where σ rounds to 0 or 1."""
    size = jnp.abs(margin)
    return jax.nn.softplus(-size) + jnp.where(jnp.isinf(size), 0.0, size) * jax.nn.sigmoid(-size)


def _pair_moments(rewards: Array) -> tuple[Array, Array]:
    """Computes the means over members of σ(r_φ(b) − r_φ(b')) and of its square, [B, M, M] each."""

    def moments(margin: Array) -> tuple[Array, Array]:
        probability = jax.nn.sigmoid(margin)
        return probability, probability**2

    return _pair_means(rewards, moments)


def _pair_means(rewards: Array, function: Callable[[Array], tuple[Array, Array]]) -> tuple[Array, Array]:
    """Computes the means over members of two functions of r_φ(b) − r_φ(b'), [B, M, M] each."""

    # Member by member: all K at once would hold [K, B, M, M].
    def add(sums: tuple[Array, Array], member: Array) -> tuple[tuple[Array, Array], None]:
        return jax.tree.map(jnp.add, sums, function(member[:, :, None] - member[:, None, :])), None

    K, B, M = rewards.shape
    zeros = jnp.zeros((B, M, M))
    (first, second), _ = jax.lax.scan(add, (zeros, zeros), rewards)
    return first / K, second / K


def pair_logit_variance(rewards: Array) -> Array:
    """Computes V_φ[r_φ(b) − r_φ(b')] of all pairs (App. G.1): [K, B, M] -> [B, M, M] f32, logits²."""
    centred = rewards - rewards.mean(axis=0)
    covariance = jnp.einsum("kbm,kbn->bmn", centred, centred) / rewards.shape[0]
    variance = jnp.diagonal(covariance, axis1=1, axis2=2)
    return variance[:, :, None] + variance[:, None, :] - 2 * covariance


def surprise(probability: Array, weight: Array) -> Array:
    """Computes by how many standard deviations the labels' log-loss exceeds its expectation.

    If labels have the probabilities that the posterior gives them, their log-loss exceeds their entropy by 0
    on average, with variance p (1 − p) log²(p / (1 − p)). A posterior that is wrong where it is asked is
    surprised. There it shows first that the policy exploits the posterior's errors.

    Args:
        probability: [B] f32, P(y+ ≻ y−) by the posterior before it learns from the label.
        weight: [B] f32, 0 for a duel without a label.

    Returns:
        [] f32, of mean 0 and variance 1 for a calibrated posterior; NaN without a label.
    """
    p = jnp.clip(probability, 1e-6, 1 - 1e-6)
    log_odds = jnp.log(p) - jnp.log1p(-p)
    excess = -(1 - p) * log_odds  # −log p − H(p)
    variance = p * (1 - p) * log_odds**2
    scale = jnp.sqrt(jnp.maximum(weight.sum(), 1.0))
    return scale * mean_or_nan(excess, weight) / jnp.sqrt(mean_or_nan(variance, weight) + 1e-12)
