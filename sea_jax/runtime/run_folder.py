"""Names a run's folder, <workdir>/runs/<method>-seed<seed>, and records in it that the run has finished.

    metrics.jsonl, samples.jsonl, responses.jsonl, events.out.tfevents.*    by `runtime.metrics.MetricWriter`
    policy/                                                the policy that the run ended with
    warnings.json                                          of its watches, if any has warned
    done.json                                              written last: what `Summary` holds

Imports no JAX, so that `sea_jax.report` needs none.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_DONE = "done.json"
_WARNINGS = "warnings.json"


@dataclasses.dataclass(frozen=True)
class Summary:
    """A finished run, as done.json holds it.

    Attributes:
        queries: oracle labels bought.
        method: the method's name in configs.
        label: its name in tables and figures.
        learns_ensemble: whether it trained an ensemble of reward models.
    """

    queries: int
    method: str
    label: str
    learns_ensemble: bool


def run_folder(workdir: Path, method: str, seed: int) -> Path:
    """Returns the folder of one run."""
    return workdir / "runs" / f"{method}-seed{seed}"


def method_and_seed(folder: Path) -> tuple[str, int]:
    """Splits the name of a run's folder: the inverse of `run_folder`."""
    method, seed = folder.name.rsplit("-seed", 1)
    return method, int(seed)


def finished_folders(workdir: Path) -> Iterator[Path]:
    """Yields the folders of a work directory's finished runs, by name."""
    for done in sorted(workdir.glob(f"runs/*-seed*/{_DONE}")):
        if is_finished(done.parent):
            yield done.parent


def is_finished(folder: Path) -> bool:
    """Returns whether the run in this folder has finished; one whose done.json is spoilt has not."""
    return _read(folder) is not None


def read_summary(folder: Path) -> Summary:
    """Reads done.json of a finished run.

    A file without label and learns_ensemble, as older versions wrote it, is completed from the folder's name;
    such a run counts as one without an ensemble.
    """
    fields = _read(folder) or {}
    method, _ = method_and_seed(folder)
    method = fields.get("method", method)
    label = fields.get("label", method)
    return Summary(fields.get("queries", 0), method, label, fields.get("learns_ensemble", False))


def write_summary(folder: Path, summary: Summary) -> None:
    """Marks a run as finished, by one rename: an interrupted call leaves no done.json."""
    part = folder / f"{_DONE}.part"
    part.write_text(json.dumps(dataclasses.asdict(summary)))
    part.replace(folder / _DONE)


def remove_summary(folder: Path) -> None:
    """Marks a run as unfinished, before any of its files is replaced."""
    (folder / _DONE).unlink(missing_ok=True)


def write_warnings(folder: Path, warnings: list[dict[str, Any]]) -> None:
    """Replaces the warnings of a run by one rename; without any there is no file."""
    if not warnings:
        (folder / _WARNINGS).unlink(missing_ok=True)
        return
    part = folder / f"{_WARNINGS}.part"
    part.write_text(json.dumps(warnings, indent=2) + "\n")
    part.replace(folder / _WARNINGS)


def warned_folders(workdir: Path) -> list[Path]:
    """Returns the folders of a work directory's runs that have warnings, finished or not, by name."""
    return [file.parent for file in sorted(workdir.glob(f"runs/*-seed*/{_WARNINGS}"))]


def read_warnings(folder: Path) -> list[dict[str, Any]]:
    """Reads the warnings of a run, oldest first; a spoilt file counts as none."""
    try:
        found = json.loads((folder / _WARNINGS).read_text())
    except (FileNotFoundError, ValueError):
        return []
    return found if isinstance(found, list) else []


def _read(folder: Path) -> dict | None:
    """Returns the fields of done.json, or None where it is absent or not a JSON object."""
    try:
        fields = json.loads((folder / _DONE).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return fields if isinstance(fields, dict) else None
