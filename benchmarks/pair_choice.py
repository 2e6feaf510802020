"""Measures what a posterior knows by number of labels, for several ways to choose the pairs.

    python -m benchmarks.pair_choice --config=configs/fewer_labels.py --workdir=runs/fewer

The responses are samples of the starting policy, fixed, so that nothing but the choice differs. Each step a
strategy selects a pair of each prompt of a pool, and a pool choice keeps B of them, which the hidden reward
labels; `linear` learns from them, with the prior that is fitted to the task's family of rewards. A cell has the
share of held-out pairs that its mean orders as the hidden reward does, and the reward that the best of 20
responses by its mean gains over their mean; both are means over oracle seeds and draws. `reward basis` has the
quantities of which the hidden reward is a linear function in place of the ranker's features: no method sees
these, and with its prior the posterior is the best that labels allow, but for Laplace's approximation.
"""

import functools
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from benchmarks.samples import collect, normalised
from sea_jax import tasks
from sea_jax.config.flags import fail
from sea_jax.config.overrides import for_method
from sea_jax.ensemble import design, experience, heads, selection
from sea_jax.ensemble.linear import LinearPosterior
from sea_jax.experiment import assets
from sea_jax.pretraining.backbone import SEED_OFFSET, linear_prior
from sea_jax.types import Array, EnsembleState, Experience

_CONFIG = config_flags.DEFINE_config_file("config", "configs/fewer_labels.py")
_WORKDIR = flags.DEFINE_string("workdir", "runs/fewer", "Work directory that holds the trained models.")
_SEEDS = flags.DEFINE_list("oracle_seeds", ["0", "1", "2", "3", "4"], "Seeds of hidden rewards.")
_SPLIT = flags.DEFINE_string("split", "tuning", "Split that the held-out prompts come from.")
_DRAWS = flags.DEFINE_integer("draws", 3, "Orders of the train prompts for each seed.")
_PROMPTS = flags.DEFINE_integer("prompts", 800, "Train prompts.")
_TEST = flags.DEFINE_integer("test", 300, "Held-out prompts, at most.")
_LABELS = flags.DEFINE_list("labels", ["16", "32", "64", "96", "128", "160"], "Numbers of labels.")
_POOL = flags.DEFINE_integer("pool", 8, "Prompts per duel that is kept.")
_NUM_DRAWS = flags.DEFINE_list("num_draws", ["256"], "Draws from the posterior, K.")
_FLIPS = flags.DEFINE_float("flip_probability", 0.0, "Probability that a label is wrong.")
_NUM_REWARDS = 2000  # rewards of the family to which the basis' prior is fitted

CHOICES = (  # strategy, pool choice
    ("passive", None), ("infomax", "variance"), ("infomax", "d_optimal"), ("i_optimal", "variance"),
    ("i_optimal", "i_optimal"),
)  # fmt: skip


class Samples(NamedTuple):
    """Responses of the starting policy."""

    features: np.ndarray  # [N, M, E] f32
    rewards: np.ndarray  # [N, M] f32, r*


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def step(
    posterior: LinearPosterior, strategy: str, choice: str | None, num_kept: int, key: Array,
    state: EnsembleState, data: Experience, features: Array, rewards: Array,
) -> tuple[EnsembleState, Experience]:  # fmt: skip
    """Buys labels of the duels that are kept of a pool, and learns from all labels; ties teach nothing.

    Args:
        posterior, strategy, choice, num_kept: what chooses, and how many.
        key: [] key.
        state, data: before the step.
        features: [P, M, E] f32.
        rewards: r*, [P, M] f32; with flipped signs where labels are wrong.
    """
    believed = heads.rewards(state.params, features)
    duel = selection.STRATEGIES[strategy](key, believed)
    kept = jnp.arange(num_kept)
    if choice is not None:
        kept = design.POOL_CHOICES[choice](believed, duel, num_kept)
    first, second = duel.first[kept], duel.second[kept]
    margin = rewards[kept, first] - rewards[kept, second]
    pair = jnp.stack([features[kept, first], features[kept, second]], 1)
    pair = jnp.where((margin > 0)[:, None, None], pair, pair[:, ::-1])
    data = experience.add(data, pair, jnp.ones(num_kept), margin != 0)
    return posterior.update(key, state, data)[0], data


