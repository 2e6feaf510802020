"""Draws win rates and rewards by oracle queries (Fig. 3), and the queries to levels (Fig. 1)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sea_jax.report.runs import Runs
from sea_jax.report.statistics import has_metric, mean_curve, queries_to

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 130
REFERENCES, SFT = "eval/win_rate_reference", "eval/win_rate_sft"
WIN_RATES = {REFERENCES: "win rate against references", SFT: "win rate against SFT"}


class Bars(NamedTuple):
    """The levels of which the bars show the queries."""

    metric: str  # a key of the metrics
    name: str  # for people
    levels: tuple[float, ...]


def draw(sizes: dict[str, Runs], evaluations: dict[str, Any], file: Path) -> None:
    """Writes the figure that `make` makes of the same arguments as a PNG."""
    make(sizes, evaluations).savefig(file)


def make(sizes: dict[str, Runs], evaluations: dict[str, Any]) -> Figure:
    """Draws a row of panels for each model size, with one colour for each method.

    Args:
        sizes: size -> finished runs; the size is '' where there is one only.
        evaluations: size -> config.eval, whose levels the bars have.

    Returns:
        A figure that pyplot does not know: it changes no backend and needs no window.
    """
    from sea_jax.report.inline import InlineFigure  # imports matplotlib, which takes a second

    names = list(dict.fromkeys(name for runs in sizes.values() for name in runs))
    colors = {name: f"C{i}" for i, name in enumerate(names)}
    figure = InlineFigure(figsize=(16, 4.4 * len(sizes)), layout="constrained", dpi=_DPI)
    rows = figure.subplots(len(sizes), 3, squeeze=False)
    for panels, (size, runs) in zip(rows, sizes.items(), strict=True):
        title = f"{size}, mean ± s.e. over seeds" if size else "mean ± s.e. over seeds"
        metrics = _shown(runs)
        for axes, (metric, name) in zip(panels, metrics.items(), strict=False):
            _curves(axes, runs, metric, colors)
            axes.set(xlabel="oracle queries", ylabel=name, title=title)
        for axes in panels[len(metrics) : 2]:
            axes.set_axis_off()
        if runs:
            panels[0].legend(loc="lower right")
        _bars(panels[2], runs, bar_levels(runs, evaluations[size]), colors)
    return figure


def _shown(runs: Runs) -> dict[str, str]:
    """Returns the metrics of the curves: win rate against references, without those against SFT; and reward.

    After few labels every method beats the SFT policy nearly always, which shows no difference.
    """
    win = REFERENCES if has_metric(runs, REFERENCES) else SFT
    rewards = {"eval/reward": "mean r*"} if has_metric(runs, "eval/reward") else {}
    return {win: WIN_RATES[win]} | rewards


def bar_levels(runs: Runs, evaluation: Any) -> Bars:
    """Returns win rates against the references; without references gains in reward, else against SFT."""
    if has_metric(runs, REFERENCES):
        return Bars(REFERENCES, WIN_RATES[REFERENCES], tuple(evaluation.reference_levels))
    # A run of an older version has no gain_levels.
    if gains := tuple(evaluation.get("gain_levels", ())):
        return Bars("eval/reward_gain", "gain in mean r*", gains)
    return Bars(SFT, WIN_RATES[SFT], tuple(evaluation.levels))


def _curves(axes: Any, runs: Runs, metric: str, colors: dict[str, str]) -> None:
    """Draws the mean of each method with a band of one standard error."""
    for name, method in runs.items():
        x, mean, error = mean_curve(method.rows, metric)
        axes.plot(x, mean, label=f"{method.label} ({_seeds(len(method.seeds))})", color=colors[name])
        axes.fill_between(x, mean - error, mean + error, alpha=0.2, color=colors[name])
    axes.grid(alpha=0.3)


def _seeds(number: int) -> str:
    return "1 seed" if number == 1 else f"{number} seeds"


def _bars(axes: Any, runs: Runs, bars: Bars, colors: dict[str, str]) -> None:
    """Draws the queries at which each method's mean curve reaches the levels."""
    width = 0.8 / max(len(runs), 1)
    for i, (name, method) in enumerate(runs.items()):
        x, mean, _ = mean_curve(method.rows, bars.metric)
        mean_rows = [{"queries": q, bars.metric: value} for q, value in zip(x, mean, strict=True)]
        needed = [queries_to(mean_rows, bars.metric, level) for level in bars.levels]
        at = np.arange(len(needed)) + (i - (len(runs) - 1) / 2) * width
        heights = [n if np.isfinite(n) else 0 for n in needed]
        drawn = axes.bar(at, heights, width * 0.9, color=colors[name])
        axes.bar_label(drawn, [f"{n:.0f}" if np.isfinite(n) else "not\nreached" for n in needed], fontsize=8)
    axes.set_xticks(range(len(bars.levels)), [f"{level:g}" for level in bars.levels])
    axes.set(xlabel=f"{bars.name}, of the mean curve", ylabel="oracle queries needed")
    axes.set_title("fewer is better")
