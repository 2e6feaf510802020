"""The paper's experiments on the miniature. `python -m launch.experiment --name=fig3` runs them with it.

A call of `sea_jax.main` with this config makes one run of them, with the settings before tuning:
`python -m sea_jax.main --config=configs/mini_experiments.py:dap=ipo --workdir=runs/one`
"""

from sea_jax.config.options import parse_options
from sea_jax.experiment.base_config import base_config
from sea_jax.types import Config

BETA = dict(dpo=0.1, slic=0.2, ipo=0.3, simpo=2.0)  # App. F.1, but for SimPO's


def get_config(options: str = "") -> Config:
    """Returns the first miniature with 384 labels, evaluated every 64.

    Args:
        options: the preference loss, as dap=ipo; dpo where left out.

    Raises:
        ValueError: on an unknown option.
    """
    chosen = dict(dap="dpo") | parse_options(options, dap=tuple(BETA))
    config = base_config()
    config.methods = ("passive",)
    config.num_seeds = 1
    config.progress = False
    config.train.dap = chosen["dap"]
    config.train.beta = BETA[chosen["dap"]]
    config.train.query_budget = 384
    config.train.learning_rate = 4e-4
    config.eval.every_queries = 64
    config.eval.num_prompts = 200
    config.eval.batch_size = 200
    config.eval.regret = True
    config.eval.kl_samples = 1
    return config
