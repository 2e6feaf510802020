"""Direct alignment from preferences: the losses F of Eq. 9 as pure functions.

All losses share one signature, `(policy_logps, ref_logps, lengths, beta, **options)`, where the last axis
is (y+, y−): [..., 2] f32 -> [...] f32. Log-probs are summed over the response's tokens, in nats, at
temperature 1; lengths are in tokens, EOS included. With h the log-ratio difference

    h = log π_θ(y+)/π_ref(y+) − log π_θ(y−)/π_ref(y−).
"""

import chex
import jax
import jax.numpy as jnp

from sea_jax.types import Array


def _log_ratio_difference(policy_logps: Array, ref_logps: Array) -> Array:
    chex.assert_equal_shape([policy_logps, ref_logps])
    chex.assert_axis_dimension(policy_logps, -1, 2)
    ratio = policy_logps - ref_logps
    return ratio[..., 0] - ratio[..., 1]


def dpo(policy_logps: Array, ref_logps: Array, lengths: Array, beta: float = 0.1) -> Array:
    """Computes −log σ(β h).

    References:
        Eq. 10; Rafailov et al. (2023), arXiv:2305.18290.

    Args:
        policy_logps, ref_logps: [..., 2] f32 nats.
        lengths: [..., 2], unused.
        beta: strength of the tie to π_ref.

    Returns:
        [...] f32.
    """
    del lengths
    return -jax.nn.log_sigmoid(beta * _log_ratio_difference(policy_logps, ref_logps))


def ipo(
    policy_logps: Array, ref_logps: Array, lengths: Array, beta: float = 0.2, per_token: bool = False
) -> Array:
    """Computes (h − 1 / 2β)².

    References:
        Eq. 11; Azar et al. (2024), arXiv:2310.12036.

    Args:
        policy_logps, ref_logps: [..., 2] f32 nats.
        lengths: [..., 2] tokens, read only if per_token.
        beta: strength of the tie to π_ref.
        per_token: divide each log-ratio by its response's length first, as some libraries do.

    Returns:
        [...] f32.
    """
    if per_token:
        lengths = jnp.maximum(lengths, 1)
        policy_logps, ref_logps = policy_logps / lengths, ref_logps / lengths
    return (_log_ratio_difference(policy_logps, ref_logps) - 1 / (2 * beta)) ** 2


def slic(policy_logps: Array, ref_logps: Array, lengths: Array, beta: float = 0.2) -> Array:
    """Computes max(0, 1 − β h).

    References:
        Eq. 12; Zhao et al. (2023), arXiv:2305.10425.

    Args:
        policy_logps, ref_logps: [..., 2] f32 nats.
        lengths: [..., 2], unused.
        beta: inverse of the margin.

    Returns:
        [...] f32.
    """
    del lengths
    return jax.nn.relu(1 - beta * _log_ratio_difference(policy_logps, ref_logps))


def simpo(
    policy_logps: Array,
    ref_logps: Array,
    lengths: Array,
    beta: float = 10.0,
    margin_ratio: float = 0.3,
) -> Array:
    """Computes −log σ(β (log π_θ(y+)/|y+| − log π_θ(y−)/|y−| − m)), without a reference policy.

    The paper's App. F.2 writes the target margin as γ/β = 0.3; that ratio is m, and that γ is not
    the mixture ratio of Sec. 4.2.3.

    References:
        Meng et al. (2024), arXiv:2405.14734.

    Args:
        policy_logps: [..., 2] f32 nats.
        ref_logps: [..., 2], unused.
        lengths: [..., 2] tokens.
        beta: scale of the length-normalised log-probs.
        margin_ratio: m, nats per token.

    Returns:
        [...] f32.
    """
    del ref_logps
    per_token = policy_logps / jnp.maximum(lengths, 1)
    return -jax.nn.log_sigmoid(beta * (per_token[..., 0] - per_token[..., 1] - margin_ratio))


def implicit_reward(policy_logps: Array, ref_logps: Array, beta: float = 0.1) -> Array:
    """Computes DPO's implicit reward β (log π_θ(y | x) − log π_ref(y | x)), up to a constant of x.

    References:
        App. E, APL; Eq. 16; Rafailov et al. (2023), arXiv:2305.18290.

    Args:
        policy_logps, ref_logps: [...] f32 nats, at temperature 1.
        beta: β of the loss.

    Returns:
        [...] f32.
    """
    return beta * (policy_logps - ref_logps)


def optimism(y_ref_logps: Array, alpha: float = 5e-6) -> Array:
    """Computes XPO's optimism term α log π_θ(y_ref), y_ref ~ π_ref, which drives the policy away from π_ref.

    References:
        Eq. 19; Xie et al. (2024), arXiv:2405.21046.

    Args:
        y_ref_logps: [...] f32 nats.
        alpha: α ≥ 0, the optimism coefficient.

    Returns:
        [...] f32.
    """
    return alpha * y_ref_logps


DAP_LOSSES = {"dpo": dpo, "ipo": ipo, "slic": slic, "simpo": simpo}
