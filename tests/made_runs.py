"""Runs by hand, in memory and in folders."""

import json

from sea_jax.report.runs import MethodRuns
from sea_jax.runtime.run_folder import Summary, run_folder, write_summary

LABELS = {"passive": "passive online DAP", "sea": "SEA"}


def rows(*points, metric="eval/win_rate_sft"):
    return [{"queries": q, metric: v} for q, v in points]


def of(method, runs):
    """MethodRuns of a list (seeds 0, 1, …) or of seed -> rows."""
    seeds = runs if isinstance(runs, dict) else dict(enumerate(runs))
    return MethodRuns(LABELS[method], method == "sea", seeds)


def runs(**methods):
    return {method: of(method, found) for method, found in methods.items()}


def write_run(workdir, method, seed, logged, label=None, finished=True):
    """A run's folder: metrics.jsonl, and done.json where it has finished."""
    folder = run_folder(workdir, method, seed)
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in logged))
    if finished:
        learns = any("ensemble/accuracy_heldout" in row for row in logged)
        write_summary(
            folder, Summary(logged[-1]["queries"], method, label or LABELS.get(method, method), learns)
        )
    return folder
