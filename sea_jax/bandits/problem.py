"""Dueling bandits with finitely many arms: contexts, features, preferences and their von Neumann winner.

Axes besides those of `sea_jax.types`: X contexts, A arms.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sea_jax.errors import InputError
from sea_jax.types import Array


class Problem(NamedTuple):
    """A contextual dueling bandit (C, A, P) of Sec. 2.1; contexts come uniformly."""

    features: Array  # [X, A, E] f32, what a posterior over linear rewards reads of an arm
    preference: Array  # [X, A, A] f32, P(a ≻ b | c); P(b ≻ a) is its complement
    winner: Array  # [X, A] f32, the von Neumann winner π*(· | c)


def from_rewards(features: Array, rewards: Array) -> Problem:
    """Makes a problem of Bradley-Terry preferences, P(a ≻ b) = σ(r*(a) − r*(b)) (Eq. 3).

    Args:
        features: [X, A, E] f32.
        rewards: [X, A] f32, r*; its best arm is the winner.
    """
    preference = jax.nn.sigmoid(rewards[:, :, None] - rewards[:, None, :])
    return Problem(features, preference, jax.nn.one_hot(jnp.argmax(rewards, -1), rewards.shape[-1]))


def linear(key: Array, num_contexts: int, num_arms: int, width: int, scale: float) -> Problem:
    """Draws a problem of linear rewards, r*(c, a) = w · φ(c, a).

    Args:
        key: [] key.
        num_contexts: X.
        num_arms: A.
        width: E. Features are N(0, 1), and w ~ N(0, scale² / E), so that rewards have a standard deviation of
            `scale`.
        scale: of the rewards.
    """
    feature_key, weight_key = jax.random.split(key)
    features = jax.random.normal(feature_key, (num_contexts, num_arms, width))
    weights = jax.random.normal(weight_key, (width,)) * scale / width**0.5
    return from_rewards(features, features @ weights)


def from_preferences(preference: np.ndarray) -> Problem:
    """Makes a problem of any preferences, transitive or not; an arm's feature is its own one-hot vector.

    Args:
        preference: [X, A, A] f64 in [0, 1], P(a ≻ b | c).

    Raises:
        InputError: another shape, a value that is no probability, or P(a ≻ b) + P(b ≻ a) ≠ 1 somewhere.
    """
    preference = np.asarray(preference, float)
    valid = "valid is [X, A, A] in [0, 1] with P(a ≻ b) + P(b ≻ a) = 1"
    if preference.ndim != 3 or preference.shape[1] != preference.shape[2]:
        raise InputError(f"preference of shape {preference.shape}: {valid}")
    wrong = ~((preference >= 0) & (preference <= 1) & np.isclose(preference + preference.swapaxes(1, 2), 1))
    if wrong.any():
        context, a, b = np.argwhere(wrong)[0].tolist()
        raise InputError(f"preference[{context}, {a}, {b}]={preference[context, a, b]:g}: {valid}")
    X, A, _ = preference.shape
    winner = np.stack([von_neumann_winner(table) for table in preference])
    features = jnp.broadcast_to(jnp.eye(A), (X, A, A))
    return Problem(features, jnp.asarray(preference, jnp.float32), jnp.asarray(winner, jnp.float32))


def von_neumann_winner(preference: np.ndarray) -> np.ndarray:
    """Finds a policy that no other beats (Eq. 2): the maximin strategy of the symmetric game P − ½.

    Args:
        preference: [A, A] f64, P(a ≻ b).

    Returns:
        [A] f64, probabilities. Where several policies win, one of them.

    References:
        Dudík et al. (2015), Contextual Dueling Bandits.
    """
    from scipy.optimize import linprog

    num_arms = len(preference)
    # Maximise v subject to Σ_a π(a) P(a ≻ b) ≥ v for every b, Σ_a π(a) = 1, π ≥ 0.
    cost = np.append(np.zeros(num_arms), -1.0)
    beaten = np.column_stack([-np.asarray(preference, float).T, np.ones(num_arms)])
    total = np.append(np.ones(num_arms), 0.0)[None]
    solved = linprog(cost, beaten, np.zeros(num_arms), total, [1.0], [(0, None)] * num_arms + [(None, None)])
    return np.clip(solved.x[:-1], 0, None) / np.clip(solved.x[:-1], 0, None).sum()
