"""φ(x, y): features of a response from a frozen backbone (Sec. 4.2.1).

The backbone is a decoder followed by gated pooling: every response token adds its value vector,
gated by the decoder's states before and after it and by how much the decoder expected it,

    z(x, y) = Σ_t σ(G [h_{t-1}; h_t; log p_t; p_t]) ⊙ U y_t,     p_t = p(y_t | x, y_<t).

A token that the decoder did not expect may not follow from the prompt. The features are z in coordinates in
which a reward of the pretraining family is close to a standard normal linear function (see
`sea_jax/pretraining/backbone.py`).
"""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from sea_jax.losses.logprobs import next_logprobs, response_states
from sea_jax.models.decoder import Decoder
from sea_jax.models.generate import Responses
from sea_jax.types import Array, Params


class GatedPooling(nn.Module):
    """Pools gated token values over a response.

    Takes states [..., T + 1, W] before and after each token, and tokens, their log-probs and mask
    [..., T]; returns [..., E] f32.
    """

    width: int
    vocab_size: int
    gate_hidden: int = 128

    if TYPE_CHECKING:  # Flax's annotations leave these open

        def apply(self, *args: Any, **kwargs: Any) -> Any: ...
        def __hash__(self) -> int: ...

    @nn.compact
    def __call__(self, states: Array, tokens: Array, logprobs: Array, mask: Array) -> Array:
        expected = jnp.stack([logprobs, jnp.exp(logprobs)], -1)
        known = jnp.concatenate([states[..., :-1, :], states[..., 1:, :], expected], -1)
        gate = nn.Dense(self.width, name="gate")(
            nn.gelu(nn.Dense(self.gate_hidden, name="gate_hidden")(known))
        )
        value = nn.Embed(self.vocab_size, self.width, name="value")(tokens)
        return jnp.sum(jax.nn.sigmoid(gate) * value * mask[..., None], -2).astype(jnp.float32)


class Extractor(Protocol):
    """The interface of a frozen backbone, which reads tokens or their text."""

    @property
    def feature_width(self) -> int:
        """E, the width of the features."""
        ...

    def __call__(self, texts: Sequence[str], prompts: Any, mask: Any, responses: Responses) -> Array:
        """Computes the features of M responses to each of B prompts.

        Args:
            texts: the B prompts.
            prompts: [B, L] int32, their tokens, left-padded.
            mask: [B, L] bool.
            responses: tokens [B, M, T].

        Returns:
            [B, M, E] f32.
        """
        ...


class Backbone(NamedTuple):
    """An `Extractor` that reads the policy's own tokens: modules and their parameters."""

    model: Decoder
    pooling: GatedPooling
    params: Params  # {"decoder", "pooling", "projection": [E', E], "mean": [E]}

    @property
    def feature_width(self) -> int:
        return self.params["projection"].shape[-1]

    def __call__(self, texts: Sequence[str], prompts: Any, mask: Any, responses: Responses) -> Array:
        """Computes features by `extract`, jitted; the texts are ignored."""
        del texts
        return extract_fn(self.model, self.pooling)(
            self.params, prompts, mask, responses.tokens, responses.mask
        )


@functools.cache
def extract_fn(model: Decoder, pooling: GatedPooling) -> Callable[..., Array]:
    """Returns `extract` jitted for a backbone."""
    return jax.jit(functools.partial(extract, model, pooling))


def pooled(model: Decoder, pooling: GatedPooling, params: Params, batch: Any) -> Array:
    """Computes z(x, y): batch (prompts [B, L], mask, tokens [B, M, T], mask) -> [B, M, E'] f32."""
    tokens, mask = batch[2:]
    states = response_states(model, params["decoder"], *batch)
    logprobs = next_logprobs(model, params["decoder"], states[..., :-1, :], tokens)
    return pooling.apply({"params": params["pooling"]}, states, tokens, logprobs, mask)


def extract(
    model: Decoder, pooling: GatedPooling, params: Params, prompts: Array, prompt_mask: Array,
    tokens: Array, mask: Array,
) -> Array:  # fmt: skip
    """Computes the features of B·M responses; a prompt is read once for its M responses.

    Args:
        model, pooling, params: of a Backbone.
        prompts: [B, L] int32, left-padded.
        prompt_mask: [B, L] bool.
        tokens: [B, M, T] int32.
        mask: [B, M, T] bool.

    Returns:
        [B, M, E] f32.
    """
    z = pooled(model, pooling, params, (prompts, prompt_mask, tokens, mask))
    return z @ params["projection"] - params["mean"]
