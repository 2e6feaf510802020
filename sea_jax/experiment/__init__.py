"""A whole experiment: assets, the runs of every method and seed, and the commands that train one model."""
