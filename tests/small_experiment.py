"""A whole experiment of one small run, in a folder of its own, for tests of what is stopped and resumed."""

import json
import sqlite3

from ml_collections import ConfigDict
from small_run import FEW_UPDATES, small_run

from sea_jax.experiment import run as experiment
from sea_jax.labels import journal
from sea_jax.runtime import run_folder

# Bounds at which watches warn, some after a stop of means that began before it.
EAGER = {
    "watch.after": 0, "watch.labels": 12, "watch.accuracy_labels": 12, "watch.steps": 3, "watch.distinct": 9.0,
    "watch.accuracy": 1.0, "watch.agreement": 1.0, "watch.drift": 1e-6, "watch.kl": 1e-9,
}  # fmt: skip
METHODS = {
    "passive": {},
    "sea": {"sea.burn_in": 8, "ensemble.kind": "mlp"} | EAGER,
    "apl": {"apl.pool_factor": 2, "apl.entropy_samples": 2},
    "xpo": {},
    "offline": {},
    "iterative": {"iterative.labels_per_round": 12},
    "passive_replay": {"replay.updates_per_label": 0.5},
    "posterior_rl": FEW_UPDATES | {"rloo.max_surprise": 50.0},
}


def start(folder, method, only_given=False, **fields):
    """A function that runs, or goes on with, one method in a folder; a fresh Run each time, as in a new process."""
    fields = METHODS[method] | {"checkpoint.every_s": 0.0, "eval.every_queries": 8} | fields
    small = small_run(folder / "small", method, **fields)
    config = ConfigDict(small.config.to_dict())
    config.methods, config.overrides = (method,), {}

    def train(labeller_of=lambda config, folder: None):
        experiment.train_one(config, small.assets, method, 0, folder, only_given, labeller_of)

    return train


def journal_file(folder, method):
    return folder / f"runs/{method}-seed0" / journal.FILE


def labels_of(folder, method):
    """The rows of a run's journal, without instants and seconds."""
    with sqlite3.connect(journal_file(folder, method)) as db:
        columns = (
            "step, row, policy_step, prompt, first, second, first_tokens, second_tokens, state, probability"
        )
        return db.execute(f"SELECT {columns}, prefers_first FROM duels ORDER BY id").fetchall()


def files(folder, method):
    """The rows of a run's files and its warnings, without seconds and instants."""
    run = folder / f"runs/{method}-seed0"
    read = lambda name: [json.loads(line) for line in (run / name).read_text().splitlines()]  # noqa: E731
    metrics = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in read("metrics.jsonl")]
    texts = read("samples.jsonl"), read("responses.jsonl")
    return metrics, *texts, labels_of(folder, method), run_folder.read_warnings(run)
