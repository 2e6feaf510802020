"""Pythia (GPT-NeoX): parallel residual, partial rotary embedding, biases everywhere.

References:
    Biderman et al. (2023), Pythia, arXiv:2304.01373.
    Black et al. (2022), GPT-NeoX-20B, arXiv:2204.06745.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sea_jax.models import hf_fields
from sea_jax.models.decoder import Decoder
from sea_jax.models.layers import (
    Past,
    Prefix,
    apply_rotary,
    gelu,
    rotary_angles,
    shared_prefix_attention,
    unstack_axis,
)
from sea_jax.models.params import Param
from sea_jax.types import Array


@dataclasses.dataclass(frozen=True)
class PythiaConfig:
    """Shape of a GPT-NeoX model; `from_hf` and `to_hf` speak Hugging Face's config.json."""

    vocab_size: int = 50_304
    num_layers: int = 16
    width: int = 2048
    num_heads: int = 8
    mlp_width: int = 8192
    rotary_pct: float = 0.25
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5
    parallel_residual: bool = True
    gelu_approximate: bool = False
    max_length: int = 2048
    dtype: Any = jnp.float32
    remat: str = "none"  # a row of remat.POLICIES
    trained_layers: int = 0  # the last of them, with the final norm; 0: all parameters learn

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    @property
    def rotary_dim(self) -> int:
        return int(self.head_dim * self.rotary_pct)

    @property
    def tied(self) -> bool:
        """False: no Pythia ties its head to the embedding."""
        return False

    @property
    def block(self) -> type[nn.Module]:
        return Block

    @property
    def params_table(self) -> tuple[Param, ...]:
        return PARAMS

    def build(self) -> Decoder:
        """Builds the module of this shape."""
        return Decoder(self)

    def norm(self, name: str | None = None) -> nn.Module:
        return nn.LayerNorm(
            self.norm_eps,
            dtype=self.dtype,
            param_dtype=jnp.float32,
            use_fast_variance=False,
            name=name,
        )

    @classmethod
    def from_hf(cls, hf: dict[str, Any], **overrides: Any) -> "PythiaConfig":
        """Reads a config.json of model_type gpt_neox (transformers 4 and 5 spellings).

        Raises:
            ValueError: if the file asks for a feature that this port does not have.
        """
        if hf_fields.flag(hf, "tie_word_embeddings", False):
            raise ValueError("tie_word_embeddings=True: GPT-NeoX is ported with an untied head only")
        approximate = {"gelu": False, "gelu_new": True, "gelu_fast": True, "gelu_pytorch_tanh": True}
        act = hf_fields.choice(hf, "hidden_act", "gelu", tuple(approximate))
        rope = hf_fields.table(hf, "rope_parameters")
        if rope.get("rope_type", "default") != "default" or hf.get("rope_scaling"):
            raise ValueError("rope scaling: GPT-NeoX is ported with plain rotary embeddings only")
        older = dict(
            partial_rotary_factor=hf.get("rotary_pct", 0.25), rope_theta=hf.get("rotary_emb_base", 10_000.0)
        )
        fields = dict(
            vocab_size=hf["vocab_size"],
            num_layers=hf["num_hidden_layers"],
            width=hf["hidden_size"],
            num_heads=hf["num_attention_heads"],
            mlp_width=hf["intermediate_size"],
            norm_eps=hf_fields.number(hf, "layer_norm_eps", 1e-5),
            rotary_pct=hf_fields.number(older | rope, "partial_rotary_factor", 0.25, at_most=1),
            rope_base=hf_fields.number(older | rope, "rope_theta", 10_000.0),
            parallel_residual=hf_fields.flag(hf, "use_parallel_residual", True),
            gelu_approximate=approximate[act],
            max_length=hf.get("max_position_embeddings", 2048),
        )
        config = cls(**(fields | overrides))
        if config.rotary_dim % 2 or not config.rotary_dim:
            raise ValueError(
                f"rotary_pct={config.rotary_pct}: {config.rotary_dim} features of a head; "
                f"valid: an even number of its {config.head_dim}"
            )
        return config

    def to_hf(self) -> dict[str, Any]:
        """Returns a config.json that transformers 4 and 5 and vLLM open."""
        return dict(
            architectures=["GPTNeoXForCausalLM"],
            model_type="gpt_neox",
            vocab_size=self.vocab_size,
            num_hidden_layers=self.num_layers,
            hidden_size=self.width,
            num_attention_heads=self.num_heads,
            intermediate_size=self.mlp_width,
            layer_norm_eps=self.norm_eps,
            rotary_pct=self.rotary_pct,
            rotary_emb_base=self.rope_base,
            rope_parameters=dict(
                rope_type="default",
                rope_theta=self.rope_base,
                partial_rotary_factor=self.rotary_pct,
            ),
            use_parallel_residual=self.parallel_residual,
            attention_bias=True,
            hidden_act="gelu_new" if self.gelu_approximate else "gelu",
            max_position_embeddings=self.max_length,
            tie_word_embeddings=False,
            torch_dtype="float32",
        )


