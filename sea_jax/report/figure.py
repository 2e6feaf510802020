"""Draws win rates and rewards by oracle queries (Fig. 3), and the queries to levels (Fig. 1)."""

from pathlib import Path
from typing import Any

import numpy as np

from sea_jax.report.runs import Runs
from sea_jax.report.statistics import mean_curve, queries_to

REFERENCES, SFT = "eval/win_rate_reference", "eval/win_rate_sft"


def draw(sizes: dict[str, Runs], levels: dict[str, tuple[float, ...]], file: Path) -> None:
    """Draws a row of panels for each model size, with one colour for each method.

    Args:
        sizes: size -> finished runs; the size is '' where there is one only.
        levels: size -> win rates against the references, for the bars.
        file: the PNG to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(name for runs in sizes.values() for name in runs))
    colors = {name: f"C{i}" for i, name in enumerate(names)}
    fig, rows = plt.subplots(
        len(sizes), 3, figsize=(16, 4.4 * len(sizes)), layout="constrained", squeeze=False
    )
    for panels, (size, runs) in zip(rows, sizes.items(), strict=True):
        title = f"{size}, mean ± s.e. over seeds" if size else "mean ± s.e. over seeds"
        for axes, (metric, name) in zip(panels, _shown(runs).items(), strict=False):
            _curves(axes, runs, metric, colors)
            axes.set(xlabel="oracle queries", ylabel=name, title=title)
        if runs:
            panels[0].legend(loc="lower right")
        _bars(panels[2], runs, levels[size], colors)
    fig.savefig(file, dpi=130)
    plt.close(fig)


def _shown(runs: Runs) -> dict[str, str]:
    """Returns the metrics of the two curves; against the SFT policy only where there are no references.

    After few labels every method beats the SFT policy nearly always, which shows no difference.
    """
    has = any(
        row.get(REFERENCES) is not None for method in runs.values() for rows in method.rows for row in rows
    )
    win = {REFERENCES: "win rate against references"} if has else {SFT: "win rate against SFT"}
    return win | {"eval/reward": "mean r*"}


def _curves(axes: Any, runs: Runs, metric: str, colors: dict[str, str]) -> None:
    """Draws the mean of each method with a band of one standard error."""
    for name, method in runs.items():
        x, mean, error = mean_curve(method.rows, metric)
        axes.plot(x, mean, label=f"{method.label} ({_seeds(len(method.seeds))})", color=colors[name])
        axes.fill_between(x, mean - error, mean + error, alpha=0.2, color=colors[name])
    axes.grid(alpha=0.3)


def _seeds(number: int) -> str:
    return "1 seed" if number == 1 else f"{number} seeds"


def _bars(axes: Any, runs: Runs, levels: tuple[float, ...], colors: dict[str, str]) -> None:
    """Draws the queries at which each method's mean curve reaches the levels."""
    width = 0.8 / max(len(runs), 1)
    for i, (name, method) in enumerate(runs.items()):
        x, mean, _ = mean_curve(method.rows, REFERENCES)
        mean_rows = [{"queries": q, "win rate": w} for q, w in zip(x, mean, strict=True)]
        needed = [queries_to(mean_rows, "win rate", level) for level in levels]
        at = np.arange(len(levels)) + (i - (len(runs) - 1) / 2) * width
        heights = [n if np.isfinite(n) else 0 for n in needed]
        bars = axes.bar(at, heights, width * 0.9, color=colors[name])
        axes.bar_label(bars, [f"{n:.0f}" if np.isfinite(n) else "not\nreached" for n in needed], fontsize=8)
    axes.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
    axes.set(xlabel="win rate against references, of the mean curve", ylabel="oracle queries needed")
    axes.set_title("fewer is better")
