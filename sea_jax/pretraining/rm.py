"""Training of a reward model on preferences (Eq. 5): the counterpart of `sft`.

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
from sea_jax.pretraining.fit import fit
from sea_jax.runtime.sharding import shard_params, with_gather
from sea_jax.tasks.preferences import Length, Pair
from sea_jax.tasks.tokenizer import Tokenizer
from sea_jax.types import Array, Config, Params

Tokens = list[tuple[list[int], list[int]]]  # of (y+, y−), each with its prompt


def rm_loss(model: RewardModel, params: Params, batch: tuple[Array, Array]) -> tuple[Array, dict[str, Array]]:
    """Mean of −log σ(r(x, y+) − r(x, y−)), Eq. 5.

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
) -> Params:
    """Trains a reward model.

    Args:
        config: steps, batch_size, learning_rate, micro_batch.
        pairs: to train on.
        model, params: where training begins; parameters that are on the mesh are donated.
        key: [] key of the order of pairs.
        mesh: its devices share each batch.
        progress: shows a bar.

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

    return fit(config, loss, params, len(pairs), batch, key, mesh, "rm/nll", progress, config.micro_batch)


def with_head(
    model: Decoder | RewardModel, params: Params, key: Array, padding: int | None, max_length: int = 0
) -> tuple[RewardModel, Params]:
    """The reward model that training begins from.

    Args:
        model, params: a language model, whose head gives way to a new one; or a reward model, kept as it is.
        key: [] key of the new head's weights, normal with variance 1 / (W + 1).
        padding: id of the padding token, for config.json.
        max_length: tokens, the least that the context is said to be; rotary embeddings know no end.
    """
    if is_new := isinstance(model, Decoder):
        kernel = np.asarray(jax.random.normal(key, (model.config.width, 1)))
        params = {name: tree for name, tree in params.items() if name != "head"}
        params["score"] = {"kernel": kernel / np.sqrt(model.config.width + 1, dtype=np.float32)}
    trunk = model.config if is_new else model.config.trunk
    trunk = dataclasses.replace(trunk, max_length=max(trunk.max_length, max_length))
    return RewardConfig(trunk, 1, padding).build(), params


def tokenize_pairs(encode: Encode, pairs: Sequence[Pair]) -> Tokens:
    """The texts of pairs as the model reads them."""
    prompts, chosen, rejected = zip(*pairs, strict=True)
    return list(zip(encode(prompts, chosen), encode(prompts, rejected), strict=True))


def pair_lengths(encode: Encode) -> Length:
    """Of pairs, how many tokens the longer text of each has."""
    return lambda pairs: [max(map(len, pair)) for pair in tokenize_pairs(encode, pairs)] if pairs else []


def padding_token(tokenizer: Tokenizer, encode: Encode) -> int | None:
    """What to pad with in transformers, which takes the last token of another kind for the end of a text.

    It is the tokenizer's own unless texts end with that, as they do where the EOS serves; then another
    special token, at best with 'pad' in its name. None: there is none, and transformers reads one text at a
    time.
    """
    last = encode(["a"], ["b"])[0][-1]
    added = tokenizer.backend.get_added_tokens_decoder().items()
    others = sorted(("pad" not in token.content.lower(), i) for i, token in added if token.special)
    return next((i for i in (tokenizer.pad_id, *(i for _, i in others)) if i != last), None)


def accuracy(oracle: BradleyTerryOracle, pairs: Sequence[Pair]) -> dict[str, float]:
    """The share of pairs that the rewards order right, a tie counted 1/2, and the loss, in nats a pair."""
    prompts, chosen, rejected = zip(*pairs, strict=True)
    margin = oracle.rewards(prompts, chosen).astype(np.float64) - oracle.rewards(prompts, rejected)
    won = np.where(margin == 0, 0.5, margin > 0)
    return {"accuracy": float(won.mean()), "nll": float(np.logaddexp(0.0, -margin).mean())}
