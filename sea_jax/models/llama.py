"""Llama 2 and 3: RMSNorm, rotary embedding of whole heads, grouped-query attention, SwiGLU.

References:
    Touvron et al. (2023), Llama 2, arXiv:2307.09288.
    Grattafiori et al. (2024), The Llama 3 Herd of Models, arXiv:2407.21783.
    Ainslie et al. (2023), GQA, arXiv:2305.13245.
    Shazeer (2020), GLU Variants Improve Transformer, arXiv:2002.05202.
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
    RopeScaling,
    apply_rotary,
    rotary_angles,
    shared_prefix_attention,
)
from sea_jax.models.params import Param
from sea_jax.types import Array

LLAMA_3_2_SCALING = RopeScaling(
    factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
)


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Shape of a Llama model, by default Llama 3.2 1B; `from_hf` and `to_hf` speak its config.json."""

    vocab_size: int = 128_256
    num_layers: int = 16
    width: int = 2048
    num_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 64
    mlp_width: int = 8192
    rope_base: float = 500_000.0
    rope_scaling: RopeScaling | None = LLAMA_3_2_SCALING
    norm_eps: float = 1e-5
    tied: bool = True
    attention_bias: bool = False
    mlp_bias: bool = False
    max_length: int = 131_072
    dtype: Any = jnp.float32
    remat: str = "none"  # a row of remat.POLICIES
    trained_layers: int = 0  # the last of them, with the final norm; 0: all parameters learn

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_attention_heads={self.num_heads}; valid: a multiple of "
                f"num_key_value_heads={self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim}; valid: an even number, for rotary embeddings")

    @property
    def block(self) -> type[nn.Module]:
        return Block

    @property
    def params_table(self) -> tuple[Param, ...]:
        """Rows of PARAMS of this shape: without a head if it is tied, without absent biases."""

        def present(row: Param) -> bool:
            *_, module, leaf = row.path.split("/")
            if leaf == "bias":
                return self.attention_bias if module in ("q", "k", "v", "out") else self.mlp_bias
            return module != "head" or not self.tied

        return tuple(filter(present, PARAMS))

    def build(self) -> Decoder:
        """Builds the module of this shape."""
        return Decoder(self)

    def norm(self, name: str | None = None) -> nn.Module:
        """Builds an RMSNorm (Zhang & Sennrich, 2019, arXiv:1910.07467), its statistics in f32."""
        return nn.RMSNorm(self.norm_eps, dtype=self.dtype, param_dtype=jnp.float32, name=name)

    @classmethod
    def from_hf(cls, hf: dict[str, Any], **overrides: Any) -> "LlamaConfig":
        """Reads a config.json of model_type llama (transformers 4 and 5 spellings).

        Raises:
            ValueError: if the file asks for a feature that this port does not have.
        """
        if (act := hf.get("hidden_act", "silu")) not in ("silu", "swish"):  # two names of one function
            raise ValueError(f"hidden_act={act!r}; valid: 'silu'")
        num_heads = hf["num_attention_heads"]
        max_length = hf.get("max_position_embeddings", 2048)
        rope_base, rope_scaling = _read_rope(hf, max_length)
        fields = dict(
            vocab_size=hf["vocab_size"],
            num_layers=hf["num_hidden_layers"],
            width=hf["hidden_size"],
            num_heads=num_heads,
            num_kv_heads=hf_fields.size(hf, "num_key_value_heads", num_heads),
            head_dim=hf_fields.size(hf, "head_dim", hf["hidden_size"] // num_heads),
            mlp_width=hf["intermediate_size"],
            rope_base=rope_base,
            rope_scaling=rope_scaling,
            norm_eps=hf_fields.number(hf, "rms_norm_eps", 1e-6),
            tied=hf_fields.flag(hf, "tie_word_embeddings", False),
            attention_bias=hf_fields.flag(hf, "attention_bias", False),
            mlp_bias=hf_fields.flag(hf, "mlp_bias", False),
            max_length=max_length,
        )
        return cls(**(fields | overrides))

    def to_hf(self) -> dict[str, Any]:
        """Returns a config.json that transformers 4 and 5 and vLLM open."""
        scaling = None
        if self.rope_scaling is not None:
            scaling = dict(rope_type="llama3", **self.rope_scaling._asdict())
        return dict(
            architectures=["LlamaForCausalLM"],
            model_type="llama",
            vocab_size=self.vocab_size,
            num_hidden_layers=self.num_layers,
            hidden_size=self.width,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            intermediate_size=self.mlp_width,
            rms_norm_eps=self.norm_eps,
            rope_theta=self.rope_base,
            rope_scaling=scaling,
            rope_parameters=dict(scaling or dict(rope_type="default"), rope_theta=self.rope_base),
            attention_bias=self.attention_bias,
            mlp_bias=self.mlp_bias,
            hidden_act="silu",
            max_position_embeddings=self.max_length,
            tie_word_embeddings=self.tied,
            torch_dtype="float32",
        )


def _number(hf: dict[str, Any], name: str, least: float) -> float:
    """Reads a number of at least `least`, and above 0."""
    value: Any = hf.get(name)
    if type(value) not in (int, float) or not least <= value < 3e38 or value == 0:
        valid = f"a number of at least {least:g}" if least else "a number above 0"
        raise ValueError(f"{name}={value!r} of the rotary embedding; valid: {valid}")
    return float(value)


def _read_rope(hf: dict[str, Any], max_length: int) -> tuple[float, RopeScaling | None]:
    """Reads base and scaling, in transformers 4 rope_theta and rope_scaling, in 5 rope_parameters."""
    rope = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"rope_scaling={rope!r}; valid: an object with rope_type, or null")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise ValueError(f"rope_type={kind!r}; valid: 'default' or 'llama3'")
    if (part := rope.get("partial_rotary_factor", hf.get("partial_rotary_factor", 1.0))) != 1.0:
        raise ValueError(f"partial_rotary_factor={part!r}; valid: 1.0")
    base = _number(dict(rope_theta=10_000.0) | hf | rope, "rope_theta", 0)
    if kind == "default":
        return base, None
    low, high = _number(rope, "low_freq_factor", 0), _number(rope, "high_freq_factor", 0)
    if low >= high:
        raise ValueError(f"high_freq_factor={high}; valid: more than low_freq_factor={low}")
    original = hf_fields.size(rope, "original_max_position_embeddings", max_length)
    return base, RopeScaling(_number(rope, "factor", 1), low, high, original)


