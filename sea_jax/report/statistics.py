"""Computes curves and means from the rows of runs."""

from collections.abc import Iterable

import numpy as np

from sea_jax.report.runs import Rows, Runs


def curve(rows: Rows, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns queries and values of one run where the metric was logged: [n] f64 each."""
    points = [(row["queries"], row[metric]) for row in rows if row.get(metric) is not None]
    return tuple(np.array(points, float).T) if points else (np.empty(0), np.empty(0))


def has_metric(runs: Runs, metric: str) -> bool:
    """Tells whether some run has logged the metric."""
    return any(len(curve(rows, metric)[0]) for method in runs.values() for rows in method.rows)


def mean_curve(runs: list[Rows], metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Computes the mean curve of a metric over seeds.

    Args:
        runs: of one method; those without the metric are left out.
        metric: its name.

    Returns:
        Queries, mean and standard error, [n] f64 each, at the queries of the first run; the other runs are
        interpolated linearly. All three are empty if no run has the metric.
    """
    curves = [xy for rows in runs if len((xy := curve(rows, metric))[0])]
    if not curves:
        return np.empty(0), np.empty(0), np.empty(0)
    at = curves[0][0]
    values = np.stack([np.interp(at, x, y) for x, y in curves])
    error = values.std(0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.zeros(len(at))
    return at, values.mean(0), error


def queries_to(rows: Rows, metric: str, level: float) -> float:
    """Returns the oracle queries at which one run first reaches a level, or infinity if it never does.

    Between two evaluations the metric is interpolated linearly.
    """
    x, y = curve(rows, metric)
    reached = np.flatnonzero(y >= level)
    if not len(reached):
        return float("inf")
    i = reached[0]
    if i == 0:
        return float(x[0])
    return float(x[i - 1] + (level - y[i - 1]) / (y[i] - y[i - 1]) * (x[i] - x[i - 1]))


def mean_over_labels(runs: Iterable[Rows], metric: str, low: float, high: float) -> float:
    """Averages a metric of a step's bought duels over the labels of all runs.

    A row of such a metric is itself a mean over the labels that its step bought, so it counts by their
    number: the increase of `queries` since the row before. A step that bought none counts nothing.

    Args:
        runs: rows of each run.
        metric: its name, as 'ensemble/accuracy_chosen'.
        low, high: only steps after which the run has more than `low` and at most `high` queries.

    Returns:
        The mean; NaN where no label was bought.
    """
    total = labels = 0.0
    for rows in runs:
        queries, values = curve(rows, metric)
        bought = np.diff(queries, prepend=0.0)
        within = (low < queries) & (queries <= high)
        total += (values * bought)[within].sum()
        labels += bought[within].sum()
    return float(total / labels) if labels else float("nan")
