"""The parameters of DeBERTa-v2 and v3 in our layout and in Hugging Face's."""

import numpy as np

from sea_jax.models.params import Param

# Names that transformers' head classes and PairRM's put before the encoder's.
_PREFIXES = ("deberta.", "pretrained_model.")
_WORDS, _POSITIONS = "embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight"


def base_tensors(tensors: dict[str, np.ndarray], absolute_positions: bool) -> dict[str, np.ndarray]:
    """Renames a checkpoint's tensors to the names of PARAMS, those of a bare DebertaV2Model.

    Removes the prefix of a head class. Tensors without it (the head's) keep their names, for the caller to
    reject. Drops the buffer of positions that old checkpoints store, and absolute positions that the encoder
    does not read (they belong to the decoder of the pretraining).

    Args:
        tensors: by name.
        absolute_positions: True if the encoder reads them.
    """
    prefix = next((p for p in _PREFIXES if p + _WORDS in tensors), "")
    base = {}
    for name, array in tensors.items():
        bare = name.removeprefix(prefix)
        base[name if bare in tensors else bare] = array  # never overwrites another tensor
    base.pop("embeddings.position_ids", None)
    if not absolute_positions:
        base.pop(_POSITIONS, None)
    return base


# Our path, Hugging Face's name ({i}: layer), how the array is laid out there, our logical axes.
_LAYER, _SELF = "encoder.layer.{i}.", "encoder.layer.{i}.attention.self."


def _projection(ours: str, theirs: str) -> tuple[Param, ...]:
    return (
        Param(f"layers/attention/{ours}/kernel", f"{_SELF}{theirs}.weight", "dense_out",
              ("embed", "heads", "head_dim")),
        Param(f"layers/attention/{ours}/bias", f"{_SELF}{theirs}.bias", "flat", ("heads", "head_dim")),
    )  # fmt: skip


def _norm(ours: str, theirs: str) -> tuple[Param, ...]:
    return (
        Param(f"{ours}/scale", f"{theirs}.weight", "none", ("embed",)),
        Param(f"{ours}/bias", f"{theirs}.bias", "none", ("embed",)),
    )


PARAMS: tuple[Param, ...] = (
    Param("embed/embedding", _WORDS, "none", ("vocab", "embed")),
    Param("position_embed/embedding", _POSITIONS, "none", (None, "embed")),
    Param("segment_embed/embedding", "embeddings.token_type_embeddings.weight", "none", (None, "embed")),
    Param("embed_proj/kernel", "embeddings.embed_proj.weight", "dense_out", (None, "embed")),
    *_norm("embed_norm", "embeddings.LayerNorm"),
    Param("relative_embed", "encoder.rel_embeddings.weight", "none", (None, "embed")),
    *_norm("relative_norm", "encoder.LayerNorm"),
    *_projection("query", "query_proj"),
    *_projection("key", "key_proj"),
    *_projection("value", "value_proj"),
    *_projection("pos_key", "pos_key_proj"),
    *_projection("pos_query", "pos_query_proj"),
    Param("layers/attention/out/kernel", _LAYER + "attention.output.dense.weight", "dense_in",
          ("heads", "head_dim", "embed")),
    Param("layers/attention/out/bias", _LAYER + "attention.output.dense.bias", "none", ("embed",)),
    *_norm("layers/attention_norm", _LAYER + "attention.output.LayerNorm"),
    Param("layers/up/kernel", _LAYER + "intermediate.dense.weight", "dense_out", ("embed", "mlp")),
    Param("layers/up/bias", _LAYER + "intermediate.dense.bias", "none", ("mlp",)),
    Param("layers/down/kernel", _LAYER + "output.dense.weight", "dense_in", ("mlp", "embed")),
    Param("layers/down/bias", _LAYER + "output.dense.bias", "none", ("embed",)),
    *_norm("layers/mlp_norm", _LAYER + "output.LayerNorm"),
)  # fmt: skip
