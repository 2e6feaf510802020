"""The reward model's loss: Bradley-Terry likelihood, and its anchored form for an ensemble member."""

import chex
import jax
import jax.numpy as jnp

from sea_jax.types import Array, Params


def preference_nll(rewards: Array) -> Array:
    """Computes −log σ(r(x, y+) − r(x, y−)).

    References:
        Eq. 5; Bradley and Terry (1952).

    Args:
        rewards: [..., 2] f32, axis −1 is (y+, y−).

    Returns:
        [...] f32 nats.
    """
    chex.assert_axis_dimension(rewards, -1, 2)
    return -jax.nn.log_sigmoid(rewards[..., 0] - rewards[..., 1])


def weighted_mean(values: Array, weight: Array) -> Array:
    """Computes Σ w v / Σ w, or 0 where every weight is 0: [B] f32, [B] f32 -> [] f32."""
    return jnp.sum(values * weight) / jnp.maximum(jnp.sum(weight), 1e-8)


def mean_or_nan(values: Array, weight: Array) -> Array:
    """Returns the weighted mean of a metric, or NaN where nothing was measured.

    For metrics only, never for losses: `runtime.metrics.MetricWriter` leaves NaN out of the row, where 0
    would be averaged in as if it had been measured.

    Args:
        values: [B] f32, finite.
        weight: [B] f32, at least 0.

    Returns:
        [] f32, Σ w v / Σ w; NaN where every weight is 0.
    """
    return jnp.where(jnp.sum(weight) > 0, weighted_mean(values, weight), jnp.nan)


def anchor_penalty(params: Params, anchor: Params) -> Array:
    """Computes ‖φ − φ⁰‖², the sum over one member's parameters, for Eq. 8.

    With the weight λ and the sum of the pairs' negative log-likelihoods it is the negative log posterior
    under the prior φ ~ N(φ⁰, 1 / (2λ)), up to a constant. Eq. 8 prints −λ‖φ − φ⁰‖; docs/deviations.md gives
    the reasons for the sign and the square.

    Args:
        params: φ, a pytree of one member's leaves (no K axis).
        anchor: φ⁰, a pytree of the same structure and shapes.

    Returns:
        [] f32.

    References:
        Eq. 8; anchored ensembles: Pearce et al. (2020), arXiv:1810.05546.
    """
    squares = jax.tree.map(lambda p, a: jnp.sum((p - a) ** 2), params, anchor)
    return sum(jax.tree.leaves(squares))  # pyright: ignore[reportReturnType]
