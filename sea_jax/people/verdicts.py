"""Makes one label of the verdicts of several people."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from sea_jax.labels.question_tables import BOTH_BAD, FIRST, SECOND, TIE

_VALUES = {FIRST: 1.0, SECOND: 0.0, TIE: 0.5}


def probability(verdicts: Sequence[str], combine: str = "majority", ties: str = "drop") -> float:
    """Computes P(first ≻ second | x) from verdicts.

    Args:
        verdicts: of different people on one duel, each of `question_tables.VERDICTS` but 'skip'.
        combine: 'majority' takes the verdict that most gave, a tie where two lead; 'mean' the mean of first
            (1), second (0) and tie (½), in which 'both_bad' has no part.
        ties: 'drop': a probability of ½ is no label; 'coin': it is, and `Labeller` decides by a fair coin.

    Returns:
        A probability; NaN: no label, as no verdict says which is better, or most say that both are bad.
    """
    if not verdicts:
        return math.nan
    if combine == "majority":
        counts = Counter(verdicts)
        leaders = [verdict for verdict, n in counts.items() if n == max(counts.values())]
        if BOTH_BAD in leaders:
            return math.nan
        found = _VALUES[leaders[0]] if len(leaders) == 1 else 0.5
    else:
        values = [_VALUES[verdict] for verdict in verdicts if verdict != BOTH_BAD]
        found = sum(values) / len(values) if values else math.nan
    return math.nan if found == 0.5 and ties == "drop" else found
