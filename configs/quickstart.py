"""The miniature, end to end on two CPU cores: task, SFT, backbone, then three methods on a few labels each.

`make run` is `python -m sea_jax.main --config=configs/quickstart.py --workdir=runs/quickstart`.
`python -m sea_jax.main --config=configs/quickstart.py --print_config` prints every field with its meaning.
"""

from ml_collections import ConfigDict

from sea_jax.experiment.base_config import base_config
from sea_jax.types import Config


def get_config() -> Config:
    """Returns the base config with passive DPO, SEA and RLOO on the posterior, on one seed.

    The last has half of the others' labels, since each of its labels costs more time: it has learned most of
    what there is to learn by then.
    """
    config = base_config()
    config.methods = ("passive", "sea", "posterior_rl")
    config.num_seeds = 1
    config.train.query_budget = 256
    config.overrides.posterior_rl = ConfigDict(dict(train=dict(query_budget=128)))
    config.eval.every_queries = 32
    return config
