"""Draws the figure of a grid: a row of panels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from launch.experiments.grid import Grid, Line, Panel
from launch.experiments.results import Results, mean_of
from sea_jax.report.runs import MethodRuns
from sea_jax.report.statistics import curve, mean_curve, queries_to

STAGES = ("generate", "features", "select", "oracle", "learn", "improve")
X_NAMES = {"queries": "oracle queries", "duels": "duels, equal ones counted", "step": "gradient steps"}


def draw(grid: Grid, results: Results, file: Path, title: str) -> None:
    """Draws every panel; a line has the same colour in all of them, and bands show one standard error.

    Args:
        grid: the experiment.
        results: its finished runs; lines without any are left out.
        file: the PNG to write.
        title: above all panels.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(line.label for line in grid.lines))
    colors = {name: plt.get_cmap("tab10")(i % 10) for i, name in enumerate(names)}
    columns = min(len(grid.panels), 3)
    rows = -(-len(grid.panels) // columns)
    fig, axes = plt.subplots(
        rows, columns, figsize=(5.2 * columns, 4.2 * rows), layout="constrained", squeeze=False
    )
    for ax in axes.flat[len(grid.panels) :]:
        ax.axis("off")
    for ax, panel in zip(axes.flat, grid.panels, strict=False):
        lines = [(line, results[line[:2]]) for line in panel.lines if line[:2] in results]
        ax.set_title(panel.title)
        ax.grid(alpha=0.3)
        if lines:
            KINDS[panel.kind](ax, panel, lines, colors)
    fig.suptitle(title)
    fig.savefig(file, dpi=110)
    plt.close(fig)


Lines = list[tuple[Line, MethodRuns]]


def _curves(ax: Any, panel: Panel, lines: Lines, colors: dict[str, Any]) -> None:
    for line, runs in lines:
        x, mean, error = mean_of(runs, panel.metric, panel.x)
        ax.plot(x, mean, label=line.label, color=colors[line.label])
        ax.fill_between(x, mean - error, mean + error, alpha=0.2, color=colors[line.label])
    ax.set(xlabel=X_NAMES[panel.x], ylabel=panel.name)
    ax.legend(fontsize=8)


def _final(ax: Any, panel: Panel, lines: Lines, colors: dict[str, Any]) -> None:
    """Draws the last value of each line as a bar."""
    for i, (line, runs) in enumerate(lines):
        _, mean, error = mean_curve(runs.rows, panel.metric)
        if len(mean):
            bar = ax.bar(i, mean[-1], yerr=error[-1], color=colors[line.label], capsize=3)
            ax.bar_label(bar, [f"{mean[-1]:.3f}"], fontsize=8, padding=3)
    ax.set_xticks(range(len(lines)), [line.label for line, _ in lines], rotation=30, ha="right", fontsize=8)
    ax.set(ylabel=panel.name)


def _levels(ax: Any, panel: Panel, lines: Lines, colors: dict[str, Any]) -> None:
    """Draws the queries at which each mean curve reaches the levels."""
    width = 0.8 / len(lines)
    for i, (line, runs) in enumerate(lines):
        x, mean, _ = mean_curve(runs.rows, panel.metric)
        rows = [{"queries": q, panel.metric: value} for q, value in zip(x, mean, strict=True)]
        needed = np.array([queries_to(rows, panel.metric, level) for level in panel.levels])
        at = np.arange(len(needed)) + (i - (len(lines) - 1) / 2) * width
        bars = ax.bar(at, np.where(np.isfinite(needed), needed, 0), width * 0.9, color=colors[line.label],
                      label=line.label)  # fmt: skip
        ax.bar_label(bars, [f"{n:.0f}" if np.isfinite(n) else "–" for n in needed], fontsize=7)
    ax.set_xticks(range(len(panel.levels)), [f"{level:g}" for level in panel.levels])
    ax.set(xlabel=f"{panel.name}, of the mean curve (–: not reached)", ylabel="oracle queries needed")
    ax.legend(fontsize=8)


def _stages(ax: Any, panel: Panel, lines: Lines, colors: dict[str, Any]) -> None:
    """Draws the milliseconds of a label by stage, without the first tenth of the steps, which compile."""
    bottom = np.zeros(len(lines))
    for i, stage in enumerate(STAGES):
        height = np.array([_milliseconds(runs, stage) for _, runs in lines])
        ax.bar(range(len(lines)), height, bottom=bottom, label=stage, color=f"C{i}")
        bottom += height
    ax.set_xticks(range(len(lines)), [line.label for line, _ in lines], rotation=30, ha="right", fontsize=8)
    ax.set(ylabel=panel.name, ylim=(0, 1.1 * max(bottom.max(), 1e-9)))
    ax.legend(fontsize=8)


def _milliseconds(runs: MethodRuns, stage: str) -> float:
    seconds = labels = 0.0
    for rows in runs.rows:
        queries, values = curve(rows, f"time/{stage}_s")
        if not len(values):
            continue
        skip = len(values) // 10
        seconds += values[skip:].sum()
        labels += queries[-1] - queries[skip - 1 if skip else 0]
    return 1000 * seconds / labels if labels else 0.0


KINDS: dict[str, Callable[[Any, Panel, Lines, dict[str, Any]], None]] = {
    "curves": _curves,
    "final": _final,
    "levels": _levels,
    "stages": _stages,
}
