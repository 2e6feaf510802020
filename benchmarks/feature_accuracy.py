"""Measures the ensemble's accuracy on held-out pairs by number of labels, for three kinds of features.

    python -m benchmarks.feature_accuracy --config=configs/quickstart.py --workdir=runs/quickstart

A pair is two samples of the starting policy at the training temperature. Its label is the response with the
higher hidden reward; ties are left out. The features are:

    backbone         features of the frozen backbone, which SEA uses
    policy states    hidden states of the starting policy, averaged over response tokens
    reward basis     quantities on which the hidden reward depends: what no method sees, and an upper bound
                     where the reward is linear in them

Each ensemble takes STEPS optimizer steps of Eq. 8, by which it is close to convergence. The accuracies
therefore compare the features and do not depend on the few optimizer steps of the online loop.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from ml_collections import config_flags

from sea_jax import evaluate, tasks
from sea_jax.actors.sampler import new_version, sample_now
from sea_jax.config.flags import fail
from sea_jax.ensemble import experience, features, heads
from sea_jax.experiment import assets
from sea_jax.types import Config

_CONFIG = config_flags.DEFINE_config_file("config", "configs/quickstart.py")
_WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "Work directory that holds the trained models.")
_SEEDS = flags.DEFINE_list("oracle_seeds", ["100", "101", "102", "103", "104"], "Seeds of hidden rewards.")
_SPLIT = flags.DEFINE_string("split", "heldout", "Split that the held-out prompts come from.")

LABELS = (100, 200, 500, 1000, 2000)
STEPS = 400


def family(config: Config) -> tasks.RewardFamily:
    """Returns the rewards of the config's task, which must be an embedded one."""
    found = tasks.find(config.task.name).reward_family
    if found is None:
        fail(f"config.task.name={config.task.name!r}: valid is an embedded task")
    return found


def collect(config: Config, shared: assets.Assets, split: str, count: int, seed: int):
    """Samples two responses to each of the first `count` prompts and computes their features.

    Returns:
        Backbone features [N, 2, E], policy states [N, 2, W] and reward basis [N, 2, F], all f32.
    """
    task = shared.task
    assert shared.backbone is not None
    policy, temperature = new_version(shared.ref_params), config.train.temperature
    sample = functools.partial(sample_now, shared.sampler, policy, num_responses=2, temperature=temperature)
    states = jax.jit(lambda p, *batch: features.mean_states(shared.model, p, *batch))
    parts = []
    for start in range(0, count, 250):
        texts = task.prompts[split][start : start + 250]
        prompts, mask = task.encode_prompts(texts)
        out = sample(prompts, mask, jax.random.fold_in(jax.random.key(seed), start))
        batch = (prompts, mask, out.tokens, out.mask)
        flat = [y for row in task.decode(np.asarray(out.tokens), np.asarray(out.mask)) for y in row]
        basis = family(config).basis([x for x in texts for _ in range(2)], flat)
        parts.append(
            (
                np.asarray(shared.backbone(texts, prompts, mask, out)),
                np.asarray(states(shared.ref_params, *batch)),
                basis.reshape(len(texts), 2, -1),
            )
        )
    return [np.concatenate(kind) for kind in zip(*parts, strict=True)]


def accuracy(config: Config, train: np.ndarray, test: np.ndarray, count: int, seed: int) -> float:
    """Trains K heads on `count` labels and returns their held-out accuracy.

    Args:
        config: gives the heads and their optimizer settings.
        train: features of the training pairs, [N, 2, E] f32, axis 1 is (y+, y−).
        test: features of the held-out pairs, like `train`.
        count: number of training pairs used; at most N.
        seed: seed of the heads and of the batches.
    """
    cfg = config.ensemble
    mean = train.mean((0, 1))
    scale = 1 / np.sqrt(train.var((0, 1)).mean())
    train, test = ((x - mean) * scale for x in (train[:count], test))
    optimizer = optax.adam(cfg.learning_rate)
    head = heads.Head(tuple(cfg.hidden), cfg.prior_scale)
    state = heads.init(jax.random.key(seed), head, cfg.num_members, train.shape[-1], optimizer)
    data = experience.init(max(LABELS), train.shape[-1])
    data = experience.add(data, jnp.asarray(train), jnp.ones(count), jnp.ones(count, bool))
    state, _ = _train(optimizer, cfg.batch_size, cfg.regularization)(jax.random.key(seed + 1), state, data)
    return evaluate.ensemble_accuracy(state.params, jnp.asarray(test))["ensemble/accuracy_heldout"]


_TRAINERS: dict = {}


def _train(optimizer, batch_size: int, regularization: float):
    """Returns the jitted training function of the heads, cached by its settings."""
    key = (batch_size, regularization)
    if key not in _TRAINERS:
        _TRAINERS[key] = jax.jit(
            lambda k, s, d: heads.update(
                k, s, d, optimizer, num_steps=STEPS, batch_size=batch_size, regularization=regularization
            )
        )
    return _TRAINERS[key]


def main(_: list[str]) -> None:
    config, folder = _CONFIG.value, Path(_WORKDIR.value)
    cache = Path(config.cache_dir or folder / "cache")
    rewards = family(config)
    shared = assets.prepare(config, cache, tasks.load(config, cache / "task"))
    train = collect(config, shared, "train", max(LABELS), 1)
    test = collect(config, shared, _SPLIT.value, len(shared.task.prompts[_SPLIT.value]), 2)
    print(f"{'labels':15s}" + "".join(f"{n:>15d}" for n in LABELS))
    for name, a, b in zip(("backbone", "policy states", "reward basis"), train, test, strict=True):
        cells = []
        for count in LABELS:
            found = []
            for seed in map(int, _SEEDS.value):
                draw = rewards.draw(seed)[..., None]
                ordered = []
                for kind, basis in ((a, train[2]), (b, test[2])):
                    reward = rewards.combine(basis.reshape(-1, basis.shape[-1]), draw).reshape(-1, 2)
                    first = (reward[:, 0] > reward[:, 1])[:, None, None]
                    decided = reward[:, 0] != reward[:, 1]
                    ordered.append(np.where(first, kind, kind[:, ::-1])[decided])
                found.append(accuracy(config, ordered[0], ordered[1], min(count, len(ordered[0])), seed))
            error = np.std(found, ddof=1) / np.sqrt(len(found)) if len(found) > 1 else 0.0
            cells.append(f"{np.mean(found):.3f} ± {error:.3f}")
        print(f"{name:15s}" + "".join(f"{c:>15s}" for c in cells), flush=True)


if __name__ == "__main__":
    app.run(main)
