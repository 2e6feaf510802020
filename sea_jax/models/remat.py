"""Rematerialisation policies: the residuals that a layer saves for the backward pass."""

from collections.abc import Callable
from typing import Any

import jax

# A layer's inputs are always saved, as the carry of the scan.
POLICIES: dict[str, Any] = {
    "none": jax.checkpoint_policies.everything_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def checkpointed(layer: Any, remat: str, wrap: Callable[..., Any] = jax.checkpoint) -> Any:
    """Wraps a scanned layer with a rematerialisation policy.

    Args:
        layer: a function, or a module's class where `wrap` is flax's `nn.remat`.
        remat: 'none' saves all residuals; 'full' saves the layer's input only and recomputes the layer;
            'dots' also saves the results of matrix products, 'dots_no_batch' those with weights but not
            those of attention, whose scores grow with the square of the length.
        wrap: applies the policy, `jax.checkpoint` or `nn.remat`.

    Raises:
        ValueError: on an unknown policy.
    """
    if remat not in POLICIES:
        raise ValueError(f"remat={remat!r}; valid: one of {sorted(POLICIES)}")
    if remat == "none":
        return layer
    # A scan's body cannot be merged with the forward pass by CSE; the barriers against it would only cost.
    return wrap(layer, prevent_cse=False, policy=POLICIES[remat])
