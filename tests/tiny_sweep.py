"""The quickstart in seconds, in two sizes; a config file for sweeps."""

from ml_collections import ConfigDict

from sea_jax.config.options import parse_options
from sea_jax.experiment.base_config import base_config


def get_config(options: str = "") -> ConfigDict:
    """Options as in configs/tldr.py: size and dap."""
    chosen = parse_options(options, size=("16", "24"), dap=("dpo", "ipo"))
    width = int(chosen.get("size", "16"))
    config = base_config()
    config.policy.update(dict(num_layers=1, width=width, num_heads=2, mlp_width=width))
    config.sft.update(dict(steps=2, batch_size=4))
    config.backbone.update(
        dict(num_prompts=8, num_responses=2, num_rewards=4, steps=2, batch_size=4, pooled_width=4, width=4)
    )
    config.prior_heads.update(dict(num_heads=2, steps=2, batch_size=4))
    config.train.update(dict(batch_size=4, query_budget=16, dap=chosen.get("dap", "dpo")))
    config.ensemble.update(dict(num_members=2, hidden=(4,), batch_size=4, steps=1))
    config.sea.update(dict(num_responses=3, burn_in=8))
    config.eval.update(dict(num_prompts=4, batch_size=4, num_pairs=4, every_queries=8, num_samples=1))
    return config
