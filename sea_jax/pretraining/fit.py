"""Trains one model on a fixed set of examples: the loop of SFT, reward models and the backbone."""

import contextlib
import itertools
import signal
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh

from sea_jax.errors import StoppedError
from sea_jax.runtime.checkpoint_folder import CheckpointFolder
from sea_jax.runtime.mesh import ensure_on_mesh, shard_batch
from sea_jax.runtime.progress import bar as progress_bar
from sea_jax.runtime.stop import StopRequest, stop_request
from sea_jax.types import Array, Config, Params

Loss = Callable[[Params, Any], tuple[Array, dict[str, Array]]]
_CHECKED = 20  # steps between two looks at the metric, each of which waits for the devices


def fit(
    loss: Loss, optimizer: optax.GradientTransformation, params: Params, rows: Iterator[np.ndarray],
    examples: Callable[[np.ndarray], Any], mesh: Mesh, *,
    steps: int, metric: str, progress: bool = True, micro_batch: int = 0,
    saved: CheckpointFolder | None = None, title: str = "",
) -> Params:  # fmt: skip
    """Takes one optimizer step on each of `steps` batches.

    Args:
        loss: (params, batch) -> [] f32, a mean over the batch, and metrics.
        optimizer: of all parameters.
        params: f32, on the mesh; they are donated.
        rows: yields the rows [B] int64 of each batch, as `shuffled_rows` does.
        examples: rows [B] -> a batch, arrays [B, ...] on the host.
        mesh: its devices share each batch.
        steps: number of optimizer steps.
        metric: the metric that the bar shows, as 'sft/response_nll'.
        progress, title: whether a bar is shown, and its name; empty: the metric's prefix.
        micro_batch: examples in a backward pass, a divisor of B; 0: the whole batch.
        saved: gets checkpoints; training goes on from the newest that it holds. None: there are none.

    Returns:
        Parameters, f32, on the mesh.

    Raises:
        FloatingPointError: if that metric is not finite.
        StoppedError: after a signal, when a checkpoint has been saved; without `saved` a signal ends the
            process.
    """

    def step(params: Params, opt_state: Any, batch: Any) -> tuple[Params, Any, dict[str, Array]]:
        metrics, grads = gradient(loss, params, batch, micro_batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, metrics

    step = jax.jit(step, donate_argnums=(0, 1))
    # On the mesh, as the step's results are: else the first step would be compiled alone.
    opt_state = ensure_on_mesh(mesh, optimizer.init(params))
    params, opt_state, first = _restored(saved, params, opt_state)
    rows = itertools.islice(rows, first, None)
    name, _, short = metric.partition("/")
    bar = progress_bar(range(first, steps), title or name.upper(), "step", progress, steps, first)
    bar.compiling("the training step")
    with stop_request() if saved else contextlib.nullcontext(StopRequest()) as stop:
        for i in bar:
            batch = shard_batch(mesh, examples(next(rows)))
            params, opt_state, metrics = step(params, opt_state, batch)
            due, number = saved.poll(stop) if saved else (False, 0)
            if due or number or i % _CHECKED == _CHECKED - 1 or i == steps - 1:
                value = float(metrics[metric])
                if not np.isfinite(value):
                    raise FloatingPointError(f"{metric} at step {i + 1}: {value}, must be finite")
                bar.set_postfix({short: f"{value:.3f}"}, refresh=False)
            if saved and (due or number):
                saved.save(i + 1, {}, params=params, opt_state=opt_state)
            if saved and number:
                saved.wait()
                said = f"{name}: stopped by {signal.Signals(number).name} after {i + 1} of {steps} steps"
                raise StoppedError(f"{said}, and saved; the same command goes on")
    return params


def _restored(saved: CheckpointFolder | None, params: Params, opt_state: Any) -> tuple[Params, Any, int]:
    """Returns parameters, the optimizer's state and the steps done of the newest checkpoint."""
    found = saved.newest(params=params, opt_state=opt_state) if saved else None
    if found is None:
        return params, opt_state, 0
    record, trees = found
    logging.warning("goes on after %d steps: %s", record["step"], saved.folder if saved else "")
    return trees["params"], trees["opt_state"], record["step"]


def gradient(loss: Loss, params: Params, batch: Any, micro_batch: int) -> tuple[dict[str, Array], Params]:
    """Returns metrics and gradient of a mean over a batch, averaged over its micro-batches.

    Optax deals row i to micro-batch i mod (B / micro_batch): each has rows of every shard of the batch.

    Args:
        loss, micro_batch: as in `fit`.
        params: f32.
        batch: arrays [B, ...].
    """
    differentiate = jax.value_and_grad(loss, has_aux=True)
    if micro_batch not in (0, len(jax.tree.leaves(batch)[0])):
        differentiate = optax.microbatching.microbatch(
            differentiate, argnums=1, microbatch_size=micro_batch,
            accumulator=optax.microbatching.AccumulationType.MEAN,
        )  # fmt: skip
    (_, metrics), grads = differentiate(params, batch)
    return metrics, grads


def adamw(config: Config) -> optax.GradientTransformation:
    """Returns AdamW with gradients clipped to norm 1.

    The rate rises for a twentieth of config.steps and falls along a cosine to a twentieth of
    config.learning_rate.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.steps // 20, config.steps, config.learning_rate / 20
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.01))


def shuffled_rows(key: Array, size: int, batch_size: int) -> Iterator[np.ndarray]:
    """Yields batches [batch_size] int64 of rows below `size`, each epoch a new permutation.

    A batch may reach from one epoch into the next.
    """
    rng, rows = _rng(key), np.empty((0,), np.int64)
    while True:
        while len(rows) < batch_size:
            rows = np.concatenate([rows, rng.permutation(size)])
        yield rows[:batch_size]
        rows = rows[batch_size:]


def distinct_rows(key: Array, size: int, batch_size: int) -> Iterator[np.ndarray]:
    """Yields independent batches [batch_size] int64 of rows below `size`, distinct within each batch."""
    rng = _rng(key)
    while True:
        yield rng.choice(size, batch_size, replace=False)


def _rng(key: Array) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))
