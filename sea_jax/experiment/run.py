"""Runs a config: methods × seeds on shared assets, then the report."""

import contextlib
import sys
from pathlib import Path

from absl import logging

from sea_jax.config.overrides import for_method
from sea_jax.experiment import assets, validate
from sea_jax.experiment.commands import cache_folder
from sea_jax.experiment.logbook import Logbook
from sea_jax.experiment.setup import make_evaluator, make_run
from sea_jax.experiment.workdir import claim_workdir
from sea_jax.methods import METHODS
from sea_jax.pretraining import policy
from sea_jax.report import report
from sea_jax.runtime.mesh import is_main, to_host
from sea_jax.runtime.metrics import MetricWriter
from sea_jax.runtime.run_folder import Summary, is_finished, run_folder, write_summary
from sea_jax.train import train
from sea_jax.types import Config


def run(config: Config, workdir: str) -> str:
    """Runs a config from the task to the table.

    Runs that the work directory holds finished are skipped: the same call again runs what is missing, and one
    with more methods or seeds adds them. A run that was interrupted begins anew.

    Args:
        config: see `experiment.base_config`.
        workdir: folder of this config's runs; trained parts found in its cache are not trained again.

    Returns:
        The report of all runs of the config, as printed. In a run on several hosts the main process returns
        it, the others return ''.

    Raises:
        InputError: on a config or work directory that cannot work, before anything is trained.
    """
    folder, cache = Path(workdir), cache_folder(config, workdir)
    task = validate.load_task(config, cache)
    claim_workdir(config, folder)
    # Listed before any run begins, so that the processes of all hosts list the same.
    if unfinished := _unfinished(config, folder):
        _introduce(config)
        shared = assets.prepare(config, cache, task)
        with contextlib.closing(shared.sampler):
            for method, replicate in unfinished:
                train_one(config, shared, method, replicate, folder)
    return report.write(folder, config) if is_main() else ""


def _introduce(config: Config) -> None:
    """Says what each method does, where progress is shown."""
    if config.progress and is_main():
        for method in config.methods:
            print(f"{METHODS[method].label} ({method}) {METHODS[method].about}", file=sys.stderr)


def _unfinished(config: Config, workdir: Path) -> list[tuple[str, int]]:
    """Returns (method, replicate) of each run that has not finished, and logs what happens to the others."""
    unfinished = []
    for replicate in range(config.num_seeds):
        for method in config.methods:
            folder = run_folder(workdir, method, config.seed + replicate)
            if is_finished(folder):
                _log("skipped, as it has finished: %s", folder)
                continue
            if folder.exists():
                _log("has not finished, and begins anew: %s", folder)
            unfinished.append((method, replicate))
    return unfinished


def _log(message: str, folder: Path) -> None:
    if is_main():
        logging.warning(message, folder)  # `main` shows warnings only


def prepare(config: Config, workdir: str) -> str:
    """Trains the parts that the runs of a config share, and leaves them in the cache.

    Args, Raises: as `run`.

    Returns:
        A line that names the cache's folder.
    """
    cache = cache_folder(config, workdir)
    assets.train_parts(config, cache, validate.load_task(config, cache))
    return f"trained parts: {cache}"


def train_one(config: Config, shared: assets.Assets, method: str, replicate: int, workdir: Path) -> None:
    """Trains one method on one seed; leaves its metrics, samples and final policy in a folder of its own."""
    folder = run_folder(workdir, method, config.seed + replicate)
    run = make_run(for_method(config, method), shared, method, replicate)
    with MetricWriter(folder) as writer:  # marks the run as unfinished
        train(run, Logbook(folder, writer, make_evaluator(run, shared)))
    params = to_host(run.state.policy.params)
    if is_main():
        policy.save_policy(config, folder / "policy", shared.model, params, shared.task)
        write_summary(folder, _summary(method, run.labeller.num_queries))


def _summary(method: str, queries: int) -> Summary:
    return Summary(queries, method, METHODS[method].label, METHODS[method].learns_ensemble)
