"""What the backward pass keeps of a layer, and what it computes again."""

from collections.abc import Callable
from typing import Any

import jax

# Of the layer's inputs nothing is ever computed again: they are what a scan carries.
POLICIES: dict[str, Any] = {
    "none": jax.checkpoint_policies.everything_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def checkpointed(layer: Any, remat: str, wrap: Callable[..., Any] = jax.checkpoint) -> Any:
    """A scanned layer under a policy.

    Args:
        layer: a function, or a module's class where `wrap` is flax's `nn.remat`.
        remat: 'none' keeps all that the backward pass reads, 'full' the layer's input alone and computes
            the layer once more; 'dots' also keeps the results of matrix products, 'dots_no_batch' those
            with weights but not attention's, whose scores grow with the square of the length.
        wrap: what applies a policy to it.

    Raises:
        ValueError: on another name.
    """
    if remat not in POLICIES:
        raise ValueError(f"remat={remat!r}; valid: one of {sorted(POLICIES)}")
    if remat == "none":
        return layer
    # Inside a scan nothing can be merged with the forward pass's; the barriers would only cost.
    return wrap(layer, prevent_cse=False, policy=POLICIES[remat])
