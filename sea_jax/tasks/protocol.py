"""The task: prompts and references by split, and one tokenizer for both."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tokenizers

from sea_jax.errors import InputError

_LARGEST_ID = 2**32 - 1  # that a tokenizer takes
SPLITS = ("train", "tuning", "heldout")
_ENCODING = threading.Lock()


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """One alignment task. Letters: B texts, L = `prompt_length`, T = `response_length`.

    Prompt and response are tokenised separately, and a response starts with the space that divides it from
    its prompt: the tokens of `prompt + response` are the concatenation of the two token lists.

    Attributes:
      name: the task's name.
      tokenizer: shared by prompts and responses; adds no special tokens of its own.
      pad_id: id of the padding token.
      eos_id: id of the token that ends a response.
      prompt_length: tokens, most per prompt.
      response_length: tokens, most per response, its EOS included.
      prompts: split ('train', 'tuning', 'heldout') to raw prompt texts, as oracles and people read them.
      references: split to reference responses, one per prompt; empty tuples if the data has none.
      demonstrations: noisy responses for supervised fine-tuning, one per train prompt; empty if the policy
        is fine-tuned already.
      template: raw prompt -> the text that the policy reads, e.g. a chat template; None: the same text.
        Special tokens in its output become tokens; without a template, no text becomes a special token.
      prefix_ids: tokens before every prompt, e.g. a BOS; they count towards its length.
    """

    name: str
    tokenizer: tokenizers.Tokenizer
    pad_id: int
    eos_id: int
    prompt_length: int
    response_length: int
    prompts: dict[str, tuple[str, ...]]
    references: dict[str, tuple[str, ...]]
    demonstrations: tuple[str, ...] = ()
    template: Callable[[str], str] | None = None
    prefix_ids: tuple[int, ...] = ()

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the train data as a policy reads it: parts trained on other data are not reused."""
        digest = hashlib.sha256(self.tokenizer.to_str().encode())
        prompts, responses = self.prompts["train"], self.demonstrations
        for prompt, response in zip(prompts, responses or [""] * len(prompts), strict=True):
            digest.update(f"{prompt}\0{response}\0".encode())
        shown = self.template("prompt") if self.template else ""
        numbers = self.prefix_ids, self.eos_id, self.pad_id, self.prompt_length, self.response_length
        digest.update(f"{shown}\0{numbers}".encode())
        return digest.hexdigest()

    def prompt_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenises B raw prompts with prefix and template, without padding or a limit of length."""
        shown = list(texts) if self.template is None else [self.template(text) for text in texts]
        return [[*self.prefix_ids, *ids] for ids in self._ids(shown, special=True)]

    def response_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenises B responses, each closed by EOS, without padding or a limit of length."""
        return [[*ids, self.eos_id] for ids in self._ids(list(texts), special=False)]

    def encode_prompts(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Tokenises prompts, padded on the left.

        Args:
          texts: B raw prompts.

        Returns:
          tokens [B, L] int32 and mask [B, L] bool, true on the prompt's own tokens.

        Raises:
          InputError: a prompt is empty or has more than `prompt_length` tokens.
        """
        rows = self.prompt_ids(_texts(texts, "prompts"))
        limit = f"prompt_length={self.prompt_length}"
        _check(texts, rows, "prompts", len(self.prefix_ids), self.prompt_length, limit)
        return self._pad(rows, self.prompt_length, left=True)

    def encode_responses(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Tokenises responses, each closed by EOS and padded on the right.

        Args:
          texts: B responses.

        Returns:
          tokens [B, T] int32 and mask [B, T] bool, true on the response's tokens and its EOS.

        Raises:
          InputError: a response is empty or has more than `response_length` tokens, EOS counted.
        """
        rows = self.response_ids(_texts(texts, "responses"))
        limit = f"response_length={self.response_length} with the EOS"
        _check(texts, rows, "responses", 1, self.response_length, limit)
        return self._pad(rows, self.response_length, left=False)

    def responses_that_fit(self, texts: Sequence[str]) -> np.ndarray:
        """Marks the responses that `encode_responses` accepts, [B] bool."""
        sizes = map(len, self._ids(texts, special=False))
        return np.array([0 < size < self.response_length for size in sizes], bool)

    def decode(self, tokens: np.ndarray, mask: np.ndarray) -> Any:
        """Decodes token arrays to text for oracles and people, without padding and EOS.

        Args:
          tokens: [..., T] int; ids that the tokenizer lacks, as of a padded vocabulary, are dropped.
          mask: [..., T] bool, False on tokens to drop.

        Returns:
          Nested lists of str with the leading axes of `tokens`; a plain str for one row [T].

        Raises:
          ValueError: the two shapes differ.
        """
        tokens, mask = np.asarray(tokens), np.asarray(mask, bool)
        if tokens.shape != mask.shape:
            raise ValueError(f"mask: shape {mask.shape}, must be that of tokens, {tokens.shape}")
        keep = (
            mask & (tokens != self.pad_id) & (tokens != self.eos_id) & (tokens >= 0) & (tokens <= _LARGEST_ID)
        )
        rows = int(np.prod(tokens.shape[:-1])), tokens.shape[-1]  # of no token, too
        texts = self.tokenizer.decode_batch(
            [row[some].tolist() for row, some in zip(tokens.reshape(rows), keep.reshape(rows), strict=True)]
        )
        return _nest(texts, tokens.shape[:-1])

    def _ids(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        with _ENCODING:  # the option is the tokenizer's, and threads share the tokenizer
            self.tokenizer.encode_special_tokens = not (special and self.template is not None)
            encodings = self.tokenizer.encode_batch([utf8(text) for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _pad(self, rows: list[list[int]], length: int, left: bool):
        tokens = np.full((len(rows), length), self.pad_id, np.int32)
        mask = np.zeros((len(rows), length), bool)
        for index, row in enumerate(rows):
            where = slice(length - len(row), length) if left else slice(0, len(row))
            tokens[index, where] = row
            mask[index, where] = True
        return tokens, mask


def utf8(text: str) -> str:
    """Replaces lone surrogates, which JSON may escape and no tokenizer reads, by '?'."""
    return text.encode("utf-8", "replace").decode()


def _texts(texts: Sequence[str], field: str) -> list[str]:
    if isinstance(texts, str):
        raise ValueError(f"{field}: a single str, must be a sequence of str")
    return list(texts)


def _check(texts: Sequence[str], rows: list[list[int]], field: str, added: int, most: int, limit: str):
    """Raises InputError on a text with no token besides the `added` ones, or with too many."""
    for index, (text, row) in enumerate(zip(texts, rows, strict=True)):
        if not text or len(row) == added:
            raise InputError(f"{field}[{index}]: {text!r} is empty, must have a token")
        if len(row) > most:
            raise InputError(f"{field}[{index}]: {len(row)} tokens, must be at most {limit}")


def _nest(flat: list[str], shape: tuple[int, ...]) -> Any:
    """Nests a flat list to the given shape; shape () returns the one element."""
    if not shape:
        return flat[0]
    if len(shape) == 1:
        return flat
    step = len(flat) // shape[0] if shape[0] else 0
    return [_nest(flat[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0])]
