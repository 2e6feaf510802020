"""Counts the floating-point operations of a traced program's matrix products, including recomputation."""

import math
from collections.abc import Callable
from typing import Any

from jax.extend import core


def count(jaxpr: Any, while_turns: int = 1, cost: Callable[[Any], float] = lambda dtype: 1.0) -> float:
    """Counts the operations of one execution on all devices together; a multiply-add is two operations.

    A conditional counts as its most expensive branch. Element-wise operations are not counted: they are
    bound by memory bandwidth, not by arithmetic.

    Args:
        jaxpr: the jaxpr of a trace, closed or not.
        while_turns: iterations assumed of a loop whose end depends on data; for the sampler, the maximum.
        cost: maps the dtype of the operands to the cost of one operation; 1 / peak gives seconds.
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
    if name == "shard_map":  # shapes inside are per device along the manual axes
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
