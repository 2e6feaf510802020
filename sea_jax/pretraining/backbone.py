"""Pretrains the frozen backbone as a ranker under many random rewards.

The paper's backbone is a pretrained 0.4B preference encoder. The miniature's counterpart learns, from
the starting policy's own samples, to predict many rewards drawn from the task's family at once. The
oracle's reward is never among them: its seeds are below `SEED_OFFSET`, those of these rewards above.
"""

from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from sea_jax.ensemble import heads
from sea_jax.ensemble.features import Backbone, Extractor, GatedPooling, pooled
from sea_jax.ensemble.heads import Head
from sea_jax.models.decoder import Decoder
from sea_jax.models.generate import Responses
from sea_jax.pretraining.fit import distinct_rows, fit
from sea_jax.runtime.checkpoint_folder import CheckpointFolder
from sea_jax.runtime.mesh import replicate, shard_batch, to_host
from sea_jax.types import Array, Config, Params

SEED_OFFSET = 1_000_000
# Of cached rankers, prior heads and linear priors. Raise one when the same fields and samples would give
# other parameters, beyond rounding: a change of loss, optimizer, initial weights, order, projection or ridge,
# or of the layers that compute the features.
VERSION, HEADS_VERSION, LINEAR_VERSION = 1, 1, 1
_HEAD_RATE = 3e-3  # of Adam, for heads on frozen features
_RIDGE, _SHRINKAGE = 1e-3, 0.1  # shares of the mean eigenvalue, of `fit_linear_prior`
_CHUNK = 100  # prompts in one pass of the extractor


def regression_loss(
    model: Decoder, pooling: GatedPooling, params: Params, batch: Any, rewards: Array
) -> Array:
    """Computes the mean squared error of reward differences within each prompt, over S rewards.

    Rewards matter up to a constant of the prompt (Eq. 3), so both sides are centred over M.

    Args:
        model, pooling: modules.
        params: {"decoder", "pooling", "heads": [E', S]}.
        batch: prompts [B, L], prompt_mask, tokens [B, M, T], mask.
        rewards: [B, M, S] f32.

    Returns:
        [] f32.
    """
    predicted = pooled(model, pooling, params, batch) @ params["heads"]
    centred = lambda r: r - r.mean(1, keepdims=True)  # noqa: E731
    return jnp.mean((centred(predicted) - centred(rewards)) ** 2)


def prior_projection(heads: Array | np.ndarray, width: int, mean_scale: float) -> np.ndarray:
    """Computes coordinates in which a standard normal head varies as the pretraining family does.

    The family's heads have a mean w̄ and a covariance C. The reward w·z with w ~ N(0, C) equals
    v·(C^½ z) with v ~ N(0, I): the first columns are C's leading eigenvectors, scaled by the roots of
    their eigenvalues. The last is w̄, scaled down: at its full scale this one direction has many times
    the variance of any other, and so most of a fresh ensemble's disagreement.

    Args:
        heads: [E', S] f32.
        width: E ≤ E' + 1, features kept, the last of them the mean's.
        mean_scale: of the mean's column.

    Returns:
        [E', E] f32.
    """
    heads = to_host(heads).astype(np.float64)
    mean = heads.mean(1, keepdims=True)
    values, vectors = np.linalg.eigh((heads - mean) @ (heads - mean).T / heads.shape[1])
    keep = np.argsort(values)[::-1][: width - 1]
    scaled = vectors[:, keep] * np.sqrt(np.maximum(values[keep], 0))
    return np.concatenate([scaled, mean_scale * mean], axis=1).astype(np.float32)


def train(
    config: Config, model: Decoder, policy_params: Params, data: Any, rewards: np.ndarray, key: Array,
    mesh: Mesh, progress: bool = True, saved: CheckpointFolder | None = None, title: str = "",
) -> Backbone:  # fmt: skip
    """Trains decoder and pooling together, from the starting policy's weights.

    Args:
        config: steps, batch_size (prompts), learning_rate, decoder_rate (its share of it),
            pooled_width E', width E, mean_scale, gate_hidden.
        model: the policy's module.
        policy_params: π_sft, the decoder's initial parameters; copied.
        data: NumPy arrays prompts [N, L], prompt_mask, tokens [N, M, T], mask.
        rewards: [N, M, S] f32.
        key: [] key.
        mesh: its devices share each batch.
        progress: shows a bar.
        saved, title: see `fit.fit`.

    Returns:
        The frozen backbone; features over `data` have mean 0 and, on average, unit variance.
    """
    pooling = GatedPooling(config.pooled_width, model.config.vocab_size, config.gate_hidden)
    init_key, head_key, order_key = jax.random.split(key, 3)
    states, ones = jnp.zeros((1, 1, 2, model.config.width)), jnp.ones((1, 1, 1))
    params = {
        "decoder": jax.tree.map(jnp.array, policy_params),  # a copy, since `fit` donates
        "pooling": jax.jit(pooling.init)(init_key, states, ones.astype(int), ones, ones)["params"],
        "heads": jax.random.normal(head_key, (config.pooled_width, rewards.shape[-1]))
        * config.pooled_width**-0.5,
    }

    def loss(params: Params, batch: Any) -> tuple[Array, dict[str, Array]]:
        mse = regression_loss(model, pooling, params, *batch)
        return mse, {"backbone/mse": mse}

    params = fit(
        loss, _optimizer(config), replicate(mesh, params),
        distinct_rows(order_key, len(rewards), config.batch_size),
        lambda rows: (tuple(x[rows] for x in data), rewards[rows]), mesh,
        steps=config.steps, metric="backbone/mse", progress=progress, saved=saved, title=title,
    )  # fmt: skip
    return _freeze(config, model, pooling, params, data)


