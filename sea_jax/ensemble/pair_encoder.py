"""φ(x, y) from a pretrained preference encoder: PairRM without its head (App. F.1).

PairRM (Jiang et al., 2023, arXiv:2306.02561) reads "<|source|>x", "<|candidate1|>y" and "<|candidate2|>y'"
as pieces of one sequence, and scores a candidate by the states at <|source|> and at the candidate's marker.
Here a sequence has one candidate, and these two states, side by side, are the features.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from jax.sharding import Mesh

from sea_jax import models
from sea_jax.errors import InputError
from sea_jax.models import Encoder, Responses, marker_states
from sea_jax.models.params import cast_matrices
from sea_jax.runtime.mesh import batch_shards, replicate, shard_batch, to_host
from sea_jax.types import Array, Config, Params

MULTIPLE = 64  # tokens: sequences are filled up to one of these, so that few shapes are compiled

Decode = Callable[[np.ndarray, np.ndarray], Any]


class PairEncoder:
    """An `Extractor` that reads text: the encoder's tokens are not the policy's.

    As PairRM does, what is longer than its share of the sequence is cut off at the end.

    Args:
        model, params: the encoder; it computes in its config's dtype, and features are f32.
        tokenizer: its own, with the markers in its vocabulary.
        decode: the task's, of responses.
        mesh: its devices share each batch; parameters lie whole on each.
        markers: in front of the prompt and of the response.
        source_length, candidate_length: tokens of each at most, markers and special tokens in.
        batch_size: sequences at once.

    Raises:
        InputError: if a marker is not one token.
    """

    def __init__(
        self, model: Encoder, params: Params, tokenizer: tokenizers.Tokenizer, decode: Decode, mesh: Mesh,
        *, markers: tuple[str, str], source_length: int, candidate_length: int, batch_size: int,
    ):  # fmt: skip
        self.model, self.mesh, self.batch_size = model, mesh, batch_size
        self.params = replicate(mesh, cast_matrices(params, model.config.dtype))
        self._decode, self._markers = decode, markers
        ids = [tokenizer.token_to_id(marker) for marker in markers]
        self._marker_ids = tuple(i for i in ids if i is not None and i < model.config.vocab_size)
        for marker, token in zip(markers, ids, strict=True):
            if token not in self._marker_ids:
                raise InputError(
                    f"config.encoder.markers={markers}: {marker!r} is no token of the encoder; "
                    "valid: tokens of its vocabulary"
                )
        self._tokenizers = [_cut(tokenizer, length) for length in (source_length, candidate_length)]

    @property
    def feature_width(self) -> int:
        """E: two hidden states."""
        return 2 * self.model.config.width

    def __call__(self, texts: Sequence[str], prompts: Any, mask: Any, responses: Responses) -> Array:
        """As `Extractor`; reads the texts, and the responses in words."""
        del prompts, mask
        said = self._decode(*to_host((responses.tokens, responses.mask)))
        B, M, _ = responses.tokens.shape
        flat = self.features([x for x in texts for _ in range(M)], [y for row in said for y in row])
        return jnp.asarray(flat.reshape(B, M, -1))

    def features(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """[N, E] f32 of N prompts and a response to each."""
        rows = [
            source + candidate
            for source, candidate in zip(self._encode(0, prompts), self._encode(1, responses), strict=True)
        ]
        out = np.zeros((len(rows), self.feature_width), np.float32)
        # Of like length together: a short one need not be filled up to the longest of all.
        order = np.argsort([len(row) for row in rows], kind="stable")
        for start in range(0, len(rows), self.batch_size):
            chosen = order[start : start + self.batch_size]
            tokens, mask = _pad([rows[i] for i in chosen], self.batch_size)
            states = states_fn(self.model, self._marker_ids)(
                self.params, *shard_batch(self.mesh, (tokens, mask))
            )
            out[chosen] = to_host(states)[: len(chosen)]
        if not np.isfinite(out).all():
            raise FloatingPointError("features of the encoder: not finite, must be")
        return out

    def _encode(self, piece: int, texts: Sequence[str]) -> Iterable[list[int]]:
        distinct = list(dict.fromkeys(texts))  # a prompt has M responses
        marked = [self._markers[piece] + self._without_markers(text) for text in distinct]
        ids = {
            text: e.ids
            for text, e in zip(distinct, self._tokenizers[piece].encode_batch(marked), strict=True)
        }
        return (ids[text] for text in texts)

    def _without_markers(self, text: str) -> str:
        """What a text says of itself must not be taken for the real markers."""
        return functools.reduce(lambda kept, marker: kept.replace(marker, ""), self._markers, text)


def load(config: Config, decode: Decode, mesh: Mesh) -> PairEncoder:
    """The encoder of a Hugging Face folder or hub name; its head, as PairRM's, is left out.

    Args:
        config: folder, dtype, leave_out, markers, source_length, candidate_length, batch_size.
        decode: as `PairEncoder`.
        mesh: its devices share each batch.

    Raises:
        InputError: as `models.load`; where the model is a decoder; where there is no tokenizer.json.
    """
    folder = models.find(config.folder)
    shape = models.read_config(folder)
    if not isinstance(shape.build(), Encoder):
        raise InputError(f"config.encoder.folder={config.folder!r}: a decoder; valid: a DeBERTa encoder")
    dtype = jnp.dtype(config.dtype).type
    model, params = models.load(str(folder), leave_out=tuple(config.leave_out), dtype=dtype)
    batch_size = -(-config.batch_size // batch_shards(mesh)) * batch_shards(mesh)
    return PairEncoder(
        model, params, _tokenizer(folder), decode, mesh, markers=tuple(config.markers),
        source_length=config.source_length, candidate_length=config.candidate_length,
        batch_size=batch_size,
    )  # fmt: skip


def _tokenizer(folder: Path) -> tokenizers.Tokenizer:
    file = folder / "tokenizer.json"
    if not file.exists():
        raise InputError(f"{file}: no such file; valid: an encoder's folder with its tokenizer.json")
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises no narrower one
        raise InputError(f"{file}: no tokenizer ({error})") from None


def _cut(tokenizer: tokenizers.Tokenizer, length: int) -> tokenizers.Tokenizer:
    """A copy that cuts off at the end, and pads nothing."""
    copy = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    copy.enable_truncation(length)
    copy.no_padding()
    return copy


def _pad(rows: list[list[int]], size: int) -> tuple[np.ndarray, np.ndarray]:
    """tokens [size, L] int32 and mask, padded on the right; rows that are lacking repeat the first."""
    longest = max(len(row) for row in rows)
    length = -(-longest // MULTIPLE) * MULTIPLE
    tokens, mask = np.zeros((size, length), np.int32), np.zeros((size, length), bool)
    for i in range(size):
        row = rows[i] if i < len(rows) else rows[0]
        tokens[i, : len(row)], mask[i, : len(row)] = row, True
    return tokens, mask


@functools.cache
def states_fn(model: Encoder, marker_ids: tuple[int, ...]) -> Callable[..., Array]:
    """(params, tokens [B, L], mask) -> the states at the markers, f32; jitted."""

    def states(params: Params, tokens: Array, mask: Array) -> Array:
        hidden = model.apply({"params": params}, tokens, mask)
        return marker_states(hidden, tokens, marker_ids).astype(jnp.float32)

    return jax.jit(states)