def known(state: EnsembleState, test: Samples) -> tuple[float, float]:
    """Returns the accuracy of the posterior's mean on held-out pairs, and the gain of its best of M."""
    mean, true = test.features @ np.asarray(state.opt_state["mean"]), test.rewards
    half = mean.shape[1] // 2
    believed, margin = (x[:, :half] - x[:, half : 2 * half] for x in (mean, true))
    accuracy = ((believed > 0) == (margin > 0))[margin != 0].mean()
    best = np.take_along_axis(true, mean.argmax(1)[:, None], 1)
    return float(accuracy), float(best.mean() - true.mean())


def learn(
    posterior: LinearPosterior, prior: Any, strategy: str, choice: str | None, B: int, train: Samples,
    test: Samples, seed: int,
) -> list[tuple[float, float]]:  # fmt: skip
    """Buys labels one batch after the other; returns `known` at each number of labels."""
    levels, found = [int(n) for n in _LABELS.value], []
    rng, P = np.random.default_rng(seed), B * (_POOL.value if choice is not None else 1)
    state = posterior.init(jax.random.key(seed), train.features.shape[-1], prior)
    data, order = experience.init(max(levels) + B, train.features.shape[-1]), np.zeros(0, int)
    for t in range(10 * max(levels)):
        while len(order) < P:
            order = np.append(order, rng.permutation(len(train.features)))
        rows, order = order[:P], order[P:]
        sign = np.where(rng.random((P, 1)) < _FLIPS.value, -1.0, 1.0)
        key = jax.random.fold_in(jax.random.key(seed), t)
        pool = train.features[rows], sign * train.rewards[rows]
        state, data = step(posterior, strategy, choice, B, key, state, data, *pool)
        while len(found) < len(levels) and int(data.size) >= levels[len(found)]:
            found.append(known(state, test))
        if len(found) == len(levels):
            return found
    raise ValueError(f"fewer than {max(levels)} of {10 * max(levels)} batches told anything")


def main(_: list[str]) -> None:
    config, folder = for_method(_CONFIG.value, "posterior_rl"), Path(_WORKDIR.value)
    family = tasks.find(config.task.name).reward_family
    if family is None:
        fail(f"config.task.name={config.task.name!r}: valid is an embedded task")
    config.methods, cache = ("posterior_rl",), Path(config.cache_dir or folder / "cache")
    shared = assets.prepare(config, cache, tasks.load(config, cache / "task"))
    train, basis = collect(config, shared, "train", _PROMPTS.value, 1)
    test, held = collect(config, shared, _SPLIT.value, _TEST.value, 2)

    def reward(of: np.ndarray, seeds: list[int]) -> np.ndarray:
        draws = np.stack([family.draw(seed) for seed in seeds], -1)
        return family.combine(of.reshape(-1, of.shape[-1]), draws).reshape(*of.shape[:2], -1)

    others = reward(basis, [SEED_OFFSET + i for i in range(_NUM_REWARDS)])
    basis_of = normalised(basis, held)
    kinds = {
        "ranker": (train, test, shared.priors["linear"], config.ensemble.prior_scale),
        "reward basis": (*basis_of, linear_prior(basis_of[0], others), 1.0),
    }
    print("| features | choice | K | " + " | ".join(_LABELS.value) + " |")
    print("|---" * (3 + len(_LABELS.value)) + "|")
    for kind, (own, other, prior, scale) in kinds.items():
        for (strategy, choice), K in itertools.product(CHOICES, map(int, _NUM_DRAWS.value)):
            posterior = LinearPosterior(K, scale, config.ensemble.sharpness, config.ensemble.newton_steps)
            learner = functools.partial(learn, posterior, prior, strategy, choice, config.train.batch_size)
            found = []
            for seed, draw in itertools.product(map(int, _SEEDS.value), range(_DRAWS.value)):
                true, held_true = (reward(x, [seed])[..., 0].astype(np.float32) for x in (basis, held))
                parts = Samples(own, true), Samples(other, held_true)
                found.append(learner(parts[0], parts[1], 100 * seed + draw))
            cells = (f"{accuracy:.3f} / {gain:.2f}" for accuracy, gain in np.mean(found, 0))
            print(f"| {kind} | {strategy}, {choice} | {K} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    app.run(main)
