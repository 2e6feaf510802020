"""The epistemic reward model: its heads, their disagreement, and the selection of duels by it."""

from sea_jax.ensemble.heads import Head, init, rewards, update
from sea_jax.ensemble.selection import STRATEGIES

__all__ = ["STRATEGIES", "Head", "init", "rewards", "update"]
