"""Runs the programs that `launch.plan` counts, and compares seconds and memory with its figures.

    python -m benchmarks.planned_steps --config=configs/tldr.py:size=1b
    python -m benchmarks.planned_steps --config=… --programs=train,generate --device=h100

The mesh has as many devices as the machine. Each program runs on random arrays in a process of its own, since
JAX never resets its count of the peak memory. Weights are random, so hardly any response ends before its
maximum length.

Columns: seconds of one call (median, fastest), calls per training step, TFLOP/s of the matrix products, their
share of the data sheet's peak (bfloat16, or TF32 where operands are f32), GiB by the compiler (arguments,
temporary buffers and results) and the peak that the device's allocator saw.
"""

import json
import os
import re
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from launch import flops, topology
from launch.planner import with_mesh
from launch.steps import NAMES, Experiment, Step
from sea_jax.config.flags import fail, parse, read_config
from sea_jax.errors import InputError

GIB = 2**30


def random_arrays(step: Step) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Draws arguments of a traced program: floats N(0, 0.02²), integers in [0, 100), masks all true."""
    rng = np.random.default_rng(0)

    def draw(path: Any, info: Any) -> Any:
        aval = info._aval
        if jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        if aval.dtype == bool:
            return jnp.ones(aval.shape, bool)
        if jnp.issubdtype(aval.dtype, jnp.integer):
            return jnp.asarray(rng.integers(0, 100, aval.shape), aval.dtype)
        # Adam's second moment must not be negative, and its square root appears below.
        values = jax.random.normal(jax.random.key(rng.integers(2**31)), aval.shape, aval.dtype) * 0.02
        return jnp.abs(values) if re.search(r"\.nu\b", jax.tree_util.keystr(path)) else values

    return jax.tree_util.tree_map_with_path(draw, step.traced.lower().args_info)


def measure(step: Step, calls: int, device: topology.Device) -> dict[str, Any]:
    """Compiles and runs a program; returns its figures, ready for JSON."""
    start = time.perf_counter()
    compiled = step.traced.lower().compile()
    compile_seconds = time.perf_counter() - start
    args, kwargs = random_arrays(step)
    args = jax.tree.map(jax.device_put, args, compiled.input_shardings[0])
    seconds = []
    for _ in range(calls + 1):
        start = time.perf_counter()
        results = jax.block_until_ready(compiled(*args, **kwargs))
        seconds.append(time.perf_counter() - start)
        if step.name == "train":  # its state is donated
            args = (results[0], *args[1:])
    stats = compiled.memory_analysis()
    planned = stats.argument_size_in_bytes + stats.temp_size_in_bytes
    planned += stats.output_size_in_bytes - stats.alias_size_in_bytes
    memory = jax.local_devices()[0].memory_stats() or {}
    median, jaxpr = float(np.median(seconds[1:])), step.traced.jaxpr
    return dict(
        program=step.name, seconds=median, fastest=min(seconds[1:]), calls=step.calls,
        tflops=flops.count(jaxpr, step.while_turns) / median / 1e12,
        of_peak=flops.count(jaxpr, step.while_turns, device.seconds) / median / jax.device_count(),
        versions=f"python {sys.version.split()[0]}, jax {jax.__version__}, {jax.device_count()} × "
                 f"{jax.devices()[0].device_kind}",
        planned=planned / GIB, peak=memory.get("peak_bytes_in_use", 0) / GIB, compile=compile_seconds,
        finite=all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(results)
                   if jnp.issubdtype(x.dtype, jnp.floating)),
    )  # fmt: skip


def run_alone(name: str) -> dict[str, Any] | None:
    """Measures one program in a process of its own; returns None if the method has no such program."""
    command = [sys.executable, "-m", "benchmarks.planned_steps", *sys.argv[1:], f"--child={name}"]
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"} | os.environ  # as the planner assumes
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        return dict(program=name, error=(done.stderr.strip().splitlines() or ["no output"])[-1][:300])
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str]) -> None:
    del argv
    config = read_config(_CONFIG)
    if _CHILD.value:
        try:
            experiment = Experiment(with_mesh(config, jax.device_count()), jax.devices())
        except InputError as error:
            fail(error)
        found = _CHILD.value in experiment.names
        device = topology.DEVICES[_DEVICE.value]
        print(json.dumps(measure(experiment.step(_CHILD.value), _CALLS.value, device) if found else None))
        return
    columns, versions = "{:<10}{:>10}{:>10}{:>7}{:>10}{:>9}{:>9}{:>9}{:>9}{:>12}", ""
    print(columns.format(
        "program", "seconds", "fastest", "calls", "TFLOP/s", "of peak", "planned", "peak", "compile", "finite"
    ))  # fmt: skip
    for name in _PROGRAMS.value or NAMES:
        row = run_alone(name)
        if row is None:
            continue
        if "error" in row:
            print(f"{name:<10}failed: {row['error']}", flush=True)
            continue
        print(columns.format(
            name, f"{row['seconds']:.4f}", f"{row['fastest']:.4f}", row["calls"], f"{row['tflops']:.1f}",
            f"{row['of_peak']:.1%}", f"{row['planned']:.2f}", f"{row['peak']:.2f}", f"{row['compile']:.0f} s",
            "yes" if row["finite"] else "NO",
        ), flush=True)  # fmt: skip
        versions = row["versions"]
    print(versions)


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "A config, e.g. configs/tldr.py:size=1b.")
    _DEVICE = flags.DEFINE_enum(
        "device", "h100", sorted(topology.DEVICES), "Whose data sheet gives the peak."
    )
    _PROGRAMS = flags.DEFINE_list("programs", [], "Names of the programs; empty: all of the method.")
    _CALLS = flags.DEFINE_integer("calls", 5, "Timed calls of a program, after one untimed call.", 1)
    _CHILD = flags.DEFINE_string("child", "", "Internal: runs this program and prints a line of JSON.")
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse)
