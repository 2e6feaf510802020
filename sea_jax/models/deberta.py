"""DeBERTa-v2 and v3: an encoder with disentangled attention, and features at marker tokens.

The backbone of PairRM, which the epistemic reward model's heads stand on. For inference: without dropout, and
without the heads that a checkpoint may carry.

References:
    He et al. (2021a), DeBERTa, arXiv:2006.03654.
    He et al. (2021b), DeBERTaV3, arXiv:2111.09543.
    Jiang et al. (2023), LLM-Blender (PairRM), arXiv:2306.02561.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sea_jax.models import hf_fields
from sea_jax.models.deberta_params import PARAMS, base_tensors
from sea_jax.models.disentangled import DisentangledAttention, relative_index
from sea_jax.models.layers import gelu
from sea_jax.models.params import Param
from sea_jax.models.remat import checkpointed
from sea_jax.types import Array

ACTIVATIONS = {
    "gelu": gelu,
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_fast": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}


@dataclasses.dataclass(frozen=True)
class DebertaConfig:
    """Shape of a DeBERTa-v2 encoder; `from_hf` and `to_hf` speak Hugging Face's config.json.

    Attributes:
        embedding_width: of the word embeddings; 0 means `width`.
        pos_att_type: which of "c2p" (content to position) and "p2c" attention has beside content to content.
        share_att_key: positions go through the queries' and keys' own projections.
        position_buckets: relative positions in this many buckets a side, logarithmic beyond half of them;
            at most 0 means one for each.
        max_relative_positions: distances beyond are cut; at most 0 means `max_length`.
        norm_rel_ebd: "layer_norm" or "none", of the relative positions' embeddings.
        position_biased_input: adds absolute positions to the embeddings too.
        type_vocab_size: number of segments; 0 means that they are ignored.
        padding_idx: id of the padding token, written to config.json; the model reads the mask.
    """

    vocab_size: int = 128_100
    num_layers: int = 24
    width: int = 1024
    num_heads: int = 16
    mlp_width: int = 4096
    embedding_width: int = 0
    hidden_act: str = "gelu"
    norm_eps: float = 1e-7
    relative_attention: bool = True
    pos_att_type: tuple[str, ...] = ("p2c", "c2p")
    share_att_key: bool = True
    position_buckets: int = 256
    max_relative_positions: int = -1
    norm_rel_ebd: str = "layer_norm"
    position_biased_input: bool = False
    type_vocab_size: int = 0
    max_length: int = 512
    padding_idx: int | None = 0
    dtype: Any = jnp.float32
    remat: str = "none"  # a row of remat.POLICIES

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    @property
    def max_distance(self) -> int:
        return self.max_relative_positions if self.max_relative_positions > 0 else self.max_length

    @property
    def span(self) -> int:
        """Half the number of embedded relative positions."""
        return self.position_buckets if self.position_buckets > 0 else self.max_distance

    @property
    def params_table(self) -> tuple[Param, ...]:
        """Rows of PARAMS of this shape."""
        positional = self.relative_attention and not self.share_att_key
        absent = {
            "position_embed": not self.position_biased_input,
            "segment_embed": self.type_vocab_size == 0,
            "embed_proj": self.embedding_width in (0, self.width),
            "relative_embed": not self.relative_attention,
            "relative_norm": self.norm_rel_ebd == "none",
            "pos_key": not (positional and "c2p" in self.pos_att_type),
            "pos_query": not (positional and "p2c" in self.pos_att_type),
        }
        return tuple(row for row in PARAMS if not any(absent.get(part) for part in row.path.split("/")))

    def build(self) -> "Encoder":
        """Builds the module of this shape."""
        return Encoder(self)

    def norm(self, name: str | None = None) -> nn.Module:
        return nn.LayerNorm(
            self.norm_eps, dtype=self.dtype, param_dtype=jnp.float32, use_fast_variance=False, name=name
        )

    def base_tensors(self, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Renames a checkpoint's tensors, as `deberta_params.base_tensors` does."""
        return base_tensors(tensors, self.position_biased_input)

    @classmethod
    def from_hf(cls, hf: dict[str, Any], **overrides: Any) -> "DebertaConfig":
        """Reads a config.json of model_type deberta-v2.

        Raises:
            ValueError: if the file asks for a feature that this port does not have.
        """
        width, max_length = hf["hidden_size"], hf.get("max_position_embeddings", 512)
        kinds = hf.get("pos_att_type") or ()
        kinds = kinds.lower().split("|") if isinstance(kinds, str) else kinds
        if not isinstance(kinds, list | tuple):
            raise ValueError(f"pos_att_type={kinds!r}; valid: 'c2p', 'p2c', both or neither")
        for name in ("position_buckets", "max_relative_positions", "type_vocab_size", "embedding_size"):
            if name in hf and (type(hf[name]) is not int or not -1 <= hf[name] < 2**31):
                raise ValueError(f"{name}={hf[name]!r}; valid: a whole number")
        fields = dict(
            vocab_size=hf["vocab_size"],
            num_layers=hf["num_hidden_layers"],
            width=width,
            num_heads=hf["num_attention_heads"],
            mlp_width=hf["intermediate_size"],
            embedding_width=0 if hf.get("embedding_size", width) == width else hf["embedding_size"],
            hidden_act=hf_fields.choice(hf, "hidden_act", "gelu", tuple(ACTIVATIONS)),
            norm_eps=hf_fields.number(hf, "layer_norm_eps", 1e-7),
            relative_attention=hf_fields.flag(hf, "relative_attention", False),
            pos_att_type=tuple(str(kind).strip() for kind in kinds),
            share_att_key=hf_fields.flag(hf, "share_att_key", False),
            position_buckets=hf.get("position_buckets", -1),
            max_relative_positions=hf.get("max_relative_positions", -1),
            norm_rel_ebd=str(hf.get("norm_rel_ebd")).strip().lower(),
            position_biased_input=hf_fields.flag(hf, "position_biased_input", True),
            type_vocab_size=hf.get("type_vocab_size", 0),
            max_length=max_length,
            padding_idx=hf_fields.token(hf, "pad_token_id", 0),
        )
        config = cls(**(fields | overrides))
        _require_ported(config, hf)
        return config

    def to_hf(self) -> dict[str, Any]:
        """Returns a config.json that transformers opens as a DebertaV2Model."""
        return dict(
            architectures=["DebertaV2Model"],
            model_type="deberta-v2",
            vocab_size=self.vocab_size,
            num_hidden_layers=self.num_layers,
            hidden_size=self.width,
            num_attention_heads=self.num_heads,
            intermediate_size=self.mlp_width,
            embedding_size=self.embedding_width or self.width,
            hidden_act=self.hidden_act,
            layer_norm_eps=self.norm_eps,
            relative_attention=self.relative_attention,
            pos_att_type=list(self.pos_att_type),
            share_att_key=self.share_att_key,
            position_buckets=self.position_buckets,
            max_relative_positions=self.max_relative_positions,
            norm_rel_ebd=self.norm_rel_ebd,
            position_biased_input=self.position_biased_input,
            type_vocab_size=self.type_vocab_size,
            max_position_embeddings=self.max_length,
            pad_token_id=self.padding_idx,
            torch_dtype="float32",
        )


