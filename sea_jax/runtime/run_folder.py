"""Names a run's folder, <workdir>/runs/<method>-seed<seed>, and records in it that the run has finished.

    metrics.jsonl, samples.jsonl, responses.jsonl, events.out.tfevents.*    by `runtime.metrics.MetricWriter`
    policy/                                                the policy that the run ended with
    warnings.json                                          of its watches, if any has warned
    done.json                                              written last: what `Summary` holds

Imports no JAX, so that `sea_jax.report` needs none.
"""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sea_jax.errors import InputError
from sea_jax.json_files import read_object, read_rows

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
    """Splits the name of a run's folder: the inverse of `run_folder`.

    Raises:
        InputError: it is no such name.
    """
    if (parts := re.fullmatch(r"(.+)-seed([0-9]+)", folder.name)) is None:
        raise InputError(f"{folder}: no run's name; valid: <method>-seed<n>, or another place for the folder")
    return parts[1], int(parts[2])


def finished_folders(workdir: Path) -> Iterator[Path]:
    """Yields the folders of a work directory's finished runs, by name.

    Raises:
        InputError: a run's done.json is spoilt.
    """
    for done in sorted(workdir.glob(f"runs/*-seed*/{_DONE}")):
        _read(done.parent)
        yield done.parent


def is_finished(folder: Path) -> bool:
    """Returns whether the run in this folder has finished; one whose done.json is spoilt has not."""
    try:
        _read(folder)
    except InputError:
        return False
    return True


def read_summary(folder: Path) -> Summary:
    """Reads done.json of a finished run.

    A file without label and learns_ensemble, as older versions wrote it, is completed from the folder's name;
    such a run counts as one without an ensemble.

    Raises:
        InputError: it is absent or spoilt.
    """
    fields = _read(folder)
    method = fields.get("method", method_and_seed(folder)[0])
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


def _read(folder: Path) -> dict[str, Any]:
    """Returns the fields of done.json."""
    file, valid = folder / _DONE, "that of a finished run; without it the same command goes on with the run"
    fields = read_object(file, valid)
    for name, kind in dict(queries=int, method=str, label=str, learns_ensemble=bool).items():
        value = fields.get(name, kind())
        if type(value) is not kind or (isinstance(value, int) and value < 0):
            raise InputError(f"{file}: {name}={_shown(value)}; valid: {valid}")
    return fields


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """Reads the rows of metrics.jsonl in the order in which they were logged.

    Raises:
        InputError: naming the line and what is wrong with it.
    """
    rows, valid, last = [], "rows as a run writes them", 0
    for number, row in read_rows(file, valid):
        for name, value in row.items():
            if value is not None and not _is_number(value):
                raise InputError(
                    f"{file}, line {number}: {name}={_shown(value)}; valid: a finite number or null"
                )
        queries = row.get("queries")
        if type(queries) is not int or queries < last:
            least = f"a whole number of at least {last}, that of the line before"
            raise InputError(f"{file}, line {number}: queries={queries!r}; valid: {least}")
        rows.append(row)
        last = queries
    return rows


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -_LARGEST <= value <= _LARGEST


def _shown(value: Any) -> str:
    return repr(value)[:60]


_LARGEST = 1.79e308  # larger whole numbers are no float


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