# Our path, Hugging Face's name ({i}: layer), how the array is laid out there, our logical axes.
_LAYER = "gpt_neox.layers.{i}."
PARAMS: tuple[Param, ...] = (
    Param("embed/embedding", "gpt_neox.embed_in.weight", "none", ("vocab", "embed")),
    Param("layers/input_norm/scale", _LAYER + "input_layernorm.weight", "none", ("embed",)),
    Param("layers/input_norm/bias", _LAYER + "input_layernorm.bias", "none", ("embed",)),
    Param("layers/post_norm/scale", _LAYER + "post_attention_layernorm.weight", "none", ("embed",)),
    Param("layers/post_norm/bias", _LAYER + "post_attention_layernorm.bias", "none", ("embed",)),
    Param("layers/qkv/kernel", _LAYER + "attention.query_key_value.weight", "dense_out",
          ("embed", "heads", None, "head_dim")),
    Param("layers/qkv/bias", _LAYER + "attention.query_key_value.bias", "flat",
          ("heads", None, "head_dim")),
    Param("layers/out/kernel", _LAYER + "attention.dense.weight", "dense_in",
          ("heads", "head_dim", "embed")),
    Param("layers/out/bias", _LAYER + "attention.dense.bias", "none", ("embed",)),
    Param("layers/up/kernel", _LAYER + "mlp.dense_h_to_4h.weight", "dense_out", ("embed", "mlp")),
    Param("layers/up/bias", _LAYER + "mlp.dense_h_to_4h.bias", "none", ("mlp",)),
    Param("layers/down/kernel", _LAYER + "mlp.dense_4h_to_h.weight", "dense_in", ("mlp", "embed")),
    Param("layers/down/bias", _LAYER + "mlp.dense_4h_to_h.bias", "none", ("embed",)),
    Param("final_norm/scale", "gpt_neox.final_layer_norm.weight", "none", ("embed",)),
    Param("final_norm/bias", "gpt_neox.final_layer_norm.bias", "none", ("embed",)),
    Param("head/kernel", "embed_out.weight", "dense_out", ("embed", "vocab")),
)  # fmt: skip


class Block(nn.Module):
    """One GPT-NeoX layer. In a scan the carry is x, and the prefix is sliced by layer."""

    config: PythiaConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        positions: Array,
        mask: Array,
        prefix_mask: Array | None,
        prefix: tuple[Array, Array] | None,
        past: Past | None = None,
        last_only: bool = False,
    ) -> tuple[Array, Any]:
        """Applies the layer: x [B, M, T, W], positions and mask [B, M, T] -> x, cache.

        The cache is (new keys, new values) [B, M, T, H, D], or the past with them appended. With last_only
        x is that of the last token, [B, M, 1, W].
        """
        cfg = self.config
        dense = dict(dtype=cfg.dtype, param_dtype=jnp.float32, kernel_init=nn.initializers.normal(0.02))
        h = cfg.norm("input_norm")(x)
        qkv = nn.DenseGeneral((cfg.num_heads, 3, cfg.head_dim), name="qkv", **dense)(h)
        q, k, v = unstack_axis(qkv)
        sin, cos = rotary_angles(positions, cfg.rotary_dim, cfg.rope_base)
        q, k = apply_rotary(q, sin, cos), apply_rotary(k, sin, cos)
        if past is not None:
            past = past.append(k, v)
        if last_only:
            x, q = x[..., -1:, :], q[..., -1:, :, :]
        shared = None if prefix is None else Prefix(*prefix, prefix_mask)  # pyright: ignore[reportArgumentType]
        attended = shared_prefix_attention(q, k, v, mask, shared, past)
        attended = nn.DenseGeneral(cfg.width, axis=(-2, -1), name="out", **dense)(attended)
        # Parallel residual: x + attn(ln1(x)) + mlp(ln2(x)); otherwise the MLP reads x + attn.
        after = x + attended
        h = cfg.norm("post_norm")(x if cfg.parallel_residual else after)
        h = nn.Dense(cfg.mlp_width, name="up", **dense)(h)
        h = jax.nn.gelu(h, approximate=True) if cfg.gelu_approximate else gelu(h)
        h = nn.Dense(cfg.width, name="down", **dense)(h)
        return after + h, (k, v) if past is None else past
