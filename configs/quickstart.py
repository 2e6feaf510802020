"""The miniature, end to end on two CPU cores: task, SFT, backbone, then every method on every seed.

`make run` is `python -m sea_jax.main --config=configs/quickstart.py --workdir=runs/quickstart`.
`python -m sea_jax.main --config=configs/quickstart.py --print_config` prints every field with its meaning.
"""

from sea_jax.experiment.base_config import base_config
from sea_jax.types import Config


def get_config() -> Config:
    """Returns the base config; override any field with --config.<field>=<value>."""
    return base_config()
