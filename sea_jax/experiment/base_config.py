"""The base config that every config file begins from: sections of sea_jax/config and those of methods."""

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


def sections_of(config: Config) -> tuple[type[Section], ...]:
    """Returns the sections that a config should have; of real text with the fields of `TextTask`."""
    found = (*base.SECTIONS, *methods.SECTIONS)
    task = config.get("task")
    if not isinstance(task, ConfigDict) or "path" not in task:
        return found
    return tuple(TextTask if section is Task else section for section in found)
