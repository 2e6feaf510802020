"""Reward models: a decoder's trunk, and a head on the state of a text's last token.

References:
    Stiennon et al. (2020), Learning to summarize from human feedback, arXiv:2009.01325.
    Liu et al. (2024), Skywork-Reward, arXiv:2410.18451.
    Wang et al. (2024), Interpretable Preferences via Multi-Objective Reward Modeling and
        Mixture-of-Experts (ArmoRM), arXiv:2406.12845.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sea_jax.models import hf_fields
from sea_jax.models.decoder import Decoder
from sea_jax.models.params import Param
from sea_jax.types import Array, Config, Params

_MOST_GATES = 100  # hidden layers of a gate, each a module of its own
# <|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n in Llama 3's vocabulary.
LLAMA_3_ASSISTANT = (128_009, 128_006, 78_191, 128_007, 271)


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """Shape of a sequence classifier; `from_hf` and `to_hf` speak Hugging Face's config.json.

    Attributes:
        trunk: the decoder's config, a LlamaConfig or a PythiaConfig; its head is not used.
        num_labels: outputs per text; 1 in a reward model.
        padding_idx: id of the padding token, written to config.json; the model reads padding from the mask.
    """

    trunk: Any
    num_labels: int = 1
    padding_idx: int | None = None

    @property
    def num_layers(self) -> int:
        return self.trunk.num_layers

    @property
    def vocab_size(self) -> int:
        return self.trunk.vocab_size

    @property
    def max_length(self) -> int:
        return self.trunk.max_length

    @property
    def head_table(self) -> tuple[Param, ...]:
        """Rows of the head."""
        return (Param("score/kernel", "score.weight", "dense_out", ("embed", None)),)

    @property
    def params_table(self) -> tuple[Param, ...]:
        """Rows of the trunk without its LM head, then of the head."""
        return (*(row for row in self.trunk.params_table if row.path != "head/kernel"), *self.head_table)

    def build(self) -> "RewardModel":
        """Builds the module of this shape."""
        return RewardModel(self)

    @classmethod
    def from_hf(cls, hf: dict[str, Any], trunk: Any) -> "RewardConfig":
        """Reads the head's part of a config.json.

        Args:
            hf: the file.
            trunk: the trunk's config, read from it.

        Raises:
            ValueError: on an invalid or inconsistent number of labels, or an invalid padding token.
        """
        return cls(trunk, _num_labels(hf), hf_fields.token(hf, "pad_token_id", None))

    def to_hf(self) -> dict[str, Any]:
        """Returns a config.json that transformers opens as a sequence classifier."""
        base = self.trunk.to_hf()
        names = [f"LABEL_{i}" for i in range(self.num_labels)]
        return base | dict(
            architectures=[
                a.replace("ForCausalLM", "ForSequenceClassification") for a in base["architectures"]
            ],
            id2label={str(i): name for i, name in enumerate(names)},
            label2id={name: i for i, name in enumerate(names)},
            pad_token_id=self.padding_idx,
        )


@dataclasses.dataclass(frozen=True)
class GatedRewardConfig(RewardConfig):
    """Shape of ArmoRM, by default of RLHFlow/ArmoRM-Llama3-8B-v0.1: `num_labels` is always 1.

    Attributes:
        num_objectives: rewards that the gate mixes.
        gating_width: of the gating network's hidden layers.
        gating_layers: number of hidden layers.
        temperature: of the gate's softmax.
        prompt_end: tokens at whose last occurrence the gate reads the prompt. The published code has them
            as a constant; this port reads and writes them as `gating_token_pattern` in config.json.
    """

    num_objectives: int = 19
    gating_width: int = 1024
    gating_layers: int = 3
    temperature: float = 10.0
    prompt_end: tuple[int, ...] = LLAMA_3_ASSISTANT

    @property
    def head_table(self) -> tuple[Param, ...]:
        rows = [
            Param("regression/kernel", "regression_layer.weight", "dense_out", ("embed", None)),
            Param("transform", "reward_transform_matrix", "none", (None, None)),
            Param("logit_scale", "gating.logit_scale", "none", (None,)),
        ]
        for i in range(self.gating_layers + 1):
            axes = (None if i else "embed", None)
            rows += [
                Param(f"gating_{i}/kernel", f"gating.layers.{i}.weight", "dense_out", axes),
                Param(f"gating_{i}/bias", f"gating.layers.{i}.bias", "none", (None,)),
            ]
        return tuple(rows)

    def build(self) -> "GatedRewardModel":
        """Builds the module of this shape."""
        return GatedRewardModel(self)

    @classmethod
    def from_hf(cls, hf: dict[str, Any], trunk: Any) -> "GatedRewardConfig":
        """Reads the head's part of a config.json, as `RewardConfig.from_hf` does.

        Raises:
            ValueError: naming the field, its value and what is valid.
        """
        defaults = dict(num_objectives=19, gating_hidden_dim=1024, gating_n_hidden=3)
        most = {"gating_n_hidden": _MOST_GATES}
        sizes = {
            name: hf_fields.size(hf, name, size, most.get(name, 2**31 - 1)) for name, size in defaults.items()
        }
        temperature = hf_fields.number(hf, "gating_temperature", 10)
        pattern = hf.get("gating_token_pattern", LLAMA_3_ASSISTANT)
        if not _are_tokens(pattern, trunk.vocab_size):
            valid = f"tokens, of 0 to vocab_size - 1 = {trunk.vocab_size - 1}"
            raise ValueError(f"gating_token_pattern={pattern!r}; valid: {valid}")
        return cls(
            trunk, 1, hf_fields.token(hf, "pad_token_id", None), sizes["num_objectives"],
            sizes["gating_hidden_dim"], sizes["gating_n_hidden"], temperature, tuple(pattern),
        )  # fmt: skip

    def to_hf(self) -> dict[str, Any]:
        """Returns a config.json like the published one; transformers needs ArmoRM's own code beside it."""
        return super().to_hf() | dict(
            architectures=["LlamaForRewardModelWithGating"],
            num_objectives=self.num_objectives,
            gating_hidden_dim=self.gating_width,
            gating_n_hidden=self.gating_layers,
            gating_temperature=self.temperature,
            gating_token_pattern=list(self.prompt_end),
        )


