"""Writes a run's numbers (metrics.jsonl, TensorBoard files) and texts (samples.jsonl, responses.jsonl)."""

import json
import math
import os
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from sea_jax.runtime.mesh import is_main
from sea_jax.runtime.run_folder import remove_summary


class MetricWriter:
    """The files of one run, with oracle queries on the x-axis.

    Args:
        folder: the run's folder. Files of an earlier run in it are replaced, after the run has been marked as
            unfinished. In a run on several hosts only the main process writes; the writers of the others
            discard what they are given.
    """

    def __init__(self, folder: Path):
        self._board, self._responses = None, Path(os.devnull)
        if not is_main():
            self._metrics, self._samples = open(os.devnull, "w"), open(os.devnull, "w")
            return
        folder.mkdir(parents=True, exist_ok=True)
        remove_summary(folder)
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._responses = folder / "responses.jsonl"
        self._responses.unlink(missing_ok=True)
        self._metrics = open(folder / "metrics.jsonl", "w")
        self._samples = open(folder / "samples.jsonl", "w")
        self._board = SummaryWriter(str(folder))

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
        self._metrics.write(json.dumps({"step": step, "queries": queries} | row) + "\n")
        self._metrics.flush()
        if self._board is None:
            return
        for name, value in row.items():
            if value is not None:
                self._board.add_scalar(name, value, queries)

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