def train_prior_heads(
    config: Config, hidden: tuple[int, ...], backbone: Extractor, data: Any, rewards: np.ndarray, key: Array
) -> Params:
    """Trains P heads, each on one reward of the family; a run draws its prior φ⁰ from them.

    A pretrained ranker knows what people tend to like, though not what these people like. Random heads do
    not even know the sign. Head p regresses on reward p with the backbone's loss. All steps are one program,
    unlike those of `fit`: they are too small to be dispatched one by one.

    Args:
        config: num_heads P ≤ S, steps, batch_size (prompts).
        hidden: widths of a head's hidden layers.
        backbone: frozen.
        data: as in `train`.
        rewards: [N, M, S] f32.
        key: [] key.

    Returns:
        Leaves [P, ...].
    """
    P, N = config.num_heads, len(rewards)
    features = jnp.asarray(features_of(backbone, data))
    targets = jnp.asarray(rewards[..., :P]).transpose(2, 0, 1)
    init_key, order_key = jax.random.split(key)
    params = heads.init(init_key, Head(hidden), P, features.shape[-1], optax.identity()).params
    optimizer = optax.adam(optax.cosine_decay_schedule(_HEAD_RATE, config.steps))

    def loss_fn(params, rows):
        centred = lambda r: r - r.mean(-1, keepdims=True)  # noqa: E731
        error = centred(heads.rewards(params, features[rows])) - centred(targets[:, rows])
        return jnp.sum(jnp.mean(error**2, (1, 2)))

    def step(carry, key):
        params, opt_state = carry
        rows = jax.random.randint(key, (config.batch_size,), 0, N)
        updates, opt_state = optimizer.update(jax.grad(loss_fn)(params, rows), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    keys = jax.random.split(order_key, config.steps)
    train = jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), keys)[0][0])
    return train(params)


def fit_linear_prior(backbone: Extractor, data: Any, rewards: np.ndarray) -> dict[str, np.ndarray]:
    """Computes `linear_prior` of the backbone's features of the data, which are as in `train`."""
    return linear_prior(features_of(backbone, data), rewards)


def linear_prior(features: np.ndarray, rewards: np.ndarray) -> dict[str, np.ndarray]:
    """Fits a Gaussian over linear rewards w·φ to the pretraining family, for `ensemble.linear`.

    Each of the S rewards is regressed on the features, both centred over the responses to a prompt; the
    Gaussian has the mean and the covariance of the S coefficients, a tenth of it shrunk to a multiple of I.

    Args:
        features: φ [N, M, E] f32.
        rewards: [N, M, S] f32.

    Returns:
        {"mean": [E] f32, "precision": [E, E] f32}.
    """
    features = features.astype(np.float64)
    centred = lambda x: (x - x.mean(1, keepdims=True)).reshape(-1, x.shape[-1])  # noqa: E731
    X, Y = centred(features), centred(rewards.astype(np.float64))
    gram = X.T @ X
    ridge = _RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    weights = np.linalg.solve(gram + ridge, X.T @ Y)  # [E, S]
    covariance = np.cov(weights)
    round_ = np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    precision = np.linalg.inv((1 - _SHRINKAGE) * covariance + _SHRINKAGE * round_)
    return {"mean": weights.mean(1).astype(np.float32), "precision": precision.astype(np.float32)}


def features_of(backbone: Extractor, data: Any, mesh: Mesh | None = None) -> np.ndarray:
    """Returns the features of all samples, [N, M, E] f32.

    Args:
        backbone: reads tokens.
        data: as in `train`.
        mesh: its devices share the prompts; None: they are where the backbone is.
    """
    parts = []
    for start in range(0, len(data[0]), _CHUNK):
        rows = tuple(x[start : start + _CHUNK] for x in data)
        prompts, mask, tokens, token_mask = rows if mesh is None else shard_batch(mesh, rows)
        responses = Responses(tokens, token_mask, jnp.zeros(tokens.shape))
        # To the host one by one: dispatched together, all chunks would hold their temporary memory.
        parts.append(to_host(backbone((), prompts, mask, responses)))
    return np.concatenate(parts)


def _optimizer(config: Config) -> optax.GradientTransformation:
    def adam(rate: float) -> optax.GradientTransformation:
        warmup = max(config.steps // 20, 1)
        return optax.adam(optax.warmup_cosine_decay_schedule(0, rate, warmup, config.steps, rate / 20))

    parts: dict[Hashable, optax.GradientTransformation] = {
        "decoder": adam(config.learning_rate * config.decoder_rate),
        "pooling": adam(config.learning_rate),
        "heads": adam(config.learning_rate),
    }
    label = lambda params: {k: jax.tree.map(lambda _, k=k: k, v) for k, v in params.items()}  # noqa: E731
    return optax.chain(optax.clip_by_global_norm(1.0), optax.multi_transform(parts, label))


def _freeze(config: Config, model: Decoder, pooling: GatedPooling, params: Params, data: Any) -> Backbone:
    """Replaces the ranking heads with the projection, centred and scaled on up to 500 prompts."""
    projection = prior_projection(params["heads"], config.width, config.mean_scale)
    z = to_host(jax.jit(lambda b: pooled(model, pooling, params, b))(tuple(x[:500] for x in data)))
    z = z.reshape(-1, z.shape[-1]) @ projection
    scale = 1 / np.sqrt(z.var(0).mean())
    frozen = {
        "decoder": params["decoder"],
        "pooling": params["pooling"],
        "projection": jnp.asarray(projection * scale),
        "mean": jnp.asarray(z.mean(0) * scale),
    }
    return Backbone(model, pooling, frozen)
