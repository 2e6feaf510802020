"""A grid with the paper's models and data: sweeps through XManager, their labels and their device-hours."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from launch.experiments.grid import Grid, Part
from launch.sweeps import read_config
from sea_jax.errors import InputError


class Sweep(NamedTuple):
    """A sweep of methods × seeds × sizes."""

    part: Part
    file: str  # config file with options
    sizes: tuple[str, ...]
    seeds: int
    root: Path
    fields: tuple[str, ...]  # arguments --config.<field>=<value>

    @property
    def command(self) -> list[str]:
        """Returns the arguments after `python`."""
        sizes = [f"--sizes={','.join(self.sizes)}"] if self.sizes else []
        methods = ",".join(self.part.methods)
        call = ["-m", "launch.xm_sweep", f"--config={self.file}", *sizes, f"--seeds={self.seeds}"]
        return [*call, f"--methods={methods}", f"--root={self.root}", *self.fields]

    def files(self) -> Iterator[tuple[str, str]]:
        """Yields each size, '' without sizes, and the config file of it."""
        for size in self.sizes or ("",):
            name, _, options = self.file.partition(":")
            chosen = [f"size={size}"] if size else []
            yield size, f"{name}:{','.join([*chosen, options])}"


def sweeps(name: str, grid: Grid, root: Path, seeds: int) -> list[Sweep]:
    """Returns the sweeps of a grid: one for each of its parts."""
    found = []
    for part in grid.parts:
        fields = dict(part.fields) | dict(part.paper_fields)
        arguments = tuple(f"--config.{field}={value}" for field, value in fields.items())
        file, folder = grid.paper.file.format(dap=part.dap), root / "paper" / name / part.name
        found.append(Sweep(part, file, grid.paper.sizes, seeds, folder, arguments))
    return found


def plan(name: str, grid: Grid, root: Path, seeds: int, topology: str) -> str:
    """Returns the commands of a grid, the labels that it buys, and its device-hours on a topology.

    Args:
        name: of the experiment.
        grid: the experiment.
        root: the sweeps' folder.
        seeds: runs of each method and size.
        topology: devices of a run, as `launch.plan` takes them; '': device-hours are left out.

    Raises:
        InputError: a config is not valid, or a plan failed.
    """
    lines, labels, hours, runs = [], 0, 0.0, 0
    for sweep in sweeps(name, grid, root, seeds):
        lines.append(shlex.join(["python", *sweep.command]))
        for size, file in sweep.files():
            for method in sweep.part.methods:
                config = read_config(file, (*sweep.fields, f"--config.methods=('{method}',)"))
                budget = config["train"]["query_budget"]
                runs, labels = runs + seeds, labels + seeds * budget
                said = f"  {' '.join(filter(None, [size, method]))}: {seeds} runs of {budget:,} labels"
                if topology:
                    each = device_hours(file, method, sweep.fields, topology)
                    hours += seeds * each
                    said += f", {each:,.1f} device-hours each"
                lines.append(said)
    total = f"{runs} runs: {labels:,} labels"
    if topology:
        total += f", {hours:,.0f} device-hours on {topology} (launch.plan, at 30 % of the peak)"
    return "\n".join([*lines, total])


def device_hours(file: str, method: str, fields: tuple[str, ...], topology: str) -> float:
    """Returns the device-hours of a run by `launch.plan`, also where it does not fit the devices."""
    call = [sys.executable, "-m", "launch.plan", f"--config={file}", f"--topology={topology}"]
    done = subprocess.run(
        [*call, f"--config.methods=('{method}',)", *fields], capture_output=True, text=True, check=False
    )
    cost = done.stdout.partition("device-hours at")[2]
    if (found := re.search(r"^  sum +([\d.]+)$", cost, re.MULTILINE)) is None:
        said = (done.stderr.strip().splitlines() or ["no device-hours"])[-1]
        raise InputError(f"launch.plan of {file}, {method}: {said}")
    return float(found[1])


def run(name: str, grid: Grid, root: Path, seeds: int) -> str:
    """Runs the sweeps of a grid one after another; each prints its own report, and goes on where it stopped.

    Returns:
        The files of the reports, a line each.

    Raises:
        InputError: a sweep failed.
    """
    for sweep in sweeps(name, grid, root, seeds):
        status = subprocess.run([sys.executable, *sweep.command], check=False).returncode
        if status:
            raise InputError(f"{sweep.root}: the sweep ended with status {status}; the same command goes on")
    return "".join(f"{sweep.root / 'report.txt'}\n" for sweep in sweeps(name, grid, root, seeds))
