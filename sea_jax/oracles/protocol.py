"""The interface of preference oracles: the only source of true preferences between two responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np


class Oracle(Protocol):
    """A preference oracle P (paper, Sec. 2). It returns probabilities and draws nothing."""

    def probability(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> np.ndarray:
        """Returns P(first ≻ second | x) for B comparisons.

        Args:
            prompts, first, second: B texts each.

        Returns:
            [B] float64 in [0, 1].
        """
        ...


class Answers(NamedTuple):
    """The answers of an oracle to B comparisons."""

    probability: np.ndarray  # [B] float64 in [0, 1] where answered; undefined elsewhere
    answered: np.ndarray  # [B] bool; False: no usable answer


@runtime_checkable
class PartialOracle(Protocol):
    """An oracle that may leave comparisons unanswered, such as a judge whose reply cannot be read."""

    def answers(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Answers:
        """Returns P(first ≻ second | x) for the answered ones of B comparisons.

        Args:
            prompts, first, second: B texts each.
        """
        ...


def compare(
    oracle: Oracle | PartialOracle, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
) -> Answers:
    """Asks an oracle of either kind about B comparisons; an `Oracle` answers all of them."""
    if isinstance(oracle, PartialOracle):
        return oracle.answers(prompts, first, second)
    return Answers(oracle.probability(prompts, first, second), np.ones(len(prompts), bool))
