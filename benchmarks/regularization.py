"""Measures the ensemble's spread and calibration by λ of Eq. 8 and by number of labels.

    python -m benchmarks.regularization --config=configs/quickstart.py --workdir=runs/quickstart

A pair is two samples of the starting policy at the training temperature. Its label is the response with the
higher oracle reward; ties are left out. As in a run, labels arrive in batches of `config.train.batch_size`,
and the ensemble takes `config.ensemble.steps` optimizer steps after each batch. Unlike in a run, the pairs
are random: no duel is selected. Each row is a mean over oracle seeds. The columns are:

    spread      standard deviation of P(y+ ≻ y−) over the K heads, mean over the held-out pairs
    accuracy    accuracy of p, the mean of P(y+ ≻ y−) over the heads
    confidence  mean of max(p, 1 − p), which equals the accuracy if the ensemble is calibrated
    NLL         negative log-likelihood of p in nats
    ± s.e.      standard error of the NLL over oracle seeds
    ‖φ − φ⁰‖²   squared distance of a head from its initial parameters, mean over heads
    gradients   gradient norm of the penalty divided by that of the mean NLL over D_t, mean over heads

The paper's first implementation averages the penalty over the P parameters and weights it by B / |D_t|. This
equals the form used here with λ B / P in place of λ, which is 0.0019 for λ = 0.5, B = 128 and the
quickstart's P = 33,152.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from ml_collections import config_flags

from sea_jax.actors.sampler import new_version, sample_now
from sea_jax.ensemble import experience, heads
from sea_jax.experiment import assets
from sea_jax.losses.reward import anchor_penalty, preference_nll
from sea_jax.tasks import mini_tldr
from sea_jax.types import Array, Config, EnsembleState, Experience

_CONFIG = config_flags.DEFINE_config_file("config", "configs/quickstart.py")
_WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "Work directory that holds the trained models.")
_SEEDS = flags.DEFINE_list("oracle_seeds", ["0", "1", "2"], "Seeds of hidden rewards; 0-2 are for tuning.")
_SPLIT = flags.DEFINE_string("split", "tuning", "Split that the held-out prompts come from.")
_LAMBDAS = flags.DEFINE_list("regularization", ["0", "0.0019", "0.05", "0.5", "5", "50"], "Values of λ.")
_LABELS = flags.DEFINE_list(
    "labels", ["32", "128", "384"], "Numbers of labels: ascending multiples of config.train.batch_size."
)

COLUMNS = ("spread", "accuracy", "confidence", "NLL", "± s.e.", "‖φ − φ⁰‖²", "gradients")


def collect(config: Config, shared: assets.Assets, split: str, count: int, seed: int):
    """Samples two responses to each of the first `count` prompts and computes their features.

    Returns:
        Backbone features [N, 2, E] f32, N prompts as texts, and N pairs of responses as texts.
    """
    task, temperature = shared.task, config.train.temperature
    policy = new_version(shared.ref_params)
    sample = functools.partial(sample_now, shared.sampler, policy, num_responses=2, temperature=temperature)
    prompts, parts, responses = task.prompts[split][:count], [], []
    assert shared.backbone is not None
    for start in range(0, len(prompts), 250):
        texts = prompts[start : start + 250]
        tokens, mask = task.encode_prompts(texts)
        out = sample(tokens, mask, jax.random.fold_in(jax.random.key(seed), start))
        parts.append(np.asarray(shared.backbone(texts, tokens, mask, out)))
        responses += task.decode(np.asarray(out.tokens), np.asarray(out.mask))
    return np.concatenate(parts), prompts, responses


def order(oracle, features: np.ndarray, prompts, responses) -> jax.Array:
    """Returns the features [N', 2, E] f32 of the pairs without ties, preferred response first."""
    first, second = (oracle.rewards(prompts, [pair[i] for pair in responses]) for i in (0, 1))
    ordered = np.where((first > second)[:, None, None], features, features[:, ::-1])
    return jnp.asarray(ordered[first != second])


def gradient_ratio(state: EnsembleState, pairs: Array, regularization: float, scale_by_data: bool) -> Array:
    """Returns the gradient norm of the penalty divided by that of the mean NLL, mean over heads: [] f32.

    Args:
        state: the ensemble.
        pairs: features of D_t, [N, 2, E] f32, axis 1 is (y+, y−).
        regularization: λ.
        scale_by_data: divides λ by |D_t|, as in `heads.update`.
    """
    weight = regularization / (len(pairs) if scale_by_data else 1)
    norms = jax.vmap(optax.global_norm)
    nll = jax.grad(lambda params: preference_nll(heads.rewards(params, pairs)).mean(-1).sum())
    penalty = jax.grad(lambda params: weight * jax.vmap(anchor_penalty)(params, state.anchor).sum())
    return (norms(penalty(state.params)) / norms(nll(state.params))).mean()


def measure(state: EnsembleState, data: Experience, test: Array, regularization: float, scale_by_data: bool):
    """Returns one row of the table as floats, in the order of `COLUMNS` without the standard error."""
    rewards = heads.rewards(state.params, test)
    probability = jax.nn.sigmoid(rewards[..., 0] - rewards[..., 1])
    mean = probability.mean(0)
    pairs = data.features[: int(data.size)]
    return [
        float(x)
        for x in (
            probability.std(0).mean(), (mean > 0.5).mean(), jnp.maximum(mean, 1 - mean).mean(),
            -jnp.log(mean).mean(), jax.vmap(anchor_penalty)(state.params, state.anchor).mean(),
            gradient_ratio(state, pairs, regularization, scale_by_data),
        )
    ]  # fmt: skip


def make_update(config: Config):
    """Returns the jitted ensemble update (key, state, D_t, λ) -> state, compiled once for all λ."""
    cfg = config.ensemble

    @jax.jit
    def update(key, state, data, regularization):
        return heads.update(
            key, state, data, optax.adam(cfg.learning_rate), num_steps=cfg.steps, batch_size=cfg.batch_size,
            regularization=regularization, scale_by_data=cfg.scale_by_data,
        )[0]  # fmt: skip

    return update


def fit(config: Config, update, family, train: Array, test: Array, regularization: float, seed: int):
    """Trains K heads as labels arrive and returns one row of `measure` for each number of labels."""
    cfg, width, labels, rows = config.ensemble, config.train.batch_size, _labels(), []
    head = heads.Head(tuple(cfg.hidden), cfg.prior_scale)
    optimizer = optax.adam(cfg.learning_rate)
    state = heads.init(jax.random.key(seed), head, cfg.num_members, train.shape[-1], optimizer, family)
    data = experience.init(cfg.capacity, train.shape[-1])
    for start in range(0, labels[-1], width):
        batch = train[start : start + width]
        data = experience.add(data, batch, jnp.ones(len(batch)), jnp.ones(len(batch), bool))
        state = update(jax.random.fold_in(jax.random.key(seed + 1), start), state, data, regularization)
        if start + width in labels:
            rows.append(measure(state, data, test, regularization, cfg.scale_by_data))
    return rows


def _labels() -> list[int]:
    return [int(count) for count in _LABELS.value]


def main(_: list[str]) -> None:
    config, folder = _CONFIG.value, Path(_WORKDIR.value)
    cache = Path(config.cache_dir or folder / "cache")
    shared = assets.prepare(config, cache, mini_tldr.load(cache / "task"))
    family = shared.priors["mlp"] if config.ensemble.prior == "pretrained" else None
    labels, seeds, update = _labels(), [int(s) for s in _SEEDS.value], make_update(config)
    train = collect(config, shared, "train", labels[-1] + 200, 1)  # 200 spare pairs, since ties are left out
    test = collect(config, shared, _SPLIT.value, 500, 2)
    print(f"{'λ':>8s}{'labels':>8s}" + "".join(f"{name:>12s}" for name in COLUMNS))
    for regularization in map(float, _LAMBDAS.value):
        found = []
        for seed in seeds:
            pairs, unseen = (order(shared.oracle(seed), *part) for part in (train, test))
            found.append(fit(config, update, family, pairs, unseen, regularization, seed))
        rows = np.asarray(found)  # [seeds, labels, columns]
        error = rows[..., 3].std(0, ddof=1) / np.sqrt(len(seeds)) if len(seeds) > 1 else 0.0
        for count, row in zip(labels, np.insert(rows.mean(0), 4, error, axis=1), strict=True):
            print(f"{regularization:8g}{count:8d}" + "".join(f"{x:12.3g}" for x in row), flush=True)


if __name__ == "__main__":
    app.run(main)
