"""Chooses the settings of every method and loss on the miniature, with one budget of runs for all.

Each method gets four settings of each loss, on two rewards and on prompts that no figure is made of. The one
with the highest mean win rate over a run is taken, so that methods that learn with few labels gain.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from launch.experiments import grid
from launch.experiments.grid import Part
from launch.experiments.units import Unit
from sea_jax.report.runs import read_rows
from sea_jax.report.statistics import curve

SEEDS = (0, 1)
METRIC = "eval/win_rate_reference"
_RATES = tuple({"train.learning_rate": rate} for rate in (1e-4, 2e-4, 4e-4, 8e-4))
SETTINGS: dict[str, tuple[dict[str, float], ...]] = {
    "dpo": _RATES,
    "slic": _RATES,
    # App. F.1 has 0.2, 0.3, 0.5 and 1.0. On the miniature 0.2 was the best of these for every method.
    "ipo": tuple({"train.beta": beta} for beta in (0.05, 0.1, 0.2, 0.3)),
    "simpo": tuple(
        {"train.beta": beta, "train.learning_rate": rate} for beta in (2.0, 10.0) for rate in (2e-4, 4e-4)
    ),
}
# Variants that differ in one thing share the settings of the method that they are variants of.
TUNED_AS = {
    "passive_ensemble": "passive", "sea_oracle_only": "sea", "ee_ts": "sea", "uncertainty": "sea",
}  # fmt: skip
UNTUNED = ("frozen",)  # its policy does not learn


class Tuned(NamedTuple):
    """The tuning runs of a method and a loss.

    Attributes:
        scores: [4] mean win rate of each setting over its runs; NaN: a run is missing.
        fields: of the best setting.
    """

    scores: np.ndarray
    fields: Mapping[str, Any]


def pairs(parts: Iterable[Part]) -> list[tuple[str, str]]:
    """Returns (loss, method) of what the runs of these parts need tuned, each once."""
    found = {(part.dap, TUNED_AS.get(method, method)): None for part in parts for method in part.methods}
    return [(dap, method) for dap, method in found if method not in UNTUNED]


def units(root: Path, dap: str, method: str) -> list[list[Unit]]:
    """Returns the tuning runs of a method and a loss: a list for each setting."""
    found = []
    for i, fields in enumerate(SETTINGS[dap]):
        folder = root / "mini" / "tuning" / dap
        own = {"eval.split": "tuning"} | fields
        found.append([
            Unit(folder / f"{method}-{i}-seed{seed}", f"{grid.MINI_FILE}:dap={dap}", method, seed, own)
            for seed in SEEDS
        ])  # fmt: skip
    return found


def read(root: Path, dap: str, method: str) -> Tuned:
    """Reads the tuning runs of a method and a loss, and chooses a setting."""
    scores = np.array([_score(runs) for runs in units(root, dap, method)])
    best = 0 if np.isnan(scores).all() else int(np.nanargmax(scores))
    return Tuned(scores, SETTINGS[dap][best])


def fields(root: Path, dap: str, method: str) -> Mapping[str, Any]:
    """Returns the settings that a method was tuned to, or the method that it is a variant of."""
    own = TUNED_AS.get(method, method)
    return {} if own in UNTUNED else read(root, dap, own).fields


def _score(runs: list[Unit]) -> float:
    if not all(unit.finished for unit in runs):
        return np.nan
    return float(np.mean([curve(read_rows(unit.run_folder), METRIC)[1][1:].mean() for unit in runs]))


def table(root: Path, parts: Iterable[Part]) -> list[list[str]]:
    """Returns the lines of a table of all settings and their scores; the chosen one has a star."""
    lines = [["tuning", "settings: mean win rate against references over a run"]]
    for dap, method in pairs(parts):
        tuned = read(root, dap, method)
        said = []
        for settings, score in zip(SETTINGS[dap], tuned.scores, strict=True):
            shown = " ".join(f"{name.split('.')[-1]} {value:g}" for name, value in settings.items())
            said.append(f"{shown}: {score:.3f}{'*' if settings is tuned.fields else ''}")
        lines.append([f"{method}, {dap}", "; ".join(said)])
    return lines
