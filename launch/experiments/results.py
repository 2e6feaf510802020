"""Reads the runs of a grid, and says in tables and sentences what they show."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from launch.experiments.grid import Claim, Grid
from sea_jax.json_files import read_object
from sea_jax.report.runs import MethodRuns, Rows, read_folders
from sea_jax.report.statistics import curve, mean_curve, queries_to
from sea_jax.report.tables import aligned
from sea_jax.runtime.run_folder import method_and_seed

Results = Mapping[tuple[str, str], MethodRuns]  # (part, method) -> finished runs
LEVELS = (0.8, 0.9, 0.95)
COLUMNS = {  # the last value of each, where some run has the metric
    "vs SFT": "eval/win_rate_sft",
    "vs references": "eval/win_rate_reference",
    "online": "duel/win_rate_reference_so_far",
    "best of N vs SFT": "eval/best_of_win_rate_sft",
    "mean r*": "eval/reward",
    "regret": "duel/regret_so_far",
    "KL": "eval/kl",
    "length": "eval/mean_length",
    "distinct": "duel/distinct_responses",
    "ECE": "ensemble/ece_heldout",
}
_DIGITS = {"mean r*": 2, "regret": 0, "KL": 1, "length": 1, "distinct": 1}


def read(grid: Grid, folders: Mapping[tuple[str, str], Sequence[Path]]) -> Results:
    """Reads the finished runs of a grid, with the x-axis of duels.

    Args:
        grid: the experiment.
        folders: (part, method) -> folders of its finished runs.
    """
    found = {}
    for line in grid.lines:
        places = {method_and_seed(folder)[1]: folder for folder in folders.get(line[:2], ())}
        for runs in read_folders(places.values()).values():
            seeds = {seed: with_duels(rows, _batch(places[seed])) for seed, rows in runs.seeds.items()}
            found[line[:2]] = MethodRuns(line.label, runs.learns_ensemble, seeds)
    return found


def _batch(run_folder: Path) -> int:
    """Returns B of a run, from the config of its work directory."""
    config = read_object(run_folder.parents[1] / "config.json", "a run's")
    return int(config["train"]["batch_size"])


def with_duels(rows: Rows, batch_size: int) -> Rows:
    """Adds to every row the duels so far: the labels, and the duels of responses that nobody can tell apart.

    The paper's first code counts these as queries.
    """
    void, found = 0.0, []
    for row in rows:
        void += batch_size * (row.get("duel/void") or 0.0)
        found.append(row | {"duels": row["queries"] + void})
    return found


def table(grid: Grid, results: Results) -> str:
    """Formats the end of every line, mean ± standard error over seeds, and its queries to win rates."""
    columns = {
        name: metric
        for name, metric in COLUMNS.items()
        if any(len(curve(rows, metric)[0]) for runs in results.values() for rows in runs.rows)
    }
    queries = [f"queries to {level:g}" for level in LEVELS]
    lines = [["runs", "seeds", "queries", *columns, *queries]]
    for line in grid.lines:
        runs = results.get(line[:2])
        if runs is None:
            continue
        cells = [_last(runs.rows, metric, _DIGITS.get(name, 3)) for name, metric in columns.items()]
        needed = [_needed(runs.rows, level) for level in LEVELS]
        bought = str(max(rows[-1]["queries"] for rows in runs.rows))
        lines.append([line.label, str(len(runs.seeds)), bought, *cells, *needed])
    return aligned(lines)


def _last(runs: list[Rows], metric: str, digits: int) -> str:
    values = np.array([y[-1] for _, y in (curve(rows, metric) for rows in runs) if len(y)])
    if not len(values):
        return "-"
    error = f" ± {values.std(ddof=1) / len(values) ** 0.5:.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{error}"


def _needed(runs: list[Rows], level: float) -> str:
    found = np.array([queries_to(rows, "eval/win_rate_reference", level) for rows in runs])
    reached = found[np.isfinite(found)]
    return f"{reached.mean():.0f}" if len(reached) == len(found) else f"{len(reached)} of {len(found)}"


def verdict(claim: Claim, results: Results) -> str:
    """Says whether runs agree with a claim: by the difference of the two lines, paired over seeds.

    Beyond two standard errors they agree or contradict; else they show neither.
    """
    ahead, behind = (results.get(line) for line in (claim.ahead, claim.behind))
    seeds = sorted(set(ahead.seeds) & set(behind.seeds)) if ahead and behind else []
    if not ahead or not behind or len(seeds) < 2:
        return f"- {claim.said}: not measured"
    difference = np.array([
        _value(claim, ahead.seeds[seed]) - _value(claim, behind.seeds[seed]) for seed in seeds
    ])  # fmt: skip
    mean, error = difference.mean(), difference.std(ddof=1) / len(seeds) ** 0.5
    word = "not shown either way"
    if abs(mean) > 2 * error:
        word = "AGREES" if mean > 0 else "CONTRADICTS"
    where = "at the end" if claim.over == "end" else "mean over the run"
    name = claim.metric.split("/")[-1].replace("_", " ")
    return f"- {claim.said}: {word} ({name}, {where}: {mean:+.3f} ± {error:.3f})"


def _value(claim: Claim, rows: Rows) -> float:
    _, y = curve(rows, claim.metric)
    return float(y[-1] if claim.over == "end" else y[1:].mean()) if len(y) else np.nan


def write_data(grid: Grid, results: Results, file: Path) -> None:
    """Writes every evaluation of every run as csv."""
    columns = [*COLUMNS.values()]
    with open(file, "w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["part", "method", "seed", "queries", "duels", "step", *columns])
        for (part, method), runs in results.items():
            for seed, rows in sorted(runs.seeds.items()):
                last: dict = {}
                for row in rows:
                    last |= {name: row[name] for name in columns if row.get(name) is not None}
                    if row.get("eval/win_rate_sft") is not None:
                        cells = [f"{last[name]:.5g}" if name in last else "" for name in columns]
                        writer.writerow(
                            [part, method, seed, row["queries"], f"{row['duels']:g}", row["step"], *cells]
                        )


def mean_of(runs: MethodRuns, metric: str, x: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns `mean_curve` over another x-axis: 'duels' or 'step'."""
    return mean_curve([[row | {"queries": row[x]} for row in rows] for rows in runs.rows], metric)
