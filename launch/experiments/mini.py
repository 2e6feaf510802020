"""Runs a grid on the miniature: tuning, then all runs, then figure, tables and sentences."""

from collections.abc import Iterable
from pathlib import Path

from launch.experiments import figure, results, tuning
from launch.experiments.grid import FIRST_SEED, Grid, Part, mini_unit
from launch.experiments.units import Unit, run_units
from sea_jax.errors import InputError
from sea_jax.report.tables import aligned


def run(name: str, grid: Grid, root: Path, seeds: int, parallel: int) -> str:
    """Runs what has not finished, and writes figure.png and data.csv into `<root>/<name>`.

    Args:
        name: of the experiment.
        grid: the experiment.
        root: also holds the runs, which experiments share: `<root>/mini`.
        seeds: runs of each method.
        parallel: processes at a time.

    Returns:
        Tables, and where the runs agree with the paper.

    Raises:
        InputError: runs failed, which it names. The others have finished, and the same call runs the rest.
    """
    cache = root / "mini" / "cache"
    _all(tuning_units(root, grid.parts), cache, parallel)
    _all([unit for _, unit in final_units(root, grid.parts, seeds)], cache, parallel)
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    found = results.read(grid, folders(root, grid.parts, seeds))
    title = f"{grid.source} on the miniature: {grid.about} ({seeds} seeds)"
    figure.draw(grid, found, folder / "figure.png", title)
    results.write_data(grid, found, folder / "data.csv")
    return report(grid, root, found, seeds)


def _all(units: list[Unit], cache: Path, parallel: int) -> None:
    if failed := run_units(units, cache, parallel):
        raise InputError("; ".join([f"{len(failed)} runs failed", *failed]))


def tuning_units(root: Path, parts: Iterable[Part]) -> list[Unit]:
    """Returns the tuning runs that these parts need."""
    groups = (tuning.units(root, dap, method) for dap, method in tuning.pairs(parts))
    return [unit for settings in groups for runs in settings for unit in runs]


def final_units(root: Path, parts: Iterable[Part], seeds: int) -> list[tuple[tuple[str, str], Unit]]:
    """Returns ((part, method), run) of all runs of these parts, with the settings that tuning chose."""
    found = []
    for part in parts:
        for method in part.methods:
            tuned = tuning.fields(root, part.dap, method)
            own = (mini_unit(root, part, method, FIRST_SEED + i, tuned) for i in range(seeds))
            found += [((part.name, method), unit) for unit in own]
    return found


def folders(root: Path, parts: Iterable[Part], seeds: int) -> dict[tuple[str, str], list[Path]]:
    """Returns the folders of the finished runs by part and method."""
    found: dict[tuple[str, str], list[Path]] = {}
    for line, unit in final_units(root, parts, seeds):
        if unit.finished:
            found.setdefault(line, []).append(unit.run_folder)
    return found


def report(grid: Grid, root: Path, found: results.Results, seeds: int) -> str:
    """Returns the tables of runs and of tuning, and a sentence for each claim of the paper."""
    seeds_said = f"oracle and policy seeds {FIRST_SEED} to {FIRST_SEED + seeds - 1}, mean ± standard error"
    tuned = f"settings chosen on seeds {' and '.join(map(str, tuning.SEEDS))} and on other prompts"
    parts = [
        f"{grid.source} on the miniature: {grid.about}\n{seeds_said}; {tuned}",
        results.table(grid, found),
        aligned(tuning.table(root, grid.parts)),
    ]
    if grid.claims:
        said = "What the paper says, and whether these runs agree (difference, paired over seeds, ± s.e.):"
        parts.append("\n".join([said, *(results.verdict(claim, found) for claim in grid.claims)]))
    return "\n\n".join(parts) + "\n"


def plan(grid: Grid, root: Path, seeds: int) -> str:
    """Returns the commands of the runs that a call would make, and the labels that they buy."""
    cache = root / "mini" / "cache"
    tuned, final = tuning_units(root, grid.parts), [unit for _, unit in final_units(root, grid.parts, seeds)]
    left = [unit for unit in [*tuned, *final] if not unit.finished]
    lines = [unit.command(cache) for unit in left]
    labels = sum(unit.config(cache).train.query_budget for unit in left)
    total = f"{len(left)} of {len(tuned) + len(final)} runs are left: {labels:,} labels; "
    total += f"{len(tuned)} runs tune settings"
    if not all(unit.finished for unit in tuned):
        total += ", which may change those of the others"
    return "\n".join([*lines, total])
