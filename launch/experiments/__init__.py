"""The experiments that `launch.experiment` runs: one row each."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from launch.experiments import mini, paper, regret
from launch.experiments.rows import GRIDS
from launch.experiments.units import cores
from sea_jax.errors import InputError

SCALES = ("mini", "paper")


class Options(NamedTuple):
    """What the command line says of an experiment."""

    root: Path = Path("runs/experiments")
    seeds: int | None = None  # None: the experiment's own
    scale: str = "mini"
    parallel: int = cores()
    topology: str = "a100-40gb:8"


class Experiment(NamedTuple):
    """One row of the table of experiments."""

    about: str  # what it shows, in one line
    source: str  # section, figure or table of the paper
    seeds: int  # by default
    run: Callable[[Options], str]  # -> what it found; writes figure and data into <root>/<name>
    plan: Callable[[Options], str]  # -> what it would run


def _regret() -> Experiment:
    def run(options: Options) -> str:
        folder = options.root / "regret"
        folder.mkdir(parents=True, exist_ok=True)
        return regret.run(folder, options.seeds or 1000)

    def plan(options: Options) -> str:
        return f"{options.seeds or 1000} seeds in this process; no language model, and no label is bought"

    about = "regret of each strategy on bandits without a language model"
    return Experiment(about, "Sec. 2, Alg. 1", 1000, _mini_only(run), _mini_only(plan))


def _mini_only(call: Callable[[Options], str]) -> Callable[[Options], str]:
    def checked(options: Options) -> str:
        if options.scale != "mini":
            raise InputError(f"--scale={options.scale}: valid for regret is mini")
        return call(options)

    return checked


def of_grid(name: str) -> Experiment:
    """Returns the experiment of a row of `GRIDS`."""
    grid = GRIDS[name]

    def run(options: Options) -> str:
        seeds = options.seeds or grid.seeds
        if options.scale == "paper":
            return paper.run(name, grid, options.root, seeds)
        return mini.run(name, grid, options.root, seeds, options.parallel)

    def plan(options: Options) -> str:
        seeds = options.seeds or grid.seeds
        if options.scale == "paper":
            return paper.plan(name, grid, options.root, seeds, options.topology)
        return mini.plan(grid, options.root, seeds)

    return Experiment(grid.about, grid.source, grid.seeds, run, plan)


EXPERIMENTS = {"regret": _regret()} | {name: of_grid(name) for name in GRIDS}
