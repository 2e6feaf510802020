"""What every check of a config is made of: one line that names the field, its value and what is valid."""

from typing import Any

from sea_jax import models
from sea_jax.errors import InputError
from sea_jax.types import Config


def require(condition: bool, name: str, value: object, valid: str) -> None:
    """Raises InputError unless the condition holds of the field `name`, as 'policy.dtype'."""
    if not condition:
        raise InputError(f"config.{name}={value!r}: valid is {valid}")


def one_of(config: Config, name: str, valid: tuple[str, ...]) -> None:
    """Raises InputError unless the field has one of the values."""
    require(get(config, name) in valid, name, get(config, name), f"one of {valid}")


def at_least(config: Config, least: int, *names: str) -> None:
    """Raises InputError at the first of the fields that is less."""
    for name in names:
        require(get(config, name) >= least, name, get(config, name), f"at least {least}")


def get(config: Config, name: str) -> Any:
    """The value of a field, as 'policy.dtype'."""
    for part in name.split("."):
        config = config[part]
    return config


def flat(tree: dict, prefix: str = "") -> dict:
    """{'policy': {'dtype': …}} -> {'policy.dtype': …}."""
    out = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value
    return out


def read_model(field: str, folder: str) -> Any:
    """The shape of a model, of which only config.json is read; an InputError names the field."""
    try:
        return models.read_config(models.find(folder))
    except InputError as error:
        raise InputError(f"config.{field}={folder!r}: {error}") from None