# Our path, Hugging Face's name ({i}: layer), how the array is laid out there, our logical axes.
_LAYER = "model.layers.{i}."
PARAMS: tuple[Param, ...] = (
    Param("embed/embedding", "model.embed_tokens.weight", "none", ("vocab", "embed")),
    Param("layers/input_norm/scale", _LAYER + "input_layernorm.weight", "none", ("embed",)),
    Param("layers/post_norm/scale", _LAYER + "post_attention_layernorm.weight", "none", ("embed",)),
    Param("layers/q/kernel", _LAYER + "self_attn.q_proj.weight", "dense_out", ("embed", "heads", "head_dim")),
    Param("layers/q/bias", _LAYER + "self_attn.q_proj.bias", "flat", ("heads", "head_dim")),
    Param("layers/k/kernel", _LAYER + "self_attn.k_proj.weight", "dense_out",
          ("embed", "kv_heads", "head_dim")),
    Param("layers/k/bias", _LAYER + "self_attn.k_proj.bias", "flat", ("kv_heads", "head_dim")),
    Param("layers/v/kernel", _LAYER + "self_attn.v_proj.weight", "dense_out",
          ("embed", "kv_heads", "head_dim")),
    Param("layers/v/bias", _LAYER + "self_attn.v_proj.bias", "flat", ("kv_heads", "head_dim")),
    Param("layers/out/kernel", _LAYER + "self_attn.o_proj.weight", "dense_in",
          ("heads", "head_dim", "embed")),
    Param("layers/out/bias", _LAYER + "self_attn.o_proj.bias", "none", ("embed",)),
    Param("layers/gate/kernel", _LAYER + "mlp.gate_proj.weight", "dense_out", ("embed", "mlp")),
    Param("layers/gate/bias", _LAYER + "mlp.gate_proj.bias", "none", ("mlp",)),
    Param("layers/up/kernel", _LAYER + "mlp.up_proj.weight", "dense_out", ("embed", "mlp")),
    Param("layers/up/bias", _LAYER + "mlp.up_proj.bias", "none", ("mlp",)),
    Param("layers/down/kernel", _LAYER + "mlp.down_proj.weight", "dense_in", ("mlp", "embed")),
    Param("layers/down/bias", _LAYER + "mlp.down_proj.bias", "none", ("embed",)),
    Param("final_norm/scale", "model.norm.weight", "none", ("embed",)),
    Param("head/kernel", "lm_head.weight", "dense_out", ("embed", "vocab")),
)  # fmt: skip


class Block(nn.Module):
    """One Llama layer. In a scan the carry is x, and the prefix is sliced by layer."""

    config: LlamaConfig

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

        The cache is (new keys, new values) [B, M, T, H_kv, D], or the past with them appended. With last_only
        x is that of the last token, [B, M, 1, W]. Products are in the config's dtype; RMSNorm,
        rotation and softmax are in f32.
        """
        cfg = self.config
        dense: dict[str, Any] = dict(
            dtype=cfg.dtype, param_dtype=jnp.float32, kernel_init=nn.initializers.normal(0.02)
        )
        attention, mlp = dict(dense, use_bias=cfg.attention_bias), dict(dense, use_bias=cfg.mlp_bias)
        h = cfg.norm("input_norm")(x)
        q = nn.DenseGeneral((cfg.num_heads, cfg.head_dim), name="q", **attention)(h)
        k = nn.DenseGeneral((cfg.num_kv_heads, cfg.head_dim), name="k", **attention)(h)
        v = nn.DenseGeneral((cfg.num_kv_heads, cfg.head_dim), name="v", **attention)(h)
        sin, cos = rotary_angles(positions, cfg.head_dim, cfg.rope_base, cfg.rope_scaling)
        q, k = (apply_rotary(a.astype(jnp.float32), sin, cos).astype(a.dtype) for a in (q, k))
        if past is not None:
            past = past.append(k, v)
        if last_only:
            x, q = x[..., -1:, :], q[..., -1:, :, :]
        shared = None if prefix is None else Prefix(*prefix, prefix_mask)  # pyright: ignore[reportArgumentType]
        attended = shared_prefix_attention(q, k, v, mask, shared, past)
        x += nn.DenseGeneral(cfg.width, axis=(-2, -1), name="out", **attention)(attended)
        h = cfg.norm("post_norm")(x)
        gate = nn.Dense(cfg.mlp_width, name="gate", **mlp)(h)
        h = jax.nn.silu(gate) * nn.Dense(cfg.mlp_width, name="up", **mlp)(h)
        x += nn.Dense(cfg.width, name="down", **mlp)(h)
        return x, (k, v) if past is None else past
