"""Supervised fine-tuning of the starting policy on demonstrations: π_sft, later π_ref."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from tqdm import tqdm

from sea_jax.losses import weighted_mean
from sea_jax.models.decoder import Decoder
from sea_jax.runtime.mesh import is_main, shard_params, split
from sea_jax.tasks.protocol import Task
from sea_jax.types import Array, Params


def sft_loss(
    model: Decoder, params: Params, tokens: Array, mask: Array, is_response: Array, prompt_weight: float
) -> tuple[Array, dict[str, Array]]:
    """Mean next-token NLL of responses, plus a weighted one of prompts.

    The prompt's term is for models trained from nothing: it is where they learn to copy.

    Args:
        model, params: the policy.
        tokens: [B, L + T] int32, prompts and their responses.
        mask: [B, L + T] bool.
        is_response: [L + T] bool, True on the response's columns.
        prompt_weight: of the prompt's term.

    Returns:
        loss [] f32 nats per token; metrics.
    """
    logits = model.apply({"params": params}, tokens, mask)[:, :-1]
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    known = (mask[:, :-1] & mask[:, 1:]).astype(jnp.float32)
    response = weighted_mean(nll, known * is_response[1:])
    prompt = weighted_mean(nll, known * ~is_response[1:])
    loss = response + prompt_weight * prompt
    return loss, {"sft/response_nll": response, "sft/prompt_nll": prompt}


def train(config, task: Task, model: Decoder, key: Array, mesh: Mesh, progress: bool = True) -> Params:
    """Trains a policy from random weights.

    Args:
        config: steps, batch_size, learning_rate, prompt_weight.
        task: its train prompts and demonstrations.
        model: the policy's module.
        key: [] key of the initial weights and the order of examples.
        mesh: its devices share each batch.
        progress: shows a bar.

    Returns:
        Parameters, f32, on the mesh.
    """
    prompts, prompt_mask = task.encode_prompts(task.prompts["train"])
    responses, response_mask = task.encode_responses(task.demonstrations)
    tokens = np.concatenate([prompts, responses], 1)
    mask = np.concatenate([prompt_mask, response_mask], 1)
    is_response = jnp.arange(tokens.shape[1]) >= prompts.shape[1]

    init_key, order_key = jax.random.split(key)
    params = shard_params(mesh, model, model.init(init_key, jnp.asarray(tokens[:1]))["params"])
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, max(config.steps // 20, 1), config.steps, config.learning_rate / 20
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.01))

    @jax.jit
    def step(params, opt_state, tokens, mask):
        (_, metrics), grads = jax.value_and_grad(
            lambda p: sft_loss(model, p, tokens, mask, is_response, config.prompt_weight), has_aux=True
        )(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, metrics

    opt_state = optimizer.init(params)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(order_key)))
    bar = tqdm(range(config.steps), desc="SFT", unit="step", disable=not (progress and is_main()))
    rows = np.empty((0,), np.int64)
    for i in bar:
        if len(rows) < config.batch_size:
            rows = np.concatenate([rows, rng.permutation(len(tokens))])
        batch, rows = rows[: config.batch_size], rows[config.batch_size :]
        params, opt_state, metrics = step(params, opt_state, *split(mesh, (tokens[batch], mask[batch])))
        if i % 20 == 19 or i == config.steps - 1:
            nll = float(metrics["sft/response_nll"])
            if not np.isfinite(nll):
                raise FloatingPointError(f"sft loss at step {i + 1}: {nll}, must be finite")
            bar.set_postfix(nll=f"{nll:.3f}")
    return params
