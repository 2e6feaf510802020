"""The front for notebooks and scripts: `sea_jax.align`, and what it returns."""

from sea_jax.notebook.front import align
from sea_jax.notebook.result import AlignedRun, Labels

__all__ = ["AlignedRun", "Labels", "align"]
