"""All runs of a config: methods × seeds on shared assets, then the report."""

import contextlib
import json
from pathlib import Path

from sea_jax import tasks
from sea_jax.config import validate as config_lib
from sea_jax.experiment import assets
from sea_jax.experiment import finetune as supervised
from sea_jax.experiment.logbook import Logbook
from sea_jax.experiment.setup import make_evaluator, make_run
from sea_jax.pretraining import policy
from sea_jax.report import report
from sea_jax.runtime.mesh import is_main, to_host
from sea_jax.runtime.metrics import MetricWriter
from sea_jax.tasks.protocol import Task
from sea_jax.train import train
from sea_jax.types import Config


def run(config: Config, workdir: str) -> str:
    """Runs a config from the task to the table.

    Args:
        config: see configs/quickstart.py.
        workdir: of this config; trained parts found in its cache are not trained again.

    Returns:
        The report, as printed, or what a command of `supervised` says; of a run on several hosts its main
        process's, and nothing on the others.

    Raises:
        InputError: on a config or work directory that cannot work, before anything is trained.
    """
    folder, cache = Path(workdir), _cache(config, workdir)
    if (command := supervised.command(config)) is not None:
        return command(config, cache, folder)
    task = _begin(config, cache)
    config_lib.claim_workdir(config, folder)
    shared = assets.prepare(config, cache, task)
    with contextlib.closing(shared.sampler):
        for replicate in range(config.num_seeds):
            for method in config.methods:
                train_one(config, shared, method, replicate, folder)
    return report.write(folder, config) if is_main() else ""


def prepare(config: Config, workdir: str) -> str:
    """Trains what the runs of a config share and leaves it in the cache, so that none of them has to.

    Args, Raises: as `run`.

    Returns:
        Where the parts are, in words.
    """
    cache = _cache(config, workdir)
    if supervised.command(config) is None:
        assets.train_parts(config, cache, _begin(config, cache))
    return f"trained parts: {cache}"


def _cache(config: Config, workdir: str) -> Path:
    """The folder of trained parts, made if absent."""
    cache = Path(config.cache_dir or Path(workdir) / "cache")
    config_lib.require_writable("config.cache_dir" if config.cache_dir else "--workdir", cache)
    return cache


def _begin(config: Config, cache: Path) -> Task:
    """Checks the config, and reads its task."""
    config_lib.validate_parts(config)
    task = tasks.load(config, cache / "task")
    config_lib.validate(config, task)
    return task


def train_one(config: Config, shared: assets.Assets, method: str, replicate: int, folder: Path) -> None:
    """Runs one method on one seed; leaves its metrics, samples and final policy in a folder of its own."""
    run_folder = folder / "runs" / f"{method}-seed{config.seed + replicate}"
    training = make_run(config_lib.for_method(config, method), shared, method, replicate)
    with MetricWriter(run_folder) as writer:
        train(training, Logbook(run_folder, writer, make_evaluator(training, shared)))
    params = to_host(training.state.policy.params)
    if not is_main():
        return
    policy.save_policy(config, run_folder / "policy", shared.model, params, shared.task)
    (run_folder / "done.json").write_text(json.dumps({"queries": training.labeller.num_queries}))
