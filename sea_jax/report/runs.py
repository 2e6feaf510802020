"""Reads finished runs from their folders."""

import dataclasses
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from sea_jax.errors import InputError
from sea_jax.runtime.run_folder import finished_folders, method_and_seed, read_metrics, read_summary

BASELINE = "passive"  # the method that the others are compared with
_REWARD = "eval/reward"

Rows = list[dict[str, Any]]  # of one run, as metrics.jsonl holds them


@dataclasses.dataclass(frozen=True)
class MethodRuns:
    """The finished runs of one method.

    Attributes:
        label: the method's name in tables and figures.
        learns_ensemble: whether it trains an ensemble of reward models.
        seeds: seed -> the rows of that run.
    """

    label: str
    learns_ensemble: bool
    seeds: dict[int, Rows]

    @property
    def rows(self) -> list[Rows]:
        """Rows of every run, in the order of seeds."""
        return [self.seeds[seed] for seed in sorted(self.seeds)]

    def keep(self, seeds: Collection[int]) -> "MethodRuns":
        """Returns the runs of these seeds."""
        kept = {seed: rows for seed, rows in self.seeds.items() if seed in seeds}
        return dataclasses.replace(self, seeds=kept)


# Name -> runs. The name is the method's, and method@folder for runs of another work directory.
Runs = dict[str, MethodRuns]


def read_workdir(workdir: Path, order: Iterable[str] = ()) -> Runs:
    """Reads the finished runs of a work directory; `order` as in `read_folders`."""
    return read_folders(finished_folders(workdir), order)


def read_folders(folders: Iterable[Path], order: Iterable[str] = ()) -> Runs:
    """Reads finished runs.

    Args:
        folders: the runs' folders.
        order: methods in the order of the tables; others follow, by name.

    Raises:
        InputError: on a run whose done.json or metrics.jsonl is absent or damaged.
    """
    found: Runs = {}
    for folder in folders:
        method, seed = method_and_seed(folder)
        summary = read_summary(folder)
        rows = read_rows(folder, summary.queries)
        # A run of an older version has no such field, and shows it by its metrics.
        learns = summary.learns_ensemble or any("ensemble/accuracy_heldout" in row for row in rows)
        runs = found.setdefault(method, MethodRuns(summary.label, learns, {}))
        runs.seeds[seed] = rows
    names = dict.fromkeys([*order, *sorted(found)])
    return {name: found[name] for name in names if name in found}


def read_rows(folder: Path, queries: int = 0) -> Rows:
    """Reads the rows of one run, in the order in which they were logged, and adds their gain in reward.

    Args:
        folder: of the run, which has finished.
        queries: labels that it bought; 0: unknown.

    Raises:
        InputError: metrics.jsonl cannot be read, holds no row, or ends before the run did.
    """
    file = folder / "metrics.jsonl"
    rows = read_metrics(file)
    last = rows[-1]["queries"] if rows else None
    if last is None or queries not in (0, last):
        raise InputError(f"{file}: ends after {last or 0} labels; valid: the file of a run of {queries}")
    return with_gain(rows)


def with_gain(rows: Rows) -> Rows:
    """Adds to every evaluation its mean reward less that of the run's first evaluation.

    Hidden rewards begin at different values, so their gains can be compared where their values can't.
    """
    rewards = [row[_REWARD] for row in rows if row.get(_REWARD) is not None]
    return [
        row if row.get(_REWARD) is None else row | {f"{_REWARD}_gain": row[_REWARD] - rewards[0]}
        for row in rows
    ]


def beside(runs: Runs, folder: str) -> Runs:
    """Renames runs to method@folder, to stand beside those of another work directory."""
    return {
        f"{name}@{folder}": dataclasses.replace(method, label=f"{method.label} ({folder})")
        for name, method in runs.items()
    }


def common_seeds(runs: Runs) -> Runs:
    """Keeps the seeds that every method has finished; returns no runs where there are none."""
    seeds = set.intersection(*(set(method.seeds) for method in runs.values())) if runs else set()
    return {name: method.keep(seeds) for name, method in runs.items()} if seeds else {}
