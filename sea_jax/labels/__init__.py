"""Labels that were bought: the journal of a run, and the command `python -m sea_jax.labels`."""
