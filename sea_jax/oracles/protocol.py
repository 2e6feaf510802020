"""What an oracle is: the one thing that may be asked which of two responses is better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np


class Oracle(Protocol):
    """A preference oracle P (paper, Sec. 2). It answers with probabilities and draws nothing."""

    def probability(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> np.ndarray:
        """P(first ≻ second | x) for B comparisons.

        Args:
          prompts, first, second: B texts each.

        Returns:
          [B] float64 in [0, 1].
        """
        ...


class Answers(NamedTuple):
    """What an oracle said of B comparisons."""

    probability: np.ndarray  # [B] float64 in [0, 1] where answered; read nowhere else
    answered: np.ndarray  # [B] bool; False: asked, but there is no answer that could be read


@runtime_checkable
class PartialOracle(Protocol):
    """An oracle that may leave a comparison without an answer, as a judge who cannot be understood."""

    def answers(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Answers:
        """P(first ≻ second | x) for those of B comparisons that were answered.

        Args:
          prompts, first, second: B texts each.
        """
        ...


def ask(
    oracle: Oracle | PartialOracle, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
) -> Answers:
    """What either kind of oracle says; one that is no PartialOracle answers everything."""
    if isinstance(oracle, PartialOracle):
        return oracle.answers(prompts, first, second)
    return Answers(oracle.probability(prompts, first, second), np.ones(len(prompts), bool))
