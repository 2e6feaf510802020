"""All runs of a config: methods × seeds on shared assets, then the report."""

import contextlib
import json
from pathlib import Path

from sea_jax import assets, report, supervised, tasks
from sea_jax import config as config_lib
from sea_jax.runtime.mesh import fetch, is_main
from sea_jax.runtime.metrics import MetricWriter
from sea_jax.train import Run


def run(config, workdir: str) -> str:
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
    folder = Path(workdir)
    cache = Path(config.cache_dir or folder / "cache")
    config_lib.require_writable("config.cache_dir" if config.cache_dir else "--workdir", cache)
    if (command := supervised.command(config)) is not None:
        return command(config, cache, folder)
    config_lib.validate_parts(config)
    task = tasks.load(config, cache / "task")
    config_lib.validate(config, task)
    config_lib.claim_workdir(config, folder)
    shared = assets.prepare(config, cache, task)
    with contextlib.closing(shared.sampler):
        for replicate in range(config.num_seeds):
            for method in config.methods:
                train_one(config, shared, method, replicate, folder)
    return report.write(folder, config) if is_main() else ""


def train_one(config, shared: assets.Assets, method: str, replicate: int, folder: Path) -> None:
    """One method on one seed: metrics, samples and the final policy in a folder of its own."""
    run_folder = folder / "runs" / f"{method}-seed{config.seed + replicate}"
    training = Run(config_lib.for_method(config, method), shared, method, replicate, run_folder)
    with MetricWriter(run_folder) as writer:
        training.loop(writer)
    params = fetch(training.state.policy.params)
    if not is_main():
        return
    assets.save_policy(config, run_folder / "policy", shared.model, params, shared.task)
    (run_folder / "done.json").write_text(json.dumps({"queries": training.labeller.num_queries}))
