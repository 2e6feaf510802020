"""What an oracle is: the one thing that may be asked which of two responses is better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

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
