"""An oracle whose reward is a model's, as Skywork-Reward or the TL;DR reward models of the paper."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sea_jax import models
from sea_jax.errors import InputError
from sea_jax.models.params import cast_matrices
from sea_jax.models.reward import GatedRewardConfig, RewardModel
from sea_jax.oracles.bradley_terry import BradleyTerryOracle
from sea_jax.runtime.mesh import batch_shards, shard_batch, to_host
from sea_jax.runtime.sharding import shard_params, with_gather
from sea_jax.tasks.tokenizer import Tokenizer, load_tokenizer
from sea_jax.types import Config, Params

Encode = Callable[[Sequence[str], Sequence[str]], list[list[int]]]
_SHORTEST = 16  # tokens of the shortest bucket


class RewardModelOracle(BradleyTerryOracle):
    """P(y ≻ y' | x) = σ(r(x, y) − r(x, y')), Eq. 3 of the paper, with a reward model's r.

    Args:
      model: a RewardModel of one label.
      params: its parameters, on the host or on devices.
      encode: of B prompts and B responses to the tokens of each text, prompt and response as the model was
        trained to read them (chat template, end of text).
      batch_size: texts at once; also one text is computed as a batch.
      mesh: what shares parameters and batches; None is the default device.
      longest: tokens of the longest text that is read; 0 is the model's context.

    Raises:
      InputError: the model has several labels, `batch_size` is less than 1, or `longest` beyond the context.
        `rewards` and `probability` raise it for a text that is empty, too long or outside the vocabulary.
      FloatingPointError: `rewards` and `probability`, where a reward is not finite.
    """

    def __init__(
        self, model: RewardModel, params: Params, encode: Encode, batch_size: int, mesh: Mesh | None = None,
        longest: int = 0,
    ):  # fmt: skip
        self._rows = RowRewards(model, params, batch_size, mesh, longest)
        super().__init__(lambda prompts, responses: self._rows(_encoded(encode, prompts, responses)))

    def compile(self) -> list[int]:
        """Compiles all that will ever be needed, one program for each length; returns the lengths, tokens."""
        return self._rows.compile()


def _encoded(encode: Encode, prompts: Sequence[str], responses: Sequence[str]) -> list[list[int]]:
    rows = encode(prompts, responses)
    if len(rows) != len(prompts):
        raise ValueError(f"encode: {len(rows)} token lists, must be one per text, {len(prompts)}")
    return rows


class RowRewards:
    """The reward of a model as a function of token lists: B of them to [B] float32.

    A text's length alone says how far it is padded (`bucket`), and every batch has `batch_size` rows: at most
    one program is compiled for each bucket, and a reward is the same in any company.

    Args and Raises: as `RewardModelOracle`.
    """

    def __init__(
        self, model: RewardModel, params: Params, batch_size: int, mesh: Mesh | None = None, longest: int = 0
    ):
        config = model.config
        if config.num_labels != 1:
            raise InputError(f"reward model: num_labels={config.num_labels}; valid: 1")
        if type(batch_size) is not int or batch_size < 1:
            raise InputError(f"batch_size={batch_size!r}; valid: a whole number of at least 1")
        if not 0 <= longest <= config.max_length:
            raise InputError(
                f"longest={longest}; valid: 1 to the model's context, {config.max_length}, or 0 for it"
            )
        params = cast_matrices(params, config.trunk.dtype)
        if mesh is None:
            params = jax.device_put(params)
        else:
            params, model = shard_params(mesh, model, params), with_gather(mesh, model)
        self._params, self._config, self._size, self._mesh = params, config, batch_size, mesh
        self._longest = longest or config.max_length
        self._score = score_fn(model)

    def __call__(self, rows: list[list[int]]) -> np.ndarray:
        """Rewards [B] float32."""
        _check_tokens(rows, self._config.vocab_size, self._longest)
        computed = []  # fetched when all are under way
        for length, indices in _batches(rows, self._size, self._longest):
            computed.append((indices, self._start([rows[i] for i in indices], length)))
        rewards = np.zeros(len(rows), np.float32)
        for indices, some in computed:
            rewards[indices] = to_host(some)[: len(indices)]
        _check_finite(rewards, gated=isinstance(self._config, GatedRewardConfig))
        return rewards

    def compile(self) -> list[int]:
        """Compiles the program of each bucket; returns the buckets, in tokens."""
        buckets = sorted({bucket(1 << i, self._longest) for i in range(31)})
        for length in buckets:
            jax.block_until_ready(self._start([[0] * length], length))
        return buckets

    def _start(self, rows: list[list[int]], length: int) -> jax.Array:
        batch = padded(rows, self._size, length)
        return self._score(self._params, *(batch if self._mesh is None else shard_batch(self._mesh, batch)))


@functools.cache
def score_fn(model: RewardModel) -> Callable[..., jax.Array]:
    """(params, tokens [B, L], mask) -> the rewards [B] f32; jitted."""
    return jax.jit(lambda params, *batch: model.apply({"params": model.gather_shared(params)}, *batch)[:, 0])


def load(config: Config, mesh: Mesh) -> RewardModelOracle:
    """The oracle that config.oracle describes.

    Args:
        config: folder (in Hugging Face's layout, or a hub name), dtype, batch_size, and chat ('auto', 'yes',
            'no': whether texts are as the tokenizer's chat template writes them, else prompt, response, EOS);
            and longest, if it has that.
        mesh: what shares parameters and batches.

    Raises:
        InputError: on a folder that is no reward model's, or a tokenizer of another vocabulary.
    """
    model, params = models.load(config.folder, dtype=jnp.dtype(config.dtype).type)
    tokenizer = load_tokenizer(config.folder, chat=config.chat, vocab_size=model.config.vocab_size)
    # A batch that the devices cannot share is computed whole by each.
    size = -(-config.batch_size // batch_shards(mesh)) * batch_shards(mesh)
    longest = getattr(config, "longest", 0)
    return RewardModelOracle(model, params, make_encode(tokenizer), size, mesh, longest)


def make_encode(tokenizer: Tokenizer) -> Encode:
    """How texts become tokens where a reward model is trained and where it is asked.

    A text is the tokenizer's chat template of prompt and response; without one prompt, response and EOS.
    """
    end = [tokenizer.eos_id] if tokenizer.template is None else []

    def encode(prompts: Sequence[str], responses: Sequence[str]) -> list[list[int]]:
        texts = [tokenizer.chat_pair(*pair) for pair in zip(prompts, responses, strict=True)]
        return [[*ids, *end] for ids in tokenizer.encode(texts)]

    return encode


def bucket(length: int, longest: int) -> int:
    """What a text of `length` tokens is padded to: a power of two from 16 on, at most `longest`."""
    return min(max(_SHORTEST, 1 << (length - 1).bit_length()), longest)


def _batches(rows: list[list[int]], size: int, longest: int) -> list[tuple[int, list[int]]]:
    """Length and rows of each batch, the longest first: what does not fit is known at once."""
    buckets: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        buckets.setdefault(bucket(len(row), longest), []).append(i)
    return [
        (length, indices[start : start + size])
        for length, indices in sorted(buckets.items(), reverse=True)
        for start in range(0, len(indices), size)
    ]


def padded(rows: list[list[int]], size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [size, length] int32 and mask; missing rows are the first one's, as none may be empty."""
    tokens, mask = np.zeros((size, length), np.int32), np.zeros((size, length), bool)
    for i, row in enumerate(rows + [rows[0]] * (size - len(rows))):
        tokens[i, : len(row)], mask[i, : len(row)] = row, True
    return tokens, mask


def _check_tokens(rows: list[list[int]], vocab_size: int, longest: int) -> None:
    for i, row in enumerate(rows):
        if not 1 <= len(row) <= longest:
            raise InputError(
                f"text {i}: {len(row)} tokens; valid: 1 to {longest}, the reward model's context"
            )
        if not 0 <= min(row) <= max(row) < vocab_size:
            wrong = next(token for token in row if not 0 <= token < vocab_size)
            raise InputError(
                f"text {i}: token {wrong}; valid: 0 to {vocab_size - 1}, the reward model's vocabulary"
            )


def _check_finite(rewards: np.ndarray, gated: bool) -> None:
    bad = np.flatnonzero(~np.isfinite(rewards))
    if bad.size:
        why = ", or the text lacks the tokens that end a prompt" if gated else ""
        raise FloatingPointError(
            f"text {bad[0]}: reward {rewards[bad[0]]} ({bad.size} in all are not finite); "
            f"the model's parameters or computation are not finite{why}"
        )
