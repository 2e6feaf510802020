"""The comparison on fresh hidden rewards: passive DPO, SEA, SEA without synthetic pairs, the ceiling.

Oracle seeds 105-109, each with its own policy seed, and held-out prompts; every setting was chosen on
oracle seeds 0-2 and tuning prompts (docs/benchmarks.md lists the runs; seeds 100-104 were used by an earlier
comparison). Passive has two further settings, in work directories of their own: `:control` is SEA's, and
`:batch16` was as good as its own in tuning. Without SFT and backbone, about an hour on two CPU cores:
`python -m sea_jax.main --config=configs/sample_efficiency.py --workdir=runs/sample_efficiency`
`python -m sea_jax.main --config=configs/sample_efficiency.py:control --workdir=runs/control`
`python -m sea_jax.report runs/sample_efficiency runs/control`
"""

from ml_collections import ConfigDict

from sea_jax.experiment.base_config import base_config
from sea_jax.types import Config

PASSIVE = {
    "control": {},  # as SEA
    "batch16": dict(batch_size=16, learning_rate=1e-3, schedule="cosine"),
}


def get_config(kind: str = "") -> Config:
    """Returns a config with batches of 4 and constant learning rates, unless `kind` has others.

    Args:
        kind: empty, or a row of `PASSIVE`: passive alone with these fields of `train`.
    """
    config = base_config()
    config.seed = config.task.oracle_seed = 105
    config.num_seeds = 5
    config.train.learning_rate = 4e-4
    config.eval.every_queries = 64
    config.eval.reward_levels = (5.5, 6.0, 6.5, 7.0, 7.5)
    if kind:
        config.methods = ("passive",)
        config.train.update(PASSIVE[kind])
        return config
    config.methods = ("passive", "sea", "sea_oracle_only", "ceiling")
    # Twice the queries, so that the levels which the others end at are within its reach.
    config.overrides.passive = ConfigDict(dict(train=dict(learning_rate=2.5e-4, query_budget=2048)))
    return config
