"""Chooses which duels of a pool to ask about, by what a label would tell: optimal experimental design.

The members' rewards stand for a Gaussian over rewards. The label of a duel with margin d has the Fisher
information c = p (1 − p) on d, with p the mean preference, and takes c Cov(x, d)² / (1 + c Var(d)) off the
variance of any quantity x. That does not depend on what the label says, so a batch can be chosen as if the
labels of its other duels had come.

References:
    optimal design: Pukelsheim (1993). D-optimal: Active Reward Modeling (2025), arXiv:2502.04354.
"""

from typing import Any

import jax
import jax.numpy as jnp

from sea_jax.ensemble.uncertainty import pair_preferences
from sea_jax.types import Array, Duel


def pair_gains(rewards: Array) -> Array:
    """Computes by how much a label of each pair lowers the mean variance of all centred rewards.

    A reward counts as its difference from the mean over the responses to its prompt, since a constant of the
    prompt means nothing.

    Args:
        rewards: [K, B, M] f32. The estimate is of rank K, so that few members blur it.

    Returns:
        [B, M, M] f32, rewards².
    """
    spread = _spread(rewards)
    preference = pair_preferences(rewards)
    information = preference * (1 - preference)
    weighted = jnp.einsum("kbm,kl->lbm", spread, _importance(spread))
    variance, covered = _of_pairs(spread, spread), _of_pairs(spread, weighted)
    return information * covered / (1 + information * variance)


def _of_pairs(spread: Array, other: Array) -> Array:
    """Computes (s_a − s_b)·(o_a − o_b) of all pairs of a prompt: [K, B, M] twice -> [B, M, M]."""
    product = jnp.einsum("kbm,kbn->bmn", spread, other)
    diagonal = jnp.diagonal(product, axis1=1, axis2=2)
    return diagonal[:, :, None] + diagonal[:, None, :] - product - product.swapaxes(1, 2)


def _spread(rewards: Array) -> Array:
    """Scales deviations from the members' mean so that products over members are covariances."""
    return (rewards - rewards.mean(0)) / max(rewards.shape[0] - 1, 1) ** 0.5


def _importance(spread: Array) -> Array:
    """Computes A [K, K]: dᵀ A d is the mean Cov(x, d)² over centred rewards x, for a margin of spread d."""
    centred = spread - spread.mean(-1, keepdims=True)
    return jnp.einsum("kbm,lbm->kl", centred, centred) / (centred.shape[1] * centred.shape[2])


def largest_variance(rewards: Array, duel: Duel, num_kept: int) -> Array:
    """Chooses the B duels whose outcome the posterior knows least, by V_φ[σ(r_φ(y) − r_φ(y'))].

    Args:
        rewards: [K, P, M] f32, of the responses to P prompts.
        duel: P duels; those that teach nothing are void.
        num_kept: B ≤ P.

    Returns:
        [B] int32, rows of the pool, ascending; void duels only where there are too few others.
    """
    variance = jax.nn.sigmoid(_margins(rewards, duel)).var(0)
    _, kept = jax.lax.top_k(jnp.where(duel.void, -1.0, variance), num_kept)
    return jnp.sort(kept)


def d_optimal(rewards: Array, duel: Duel, num_kept: int) -> Array:
    """Chooses B duels that together tell most of all margins of the pool: greedy D-optimal design.

    Args:
        rewards, duel, num_kept: as for `largest_variance`.

    Returns:
        As `largest_variance`.
    """
    return _greedy(rewards, duel, num_kept, None)


def i_optimal(rewards: Array, duel: Duel, num_kept: int) -> Array:
    """Chooses B duels that together lower the mean variance of all centred rewards most: greedy I-optimality.

    Args:
        rewards, duel, num_kept: as for `largest_variance`.

    Returns:
        As `largest_variance`.
    """
    return _greedy(rewards, duel, num_kept, _importance(_spread(rewards)))


def _greedy(rewards: Array, duel: Duel, num_kept: int, importance: Array | None) -> Array:
    """Chooses duels one by one, each as if the labels of those before had come.

    The gain of a duel is c dᵀ A d / (1 + c dᵀ d); without A it is c dᵀ d, which orders duels as the
    determinant of the precision does. A label turns the spread s of any quantity into H s, with
    H = I − g d dᵀ: for v = dᵀ d and g = (1 − (1 + c v)^−½) / v, (H s)ᵀ (H s') is the covariance that is left.
    """
    margin = _margins(rewards, duel)
    preference = jax.nn.sigmoid(margin).mean(0)
    information = preference * (1 - preference)

    def choose(carry: tuple[Array, Any, Array], _: None) -> tuple[tuple[Array, Any, Array], Array]:
        spread, importance, left_out = carry  # [K, P]; A; [P], 1 for void duels, 2 for those chosen
        gain = information * (spread**2).sum(0)
        scale = 1 + gain
        if importance is not None:
            gain = information * jnp.einsum("kp,kl,lp->p", spread, importance, spread) / scale
        best = jnp.argmax(jnp.where(left_out > 0, -left_out, gain))
        d = spread[:, best]
        g = (1 - scale[best] ** -0.5) / jnp.maximum(d @ d, 1e-30)
        H = jnp.eye(len(d)) - g * jnp.outer(d, d)
        left = None if importance is None else H @ importance @ H
        return (H @ spread, left, left_out.at[best].set(2.0)), best

    start = _spread(margin), importance, duel.void.astype(jnp.float32)
    _, kept = jax.lax.scan(choose, start, None, length=num_kept)
    return jnp.sort(kept).astype(jnp.int32)


def _margins(rewards: Array, duel: Duel) -> Array:
    """Computes r_φ(y) − r_φ(y') of P duels under every member: [K, P, M] -> [K, P]."""
    rows = jnp.arange(len(duel.first))
    return rewards[:, rows, duel.first] - rewards[:, rows, duel.second]


POOL_CHOICES = {"variance": largest_variance, "d_optimal": d_optimal, "i_optimal": i_optimal}
