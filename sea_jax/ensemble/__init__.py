"""The epistemic reward model: heads, what they disagree on, and the duels that follow from it."""

from sea_jax.ensemble.heads import Head, init, rewards, update
from sea_jax.ensemble.selection import STRATEGIES

__all__ = ["STRATEGIES", "Head", "init", "rewards", "update"]
