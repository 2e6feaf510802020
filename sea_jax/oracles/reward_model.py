"""An oracle whose reward is a model's, such as Skywork-Reward or the TL;DR reward models of the paper.

This file holds the work on the host: encoding, bucketing, padding, checks, order. The scoring function comes
from `sea_jax/experiment/reward_scorer.py`, which places a model on devices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sea_jax.errors import InputError
from sea_jax.oracles.bradley_terry import BradleyTerryOracle
from sea_jax.tasks.tokenizer import Tokenizer

# (prompts, responses), B each -> the token ids of each text, as the reward model was trained to read it.
Encode = Callable[[Sequence[str], Sequence[str]], list[list[int]]]
PendingRewards = Callable[[], np.ndarray]
# (tokens [batch_size, L] int32, mask [batch_size, L] bool) -> a function that waits for the rewards
# [batch_size] f32. It begins to compute and does not wait, so that several batches are under way.
StartScoring = Callable[[np.ndarray, np.ndarray], PendingRewards]
_MIN_BUCKET = 16  # tokens


class RewardModelOracle(BradleyTerryOracle):
    """P(y ≻ y' | x) = σ(r(x, y) − r(x, y')), Eq. 3 of the paper, with a reward model's r.

    A text's own length alone determines its padding (`bucket`), and every batch has `batch_size` rows. So at
    most one program is compiled per bucket, and a reward does not depend on the other texts of a call.

    Args:
        start_scoring: see `StartScoring`.
        encode: see `Encode`.
        batch_size: texts per batch.
        max_length: tokens of the longest text that is accepted.
        vocab_size: tokens must be below it.
        non_finite_hint: a reason why a reward may not be finite, appended to the error.

    Raises:
        InputError: by `rewards` and `probability`, on a text that is empty, too long or has a token outside
            the vocabulary.
        FloatingPointError: by `rewards` and `probability`, if a reward is not finite.
    """

    def __init__(
        self, start_scoring: StartScoring, encode: Encode, *, batch_size: int, max_length: int,
        vocab_size: int, non_finite_hint: str = "",
    ):  # fmt: skip
        super().__init__(self._score_texts)
        self._start_scoring, self._encode = start_scoring, encode
        self._batch_size, self._max_length, self._vocab_size = batch_size, max_length, vocab_size
        self._non_finite_hint = non_finite_hint

    def compile(self) -> list[int]:
        """Compiles the program of every bucket; returns the buckets, in tokens."""
        buckets = sorted({bucket(1 << i, self._max_length) for i in range(31)})
        for length in buckets:
            self._start_scoring(*padded([[0] * length], self._batch_size, length))()
        return buckets

    def _score_texts(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        rows = self._encode(prompts, responses)
        if len(rows) != len(prompts):
            raise ValueError(f"encode: {len(rows)} token lists, must be one per text, {len(prompts)}")
        _check_tokens(rows, self._vocab_size, self._max_length)
        pending = [
            (indices, self._start_scoring(*padded([rows[i] for i in indices], self._batch_size, length)))
            for length, indices in _batches(rows, self._batch_size, self._max_length)
        ]
        rewards = np.zeros(len(rows), np.float32)
        for indices, wait in pending:
            rewards[indices] = wait()[: len(indices)]
        _check_finite(rewards, self._non_finite_hint)
        return rewards


def make_encode(tokenizer: Tokenizer) -> Encode:
    """Makes the function that turns texts into tokens, for training a reward model and for using it.

    A text is the tokenizer's chat template of prompt and response; without a template it is prompt, response
    and EOS.
    """
    end = [tokenizer.eos_id] if tokenizer.template is None else []

    def encode(prompts: Sequence[str], responses: Sequence[str]) -> list[list[int]]:
        texts = [tokenizer.chat_pair(*pair) for pair in zip(prompts, responses, strict=True)]
        return [[*ids, *end] for ids in tokenizer.encode(texts)]

    return encode


def bucket(length: int, max_length: int) -> int:
    """Returns the padded length of a text: the next power of two, at least 16 and at most `max_length`."""
    return min(max(_MIN_BUCKET, 1 << (length - 1).bit_length()), max_length)


def padded(rows: list[list[int]], size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Pads token lists to a batch.

    Args:
        rows: 1 to `size` token lists of 1 to `length` tokens each.
        size: rows of the batch; missing rows repeat the first one, since no row may be empty.
        length: columns of the batch.

    Returns:
        tokens [size, length] int32; mask [size, length] bool.
    """
    tokens, mask = np.zeros((size, length), np.int32), np.zeros((size, length), bool)
    for i, row in enumerate(rows + [rows[0]] * (size - len(rows))):
        tokens[i, : len(row)], mask[i, : len(row)] = row, True
    return tokens, mask


def _batches(rows: list[list[int]], size: int, max_length: int) -> list[tuple[int, list[int]]]:
    """Returns length and row indices of each batch, the longest first: it fails first if memory is short."""
    buckets: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        buckets.setdefault(bucket(len(row), max_length), []).append(i)
    return [
        (length, indices[start : start + size])
        for length, indices in sorted(buckets.items(), reverse=True)
        for start in range(0, len(indices), size)
    ]


def _check_tokens(rows: list[list[int]], vocab_size: int, max_length: int) -> None:
    for i, row in enumerate(rows):
        if not 1 <= len(row) <= max_length:
            valid = f"1 to {max_length}, the reward model's context"
            raise InputError(f"text {i}: {len(row)} tokens; valid: {valid}")
        if not 0 <= min(row) <= max(row) < vocab_size:
            wrong = next(token for token in row if not 0 <= token < vocab_size)
            valid = f"0 to {vocab_size - 1}, the reward model's vocabulary"
            raise InputError(f"text {i}: token {wrong}; valid: {valid}")


def _check_finite(rewards: np.ndarray, hint: str) -> None:
    bad = np.flatnonzero(~np.isfinite(rewards))
    if bad.size:
        found = f"text {bad[0]}: reward {rewards[bad[0]]} ({bad.size} in all are not finite)"
        raise FloatingPointError(f"{found}; the model's parameters or computation are not finite{hint}")
