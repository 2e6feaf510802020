"""Samples of the starting policy with features and the basis of the hidden reward, for several benchmarks."""

import jax
import numpy as np

from sea_jax import tasks
from sea_jax.actors.sampler import new_version, sample_now
from sea_jax.experiment import assets
from sea_jax.runtime.mesh import to_host
from sea_jax.types import Config

_RESPONSES, _BATCH = 20, 50


def collect(config: Config, shared: assets.Assets, split: str, count: int, seed: int):
    """Samples 20 responses to each of the first `count` prompts.

    Returns:
        Features [N, 20, E] and basis [N, 20, F], both f32.
    """
    family = tasks.find(config.task.name).reward_family
    assert family is not None and shared.backbone is not None
    policy, features, rows = new_version(shared.ref_params), [], []
    texts = shared.task.prompts[split][:count]
    texts = texts[: len(texts) - len(texts) % _BATCH]
    for start in range(0, len(texts), _BATCH):
        part = texts[start : start + _BATCH]
        prompts = shared.task.encode_prompts(part)
        key = jax.random.fold_in(jax.random.key(seed), start)
        out = sample_now(
            shared.sampler, policy, *prompts, key,
            num_responses=_RESPONSES, temperature=config.train.temperature,
        )  # fmt: skip
        features.append(to_host(shared.backbone(part, *prompts, out)))
        decoded = shared.task.decode(*to_host((out.tokens, out.mask)))
        basis = family.basis([x for x in part for _ in range(_RESPONSES)], [y for ys in decoded for y in ys])
        rows.append(basis.reshape(len(part), _RESPONSES, -1))
    return np.concatenate(features), np.concatenate(rows)


def normalised(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centres features, and scales them to unit variance on average over coordinates, as priors expect."""
    mean, scale = train.mean((0, 1)), 1 / np.sqrt(train.var((0, 1)).mean())
    return (train - mean) * scale, (test - mean) * scale