def _require_ported(config: DebertaConfig, hf: dict[str, Any]) -> None:
    """Raises ValueError at a field whose value the port does not support."""
    buckets, least = config.position_buckets, config.position_buckets // 2 + 2
    checks = (
        (set(config.pos_att_type) <= {"c2p", "p2c"}, "pos_att_type", "'c2p', 'p2c', both or neither"),
        (config.norm_rel_ebd in ("none", "layer_norm"), "norm_rel_ebd", "'none' or 'layer_norm'"),
        (config.relative_attention or config.norm_rel_ebd == "none", "norm_rel_ebd",
         "'none' without relative_attention"),
        (not hf.get("conv_kernel_size"), "conv_kernel_size", "0: convolutions are not ported"),
        (hf.get("attention_head_size", config.head_dim) == config.head_dim, "attention_head_size",
         f"hidden_size / num_attention_heads = {config.head_dim}"),
        (buckets <= 0 or buckets >= 4, "position_buckets", "at most 0 for none, or at least 4"),
        (buckets <= 0 or config.max_distance >= least, "max_relative_positions",
         f"at least {least} with position_buckets={buckets}"),
        (config.type_vocab_size >= 0, "type_vocab_size", "at least 0"),
        (hf.get("embedding_size", 1) >= 1, "embedding_size", "at least 1"),
    )  # fmt: skip
    for ported, name, valid in checks:
        if not ported:
            raise ValueError(f"{name}={hf.get(name)!r}; valid: {valid}")