class RewardModel(nn.Module):
    """Maps texts to rewards: r(x, y) is linear in the last token's state."""

    config: Config
    gather: Any = None  # as in Decoder

    if TYPE_CHECKING:  # Flax's annotations leave these open

        def apply(self, *args: Any, **kwargs: Any) -> Any: ...
        def __hash__(self) -> int: ...

    def setup(self):
        self._set_trunk()
        self.score = nn.Dense(self.config.num_labels, use_bias=False, param_dtype=jnp.float32)

    def __call__(self, tokens: Array, mask: Array | None = None) -> Array:
        """Computes the rewards of whole texts, a prompt and its response.

        Args:
            tokens: [B, L] int32.
            mask: [B, L] bool, False on padding (left, right or both); None means no padding.

        Returns:
            [B, num_labels] f32; NaN for a row of padding alone.

        Transformers takes the last token that is not `pad_token_id`; here the mask marks it.
        """
        states, mask = self._states(tokens, mask)
        return self.score(_state_at_last(states, mask))

    def gather_shared(self, params: Params) -> Params:
        """Gathers embedding, final norm and head, as `Decoder.gather_shared` does."""
        return params if self.gather is None else self.gather.gather_shared(params)

    def _set_trunk(self) -> None:
        self.trunk = Decoder(
            self.config.trunk, self.gather
        )  # its LM head is never called, so it has no parameters
        nn.share_scope(self, self.trunk)  # parameter names are a decoder's

    def _states(self, tokens: Array, mask: Array | None) -> tuple[Array, Array]:
        """Returns states [B, L, W] after the final norm, and the mask."""
        if mask is None:
            mask = jnp.ones(tokens.shape, bool)
        hidden, _, _ = self.trunk.encode(tokens[:, None], mask[:, None])
        return hidden[:, 0], mask


