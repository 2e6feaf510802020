"""Sample-efficient alignment of language models in JAX.

`sea_jax.align` runs a whole alignment from a notebook or a script; it is imported when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sea_jax.notebook import AlignedRun, align

__version__ = "0.1.0"
__all__ = ["AlignedRun", "align"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sea_jax import notebook  # imports JAX, which takes seconds

    return getattr(notebook, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