class Block(nn.Module):
    """One layer, with a norm after each residual. In a scan the carry is x, the rest is broadcast."""

    config: DebertaConfig

    @nn.compact
    def __call__(
        self, x: Array, mask: Array, relative: Array | None, index: Array | None
    ) -> tuple[Array, None]:
        cfg = self.config
        dense = dict(dtype=cfg.dtype, param_dtype=jnp.float32, kernel_init=nn.initializers.normal(0.02))
        attended = DisentangledAttention(cfg, name="attention")(x, mask, relative, index)
        x = cfg.norm("attention_norm")(x + attended)
        h = ACTIVATIONS[cfg.hidden_act](nn.Dense(cfg.mlp_width, name="up", **dense)(x))
        return cfg.norm("mlp_norm")(x + nn.Dense(cfg.width, name="down", **dense)(h)), None


class Encoder(nn.Module):
    """Maps tokens to hidden states; every token attends to every other of its sequence."""

    config: DebertaConfig

    if TYPE_CHECKING:  # Flax's annotations leave these open

        def apply(self, *args: Any, **kwargs: Any) -> Any: ...
        def __hash__(self) -> int: ...

    def setup(self):
        cfg = self.config
        width = cfg.embedding_width or cfg.width
        embed = functools.partial(nn.Embed, features=width, dtype=cfg.dtype, param_dtype=jnp.float32)
        self.embed = embed(cfg.vocab_size)
        if cfg.position_biased_input:
            self.position_embed = embed(cfg.max_length)
        if cfg.type_vocab_size:
            self.segment_embed = embed(cfg.type_vocab_size)
        if width != cfg.width:
            self.embed_proj = nn.Dense(cfg.width, use_bias=False, dtype=cfg.dtype, param_dtype=jnp.float32)
        self.embed_norm = cfg.norm()
        if cfg.relative_attention:
            normal = nn.initializers.normal(0.02)
            self.relative_embed = self.param("relative_embed", normal, (2 * cfg.span, cfg.width), jnp.float32)
            if cfg.norm_rel_ebd == "layer_norm":
                self.relative_norm = cfg.norm()
        self.layers = nn.scan(
            checkpointed(Block, cfg.remat, nn.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
            length=cfg.num_layers,
            unroll=cfg.num_layers if cfg.num_layers <= 4 else 1,
        )(cfg)

    def __call__(self, tokens: Array, mask: Array | None = None, segments: Array | None = None) -> Array:
        """Computes hidden states after the last layer.

        Args:
            tokens: [B, L] int32.
            mask: [B, L] bool, False on padding (left, right or both); None means no padding.
            segments: [B, L] int32, None means 0; ignored if `type_vocab_size` is 0.

        Returns:
            [B, L, W], dtype of the config; undefined on padding.

        Raises:
            ValueError: if L exceeds the absolute positions that the model has.

        Absolute positions count from a sequence's first real token, where transformers counts padding on the
        left unless it is given `position_ids`.
        """
        cfg, length = self.config, tokens.shape[1]
        if mask is None:
            mask = jnp.ones(tokens.shape, bool)
        x = self.embed(tokens)
        if cfg.position_biased_input:
            if length > cfg.max_length:
                raise ValueError(f"{length} tokens; valid: at most max_length={cfg.max_length}")
            x += self.position_embed(jnp.maximum(jnp.cumsum(mask, -1) - 1, 0))
        if cfg.type_vocab_size:
            x += self.segment_embed(jnp.zeros_like(tokens) if segments is None else segments)
        if cfg.embedding_width not in (0, cfg.width):
            x = self.embed_proj(x)
        relative, index = None, None
        if cfg.relative_attention:
            relative = self.relative_embed
            if cfg.norm_rel_ebd == "layer_norm":
                relative = self.relative_norm(relative)
            index = relative_index(length, cfg.span, cfg.position_buckets, cfg.max_distance)
        x, _ = self.layers(self.embed_norm(x), mask, relative, index)
        return x


def marker_states(hidden: Array, tokens: Array, marker_ids: Sequence[int]) -> Array:
    """Concatenates the hidden states at marker tokens.

    PairRM (Jiang et al., 2023) reads "<|source|> x <|candidate1|> y <|candidate2|> y'" and scores a candidate
    by the states at <|source|> and at the candidate's own marker: `marker_ids` are these two.

    Args:
        hidden: [B, L, W].
        tokens: [B, L] int32.
        marker_ids: n ids of special tokens; the first occurrence of each counts.

    Returns:
        [B, n·W]; NaN for a marker that a sequence lacks, since another token's state would go unnoticed.
    """
    found = tokens[:, None] == jnp.asarray(marker_ids)[:, None]  # [B, n, L]
    states = jnp.take_along_axis(hidden, found.argmax(-1)[..., None], axis=1)
    states = jnp.where(found.any(-1)[..., None], states, jnp.nan)
    return states.reshape(len(tokens), -1)
