"""Trains a reward model on preferences (Eq. 5).

References:
    Stiennon et al. (2020), Learning to summarize from human feedback, arXiv:2009.01325: the new head.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sea_jax.losses.reward import preference_nll
from sea_jax.models import Decoder, RewardConfig, RewardModel
from sea_jax.oracles.bradley_terry import BradleyTerryOracle
from sea_jax.oracles.reward_model import Encode, bucket, padded
from sea_jax.pretraining.fit import adamw, fit, shuffled_rows
from sea_jax.runtime.checkpoint_folder import CheckpointFolder
from sea_jax.runtime.sharding import shard_params, with_gather
from sea_jax.tasks.preferences import Length, Pair
from sea_jax.tasks.tokenizer import Tokenizer
from sea_jax.types import Array, Config, Params

Tokens = list[tuple[list[int], list[int]]]  # of (y+, y−), each with its prompt


def rm_loss(model: RewardModel, params: Params, batch: tuple[Array, Array]) -> tuple[Array, dict[str, Array]]:
    """Computes the mean of −log σ(r(x, y+) − r(x, y−)), Eq. 5.

    Args:
        model, params: the reward model.
        batch: tokens [B, 2, L] int32 of whole texts, axis 1 is (y+, y−); their mask [B, 2, L].

    Returns:
        loss [] f32 nats per pair; metrics.
    """
    tokens, mask = (x.reshape(-1, x.shape[-1]) for x in batch)
    rewards = model.apply({"params": model.gather_shared(params)}, tokens, mask)[:, 0].reshape(-1, 2)
    loss = preference_nll(rewards).mean()
    correct = (rewards[:, 0] > rewards[:, 1]).astype(jnp.float32)
    return loss, {"rm/nll": loss, "rm/accuracy": correct.mean()}


def train(
    config: Config,
    pairs: Tokens,
    model: RewardModel,
    params: Params,
    key: Array,
    mesh: Mesh,
    progress: bool = True,
    saved: CheckpointFolder | None = None,
) -> Params:
    """Trains a reward model.

    Args:
        config: steps, batch_size, learning_rate, micro_batch.
        pairs: to train on.
        model, params: the initial model; parameters that are on the mesh are donated.
        key: [] key of the order of pairs.
        mesh: its devices share each batch.
        progress: shows a bar.
        saved: gets checkpoints, see `fit.fit`.

    Returns:
        Parameters, f32, on the mesh.
    """
    params, longest = shard_params(mesh, model, params), model.config.max_length
    computed = with_gather(mesh, model)

    def batch(rows: np.ndarray) -> tuple[np.ndarray, ...]:
        texts = [ids for row in rows for ids in pairs[row]]
        both = padded(texts, len(texts), bucket(max(map(len, texts)), longest))
        return tuple(x.reshape(len(rows), 2, -1) for x in both)

    def loss(params: Params, batch: Any) -> tuple[Array, dict[str, Array]]:
        return rm_loss(computed, params, batch)

    return fit(
        loss, adamw(config), params, shuffled_rows(key, len(pairs), config.batch_size), batch, mesh,
        steps=config.steps, metric="rm/nll", progress=progress, micro_batch=config.micro_batch,
        saved=saved,
    )  # fmt: skip


def with_head(
    model: Decoder | RewardModel, params: Params, key: Array, padding: int | None, max_length: int = 0
) -> tuple[RewardModel, Params]:
    """Makes the initial reward model.

    Args:
        model, params: a language model, whose head is replaced; or a reward model, kept as it is.
        key: [] key of the new head's weights, normal with variance 1 / (W + 1).
        padding: id of the padding token, for config.json.
        max_length: tokens, a lower bound for the context in config.json; rotary embeddings have no limit.
    """
    if is_new := isinstance(model, Decoder):
        kernel = np.asarray(jax.random.normal(key, (model.config.width, 1)))
        params = {name: tree for name, tree in params.items() if name != "head"}
        params["score"] = {"kernel": kernel / np.sqrt(model.config.width + 1, dtype=np.float32)}
    trunk = model.config if is_new else model.config.trunk
    trunk = dataclasses.replace(trunk, max_length=max(trunk.max_length, max_length))
    return RewardConfig(trunk, 1, padding).build(), params


def tokenize_pairs(encode: Encode, pairs: Sequence[Pair]) -> Tokens:
    """Tokenises the two texts of each pair as the model reads them."""
    prompts, chosen, rejected = zip(*pairs, strict=True)
    return list(zip(encode(prompts, chosen), encode(prompts, rejected), strict=True))


def pair_lengths(encode: Encode) -> Length:
    """Returns a function from pairs to the number of tokens of each pair's longer text."""
    return lambda pairs: [max(map(len, pair)) for pair in tokenize_pairs(encode, pairs)] if pairs else []


def padding_token(tokenizer: Tokenizer, encode: Encode) -> int | None:
    """Chooses the padding token for transformers, which takes the last other token for the end of a text.

    Returns:
        The tokenizer's own padding token unless texts end with it, as with an EOS that also pads; else
        another special token, preferably with 'pad' in its name. None: there is none, and transformers can
        read only one text at a time.
    """
    last = encode(["a"], ["b"])[0][-1]
    added = tokenizer.backend.get_added_tokens_decoder().items()
    others = sorted(("pad" not in token.content.lower(), i) for i, token in added if token.special)
    return next((i for i in (tokenizer.pad_id, *(i for _, i in others)) if i != last), None)


def accuracy(oracle: BradleyTerryOracle, pairs: Sequence[Pair]) -> dict[str, float]:
    """Computes the share of pairs ordered correctly, a tie as 1/2, and the NLL in nats per pair."""
    prompts, chosen, rejected = zip(*pairs, strict=True)
    margin = oracle.rewards(prompts, chosen).astype(np.float64) - oracle.rewards(prompts, rejected)
    won = np.where(margin == 0, 0.5, margin > 0)
    return {"accuracy": float(won.mean()), "nll": float(np.logaddexp(0.0, -margin).mean())}
