"""Describes a sweep: methods × seeds × sizes of one config, each run in a work directory of its own.

    <root>/sweep.json                        the sweep's description, as `Sweep` holds it
    <root>/cache                             trained parts, shared by all runs
    <root>/<size>/prepare/log.txt            log of the unit that trained them
    <root>/<size>/<method>-seed<k>/          work directory of a run, with its log.txt
    <root>/report.txt, <root>/report.png     of all finished runs

launch/xm_sweep.py makes one; `python -m sea_jax.report <root>` reports it. This module imports no JAX.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from sea_jax.errors import InputError
from sea_jax.json_files import read_object
from sea_jax.report.configs import items, levels
from sea_jax.runtime.run_folder import is_finished, run_folder

FILE = "sweep.json"


@dataclasses.dataclass(frozen=True)
class Unit:
    """One run of a sweep; without a method, the unit that trains the parts shared by the runs of a size."""

    root: Path
    size: str
    method: str = ""
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.size}/{self.run_folder.name}" if self.method else f"{self.size}/prepare"

    @property
    def folder(self) -> Path:
        """The unit's work directory."""
        return self.root / self.name

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def run_folder(self) -> Path:
        """The run's folder in the work directory; both have the same name."""
        within = run_folder(Path(), self.method, self.seed)
        return self.root / self.size / within.name / within

    @property
    def finished(self) -> bool:
        return is_finished(self.run_folder)

    def last_log_line(self) -> str:
        """Returns the last line of the log that is not empty, or ''; of a traceback that is the error."""
        if not self.log.exists():
            return ""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines()]
        return next((line for line in reversed(lines) if line), "")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The description of a sweep.

    Attributes:
        root: its folder.
        files: size -> config file with its options.
        overrides: the command's --config.<field>=<value>.
        configs: size -> the config that these make, as JSON holds it, with the seeds of replicate 0.
        methods: methods of every size, in the order of the tables.
        replicates: numbers of the replicates; number i adds i to seed and oracle seed of the config.
    """

    root: Path
    files: dict[str, str]
    overrides: tuple[str, ...]
    configs: dict[str, dict[str, Any]]
    methods: tuple[str, ...]
    replicates: tuple[int, ...]

    def units(self, size: str) -> list[Unit]:
        """Returns the runs of a size, replicate by replicate, so that an unfinished sweep has whole ones."""
        first = self.configs[size]["seed"]
        return [Unit(self.root, size, m, first + i) for i in self.replicates for m in self.methods]

    def write(self) -> None:
        """Writes sweep.json by one rename, so that a reader never finds half of it."""
        self.root.mkdir(parents=True, exist_ok=True)
        fields = dataclasses.asdict(self)
        del fields["root"]  # a moved folder is still the same sweep
        part = self.root / f"{FILE}.part"
        part.write_text(json.dumps(fields, indent=2) + "\n")
        part.replace(self.root / FILE)


def read(root: Path) -> Sweep:
    """Reads sweep.json.

    Raises:
        InputError: on a file that holds no sweep.
    """
    file, valid = root / FILE, "not a sweep's; valid: another folder"
    fields = read_object(file, "a sweep's")
    files, configs = fields.get("files"), fields.get("configs")
    if not isinstance(files, dict) or not isinstance(configs, dict):
        raise InputError(f"{file}: {valid}")
    for config in configs.values():
        if not isinstance(config, dict) or type(config.get("seed")) is not int:
            raise InputError(f"{file}: {valid}")
        levels(config, f"{file}")
    kinds = dict(overrides=str, methods=str, replicates=int)
    overrides, methods, replicates = (items(fields, name, kind, f"{file}") for name, kind in kinds.items())
    return Sweep(root, files, overrides, configs, methods, replicates)


def unfinished(sweep: Sweep) -> list[str]:
    """Returns a line for each run that has not finished: its name, and the last line of its log."""
    lines = []
    for size in sweep.configs:
        for unit in sweep.units(size):
            if not unit.finished:
                said = unit.last_log_line()
                state = f"{unit.log} ends: {said}" if said else "not begun"
                lines.append(f"{unit.name}: {state}")
    return lines
