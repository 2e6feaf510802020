"""Measures which parts of the hidden reward a linear function of the frozen features expresses.

    python -m benchmarks.reward_parts --config=configs/quickstart.py --workdir=runs/quickstart

A posterior can only learn what the features show. Each part of the embedded task's reward (the names of its basis
before the slash) is regressed on the ranker's features of the starting policy's samples, both centred over the
responses to a prompt, and predicted on samples to held-out prompts. The table has the part's standard deviation
within a prompt, in nats, and R², mean over oracle seeds; no method sees these numbers. Of a family of rewards
that is not linear in its basis it measures the linear part.
"""

from pathlib import Path

import numpy as np
from absl import app, flags
from ml_collections import config_flags

from benchmarks.samples import collect
from sea_jax import tasks
from sea_jax.config.flags import fail
from sea_jax.experiment import assets

_CONFIG = config_flags.DEFINE_config_file("config", "configs/quickstart.py")
_WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "Work directory that holds the trained models.")
_SEEDS = flags.DEFINE_list("oracle_seeds", ["0", "1", "2", "3", "4"], "Seeds of hidden rewards.")
_SPLIT = flags.DEFINE_string("split", "tuning", "Split that the held-out prompts come from.")
_PROMPTS = flags.DEFINE_integer("prompts", 1500, "Train prompts.")
_TEST = flags.DEFINE_integer("test", 400, "Held-out prompts, at most.")

_RIDGE = 1e-3  # share of the mean eigenvalue


def explained(train: np.ndarray, test: np.ndarray, targets: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Computes the share of the held-out targets' variance that ridge regression predicts.

    Args:
        train, test: features [N, M, E].
        targets, held: [N, M, S], of the same samples.

    Returns:
        [S], R² within prompts.
    """
    centred = lambda x: (x - x.mean(1, keepdims=True)).reshape(-1, x.shape[-1]).astype(np.float64)  # noqa: E731
    X = centred(train)
    gram = X.T @ X
    gram += _RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    error = centred(held) - centred(test) @ np.linalg.solve(gram, X.T @ centred(targets))
    return 1 - (error**2).sum(0) / (centred(held) ** 2).sum(0)


def main(_: list[str]) -> None:
    config, folder = _CONFIG.value, Path(_WORKDIR.value)
    family = tasks.find(config.task.name).reward_family
    if family is None:
        fail(f"config.task.name={config.task.name!r}: valid is an embedded task")
    config.methods, cache = ("posterior_rl",), Path(config.cache_dir or folder / "cache")
    shared = assets.prepare(config, cache, tasks.load(config, cache / "task"))
    train = collect(config, shared, "train", _PROMPTS.value, 1)
    test = collect(config, shared, _SPLIT.value, _TEST.value, 2)
    draws = np.stack([family.draw(int(seed)) for seed in _SEEDS.value], -1)  # [F, S], or [2, F, S]
    draws = draws.reshape(-1, *draws.shape[-2:])[0]
    parts = np.array([name.split("/")[0] for name in family.basis.names])
    print("| part | standard deviation | R² |\n|---|---|---|")
    for part in ("all", *dict.fromkeys(parts)):
        weights = draws if part == "all" else draws * (parts == part)[:, None]
        held = test[1] @ weights
        spread = (held - held.mean(1, keepdims=True)).std((0, 1)).mean()
        found = explained(train[0], test[0], train[1] @ weights, held).mean()
        print(f"| {part} | {spread:.2f} | {found:.2f} |", flush=True)


if __name__ == "__main__":
    app.run(main)
