"""Contextual dueling bandits without a language model: Algorithm 1 where it is tractable (Sec. 2 and 4.1)."""

from sea_jax.bandits.algorithm import Agent, Rounds, simulate
from sea_jax.bandits.exact import FinitePosterior
from sea_jax.bandits.problem import Problem, from_preferences, from_rewards, linear, von_neumann_winner

__all__ = [
    "Agent",
    "FinitePosterior",
    "Problem",
    "Rounds",
    "from_preferences",
    "from_rewards",
    "linear",
    "simulate",
    "von_neumann_winner",
]
