"""The experiments that `launch.experiment` runs: one row each."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from launch.experiments import regret


class Experiment(NamedTuple):
    """One row of the table of experiments."""

    about: str  # what it shows, in one line
    source: str  # section or figure of the paper
    run: Callable[[Path, int], str]  # (folder, seeds) -> what it found; writes figure, table and data there
    seeds: int  # by default


EXPERIMENTS = {
    "regret": Experiment(
        "regret of each strategy on bandits without a language model", "Sec. 2, Alg. 1", regret.run, 1000
    ),
}
