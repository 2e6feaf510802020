"""All runs of a config: methods × seeds on shared assets, then the report."""

import json
from pathlib import Path

from sea_jax import assets, report, supervised, tasks
from sea_jax import config as config_lib
from sea_jax.runtime.mesh import fetch, is_main
from sea_jax.runtime.metrics import MetricWriter
from sea_jax.tasks.protocol import Task
from sea_jax.train import Run


def run(config, workdir: str) -> str:
    """Runs a config from the task to the table.

    Args:
        config: see configs/quickstart.py.
        workdir: of this config; trained parts found in its cache are not trained again.

    Returns:
        The report, as printed; of a run on several hosts its main process's, and nothing on the others.

    Raises:
        InputError: on a config or work directory that cannot work, before anything is trained.
    """
    folder = Path(workdir)
    task, cache = _begin(config, folder)
    config_lib.claim_workdir(config, folder)
    if _supervised_only(config):
        return supervised.finetune(config, task, folder)
    shared = assets.prepare(config, cache, task)
    for replicate in range(config.num_seeds):
        for method in config.methods:
            train_one(config, shared, method, replicate, folder)
    return report.write(folder, config) if is_main() else ""


def prepare(config, workdir: str) -> str:
    """Trains what the runs of a config share and leaves it in the cache, so that none of them has to.

    Args, Raises: as `run`.

    Returns:
        Where the parts are, in words.
    """
    task, cache = _begin(config, Path(workdir))
    if not _supervised_only(config):
        assets.train_parts(config, cache, task)
    return f"trained parts: {cache}"


def _supervised_only(config) -> bool:
    return tuple(config.methods) == ("sft",)


def _begin(config, folder: Path) -> tuple[Task, Path]:
    """Checks the config; its task, and the folder of trained parts."""
    cache = Path(config.cache_dir or folder / "cache")
    config_lib.require_writable("config.cache_dir" if config.cache_dir else "--workdir", cache)
    config_lib.validate_parts(config, _supervised_only(config))
    task = tasks.load(config, cache / "task")
    if not _supervised_only(config):
        config_lib.validate(config, task)
    return task, cache


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
