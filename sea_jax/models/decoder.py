"""The decoder-only language model: embedding, scanned blocks of an architecture, head."""

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
            # Cast before slicing, since slices are copies; the modules would cast later, to the same bits.
            stack = cast_matrices(self.variables["params"]["layers"], cfg.dtype, "layers/")
            before, last = (jax.tree.map(lambda p, part=part: p[part], stack) for part in (slice(-1), -1))
            x, cache = jax.lax.scan(checkpointed(layer, cfg.remat), x, before, unroll=self.unroll)
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
        hidden, (keys, values) = self.layers(
            self.embed(tokens),
            positions,
            mask,
            None if prefix is None else prefix.mask,
            None if prefix is None else (prefix.keys, prefix.values),
        )
        return self.final_norm(hidden), keys, values

    def embed_tokens(self, tokens: Array) -> Array:
        """Embeds tokens: [...] int32 -> [..., W]."""
        return self.embed(tokens)

    def read_out(self, hidden: Array) -> Array:
        """Computes logits [..., V] f32 from the output [..., W] of the last layer, before the final norm."""
        return self.logits(self.final_norm(hidden))

    def logits(self, hidden: Array) -> Array:
        """Computes logits [..., V] f32 from hidden states [..., W], after the final norm."""
        head = self.embed.attend if self.config.tied else self.head
        return head(hidden).astype(jnp.float32)
