"""Fine-tunes the starting policy on demonstrations: π_sft, later π_ref."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh

from sea_jax.errors import InputError
from sea_jax.losses import weighted_mean
from sea_jax.losses.logprobs import token_logprobs
from sea_jax.models.decoder import Decoder
from sea_jax.pretraining.fit import adamw, fit, shuffled_rows
from sea_jax.runtime.checkpoint_folder import CheckpointFolder
from sea_jax.runtime.sharding import shard_params, with_gather
from sea_jax.tasks.protocol import Task
from sea_jax.types import Array, Config, Params

# Of cached policies. Raise it when the same fields and data would give other weights, beyond rounding: a
# change of the loss, the examples and their order, the optimizer (fit.py), the initial weights or the layers.
VERSION = 1


def sft_loss(
    model: Decoder, params: Params, batch: tuple[Array, ...], prompt_weight: float, token_chunk: int = 0
) -> tuple[Array, dict[str, Array]]:
    """Computes the mean next-token NLL of responses, plus a weighted one of prompts.

    The prompts' term teaches models trained from random weights to copy. Without it no logits of prompts are
    computed.

    Args:
        model, params: the policy.
        batch: prompts [B, L] int32, left-padded; their mask; responses [B, T] int32; their mask.
        prompt_weight: of the prompts' term.
        token_chunk: as in `next_logprobs`; only with prompt_weight 0.

    Returns:
        loss [] f32 nats per token; metrics.
    """
    prompts, prompt_mask, responses, response_mask = batch
    if prompt_weight == 0:
        inputs = (prompts, prompt_mask, responses[:, None], response_mask[:, None])
        logprobs = token_logprobs(model, params, *inputs, token_chunk)[:, 0]
        response = weighted_mean(-logprobs, response_mask.astype(jnp.float32))
        return response, {"sft/response_nll": response}
    tokens = jnp.concatenate([prompts, responses], 1)
    mask = jnp.concatenate([prompt_mask, response_mask], 1)
    is_response = jnp.arange(tokens.shape[1]) >= prompts.shape[1]
    logits = model.apply({"params": model.gather_shared(params)}, tokens, mask)[:, :-1]
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    known = (mask[:, :-1] & mask[:, 1:]).astype(jnp.float32)
    response = weighted_mean(nll, known * is_response[1:])
    prompt = weighted_mean(nll, known * ~is_response[1:])
    loss = response + prompt_weight * prompt
    return loss, {"sft/response_nll": response, "sft/prompt_nll": prompt}


def train(
    config: Config, task: Task, model: Decoder, key: Array, mesh: Mesh, progress: bool = True,
    params: Params | None = None, saved: CheckpointFolder | None = None, title: str = "",
) -> Params:  # fmt: skip
    """Trains a policy on the task's demonstrations or, without any, on its references.

    Args:
        config: steps, batch_size, learning_rate, prompt_weight, token_chunk.
        task: its train prompts and their responses.
        model: the policy's module.
        key: [] key of the initial weights and the order of examples.
        mesh: its devices share each batch.
        progress: shows a bar.
        params: initial parameters; None: random weights.
        saved: gets checkpoints, see `fit.fit`.
        title: of the bar, see `fit.fit`.

    Returns:
        Parameters, f32, on the mesh.

    Raises:
        InputError: if the task has neither demonstrations nor references.
    """
    data = examples(task, "train")
    init_key, order_key = jax.random.split(key)
    start: Any = (
        jax.jit(model.init)(init_key, jnp.asarray(data[0][:1]))["params"] if params is None else params
    )
    params = shard_params(mesh, model, start)
    model = with_gather(mesh, model)

    def loss(params: Params, batch: Any) -> tuple[Array, dict[str, Array]]:
        return sft_loss(model, params, batch, config.prompt_weight, config.token_chunk)

    return fit(
        loss, adamw(config), params, shuffled_rows(order_key, len(data[0]), config.batch_size),
        lambda rows: tuple(x[rows] for x in data), mesh,
        steps=config.steps, metric="sft/response_nll", progress=progress, saved=saved, title=title,
    )  # fmt: skip


def examples(task: Task, split_name: str) -> tuple[np.ndarray, ...]:
    """Returns prompts [N, L] of a split, their mask, responses [N, T] and their mask, as NumPy arrays.

    Leaves out responses that are empty or too long with their prompts, and logs a warning with their number.

    Raises:
        InputError: if the task has no responses, or none is left.
    """
    texts = task.demonstrations if split_name == "train" and task.demonstrations else ()
    texts = texts or task.references[split_name]
    if not texts:
        raise InputError(f"config.task.name={task.name!r}: no demonstrations and no references; valid for "
                         "sft is a task with a column of references")  # fmt: skip
    fits = task.responses_that_fit(texts)
    if not fits.any():
        raise InputError(f"config.task.response_length={task.response_length}: no reference of the "
                         f"{split_name} split has so few tokens; valid is a larger one")  # fmt: skip
    if not fits.all():
        logging.warning("%d of %d references are empty or too long: left out", (~fits).sum(), len(fits))
    chosen = np.flatnonzero(fits)
    prompts = task.encode_prompts([task.prompts[split_name][i] for i in chosen])
    return *prompts, *task.encode_responses([texts[i] for i in chosen])
