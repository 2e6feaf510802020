"""Floating-point operations of a traced program: of its matrix products, with what remat computes again."""

import math
from collections.abc import Callable
from typing import Any

from jax.extend import core


def count(jaxpr: Any, while_turns: int = 1, cost: Callable[[Any], float] = lambda dtype: 1.0) -> float:
    """Operations of one execution on all devices together, two for each multiply-add.

    Args:
        jaxpr: of a trace; a closed one or not.
        while_turns: how often the body of a loop runs whose end depends on data; of the sampler's, the most.
        cost: of one operation, by the dtype of its operands; as 1 over the peak, to get seconds.

    A branch counts as its dearest. Element-wise work is left out: it is bound by memory, not by arithmetic.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return sum(_equation(eqn, while_turns, cost) for eqn in jaxpr.eqns)


def _equation(eqn: Any, while_turns: int, cost: Callable[[Any], float]) -> float:
    name, inner = eqn.primitive.name, [count(j, while_turns, cost) for j in _jaxprs(eqn.params)]
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        lhs = eqn.invars[0].aval
        products = math.prod(eqn.outvars[0].aval.shape) * math.prod(lhs.shape[i] for i in contracted)
        return 2.0 * products * cost(lhs.dtype)
    if name == "conv_general_dilated":
        rhs = eqn.invars[1].aval
        out_features = rhs.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
        products = math.prod(eqn.outvars[0].aval.shape) * math.prod(rhs.shape) / out_features
        return 2.0 * products * cost(rhs.dtype)
    if name == "scan":
        return eqn.params["length"] * sum(inner)
    if name == "while":
        return while_turns * sum(inner)
    if name == "cond":
        return max(inner)
    if name == "shard_map":  # inside, shapes are one device's along the axes that it takes over
        return sum(inner) * math.prod(
            eqn.params["mesh"].shape[axis] for axis in eqn.params["newly_manual_axes"]
        )
    return sum(inner)


def _jaxprs(params: dict[str, Any]) -> list[Any]:
    found = []
    for value in params.values():
        parts = value if isinstance(value, list | tuple) else [value]
        found += [part for part in parts if isinstance(part, core.Jaxpr | core.ClosedJaxpr)]
    return found
