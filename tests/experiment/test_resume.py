"""A run that is stopped and goes on: equal to one that was never stopped, bit for bit."""

import json
import signal
import sqlite3

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from small_run import FEW_UPDATES, small_run

from sea_jax.errors import StoppedError
from sea_jax.experiment import checkpoints
from sea_jax.experiment import run as experiment
from sea_jax.labels import journal

METHODS = {
    "passive": {},
    "sea": {"sea.burn_in": 8, "ensemble.kind": "mlp"},
    "apl": {"apl.pool_factor": 2, "apl.entropy_samples": 2},
    "xpo": {},
    "offline": {},
    "passive_replay": {"replay.updates_per_label": 0.5},
    "posterior_rl": FEW_UPDATES | {"rloo.max_surprise": 50.0},
}


@pytest.fixture(autouse=True)
def no_policy(monkeypatch):
    """The final policies as arrays, in place of folders that need a tokenizer on disk."""
    saved = {}
    keep = lambda config, folder, model, params, task: saved.update({folder.parents[2].name: params})  # noqa: E731
    monkeypatch.setattr(experiment.policy, "save_policy", keep)
    return saved


def start(folder, method, **fields):
    """A function that runs, or goes on with, one method in a folder; a fresh Run each time, as in a new process."""
    fields = METHODS[method] | {"checkpoint.every_s": 0.0, "eval.every_queries": 8} | fields
    small = small_run(folder / "small", method, **fields)
    config = ConfigDict(small.config.to_dict())
    config.methods = (method,)

    def train():
        experiment.train_one(config, small.assets, method, 0, folder)

    return train


def stopped_after(monkeypatch, step, error=None):
    """Stops the run at the end of a step: by a signal, or as by SIGKILL with nothing of the step saved."""
    end_step = checkpoints.RunSaver.end_step

    def end(self, run, logbook, last):
        if run.step == step:
            if error is not None:
                raise error
            signal.raise_signal(signal.SIGTERM)
        end_step(self, run, logbook, last)

    monkeypatch.setattr(checkpoints.RunSaver, "end_step", end)


def files(folder, method):
    """The rows of a run's files, without seconds and instants."""
    run = folder / f"runs/{method}-seed0"
    read = lambda name: [json.loads(line) for line in (run / name).read_text().splitlines()]  # noqa: E731
    metrics = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in read("metrics.jsonl")]
    with sqlite3.connect(run / journal.FILE) as db:
        columns = "step, row, policy_step, prompt, first, second, first_tokens, second_tokens, state, probability"
        labels = db.execute(f"SELECT {columns}, prefers_first FROM duels ORDER BY id").fetchall()
    return metrics, read("samples.jsonl"), read("responses.jsonl"), labels


QUICK = [("passive", 0, False), ("sea", 0, False), *((method, 1, True) for method in METHODS)]
REST = [(method, 0, True) for method in METHODS] + [(method, 1, False) for method in METHODS]


@pytest.mark.parametrize(
    "method, staleness, killed", [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in REST)]
)
def test_a_resumed_run_equals_one_that_was_never_stopped(
    tmp_path, monkeypatch, no_policy, method, staleness, killed
):
    fields = {"train.staleness": staleness}
    start(tmp_path / "whole", method, **fields)()
    begin = start(tmp_path / "parts", method, **fields)
    for step in (1, 2):
        with monkeypatch.context() as patch, pytest.raises(MemoryError if killed else StoppedError):
            stopped_after(patch, step, MemoryError() if killed else None)
            begin()
    begin()
    jax.tree.map(np.testing.assert_array_equal, no_policy["whole"], no_policy["parts"])
    assert files(tmp_path / "parts", method) == files(tmp_path / "whole", method)
