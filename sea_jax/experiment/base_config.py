"""The configs that others begin from: sections of sea_jax/config and those of methods."""

from ml_collections import ConfigDict

from sea_jax import methods
from sea_jax.config import sections as base
from sea_jax.config.fields import Section, to_config
from sea_jax.config.task import Task, TextTask
from sea_jax.types import Config


def base_config() -> Config:
    """Returns a config with all fields at their defaults: the miniature, end to end on two CPU cores.

    `overrides` holds fields of train, ensemble and sea that single methods have otherwise, as
    overrides.passive.train.batch_size; by default none.
    """
    config: Config = ConfigDict()
    for section in (*base.SECTIONS, *methods.SECTIONS):
        if section.section_name:
            config[section.section_name] = to_config(section())
        else:
            config.update(to_config(section()))
    config.overrides = ConfigDict()
    return config


def text_config(task: TextTask) -> Config:
    """Returns a config of real text on a small machine: a posterior over the policy's own hidden states.

    The settings were chosen for SmolLM2-135M on film reviews (docs/benchmarks.md); another policy may want
    another learning rate. Policy and oracle are yet to be named.
    """
    config = base_config()
    config.task = to_config(task)
    # The states of the middle layer tell reviews apart after few labels (docs/benchmarks.md).
    config.backbone.update(kind="policy", pool="both", num_prompts=64, num_responses=8)
    config.ensemble.update(kind="linear", prior="random")
    config.train.update(query_budget=256, temperature=1.0, learning_rate=2e-4, warmup_queries=16)
    config.sea.update(num_responses=8, burn_in=64)
    config.rloo.update(num_prompts=4, num_responses=8, pool_factor=2, learning_rate=1e-4, kl_weight=0.1)
    config.rloo.update(burst_labels=(16, 32), burst_updates=(16, 32), updates_per_label=1.0, max_kl=8.0)
    config.overrides.passive = ConfigDict(dict(train=dict(learning_rate=1e-4)))
    config.overrides.posterior_rl = ConfigDict(dict(sea=dict(num_responses=4)))
    config.eval.update(num_prompts=64, batch_size=64, num_pairs=64, online="no")
    config.eval.reward_levels = ()
    return config


def sections_of(config: Config) -> tuple[type[Section], ...]:
    """Returns the sections that a config should have; of real text with the fields of `TextTask`."""
    found = (*base.SECTIONS, *methods.SECTIONS)
    task = config.get("task")
    if not isinstance(task, ConfigDict) or "path" not in task:
        return found
    return tuple(TextTask if section is Task else section for section in found)
