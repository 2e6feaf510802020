"""Reads the metrics of finished runs and writes tables and figures."""

from sea_jax.report.report import write, write_sweep

__all__ = ["write", "write_sweep"]
