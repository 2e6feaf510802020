"""Supervised training of one model: AdamW over examples that are shuffled anew in each epoch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from sea_jax.runtime.mesh import shard_batch
from sea_jax.runtime.progress import bar as progress_bar
from sea_jax.types import Array, Config, Params

Loss = Callable[[Params, Any], tuple[Array, dict[str, Array]]]


def fit(
    config: Config, loss: Loss, params: Params, size: int, examples: Callable[[np.ndarray], Any], key: Array,
    mesh: Mesh, shown: str, progress: bool = True, micro_batch: int = 0,
) -> Params:  # fmt: skip
    """Trains for config.steps steps.

    The rate rises for a twentieth of them and falls along a cosine to a twentieth of config.learning_rate.

    Args:
        config: steps, batch_size, learning_rate.
        loss: of parameters and a batch: [] f32 nats, a mean over the batch, and metrics.
        params: f32, on the mesh; they are donated.
        size: how many examples there are.
        examples: rows [B] int64 -> a batch, arrays [B, ...].
        key: [] key of the order of examples.
        mesh: its devices share each batch.
        shown: the metric in the bar, and what is trained, as 'sft/response_nll'.
        progress: shows a bar.
        micro_batch: examples in a backward pass, a divisor of batch_size; 0: the whole batch.

    Returns:
        Parameters, f32, on the mesh.

    Raises:
        FloatingPointError: where that metric is not finite.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.steps // 20, config.steps, config.learning_rate / 20
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.01))

    def step(params: Params, opt_state: Any, batch: Any) -> tuple[Params, Any, dict[str, Array]]:
        metrics, grads = gradient(loss, params, batch, micro_batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, metrics

    step = jax.jit(step, donate_argnums=(0, 1))
    opt_state = optimizer.init(params)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    name, _, metric = shown.partition("/")
    bar = progress_bar(range(config.steps), name.upper(), "step", progress)
    bar.compiling("the training step")
    rows = np.empty((0,), np.int64)
    for i in bar:
        while len(rows) < config.batch_size:
            rows = np.concatenate([rows, rng.permutation(size)])
        chosen, rows = rows[: config.batch_size], rows[config.batch_size :]
        params, opt_state, metrics = step(params, opt_state, shard_batch(mesh, examples(chosen)))
        if i % 20 == 19 or i == config.steps - 1:
            value = float(metrics[shown])
            if not np.isfinite(value):
                raise FloatingPointError(f"{shown} at step {i + 1}: {value}, must be finite")
            bar.set_postfix({metric: f"{value:.3f}"}, refresh=False)
    return params


def gradient(loss: Loss, params: Params, batch: Any, micro_batch: int) -> tuple[dict[str, Array], Params]:
    """Metrics and gradient of a mean over a batch, the mean of those of its micro-batches.

    Args:
        loss, micro_batch: as `fit`.
        params: f32.
        batch: arrays [B, ...].
    """
    differentiate = jax.value_and_grad(loss, has_aux=True)
    B = len(jax.tree.leaves(batch)[0])
    passes = B // (micro_batch or B)
    if passes == 1:
        (_, metrics), grads = differentiate(params, batch)
        return metrics, grads

    def add(total: Params, part: Any) -> tuple[Params, dict[str, Array]]:
        (_, metrics), grads = differentiate(params, part)
        return jax.tree.map(jnp.add, total, grads), metrics

    # Row i goes to pass i mod `passes`: each takes its rows from every shard of the batch axis.
    spread = lambda x: x.reshape(micro_batch, passes, *x.shape[1:]).swapaxes(0, 1)  # noqa: E731
    zeros = jax.tree.map(jnp.zeros_like, params)
    total, metrics = jax.lax.scan(add, zeros, jax.tree.map(spread, batch))
    return jax.tree.map(jnp.mean, metrics), jax.tree.map(lambda g: g / passes, total)
