"""Measures how far annotators agree about the same questions."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable

import numpy as np

Vote = tuple[Hashable, str, str]  # question, annotator, verdict


def krippendorff_alpha(votes: Iterable[Vote]) -> float:
    """Computes Krippendorff's α for nominal values: 1 is agreement, 0 is chance.

    Questions with one verdict are left out. Annotators may have answered different questions.

    Args:
        votes: at most one per question and annotator.

    Returns:
        α, at most 1; NaN without two verdicts on one question, or if all verdicts are equal.

    References:
        Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), C: nominal data, missing values.
    """
    of_question: dict[Hashable, Counter[str]] = defaultdict(Counter)
    for question, _, verdict in votes:
        of_question[question][verdict] += 1
    units = [counts for counts in of_question.values() if counts.total() > 1]
    values = sorted(set().union(*units))
    counts = np.array([[unit[value] for value in values] for unit in units], np.float64)  # [units, values]
    if len(values) < 2:
        return float("nan")
    size = counts.sum(1)
    # Pairs of different verdicts within a question, and among all verdicts.
    observed = ((size**2 - (counts**2).sum(1)) / (size - 1)).sum()
    total, margin = size.sum(), counts.sum(0)
    expected = (total**2 - (margin**2).sum()) / (total - 1)
    return float(1 - observed / expected)


def cohen_kappa(votes: Iterable[Vote]) -> dict[tuple[str, str], tuple[float, int]]:
    """Computes Cohen's κ of every two annotators, over the questions that both have answered.

    Args:
        votes: at most one per question and annotator.

    Returns:
        By pair of names: κ, at most 1, NaN if both gave one and the same verdict always; and the number of
        questions.

    References:
        Cohen, A coefficient of agreement for nominal scales (1960).
    """
    of_annotator: dict[str, dict[Hashable, str]] = defaultdict(dict)
    for question, annotator, verdict in votes:
        of_annotator[annotator][question] = verdict
    found = {}
    for a, b in itertools.combinations(sorted(of_annotator), 2):
        shared = of_annotator[a].keys() & of_annotator[b].keys()
        if not shared:
            continue
        pairs = [(of_annotator[a][question], of_annotator[b][question]) for question in shared]
        observed = sum(x == y for x, y in pairs) / len(pairs)
        first, second = Counter(x for x, _ in pairs), Counter(y for _, y in pairs)
        chance = sum(first[value] * second[value] for value in first) / len(pairs) ** 2
        found[a, b] = (float("nan") if chance == 1 else (observed - chance) / (1 - chance)), len(pairs)
    return found
