"""The miniature, end to end on two CPU cores: task, SFT, backbone, then three methods with 256 labels each.

`make run` is `python -m sea_jax.main --config=configs/quickstart.py --workdir=runs/quickstart`.
`python -m sea_jax.main --config=configs/quickstart.py --print_config` prints every field with its meaning.
"""

from sea_jax.experiment.base_config import base_config
from sea_jax.types import Config


def get_config() -> Config:
    """Returns the base config with passive DPO, SEA and RLOO on the posterior, on few labels."""
    config = base_config()
    config.methods = ("passive", "sea", "posterior_rl")
    config.train.query_budget = 256
    config.eval.every_queries = 32
    return config
