"""Variances of rewards [K, B, M] over the members of the ensemble (ddof 0)."""

import jax
import jax.numpy as jnp

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


def logit_variance(rewards: Array, first: Array) -> Array:
    """Computes V_φ[r_φ(y_t) − r_φ(b)], the first implementation's choice for line 7, in logits²."""
    chosen = jnp.take_along_axis(rewards, first[None, :, None], axis=2)
    return jnp.var(chosen - rewards, axis=0)


def pair_preference_variance(rewards: Array) -> Array:
    """Computes V_φ[σ(r_φ(b) − r_φ(b'))] of all pairs: [K, B, M] -> [B, M, M] f32, in probability squared."""

    def moments(member: Array) -> tuple[Array, Array]:
        probability = jax.nn.sigmoid(member[:, :, None] - member[:, None, :])
        return probability, probability**2

    # Member by member: all K at once would hold [K, B, M, M].
    def add(sums: tuple[Array, Array], member: Array) -> tuple[tuple[Array, Array], None]:
        return jax.tree.map(jnp.add, sums, moments(member)), None

    K, B, M = rewards.shape
    zeros = jnp.zeros((B, M, M))
    (total, squares), _ = jax.lax.scan(add, (zeros, zeros), rewards)
    return jnp.maximum(squares / K - (total / K) ** 2, 0.0)


def pair_logit_variance(rewards: Array) -> Array:
    """Computes V_φ[r_φ(b) − r_φ(b')] of all pairs (App. G.1): [K, B, M] -> [B, M, M] f32, logits²."""
    centred = rewards - rewards.mean(axis=0)
    covariance = jnp.einsum("kbm,kbn->bmn", centred, centred) / rewards.shape[0]
    variance = jnp.diagonal(covariance, axis1=1, axis2=2)
    return variance[:, :, None] + variance[:, None, :] - 2 * covariance
