"""The decoder-only language model: embedding, scanned blocks of an architecture, head."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sea_jax.models.layers import Prefix
from sea_jax.models.params import cast_matrices
from sea_jax.models.remat import checkpointed
from sea_jax.types import Array, Config, Params


class Decoder(nn.Module):
    """Maps tokens to hidden states and logits.

    `config` is an architecture's config (e.g. `pythia.PythiaConfig`) and names the block, so that a new
    architecture needs one file and no change here. The layers are one scanned block, whose compile time does
    not grow with depth; only `generate` unrolls them.
    """

    config: Config
    gather: Any = None  # a sharding.Gather, where the parameters are sharded
    norm_last: bool = True  # False: hidden states are the residual stream before the final norm

    if TYPE_CHECKING:  # Flax's annotations leave these open

        def apply(self, *args: Any, **kwargs: Any) -> Any: ...
        def __hash__(self) -> int: ...

    def setup(self):
        cfg = self.config
        self.embed = nn.Embed(cfg.vocab_size, cfg.width, dtype=cfg.dtype, param_dtype=jnp.float32)
        block = cfg.block
        if self.gather is not None and not self.is_initializing():
            layer = self.gather.layer
            block = nn.map_variables(block, "params", lambda v: {"params": layer(v["params"])})
        self.layers = nn.scan(
            checkpointed(block, cfg.remat, nn.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, 0),  # pyright: ignore[reportArgumentType]
            length=cfg.num_layers,
            unroll=self.unroll,
        )(cfg)
        self.final_norm = cfg.norm() if self.norm_last else lambda x: x
        if not cfg.tied:
            self.head = nn.Dense(cfg.vocab_size, use_bias=False, dtype=cfg.dtype, param_dtype=jnp.float32)

    def __call__(self, tokens: Array, mask: Array | None = None) -> Array:
        """Computes the logits of whole sequences.

        Args:
            tokens: [B, L] int32.
            mask: [B, L] bool, False on padding (left, right or both); None means no padding.

        Returns:
            [B, L, V] f32.
        """
        if mask is None:
            mask = jnp.ones(tokens.shape, bool)
        hidden, _, _ = self.encode(tokens[:, None], mask[:, None])
        return self.logits(hidden[:, 0])

    def prefill(
        self, tokens: Array, mask: Array, layers: Sequence[Params] | None = None
    ) -> tuple[Array, Prefix]:
        """Reads prompts once; the last layer computes only the cache and the last token's state.

        Args:
            tokens: [B, L] int32, left-padded.
            mask: [B, L] bool.
            layers: each layer's parameters, unstacked; None: scans over the stacked ones.

        Returns:
            hidden state of each prompt's last token [B, W], and the cache its responses share.
        """
        cfg = self.config
        block: Any = cfg.block(cfg, parent=None)  # the scanned one's weights, without its scan
        inputs = (self.positions(mask[:, None]), mask[:, None], None, None)

        gathered = self.gather.layer if self.gather is not None and layers is None else lambda params: params

        def layer(x: Array, params: Params) -> tuple[Array, tuple[Array, Array]]:
            return block.apply({"params": gathered(params)}, x, *inputs)

        x, caches = self.embed(tokens[:, None]), []
        if layers is not None:
            for params in layers[:-1]:
                x, cache = layer(x, params)
                caches.append(jax.tree.map(lambda c: c[None], cache))
            last = layers[-1]
        else:
            before, last = (jax.tree.map(lambda p, i=i: p[i], self._stack()) for i in (slice(-1), -1))
            x, cache = self._scan(layer, x, before)
            caches.append(cache)
        x, ends = block.apply({"params": gathered(last)}, x, *inputs, last_only=True)
        caches.append(jax.tree.map(lambda c: c[None], ends))
        # [N, B, 1, L, H_kv, D] -> the layouts of Prefix
        keys, values = (jnp.concatenate(parts)[:, :, 0] for parts in zip(*caches, strict=True))
        keys, values = keys.transpose(0, 1, 3, 4, 2), values.transpose(0, 1, 3, 2, 4)
        return self.final_norm(x)[:, 0, 0], Prefix(keys, values, mask)

    def gather_shared(self, params: Params) -> Params:
        """Gathers embedding, final norm and head on every device; the identity without `gather`."""
        return params if self.gather is None else self.gather.gather_shared(params)

    @property
    def unroll(self) -> int:
        """Layers in one iteration of a scan: all, if there are at most 4."""
        return self.config.num_layers if self.config.num_layers <= 4 else 1

    @property
    def freezes(self) -> bool:
        """True if only the last layers and the final norm learn."""
        return self.config.trained_layers > 0

    def _stack(self) -> Params:
        """Returns the stacked layers, cast before slicing, since slices are copies.

        The modules would cast later, to the same bits.
        """
        return cast_matrices(self.variables["params"]["layers"], self.config.dtype, "layers/")

    def _scan(self, layer: Any, x: Array, stacked: Any) -> tuple[Array, Any]:
        """Scans `layer` over stacked inputs, from the first layer on.

        The backward pass ends at the first layer that learns. Stopped gradients within a single scan would
        not spare the layers below.
        """
        scan = functools.partial(jax.lax.scan, checkpointed(layer, self.config.remat), unroll=self.unroll)
        if not self.freezes:
            return scan(x, stacked)
        split = self.config.num_layers - self.config.trained_layers
        below, above = (
            jax.tree.map(lambda p, i=i: p[i], stacked) for i in (slice(split), slice(split, None))
        )
        x, low = scan(*jax.lax.stop_gradient((x, below)))
        x, high = scan(jax.lax.stop_gradient(x), above)
        return x, jax.tree.map(lambda *parts: jnp.concatenate(parts), low, high)

    def positions(self, mask: Array) -> Array:
        """Counts tokens after left padding: mask [..., T] bool -> positions [..., T] int32."""
        return jnp.maximum(jnp.cumsum(mask, -1) - 1, 0)

    def encode(self, tokens: Array, mask: Array, prefix: Prefix | None = None) -> tuple[Array, Array, Array]:
        """Computes hidden states of responses after their shared prompt, or of whole sequences.

        Args:
            tokens: [B, M, T] int32.
            mask: [B, M, T] bool; left padding only where there is no prefix.
            prefix: cache of the prompts; None for whole sequences.

        Returns:
            hidden [B, M, T, W] after the final norm; the new keys and values [N, B, M, T, H_kv, D].
        """
        positions = self.positions(mask)
        if prefix is not None:
            positions += prefix.mask.sum(-1)[:, None, None]
        inputs = (positions, mask, None if prefix is None else prefix.mask)
        past = None if prefix is None else (prefix.keys, prefix.values)
        if not self.freezes or self.is_initializing():
            hidden, (keys, values) = self.layers(self.embed(tokens), *inputs, past)
            return self.final_norm(hidden), keys, values
        block: Any = self.config.block(self.config, parent=None)  # the scanned one's weights
        gathered = self.gather.layer if self.gather is not None else lambda params: params

        def layer(x: Array, of_layer: Any) -> tuple[Array, Any]:
            params, past = of_layer
            return block.apply({"params": gathered(params)}, x, *inputs, past)

        hidden, (keys, values) = self._scan(layer, self.embed(tokens), (self._stack(), past))
        return self.final_norm(hidden), keys, values

    def embed_tokens(self, tokens: Array) -> Array:
        """Embeds tokens: [...] int32 -> [..., W]."""
        return self.embed(tokens)

    def read_out(self, hidden: Array) -> Array:
        """Computes logits [..., V] f32 from the output [..., W] of the last layer, before the final norm."""
        return self.logits(self.final_norm(hidden))

    def logits(self, hidden: Array) -> Array:
        """Computes logits [..., V] f32 from hidden states [..., W], after the final norm."""
        name = "embed" if self.config.tied else "head"
        if self.freezes and not self.is_initializing():  # the head is among what is not trained
            head: Any = getattr(self, name).clone(parent=None)
            params = jax.lax.stop_gradient(self.variables["params"][name])
            method = "attend" if self.config.tied else None
            return head.apply({"params": params}, hidden, method=method).astype(jnp.float32)
        head = self.embed.attend if self.config.tied else self.head
        return head(hidden).astype(jnp.float32)
