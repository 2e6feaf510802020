"""Measures the seconds per step with collocated and with split devices (Fig. 8 of the paper).

    python -m benchmarks.placement --workdir runs/placement

The benchmark uses two devices; on a machine without accelerators, each is a share of the CPU cores.

    collocated    both devices share each batch (config.mesh.data=2)
    split         one device learns and scores, the other one samples (config.sampler.devices=1)

Each placement is measured with config.train.staleness=0 and 1. Sampling and learning overlap only in a split
placement with staleness 1. The policy is the quickstart's; the first run trains it and saves it in the work
directory. The placements are measured alternately.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import jax

from configs import quickstart
from sea_jax.experiment import assets, validate
from sea_jax.experiment.logbook import Logbook
from sea_jax.experiment.setup import make_run
from sea_jax.runtime.allocator import keep_freed_memory
from sea_jax.runtime.metrics import MetricWriter
from sea_jax.train import Run, train_step

PLACEMENTS = {
    "collocated": dict(mesh=2, devices=0, staleness=0),
    "collocated, one step behind": dict(mesh=2, devices=0, staleness=1),
    "split": dict(mesh=1, devices=1, staleness=0),
    "split, one step behind": dict(mesh=1, devices=1, staleness=1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", default="runs/placement", help="folder of the trained models")
    parser.add_argument("--method", default="sea", help="a name in sea_jax.methods.METHODS")
    parser.add_argument("--batch_size", type=int, default=16, help="prompts per step")
    parser.add_argument("--steps", type=int, default=20, help="timed steps per placement and round")
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
            f"{name:28} seconds per step: min {min(found):.3f}, median {middle:.3f}; "
            f"speed-up over collocated {baseline / middle:.2f}"
        )


def prepare(args, mesh: int, devices: int, staleness: int):
    """Returns a function that builds a new run of one placement; all runs share the trained models.

    Args:
        args: the command line.
        mesh: `config.mesh.data`.
        devices: `config.sampler.devices`.
        staleness: `config.train.staleness`.
    """
    cfg = quickstart.get_config()
    cfg.methods, cfg.mesh.data, cfg.sampler.devices = (args.method,), mesh, devices
    cfg.train.update(dict(batch_size=args.batch_size, staleness=staleness, query_budget=10**6))
    cfg.ensemble.capacity = 8192
    cache = Path(args.workdir) / "cache"
    task = validate.load_task(cfg, cache)
    shared = assets.prepare(cfg, cache, task)
    return lambda: make_run(cfg, shared, args.method, 0)


class WithoutEvaluation(Logbook):
    """Writes the metrics of a run and skips its evaluations."""

    def __init__(self, folder: Path, writer: MetricWriter):
        super().__init__(folder, writer, lambda *_: {})  # pyright: ignore[reportArgumentType]


def timed(run: Run, steps: int) -> list[float]:
    """Runs 3 untimed and `steps` timed steps, and returns the seconds of each timed step."""
    warm, marks = 3, []
    with tempfile.TemporaryDirectory() as folder, MetricWriter(Path(folder)) as writer:
        logbook = WithoutEvaluation(Path(folder), writer)
        logbook.begin(run)
        for step in range(warm + steps):
            logbook.end_step(run, train_step(run, step, logbook), last=False)
            marks.append(time.perf_counter())
    jax.block_until_ready(run.state)
    return [b - a for a, b in itertools.pairwise(marks)][warm - 1 :]


if __name__ == "__main__":
    main()
