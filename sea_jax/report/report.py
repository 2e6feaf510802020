"""Writes report.txt and report.png of a work directory or a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_jax.report import alarms, configs, figure
from sea_jax.report import sweep as sweeps
from sea_jax.report.runs import BASELINE, Runs, beside, common_seeds, read_folders, read_workdir
from sea_jax.report.statistics import has_metric
from sea_jax.report.tables import accuracy_table, levels_table, match_table, summary_table
from sea_jax.report.words import in_words
from sea_jax.runtime.run_folder import run_folder, warned_folders

if TYPE_CHECKING:  # the module imports JAX, which a report does not need
    from sea_jax.types import Config

MATCHED_QUERIES = (256, 512, 1024, 2048)


def write(folder: Path, config: Config) -> str:
    """Writes the report of a config's runs in its work directory.

    Args:
        folder: the work directory.
        config: names the methods, the seeds and the levels.

    Returns:
        The report's text, and a line that names the figure.
    """
    seeds = range(config.seed, config.seed + config.num_seeds)
    own = (run_folder(folder, method, seed) for method in config.methods for seed in seeds)
    return _write(folder, runs_of(folder, config), config.eval, alarms.lines(own))


def runs_of(folder: Path, config: Config) -> Runs:
    """Reads the finished runs of a config from its work directory."""
    seeds = range(config.seed, config.seed + config.num_seeds)
    found = read_workdir(folder, config.methods)
    runs = {name: found[name].keep(seeds) for name in config.methods if name in found}
    return {name: method for name, method in runs.items() if method.seeds}


def write_workdirs(folders: Sequence[Path], config: Config) -> str:
    """Writes the report of all finished runs of work directories into the first of them.

    Args:
        folders: work directories; runs of the second and later ones are named method@folder.
        config: that of the first, which gives the order of methods and the levels.

    Returns:
        As `write`.
    """
    first, *others = folders
    runs = read_workdir(first, config.methods)
    names = [other.resolve().name for other in others]
    warned = alarms.lines(warned_folders(first))
    for other, name in zip(others, names, strict=True):
        shown = name if names.count(name) == 1 else str(other)
        runs |= beside(read_workdir(other, config.methods), shown)
        warned += alarms.lines(warned_folders(other), f"@{shown}")
    return _write(first, runs, config.eval, warned)


def write_sweep(root: Path) -> str:
    """Writes the report of a sweep, a part for each model size; runs that have not finished are named.

    Returns:
        As `write`.

    Raises:
        InputError: on a folder whose sweep cannot be read.
    """
    sweep = sweeps.read(root)
    parts, sizes, evaluations = [], {}, {}
    for size, config in sweep.configs.items():
        folders = [unit.run_folder for unit in sweep.units(size) if unit.finished]
        runs = sizes[size] = read_folders(folders, sweep.methods)
        evaluation = evaluations[size] = configs.levels(config, f"{root / sweeps.FILE}")
        text = _tables(runs, evaluation) if runs else "no run has finished"
        warned = alarms.lines(unit.run_folder for unit in sweep.units(size))
        parts.append("\n\n".join(filter(None, [f"== {size}", text, alarms.block(warned)])))
    if missing := sweeps.unfinished(sweep):
        parts.append("\n".join([f"NOT FINISHED, and not in this report: {len(missing)} runs", *missing]))
    return _save(root, "\n\n".join(parts), sizes, evaluations)


def _write(folder: Path, runs: Runs, evaluation: Any, warned: list[str]) -> str:
    text = _tables(runs, evaluation) if runs else "no run has finished"
    text = "\n\n".join(filter(None, [text, alarms.block(warned)]))
    return _save(folder, text, {"": runs}, {"": evaluation})


def _tables(runs: Runs, evaluation: Any) -> str:
    """Formats all tables; those that compare methods take the seeds that all have finished.

    Args:
        runs: finished runs.
        evaluation: config.eval, whose levels are shown.
    """
    matched = common_seeds(runs)
    bases = [name for name in matched if name.partition("@")[0] == BASELINE]
    tables = [summary_table(runs, tuple(evaluation.levels))]
    metrics = {"win_rate_reference": evaluation.reference_levels, "reward": evaluation.reward_levels}
    # A run of an older version has no gain_levels.
    levelled = metrics | {"reward_gain": evaluation.get("gain_levels", ())}
    levelled = {f"eval/{name}": tuple(levels) for name, levels in levelled.items()}
    levelled = {name: levels for name, levels in levelled.items() if levels and has_metric(runs, name)}
    if matched:
        tables += [levels_table(matched, name, levels) for name, levels in levelled.items()]
        tables += [
            match_table(matched, f"eval/{name}", MATCHED_QUERIES, base) for base in bases for name in metrics
        ]
    tables += [accuracy_table(runs), _left_out(runs, matched)]
    sentences = (in_words(matched, name, levels) for name, levels in levelled.items())
    tables.append("\n".join(sentence for sentence in sentences if sentence))
    return "\n\n".join(table for table in tables if table)


def _left_out(runs: Runs, matched: Runs) -> str:
    """Says which seeds are compared, where that is not all of them."""
    if runs == matched:
        return ""
    if not matched:
        return "methods are not compared: there is no seed that all of them have finished"
    seeds = ", ".join(map(str, sorted(next(iter(matched.values())).seeds)))
    return f"methods are compared on the seeds that all of them have finished: {seeds}"


def _save(folder: Path, text: str, sizes: dict[str, Runs], evaluations: dict[str, Any]) -> str:
    """Writes the two files; `sizes` and `evaluations` as in `figure.draw`."""
    figure.draw(sizes, evaluations, folder / "report.png")
    (folder / "report.txt").write_text(text + "\n")
    return f"{text}\n\nfigure: {folder / 'report.png'}"
