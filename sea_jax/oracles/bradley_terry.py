"""An oracle made of a reward function by the Bradley-Terry model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def preference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns σ(r* − r*'), Eq. 3 of the paper.

    Args:
        first, second: rewards r* and r*', [B] each.

    Returns:
        [B] float64.
    """
    margin = np.asarray(first, np.float64) - second
    # σ through tanh: no overflow at large margins, and exactly 1/2 at a tie.
    return 0.5 * (1.0 + np.tanh(0.5 * margin))


class BradleyTerryOracle:
    """P(y ≻ y' | x) = σ(r*(x, y) − r*(x, y')), Eq. 3 of the paper.

    Args:
        reward_fn: r*; takes B prompts and B responses, returns [B] finite rewards.
    """

    def __init__(self, reward_fn: Callable[[Sequence[str], Sequence[str]], np.ndarray]):
        self._reward_fn = reward_fn

    def rewards(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Returns r*(x, y): [B] float32, in nats of preference log-odds. It buys no label.

        Raises:
            ValueError: lengths differ, or `reward_fn` does not return [B].
        """
        if len(prompts) != len(responses):
            raise ValueError(f"responses: {len(responses)} given, must be one per prompt, {len(prompts)}")
        rewards = np.asarray(self._reward_fn(prompts, responses), np.float32)
        if rewards.shape != (len(prompts),):
            raise ValueError(f"reward_fn: answer of shape {rewards.shape}, must be ({len(prompts)},)")
        return rewards

    def probability(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> np.ndarray:
        """Returns P(first ≻ second | x): [B] float64."""
        return preference(self.rewards(prompts, first), self.rewards(prompts, second))
