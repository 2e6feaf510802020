"""Curves and means by hand."""

import numpy as np
from made_runs import rows

from sea_jax.report import statistics


def test_queries_to_a_level_are_interpolated_at_its_first_crossing():
    run = rows((0, 0.5), (100, 0.7), (200, 0.6), (300, 0.9))
    assert statistics.queries_to(run, "eval/win_rate_sft", 0.6) == 50
    assert statistics.queries_to(run, "eval/win_rate_sft", 0.8) == 200 + 100 * 2 / 3
    assert statistics.queries_to(run, "eval/win_rate_sft", 0.5) == 0
    assert statistics.queries_to(run, "eval/win_rate_sft", 0.95) == float("inf")


def test_mean_curve_interpolates_and_gives_the_standard_error():
    runs = [rows((0, 0.5), (100, 0.7)), rows((0, 0.5), (50, 0.6), (150, 1.0))]
    at, mean, error = statistics.mean_curve(runs, "eval/win_rate_sft")
    np.testing.assert_array_equal(at, [0, 100])
    np.testing.assert_allclose(mean, [0.5, 0.75])
    np.testing.assert_allclose(error, [0, 0.05])  # values 0.7 and 0.8: sd 0.0707, over √2


def test_rows_without_the_metric_do_not_count():
    run = [*rows((0, 0.5)), {"queries": 32, "policy/loss": 0.6}, {"queries": 40, "eval/win_rate_sft": None}]
    assert len(statistics.curve(run, "eval/win_rate_sft")[0]) == 1


def test_a_run_without_a_metric_is_left_out_of_its_mean():
    runs = [rows((0, 0.5), (100, 0.7)), [{"queries": 0}], rows((0, 0.5), (100, 0.9))]
    at, mean, _ = statistics.mean_curve(runs, "eval/win_rate_sft")
    np.testing.assert_allclose((at, mean), ([0, 100], [0.5, 0.8]))
    assert all(not len(x) for x in statistics.mean_curve([[{"queries": 0}]], "eval/win_rate_sft"))


def test_a_mean_over_labels_counts_each_step_by_the_labels_it_bought():
    """Steps of 4, 2, 0 and 2 labels: (4 · 1 + 2 · 0.5 + 2 · 0) / 8. The evaluation's row buys nothing."""
    name = "ensemble/accuracy_chosen"
    first = [
        {"queries": 0, "eval/reward": 1.0},
        {"queries": 4, name: 1.0},
        {"queries": 4, "eval/reward": 2.0},
        {"queries": 6, name: 0.5},
        {"queries": 6, name: 0.0},  # of an older version, which logged 0 for a step without labels
        {"queries": 6, "policy/loss": 0.6},
        {"queries": 8, name: 0.0},
    ]
    assert statistics.mean_over_labels([first], name, 0, 8) == 5 / 8
    assert statistics.mean_over_labels([first], name, 4, 6) == 0.5
    second = rows((8, 0.25), metric=name)
    assert statistics.mean_over_labels([first, second], name, 0, 8) == (5 + 2) / 16
    assert np.isnan(statistics.mean_over_labels([first], name, 8, 16))
    assert np.isnan(statistics.mean_over_labels([first], "ensemble/nll_chosen", 0, 8))
