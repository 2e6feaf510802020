"""Reads the metrics of finished runs and writes tables and figures; imports no JAX."""

from sea_jax.report.report import write, write_sweep, write_workdirs

__all__ = ["write", "write_sweep", "write_workdirs"]
