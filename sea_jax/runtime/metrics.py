"""Where a run's numbers go: metrics.jsonl, TensorBoard event files, samples.jsonl."""

import json
import math
import os
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from sea_jax.runtime.mesh import is_main


class MetricWriter:
    """One run's files. The x-axis is oracle queries everywhere.

    Args:
        folder: of the run; older files in it are replaced. Only the main process of a run on several hosts
            writes there, the others to nowhere.
    """

    def __init__(self, folder: Path):
        if not is_main():
            self._metrics, self._samples, self._board = open(os.devnull, "w"), open(os.devnull, "w"), None
            return
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._metrics = open(folder / "metrics.jsonl", "w")
        self._samples = open(folder / "samples.jsonl", "w")
        self._board = SummaryWriter(str(folder))

    def write(self, step: int, queries: int, metrics: dict[str, float]) -> None:
        """Appends one row; a value that is not finite is written as null (JSON has no NaN)."""
        row = {k: (v if math.isfinite(v) else None) for k, v in metrics.items()}
        self._metrics.write(json.dumps({"step": step, "queries": queries} | row) + "\n")
        self._metrics.flush()
        if self._board is None:
            return
        for name, value in row.items():
            if value is not None:
                self._board.add_scalar(name, value, queries)

    def write_samples(self, rows: list[dict[str, Any]]) -> None:
        """Appends completions: prompt, y+, y-, who labelled them, the ensemble's probability."""
        for row in rows:
            self._samples.write(json.dumps(row) + "\n")
        self._samples.flush()

    def close(self) -> None:
        self._metrics.close()
        self._samples.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
