"""Reward-model oracles on devices: places parameters and batches on a mesh, for `RewardModelOracle`."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sea_jax import models
from sea_jax.errors import InputError
from sea_jax.models.params import cast_matrices
from sea_jax.models.reward import GatedRewardConfig, RewardModel
from sea_jax.oracles.reward_model import Encode, PendingRewards, RewardModelOracle, StartScoring, make_encode
from sea_jax.runtime.mesh import batch_shards, shard_batch, to_host
from sea_jax.runtime.sharding import shard_params, with_gather
from sea_jax.tasks.tokenizer import load_tokenizer
from sea_jax.types import Config, Params

_GATED_HINT = ", or the text lacks the tokens that end a prompt"


def load_oracle(config: Config, mesh: Mesh) -> RewardModelOracle:
    """Loads the reward model that config.oracle describes.

    Args:
        config: folder (in Hugging Face's layout, or a hub name), dtype, batch_size, chat ('auto', 'yes',
            'no': whether texts are in the tokenizer's chat template, else prompt, response, EOS), and
            longest, optional.
        mesh: the devices that share parameters and batches.

    Returns:
        The oracle.

    Raises:
        InputError: `folder` is no reward model, or its tokenizer has another vocabulary.
    """
    model, params = models.load(config.folder, dtype=jnp.dtype(config.dtype).type)
    tokenizer = load_tokenizer(config.folder, chat=config.chat, vocab_size=model.config.vocab_size)
    # Each device would compute a whole batch that does not split evenly.
    size = -(-config.batch_size // batch_shards(mesh)) * batch_shards(mesh)
    longest = getattr(config, "longest", 0)
    return make_oracle(model, params, make_encode(tokenizer), size, mesh, longest)


def make_oracle(
    model: RewardModel, params: Params, encode: Encode, batch_size: int, mesh: Mesh | None = None,
    longest: int = 0,
) -> RewardModelOracle:  # fmt: skip
    """Makes an oracle of a reward model.

    Args:
        model: a RewardModel of one label.
        params: its parameters, on the host or on devices.
        encode: see `Encode`.
        batch_size: texts per batch; a single text is computed as a batch too.
        mesh: the devices that share parameters and batches; None for the default device.
        longest: tokens of the longest text that is accepted; 0 for the model's context.

    Returns:
        The oracle.

    Raises:
        InputError: the model has several labels, `batch_size` is below 1, or `longest` exceeds the context.
    """
    config = model.config
    if config.num_labels != 1:
        raise InputError(f"reward model: num_labels={config.num_labels}; valid: 1")
    if type(batch_size) is not int or batch_size < 1:
        raise InputError(f"batch_size={batch_size!r}; valid: a whole number of at least 1")
    if not 0 <= longest <= config.max_length:
        valid = f"1 to the model's context, {config.max_length}, or 0 for it"
        raise InputError(f"longest={longest}; valid: {valid}")
    return RewardModelOracle(
        make_scorer(model, params, mesh), encode, batch_size=batch_size,
        max_length=longest or config.max_length, vocab_size=config.vocab_size,
        non_finite_hint=_GATED_HINT if isinstance(config, GatedRewardConfig) else "",
    )  # fmt: skip


def make_scorer(model: RewardModel, params: Params, mesh: Mesh | None) -> StartScoring:
    """Places a reward model's parameters and returns the function that scores batches with them."""
    params = cast_matrices(params, model.config.trunk.dtype)
    if mesh is None:
        params = jax.device_put(params)
    else:
        params, model = shard_params(mesh, model, params), with_gather(mesh, model)
    score = score_fn(model)

    def start_scoring(tokens: np.ndarray, mask: np.ndarray) -> PendingRewards:
        batch = (tokens, mask) if mesh is None else shard_batch(mesh, (tokens, mask))
        rewards = score(params, *batch)
        return lambda: to_host(rewards)

    return start_scoring


@functools.cache
def score_fn(model: RewardModel) -> Callable[..., jax.Array]:
    """Returns the jitted function (params, tokens [B, L], mask [B, L]) -> rewards [B] f32."""
    return jax.jit(lambda params, *batch: model.apply({"params": model.ends(params)}, *batch)[:, 0])
