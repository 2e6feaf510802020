"""An oracle made of a reward function by the Bradley-Terry model."""

from __future__ import annotations

from collections import OrderedDict
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

    A text is scored once: the oracle keeps the rewards of the last texts, so that a label, the online win
    rate and an evaluation share them. It relies on rewards that do not depend on the other texts of a call.

    Args:
        reward_fn: r*; takes B prompts and B responses, returns [B] finite rewards.
        memory: texts whose rewards are kept.
    """

    def __init__(
        self, reward_fn: Callable[[Sequence[str], Sequence[str]], np.ndarray], memory: int = 1 << 16
    ):
        self._reward_fn, self._memory = reward_fn, memory
        self._known: OrderedDict[tuple[str, str], np.float32] = OrderedDict()

    def rewards(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Returns r*(x, y): [B] float32, in nats of preference log-odds. It buys no label.

        Raises:
            ValueError: lengths differ, or `reward_fn` does not return [B].
        """
        if len(prompts) != len(responses):
            raise ValueError(f"responses: {len(responses)} given, must be one per prompt, {len(prompts)}")
        texts = list(zip(prompts, responses, strict=True))
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known.update(zip(new, self._score(new), strict=True))
        rewards = np.array([self._known[text] for text in texts], np.float32)
        while len(self._known) > self._memory:
            self._known.popitem(last=False)
        return rewards

    def _score(self, texts: list[tuple[str, str]]) -> np.ndarray:
        """Calls `reward_fn` on B pairs of prompt and response; returns [B] float32."""
        prompts, responses = ([text[i] for text in texts] for i in (0, 1))
        rewards = np.asarray(self._reward_fn(prompts, responses), np.float32)
        if rewards.shape != (len(texts),):
            raise ValueError(f"reward_fn: answer of shape {rewards.shape}, must be ({len(texts)},)")
        return rewards

    def probability(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> np.ndarray:
        """Returns P(first ≻ second | x): [B] float64."""
        return preference(self.rewards(prompts, first), self.rewards(prompts, second))
