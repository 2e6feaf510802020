"""Writes a run's numbers (metrics.jsonl, TensorBoard files) and texts (samples.jsonl, responses.jsonl)."""

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from sea_jax.errors import InputError, StorageError
from sea_jax.runtime.mesh import is_main
from sea_jax.runtime.run_folder import read_metrics, remove_summary

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter


class MetricWriter:
    """The files of one run, with oracle queries on the x-axis.

    Args:
        folder: the run's folder. Files of an earlier run in it are replaced, after the run has been marked as
            unfinished. In a run on several hosts only the main process writes; the writers of the others
            discard what they are given.
        kept: of a restored run: the bytes of metrics.jsonl and samples.jsonl that stay, as `positions` gave
            them; what was written after them is written again. The event files are made anew from the rows
            that stay, and responses.jsonl stays until it is written again. None: the files begin empty.

    Raises:
        InputError: a file is shorter than that, cannot be read, or has a damaged row.
        StorageError: a file cannot be written.
    """

    def __init__(self, folder: Path, kept: Mapping[str, int] | None = None):
        self._board, self._responses = None, Path(os.devnull)
        if not is_main():
            self._metrics, self._samples = open(os.devnull, "w"), open(os.devnull, "w")
            return
        folder.mkdir(parents=True, exist_ok=True)
        remove_summary(folder)
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._responses = folder / "responses.jsonl"
        if kept is None:
            self._responses.unlink(missing_ok=True)
            kept = {}
        self._metrics = _continued(folder / "metrics.jsonl", kept.get("metrics.jsonl", 0))
        kept_rows = read_metrics(folder / "metrics.jsonl")
        self._samples = _continued(folder / "samples.jsonl", kept.get("samples.jsonl", 0))
        self._board = _summary_writer(folder)
        for row in kept_rows:
            self._show(row)

    def positions(self) -> dict[str, int]:
        """Returns the bytes of metrics.jsonl and samples.jsonl, which are on the disk when this returns."""
        for file in (self._metrics, self._samples):
            file.flush()
            if self._board is not None:
                os.fsync(file.fileno())
        return {"metrics.jsonl": self._metrics.tell(), "samples.jsonl": self._samples.tell()}

    def write(self, step: int, queries: int, metrics: dict[str, float]) -> None:
        """Appends a row.

        Args:
            step: updates done.
            queries: oracle labels bought so far, those of the step included.
            metrics: name -> value. NaN stands for a mean over nothing (`losses.mean_or_nan`) and is left out
                of the row; an infinite value is written as null, since JSON has no infinity.
        """
        measured = {name: value for name, value in metrics.items() if not math.isnan(value)}
        row = {name: value if math.isfinite(value) else None for name, value in measured.items()}
        row = {"step": step, "queries": queries} | row
        self._metrics.write(json.dumps(row) + "\n")
        self._metrics.flush()
        if self._board is not None:
            self._show(row)

    def _show(self, row: dict[str, Any]) -> None:
        """Adds a row of metrics.jsonl to the event file."""
        assert self._board is not None
        for name, value in row.items():
            if value is not None and name not in ("step", "queries"):
                self._board.add_scalar(name, value, row["queries"])

    def write_samples(self, rows: list[dict[str, Any]]) -> None:
        """Appends labelled pairs as text: prompt, y+, y−, who labelled them, the ensemble's probability."""
        for row in rows:
            self._samples.write(json.dumps(row) + "\n")
        self._samples.flush()

    def write_responses(self, rows: list[dict[str, Any]]) -> None:
        """Writes the evaluation prompts with their responses before and after alignment."""
        self._responses.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def close(self) -> None:
        """Closes the files."""
        self._metrics.close()
        self._samples.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _summary_writer(folder: Path) -> "SummaryWriter":
    """Returns a writer of TensorBoard's files.

    tensorboardX imports torch where it is installed, for tensors that nobody here gives it: 1.5 s and 200 MB.
    """
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
    try:
        from tensorboardX import SummaryWriter
    finally:
        if hidden:
            del sys.modules["torch"]
    return SummaryWriter(str(folder))


def _continued(file: Path, size: int) -> TextIO:
    """Opens a file to append to its first `size` bytes; the rest is cut off."""
    try:
        with open(file, "ab") as rest:
            if rest.tell() < size:
                raise InputError(
                    f"{file}: {rest.tell()} bytes; valid: the {size} it had, or delete its folder"
                )
            rest.truncate(size)
        with open(file, "rb") as kept:
            kept.seek(max(size - 1, 0))
            if size and kept.read() != b"\n":
                raise InputError(
                    f"{file}: a row was cut; valid: the {size} bytes it had, or delete its folder"
                )
        return open(file, "a")
    except OSError as error:
        raise StorageError(f"{file}: {error.strerror}") from error
