"""Says in sentences how many labels each method needed."""

import math

import numpy as np

from sea_jax.report.runs import MethodRuns, Runs
from sea_jax.report.statistics import curve, queries_to

_NAMES = {
    "eval/win_rate_reference": "win rate of {:g} against the references",
    "eval/reward": "mean hidden reward of {:g}",
    "eval/reward_gain": "gain of {:g} in mean hidden reward",
}


def in_words(runs: Runs, metric: str, levels: tuple[float, ...]) -> str:
    """Names the labels that every method needed to the highest level that some method reached on all seeds.

    Args:
        runs: finished runs on the same seeds.
        metric: a key of _NAMES.
        levels: of that metric.

    Returns:
        A sentence; empty where fewer than two methods are compared, or none reached a level on all seeds.
    """
    if len(runs) < 2:
        return ""
    for level in sorted(levels, reverse=True):
        needed = {name: _mean_queries(method, metric, level) for name, method in runs.items()}
        first, *others = sorted(needed, key=lambda name: needed[name])
        if math.isinf(needed[first]):
            continue
        said = [f"{runs[first].label} needed {needed[first]:.0f} labels"]
        said += [_compare(runs[name], needed[name], needed[first], metric) for name in others]
        return f"To a {_NAMES[metric].format(level)}: {', '.join(said)}."
    return ""


def _mean_queries(method: MethodRuns, metric: str, level: float) -> float:
    """Returns the mean over seeds; infinity where a seed did not reach the level."""
    return float(np.mean([queries_to(rows, metric, level) for rows in method.rows]))


def _compare(method: MethodRuns, needed: float, best: float, metric: str) -> str:
    if math.isfinite(needed):
        times = f" ({needed / best:.1f} times as many)" if best > 0 else ""
        return f"{method.label} {needed:.0f}{times}"
    last = max((curve(rows, metric)[0][-1] for rows in method.rows if len(curve(rows, metric)[0])), default=0)
    return f"{method.label} did not reach it on every seed within {last:.0f}"
