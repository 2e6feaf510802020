"""Times a step with collocated devices, and with half of them sampling and judging (the paper's Fig. 8).

    python -m benchmarks.placement --workdir runs/placement

There are two devices; on a machine without accelerators each is half of the cores. Collocated devices share
every batch (config.mesh.data=2). Split devices learn and score on one and sample on the other
(config.sampler.devices=1). Sampling one step ahead (config.train.staleness=1) gains time only if they are
split. The run is SEA on the quickstart's policy, which the first use trains and keeps in the work directory.
The placements take turns.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import jax

from configs import quickstart
from sea_jax import tasks
from sea_jax.config import validate as config
from sea_jax.experiment import assets
from sea_jax.runtime.allocator import keep_freed_memory
from sea_jax.runtime.metrics import MetricWriter
from sea_jax.train import Run

PLACEMENTS = {
    "collocated": dict(mesh=2, devices=0, staleness=0),
    "collocated, one step behind": dict(mesh=2, devices=0, staleness=1),
    "split": dict(mesh=1, devices=1, staleness=0),
    "split, one step behind": dict(mesh=1, devices=1, staleness=1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", default="runs/placement", help="folder of the trained parts")
    parser.add_argument("--method", default="sea", help="a row of sea_jax.methods.METHODS")
    parser.add_argument("--batch_size", type=int, default=16, help="prompts a step")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of a placement in a round")
    parser.add_argument("--rounds", type=int, default=4, help="timed rounds, after one that compiles")
    args = parser.parse_args()
    keep_freed_memory()
    jax.config.update("jax_compilation_cache_dir", f"{args.workdir}/xla")
    runs = {name: prepare(args, **fields) for name, fields in PLACEMENTS.items()}
    seconds = {name: [] for name in PLACEMENTS}
    for number in range(args.rounds + 1):
        for name, make in runs.items():
            each = timed(make(), args.steps)
            seconds[name] += each if number else []
    baseline = statistics.median(seconds["collocated"])
    print(
        f"{args.method}, batch {args.batch_size}, {args.rounds} rounds of {args.steps} steps, "
        f"jax {jax.__version__}"
    )
    for name, found in seconds.items():
        middle = statistics.median(found)
        print(
            f"{name:28} seconds a step: min {min(found):.3f}, median {middle:.3f}; "
            f"collocated / this {baseline / middle:.2f}"
        )


def prepare(args, mesh: int, devices: int, staleness: int):
    """Returns a function that makes a fresh run of a placement; all placements share the trained parts."""
    cfg = quickstart.get_config()
    cfg.methods, cfg.mesh.data, cfg.sampler.devices = (args.method,), mesh, devices
    cfg.train.update(dict(batch_size=args.batch_size, staleness=staleness, query_budget=10**6))
    cfg.ensemble.capacity = 8192
    cache = Path(args.workdir) / "cache"
    config.validate_parts(cfg)
    task = tasks.load(cfg, cache / "task")
    config.validate(cfg, task)
    shared = assets.prepare(cfg, cache, task)
    return lambda: Run(cfg, shared, args.method, 0, Path(args.workdir))


def timed(run: Run, steps: int) -> list[float]:
    """Returns the seconds of each step after the first few."""
    warm, last, marks = 3, None, []
    with tempfile.TemporaryDirectory() as folder, MetricWriter(Path(folder)) as writer:
        for step in range(warm + steps):
            last = run._step(step, run.labeller.num_queries, writer, last)
            marks.append(time.perf_counter())
    jax.block_until_ready(run.state)
    return [b - a for a, b in itertools.pairwise(marks)][warm - 1 :]


if __name__ == "__main__":
    main()
