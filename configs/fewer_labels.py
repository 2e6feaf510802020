"""The comparison on fresh rewards of the harder miniature: who needs how many labels.

Oracle seeds 110-119, each with its own policy seed, and held-out prompts. The settings of `posterior_rl` and
passive were chosen on oracle seeds 0-4 and tuning prompts, those of SEA on the first miniature
(docs/benchmarks.md). The baselines' second learning rate needs a work directory of its own; so does every
ablation, which runs on the tuning seeds:
`python -m sea_jax.main --config=configs/fewer_labels.py --workdir=runs/fewer`
`python -m sea_jax.main --config=configs/fewer_labels.py:slower --workdir=runs/slower`
`python -m sea_jax.report runs/fewer runs/slower`
"""

from ml_collections import ConfigDict

from sea_jax.errors import InputError
from sea_jax.experiment.base_config import base_config
from sea_jax.types import Config

METHODS = (
    "passive", "passive_replay", "sea", "sea_oracle_only", "posterior_rl", "posterior_rl_random",
    "perfect_rl", "ceiling",
)  # fmt: skip

BASELINES = ("passive", "sea")  # at half the learning rate with kind `slower`
BUDGETS = {  # labels; passive has 768
    "passive_replay": 512, "sea": 512, "sea_oracle_only": 512, "ceiling": 512,
    "posterior_rl": 512, "posterior_rl_random": 256, "perfect_rl": 128,
}  # fmt: skip

# One change each to `posterior_rl`, on the tuning seeds and prompts.
ABLATIONS = {
    "default": {},
    "flips_10": {"oracle.flip_probability": 0.1},
    "flips_20": {"oracle.flip_probability": 0.2},
    "bernoulli": {"oracle.labels": "bernoulli"},
    "isotropic_prior": {"ensemble.prior": "random", "ensemble.prior_scale": 1.0},
    "other_family": {"task.name": "mini_tldr_v2_register", "backbone.family": "mini_tldr_v2"},
    "mlp_posterior": {"ensemble.kind": "mlp", "ensemble.prior_scale": 1.0},
    "half_updates": {"rloo.burst_updates": (20, 30, 40, 60, 80), "rloo.updates_per_label": 1.5},
    "double_updates": {"rloo.burst_updates": (80, 120, 160, 240, 320), "rloo.updates_per_label": 6.0},
}


def get_config(kind: str = "") -> Config:
    """Returns the config of the comparison.

    Args:
        kind: empty; 'slower': `BASELINES` at half the learning rate; or a row of `ABLATIONS`: `posterior_rl`
            alone with these fields.
    """
    config = base_config()
    config.task.name = "mini_tldr_v2"
    config.sft.steps = 8000
    # Samples at temperature 1.3 name wrong concepts now and then, as does a policy that a reward led astray.
    config.backbone.update(
        num_prompts=10_000, num_rewards=384, steps=2000, pooled_width=256, width=192, temperature=1.3
    )
    config.seed = config.task.oracle_seed = 110
    config.num_seeds = 10
    config.train.update(query_budget=768, learning_rate=8e-4)
    config.rloo.update(kl_weight=0.1, kl_half_labels=1024.0)
    config.rloo.update(updates_per_label=3.0)
    config.rloo.update(burst_labels=(16, 24, 32, 48, 64), burst_updates=(40, 60, 80, 120, 160))
    config.eval.every_queries = 16
    # The starting policy has 1.6 to 5.0 under these rewards, so gains are compared.
    config.eval.reward_levels, config.eval.gain_levels = (), (1.0, 1.5, 2.0, 2.5)
    config.methods = METHODS
    for method, budget in BUDGETS.items():
        config.overrides[method] = ConfigDict(dict(train=dict(query_budget=budget)))
    config.overrides.passive_replay.train.learning_rate = 1e-4  # its updates are seven times as many
    for method in ("posterior_rl", "posterior_rl_random"):
        config.overrides[method].ensemble = ConfigDict(dict(prior_scale=3.0))
    return _of_kind(config, kind) if kind else config


def _of_kind(config: Config, kind: str) -> Config:
    if kind == "slower":
        config.methods, config.train.learning_rate = BASELINES, 4e-4
        return config
    if kind not in ABLATIONS:
        raise InputError(f"kind {kind!r}: valid is one of {('slower', *ABLATIONS)}")
    config.methods, config.seed, config.num_seeds = ("posterior_rl",), 0, 5
    config.task.oracle_seed, config.eval.split = 0, "tuning"
    config.train.query_budget = 256
    config.ensemble.update(config.overrides.posterior_rl.ensemble)
    config.overrides = ConfigDict()
    config.update_from_flattened_dict(ABLATIONS[kind])
    return config
