"""RLOO: REINFORCE with the other responses to the same prompt as baseline.

References:
    Ahmadian et al. (2024), arXiv:2402.14740; the objective is the paper's Eq. 7.
"""

import jax
import jax.numpy as jnp

from sea_jax.types import Array


def leave_one_out(rewards: Array) -> Array:
    """Computes the advantage of each response over the mean of the others to its prompt.

    Args:
        rewards: [B, G] f32, G ≥ 2.

    Returns:
        [B, G] f32, r_g − Σ_{h ≠ g} r_h / (G − 1).
    """
    G = rewards.shape[-1]
    return (rewards - rewards.mean(-1, keepdims=True)) * G / (G - 1)


def rloo_loss(
    logps: Array, ref_logps: Array, rewards: Array, kl_weight: Array | float, max_kl: Array | float = jnp.inf
) -> Array:
    """Computes a loss whose gradient estimates that of −(E[r] − β KL(π_θ ‖ π_ref)) (Eq. 7), per prompt.

    A response's return is its reward less β log(π_θ / π_ref), whose mean over π_θ is the KL term. The value
    of the loss says nothing. A prompt on which the policy is further from π_ref than a limit teaches the way
    back alone: its returns are −log(π_θ / π_ref).

    Args:
        logps, ref_logps: [B, G] f32 nats, log π_θ and log π_ref of responses drawn from π_θ at temperature 1.
        rewards: [B, G] f32.
        kl_weight: β.
        max_kl: the limit, in nats, for the mean of log(π_θ / π_ref) over the responses to a prompt.

    Returns:
        [B] f32.
    """
    ratio = logps - ref_logps
    is_far = ratio.mean(-1, keepdims=True) > max_kl
    returns = jnp.where(is_far, -ratio, rewards - kl_weight * ratio)
    return -jnp.mean(jax.lax.stop_gradient(leave_one_out(returns)) * logps, axis=-1)
