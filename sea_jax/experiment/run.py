"""All runs of a config: methods × seeds on shared assets, then the report."""

import contextlib
import json
from pathlib import Path

from sea_jax.config.overrides import for_method
from sea_jax.experiment import assets, validate
from sea_jax.experiment.commands import cache_folder
from sea_jax.experiment.workdir import claim_workdir
from sea_jax.pretraining import policy
from sea_jax.report import report
from sea_jax.runtime.mesh import fetch, is_main
from sea_jax.runtime.metrics import MetricWriter
from sea_jax.train import Run
from sea_jax.types import Config


def run(config: Config, workdir: str) -> str:
    """Runs a config from the task to the table.

    Args:
        config: see `experiment.base_config`.
        workdir: of this config; trained parts found in its cache are not trained again.

    Returns:
        The report, as printed; of a run on several hosts its main process's, and nothing on the others.

    Raises:
        InputError: on a config or work directory that cannot work, before anything is trained.
    """
    folder, cache = Path(workdir), cache_folder(config, workdir)
    task = validate.load_task(config, cache)
    claim_workdir(config, folder)
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
    cache = cache_folder(config, workdir)
    assets.train_parts(config, cache, validate.load_task(config, cache))
    return f"trained parts: {cache}"


def train_one(config: Config, shared: assets.Assets, method: str, replicate: int, folder: Path) -> None:
    """One method on one seed: metrics, samples and the final policy in a folder of its own."""
    run_folder = folder / "runs" / f"{method}-seed{config.seed + replicate}"
    training = Run(for_method(config, method), shared, method, replicate, run_folder)
    with MetricWriter(run_folder) as writer:
        training.loop(writer)
    params = fetch(training.state.policy.params)
    if not is_main():
        return
    policy.save_policy(config, run_folder / "policy", shared.model, params, shared.task)
    (run_folder / "done.json").write_text(json.dumps({"queries": training.labeller.num_queries}))
