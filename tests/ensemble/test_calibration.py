"""Checks the reliability diagram and the calibration error against loops and against calibrated draws."""

import math

import numpy as np
import pytest

from sea_jax.ensemble.calibration import expected_calibration_error, reliability
from sea_jax.errors import InputError


def by_hand(probability, outcome, num_bins):
    bins = [[] for _ in range(num_bins)]
    for p, y in zip(probability, outcome, strict=True):
        place = next((i for i in range(num_bins) if p < (i + 1) / num_bins), num_bins - 1)
        bins[place].append((p, y))
    rows = [
        (sum(p for p, _ in b) / len(b), sum(y for _, y in b) / len(b), len(b)) if b else None for b in bins
    ]
    error = sum(row[2] * abs(row[1] - row[0]) for row in rows if row) / len(probability)
    return rows, error


@pytest.mark.parametrize("num_bins", [1, 4, 10])
def test_against_a_loop(num_bins):
    rng = np.random.default_rng(0)
    probability = rng.random(200)
    outcome = rng.random(200) < probability**2
    rows, error = by_hand(probability, outcome, num_bins)
    confidence, accuracy, count = reliability(probability, outcome, num_bins)
    np.testing.assert_allclose(confidence, [row[0] for row in rows])
    np.testing.assert_allclose(accuracy, [row[1] for row in rows])
    np.testing.assert_array_equal(count, [row[2] for row in rows])
    assert expected_calibration_error(probability, outcome, num_bins) == pytest.approx(error)


def test_edges_and_empty_bins():
    """0 and 1 have bins, an edge belongs to the bin above it, and a bin without outcomes has no mean."""
    confidence, accuracy, count = reliability(np.array([0.0, 0.5, 1.0]), np.array([True, False, True]), 4)
    np.testing.assert_array_equal(count, [1, 0, 1, 1])
    np.testing.assert_array_equal(confidence, [0.0, np.nan, 0.5, 1.0])
    np.testing.assert_array_equal(accuracy, [1.0, np.nan, 0.0, 1.0])
    # By hand: (|1 − 0| + |0 − ½| + |1 − 1|) / 3
    assert expected_calibration_error(np.array([0.0, 0.5, 1.0]), np.array([1, 0, 1]), 4) == pytest.approx(0.5)
    assert math.isnan(expected_calibration_error(np.array([]), np.array([])))


def test_calibrated_draws_have_a_small_error_and_sharpened_ones_a_large_one():
    rng = np.random.default_rng(1)
    logit = rng.normal(size=20_000)
    outcome = rng.random(len(logit)) < 1 / (1 + np.exp(-logit))
    of = lambda factor: expected_calibration_error(1 / (1 + np.exp(-factor * logit)), outcome)  # noqa: E731
    assert of(1.0) < 0.012 < 0.1 < of(4.0)


def test_frequencies_count_as_outcomes():
    """Where the true probability is known, it may stand in for a draw, and adds no noise."""
    probability = np.linspace(0, 1, 50)
    assert expected_calibration_error(probability, probability) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("probability", "outcome", "said"),
    [([0.5], [1, 0], "shapes"), ([[0.5]], [[1]], "shapes"), ([1.5], [1], "probability=1.5"),
     ([float("nan")], [1], "probability=nan"), ([0.5], [2], "outcome=2")],
)  # fmt: skip
def test_mistakes(probability, outcome, said):
    with pytest.raises(InputError, match=said):
        reliability(np.array(probability), np.array(outcome))
