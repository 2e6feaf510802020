"""Draws binary labels from an oracle's probabilities and counts every label that is bought."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sea_jax.oracles import protocol

MODES = ("threshold", "bernoulli")
_STREAM = 5_180_417  # separates these draws from any other use of the same seed


class Labels(NamedTuple):
    """The labels of B comparisons."""

    prefers_first: np.ndarray  # [B] bool; False where unanswered
    answered: np.ndarray  # [B] bool; False: no label was bought, and the duel is dropped


class Labeller:
    """Asks an oracle P and draws z ∈ {first preferred, second preferred} (paper, Sec. 2).

    Args:
        oracle: the source of P.
        mode: 'threshold' is z = [P > 1/2], an exact tie decided by a fair coin; 'bernoulli' is
            z ~ Bernoulli(P).
        flip_probability: probability in [0, 1] that a label is flipped (App. G.4).
        num_queries: labels bought before, when a run is resumed.

    Attributes:
        num_queries: labels bought so far, in queries.
        num_dropped: comparisons that the oracle left unanswered; they do not count as queries.
    """

    def __init__(
        self,
        oracle: protocol.Oracle | protocol.PartialOracle,
        mode: str = "threshold",
        flip_probability: float = 0.0,
        num_queries: int = 0,
    ):
        if mode not in MODES:
            raise ValueError(f"mode: {mode!r}, must be one of {MODES}")
        if not 0.0 <= flip_probability <= 1.0:
            raise ValueError(f"flip_probability: {flip_probability}, must lie in [0, 1]")
        if num_queries < 0:
            raise ValueError(f"num_queries: {num_queries}, must be at least 0")
        self.num_queries = num_queries
        self.num_dropped = 0
        self._oracle = oracle
        self._mode = mode
        self._flip_probability = flip_probability

    def label(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str], rng_seed: int
    ) -> Labels:
        """Buys B labels, or fewer where the oracle leaves comparisons unanswered.

        Every answer counts as one query, even if it turns out to be unusable; a call that fails costs
        nothing. An unanswered comparison gets no label, not even a random one.

        Args:
            prompts, first, second: B texts each.
            rng_seed: non-negative; the same seed and answers give the same labels.

        Returns:
            Labels of the B comparisons.

        Raises:
            ValueError: lengths differ, or the answer is not [B] numbers in [0, 1].
        """
        for name, texts in (("first", first), ("second", second)):
            if len(texts) != len(prompts):
                raise ValueError(f"{name}: {len(texts)} given, must be one per prompt, {len(prompts)}")
        if not len(prompts):
            return Labels(np.zeros(0, bool), np.zeros(0, bool))
        probability, answered = protocol.compare(self._oracle, prompts, first, second)
        self.num_queries += int(answered.sum())
        self.num_dropped += int((~answered).sum())
        probability = _checked(probability, answered)
        # All three are always drawn, so that a label depends on nothing but its seed and its own answer.
        coin, chance, noise = np.random.default_rng([_STREAM, rng_seed]).random((3, len(prompts)))
        if self._mode == "threshold":
            labels = np.where(probability == 0.5, coin < 0.5, probability > 0.5)
        else:
            labels = chance < probability
        return Labels((labels ^ (noise < self._flip_probability)) & answered, answered)

    def metrics(self) -> dict[str, float]:
        """Returns the number of dropped comparisons and the oracle's own metrics, if it has any."""
        oracle_metrics = getattr(self._oracle, "metrics", dict)
        return {"oracle/dropped": float(self.num_dropped)} | oracle_metrics()


def _checked(answer: np.ndarray, answered: np.ndarray) -> np.ndarray:
    """Returns the answer as [B] float64; raises ValueError unless it lies in [0, 1] where answered."""
    probability = np.asarray(answer, np.float64)
    if probability.shape != answered.shape:
        raise ValueError(f"oracle: answer of shape {probability.shape}, must be {answered.shape}")
    # A NaN fails both comparisons, so it is caught here too.
    bad = np.flatnonzero(~((probability >= 0.0) & (probability <= 1.0)) & answered)
    if bad.size:
        raise ValueError(f"oracle: probability[{bad[0]}] is {probability[bad[0]]}, must lie in [0, 1]")
    return probability
