"""The comparison on fresh hidden rewards: passive DPO, SEA, SEA without synthetic pairs, the ceiling.

Oracle seeds 100-104, each with its own policy seed, and held-out prompts; every setting was chosen on
oracle seeds 0 and 1 and tuning prompts (docs/benchmarks.md lists the runs). Passive
with the others' batch, rate and schedule turned out stronger early on: see there. Without SFT and
backbone, about 24 minutes as two processes of two methods and one core each:
`python -m sea_jax.main --config=configs/sample_efficiency.py --workdir=runs/sample_efficiency`
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    """The quickstart's settings for the active methods; passive with what tuning chose for it."""
    config = quickstart.get_config()
    config.methods = ("passive", "sea", "sea_oracle_only", "ceiling")
    config.seed = config.task.oracle_seed = 100
    config.num_seeds = 5
    config.eval.reward_levels = (5.5, 6.0, 6.5, 7.0, 7.25)
    # Twice the queries, so that the levels which the others end at are within its reach.
    config.overrides.passive = ConfigDict(
        dict(train=dict(batch_size=32, learning_rate=1e-3, schedule="constant", query_budget=2048))
    )
    return config