class GatedRewardModel(RewardModel):
    """ArmoRM: a gate that reads the prompt mixes the rewards of several objectives.

        r(x, y) = s · softmax(g(h_x) / τ) · (R h_xy) T

    h_xy is the last token's state and h_x that of the last token sequence `prompt_end`'s first token, which
    has seen only the prompt; g is an MLP with ReLU, R the regression layer, T decorrelates the objectives
    from verbosity (Wang et al., 2024, Sec. 2). Follows the code published beside the weights: biases in every
    layer of g and in no other, no dropout, s multiplies the softmax and not what enters it.

    The published code finds the last token by the first padding token, which is right for padding on the
    right only; here the mask marks it.
    """

    def setup(self):
        cfg = self.config
        self._set_trunk()
        self.regression = nn.Dense(cfg.num_objectives, use_bias=False, param_dtype=jnp.float32)
        widths = [cfg.gating_width] * cfg.gating_layers + [cfg.num_objectives]
        self.gating = [nn.Dense(n, param_dtype=jnp.float32, name=f"gating_{i}") for i, n in enumerate(widths)]
        self.transform = self.param("transform", lambda _: jnp.eye(cfg.num_objectives))
        self.logit_scale = self.param("logit_scale", nn.initializers.ones, (1,))

    def __call__(self, tokens: Array, mask: Array | None = None) -> Array:
        """Computes rewards [B, 1] f32, as `RewardModel`; NaN also for a text without `prompt_end`."""
        cfg = self.config
        states, mask = self._states(tokens, mask)
        rewards = self.regression(_state_at_last(states, mask)) @ self.transform
        x = _state_at_last(states, _starts(tokens, mask, cfg.prompt_end))
        for layer in self.gating[:-1]:
            x = jax.nn.relu(layer(x))
        gate = jax.nn.softmax(self.gating[-1](x) / cfg.temperature) * self.logit_scale
        return (gate * rewards).sum(-1, keepdims=True)


def _state_at_last(states: Array, where: Array) -> Array:
    """Takes states [B, L, W] at the last True of `where` [B, L] -> [B, W] f32; NaN if there is none."""
    last = where.shape[-1] - 1 - where[:, ::-1].argmax(-1)
    found = jnp.take_along_axis(states, last[:, None, None], axis=1)[:, 0].astype(jnp.float32)
    return jnp.where(where.any(-1, keepdims=True), found, jnp.nan)


def _starts(tokens: Array, mask: Array, pattern: tuple[int, ...]) -> Array:
    """Marks where a pattern of real tokens begins: [B, L] bool."""
    length = tokens.shape[-1]
    beyond = jnp.pad(jnp.where(mask, tokens, -1), ((0, 0), (0, len(pattern) - 1)), constant_values=-1)
    found = jnp.ones(tokens.shape, bool)
    for i, token in enumerate(pattern):
        found &= beyond[:, i : i + length] == token
    return found


def _num_labels(hf: dict[str, Any]) -> int:
    """Reads num_labels, or counts the labels' names; 2 where there is neither, as in transformers."""
    names, number = hf.get("id2label"), hf.get("num_labels")
    if names is not None and (not isinstance(names, dict) or not names):
        raise ValueError(f"id2label={names!r}; valid: an object with a name for each label")
    if number is None:
        return 2 if names is None else len(names)
    if type(number) is not int or not 1 <= number < 2**31:  # excludes bool
        raise ValueError(f"num_labels={number!r}; valid: a whole number of at least 1")
    if names is not None and len(names) != number:
        raise ValueError(f"num_labels={number}; valid: {len(names)}, as many as id2label names")
    return number


def _are_tokens(value: Any, vocab_size: int) -> bool:
    if not isinstance(value, list | tuple) or not value:
        return False
    return all(type(token) is int and 0 <= token < vocab_size for token in value)
