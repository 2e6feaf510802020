"""A sweep: methods × seeds × sizes of one config, each a run in a work directory of its own.

    <root>/sweep.json                        what belongs to it
    <root>/cache                             trained parts, shared by all
    <root>/<size>/prepare/log.txt            who trained them
    <root>/<size>/<method>-seed<k>/          a run's work directory, with its log.txt
    <root>/report.txt, <root>/report.png     of all that have finished

launch/xm_sweep.py makes one; `python -m sea_jax.report <root>` gathers it. The latter imports no JAX.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from sea_jax.errors import InputError

FILE = "sweep.json"


@dataclasses.dataclass(frozen=True)
class Unit:
    """One run of a sweep; or, without a method, the training of the parts that those of a size share."""

    root: Path
    size: str
    method: str = ""
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.size}/{self.run}" if self.method else f"{self.size}/prepare"

    @property
    def run(self) -> str:
        """As experiment.py names the folder of a run."""
        return f"{self.method}-seed{self.seed}"

    @property
    def folder(self) -> Path:
        return self.root / self.name

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def run_folder(self) -> Path:
        return self.folder / "runs" / self.run

    @property
    def finished(self) -> bool:
        return (self.run_folder / "done.json").exists()

    def last_words(self) -> str:
        """The last line of its log that is not empty, or ''; of a traceback that is the error."""
        if not self.log.exists():
            return ""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines()]
        return next((line for line in reversed(lines) if line), "")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What belongs to a sweep.

    Attributes:
        root: its folder.
        files: size -> config file with its options.
        overrides: the --config.<field>=<value> that came with them.
        configs: size -> what these make, as JSON holds it; seed and oracle_seed are the first replicate's.
        methods: rows of `sea_jax.methods.METHODS`.
        replicates: of replicate i, seed and oracle seed are those of the config plus i.
    """

    root: Path
    files: dict[str, str]
    overrides: tuple[str, ...]
    configs: dict[str, dict[str, Any]]
    methods: tuple[str, ...]
    replicates: tuple[int, ...]

    def units(self, size: str) -> list[Unit]:
        """The runs of a size; replicates outside, so that an unfinished sweep has whole replicates."""
        first = self.configs[size]["seed"]
        return [Unit(self.root, size, m, first + i) for i in self.replicates for m in self.methods]

    def write(self) -> None:
        """Keeps it in its root, whole or not at all."""
        self.root.mkdir(parents=True, exist_ok=True)
        fields = dataclasses.asdict(self)
        del fields["root"]  # where the file lies says it
        part = self.root / f"{FILE}.part"
        part.write_text(json.dumps(fields, indent=2) + "\n")
        part.replace(self.root / FILE)


def read(root: Path) -> Sweep:
    """Of a folder that holds one; raises InputError if its file is spoilt."""
    file = root / FILE
    try:
        fields = json.loads(file.read_text())
        lists = (tuple(fields[name]) for name in ("overrides", "methods", "replicates"))
        overrides, methods, replicates = lists
        return Sweep(root, fields["files"], overrides, fields["configs"], methods, replicates)
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{file}: not a sweep's; valid: another folder") from None


def unfinished(sweep: Sweep) -> list[str]:
    """A line for each run that has not finished: its name, and what its log ends with."""
    lines = []
    for size in sweep.configs:
        for unit in sweep.units(size):
            if not unit.finished:
                words = unit.last_words()
                how = f"{unit.log} ends: {words}" if words else "not begun"
                lines.append(f"{unit.name}: {how}")
    return lines
