"""The command `sft`: supervised fine-tuning of a policy, for users who lack a starting policy."""

from pathlib import Path

import jax
import numpy as np

from sea_jax import tasks
from sea_jax.config.checks import Checks
from sea_jax.config.policy import Policy, Sft
from sea_jax.config.task import Task as TaskSection
from sea_jax.experiment import inputs
from sea_jax.experiment.validate import check_fields
from sea_jax.experiment.validate_parts import check_policy_on_task
from sea_jax.experiment.workdir import claim_workdir
from sea_jax.models import Decoder
from sea_jax.pretraining import cache as cache_lib
from sea_jax.pretraining import policy, sft
from sea_jax.runtime.checkpoint_folder import open_folder
from sea_jax.runtime.mesh import is_main, make_mesh, shard_batch, to_host
from sea_jax.runtime.sharding import shard_params
from sea_jax.tasks.batching import padded_batches
from sea_jax.types import Config, Params


def run(config: Config, cache: Path, folder: Path) -> str:
    """Trains config.policy on the task's responses and keeps it in `folder`/policy.

    Args:
        config: the experiment's; training begins from its policy.folder, or from random weights if empty.
        cache: folder of trained parts.
        folder: the work directory.

    Returns:
        A report of the mean negative log-likelihood of held-out references before and after.

    Raises:
        InputError: on a policy or a task that cannot work.
    """
    checks = check(config)
    checks.raise_problems()
    task = tasks.load(config, cache / "task")
    check_policy_on_task(checks, task)
    checks.raise_problems()
    claim_workdir(config, folder)
    inputs.claim(config, folder, inputs.of_sft(config, task))
    mesh = make_mesh(**config.mesh)
    held_out = sft.examples(task, config.eval.split)
    key = jax.random.key(config.sft.seed)
    model, params = policy.initial_policy(config, task, key)
    params = shard_params(mesh, model, params)
    size = config.eval.batch_size
    before = heldout_nll(config.sft, model, params, held_out, mesh, size)
    with open_folder(folder / "checkpoints", config.checkpoint) as saved:
        params = sft.train(config.sft, task, model, key, mesh, config.progress, params, saved)
    after = heldout_nll(config.sft, model, params, held_out, mesh, size)
    params = to_host(params)
    if is_main():
        policy.save_policy(config, folder / "policy", model, params, task)
    cache_lib.remove(folder / "checkpoints")
    return (
        f"nats a token of {len(held_out[0])} {config.eval.split} references: {before:.4f} before, "
        f"{after:.4f} after {config.sft.steps} steps\npolicy: {folder / 'policy'}"
    )


def check(config: Config) -> Checks:
    """Checks all that can be known before the task is loaded."""
    checks = check_fields(config)
    for section in (TaskSection, Policy, Sft):
        section.check(checks)
    return checks


def heldout_nll(
    config: Config, model: Decoder, params: Params, data: tuple[np.ndarray, ...], mesh, batch_size: int
) -> float:
    """Computes the mean negative log-likelihood over all tokens of all responses, in nats.

    Args:
        config: token_chunk.
        model, params: the policy.
        data: as `sft.examples`.
        mesh: its devices share each batch.
        batch_size: examples at once.
    """

    @jax.jit
    def total(params, batch, counted):
        prompts, prompt_mask, responses, mask = batch
        mask &= counted[:, None]
        _, metrics = sft.sft_loss(
            model, params, (prompts, prompt_mask, responses, mask), 0.0, config.token_chunk
        )
        return metrics["sft/response_nll"] * mask.sum(), mask.sum()

    nll, tokens = 0.0, 0
    for _, rows, kept in padded_batches(len(data[0]), batch_size):
        counted = np.arange(batch_size) < kept
        part, count = total(params, *shard_batch(mesh, (tuple(x[rows] for x in data), counted)))
        nll, tokens = nll + float(part), tokens + int(count)
    return nll / tokens
