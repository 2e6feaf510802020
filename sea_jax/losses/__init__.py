"""Losses as pure functions: preference losses (Eq. 10-12), the reward model's (Eq. 5, 8)."""

from sea_jax.losses.dap import DAP_LOSSES, dpo, implicit_reward, ipo, optimism, simpo, slic
from sea_jax.losses.logprobs import response_states, sequence_logprobs, token_logprobs
from sea_jax.losses.reward import anchor_penalty, mean_or_nan, preference_nll, weighted_mean
from sea_jax.losses.term import LossTerm

__all__ = [
    "DAP_LOSSES", "LossTerm", "anchor_penalty", "dpo", "implicit_reward", "ipo", "mean_or_nan", "optimism",
    "preference_nll", "response_states", "sequence_logprobs", "simpo", "slic", "token_logprobs",
    "weighted_mean",
]  # fmt: skip
