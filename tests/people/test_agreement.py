"""Agreement of annotators, and labels of several verdicts, against published examples and hand calculations."""

import itertools
import math
import random

import pytest

from sea_jax.labels.agreement import cohen_kappa, krippendorff_alpha
from sea_jax.people import verdicts

# Krippendorff (2011), example C: four observers, twelve units, '.' where there is no value.
OBSERVERS = ("123321 4 1 2 . . .", "123322 4 1 2 5 . 3", ".33323 4 2 2 5 1 .", "123324 4 1 2 5 1 .")


def published():
    return [
        (unit, f"observer {i}", value)
        for i, row in enumerate(OBSERVERS)
        for unit, value in enumerate(row.replace(" ", ""))
        if value != "."
    ]


def by_pairs(votes):
    """α by its definition: all ordered pairs of values within units, and among all values."""
    units = {}
    for unit, _, value in votes:
        units.setdefault(unit, []).append(value)
    units = [values for values in units.values() if len(values) > 1]
    observed = sum(sum(a != b for a, b in itertools.permutations(v, 2)) / (len(v) - 1) for v in units)
    pooled = [value for values in units for value in values]
    expected = sum(a != b for a, b in itertools.permutations(pooled, 2)) / (len(pooled) - 1)
    return 1 - observed / expected


def test_alpha():
    assert krippendorff_alpha(published()) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(published()) == pytest.approx(by_pairs(published()), abs=1e-12)
    rng = random.Random(0)
    for _ in range(20):
        votes = [(u, a, rng.choice("xyz")) for u in range(9) for a in "abcd" if rng.random() < 0.7]
        assert krippendorff_alpha(votes) == pytest.approx(by_pairs(votes), abs=1e-12)
    agreed = [(u, a, "xy"[u % 2]) for u in range(4) for a in "ab"]
    assert krippendorff_alpha(agreed) == 1.0
    assert math.isnan(krippendorff_alpha([])) and math.isnan(
        krippendorff_alpha([(1, "a", "x"), (2, "b", "y")])
    )
    assert math.isnan(krippendorff_alpha([(1, "a", "x"), (1, "b", "x")]))


def test_kappa():
    """50 proposals: both yes 20, A alone yes 5, B alone yes 10, both no 15. Po = 0.7, Pe = 0.5·0.6 + 0.5·0.4."""
    cells = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    votes = [(i, name, cell[side]) for i, cell in enumerate(cells) for side, name in enumerate(("A", "B"))]
    votes += [(99, "A", "y"), (100, "C", "y")]  # answered by one alone
    assert cohen_kappa(votes) == {("A", "B"): (pytest.approx(0.4), 50)}
    ((kappa, n),) = cohen_kappa([(1, "A", "y"), (1, "B", "y")]).values()
    assert math.isnan(kappa) and n == 1


NONE = math.nan


@pytest.mark.parametrize(
    ("given", "majority", "mean"),
    [
        (["first"], 1.0, 1.0),
        (["second"], 0.0, 0.0),
        (["first", "first", "second"], 1.0, 2 / 3),
        (["first", "second"], 0.5, 0.5),
        (["tie"], 0.5, 0.5),
        (["tie", "first"], 0.5, 0.75),
        (["tie", "tie", "second"], 0.5, 1 / 3),
        (["both_bad"], NONE, NONE),
        (["both_bad", "first"], NONE, 1.0),
        (["both_bad", "first", "first"], 1.0, 1.0),
        (["both_bad", "both_bad", "first"], NONE, 1.0),
        ([], NONE, NONE),
    ],
)
def test_labels_of_several_verdicts(given, majority, mean):
    for order in set(itertools.permutations(given)):
        for combine, expected in (("majority", majority), ("mean", mean)):
            assert verdicts.probability(order, combine, "coin") == pytest.approx(expected, nan_ok=True)
            dropped = NONE if expected == 0.5 else expected
            assert verdicts.probability(order, combine, "drop") == pytest.approx(dropped, nan_ok=True)
