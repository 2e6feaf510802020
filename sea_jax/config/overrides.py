"""Values that single methods have in place of the experiment's, as `overrides.passive.train.batch_size`."""

import functools
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from sea_jax.config.checks import Checks, flat
from sea_jax.config.fields import Field, invalid
from sea_jax.types import Config


def for_method(config: Config, method: str) -> Config:
    """Returns the config of one method: with the values that `config.overrides` has for it, if any."""
    overrides: Any = config.get("overrides", {})
    given = overrides.get(method, {})
    return ConfigDict(_merged(config.to_dict(), given.to_dict() if isinstance(given, ConfigDict) else given))


def with_fields(config: Config, fields: Mapping[str, Any]) -> Config:
    """Returns a config with other values of single fields.

    Args:
        config: stays as it is.
        fields: by name, as 'train.learning_rate'; that a name is known and a value valid is checked later.
    """
    values = config.to_dict()
    for name, value in fields.items():
        tree = functools.reduce(lambda below, part: {part: below}, reversed(name.split(".")), value)
        values = _merged(values, tree)
    return ConfigDict(values)


def _merged(base: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of a section with other values in place of some."""
    return base | {name: _in_place_of(base.get(name), value) for name, value in given.items()}


def _in_place_of(before: Any, value: Any) -> Any:
    """Merges sections; a whole number becomes a float, and a list a tuple, where the field is one."""
    if isinstance(before, dict) and isinstance(value, dict):
        return _merged(before, value)
    if isinstance(before, float) and type(value) is int:
        return float(value)
    return tuple(value) if isinstance(before, tuple) and isinstance(value, list) else value


def check_overrides(
    checks: Checks, methods: tuple[str, ...], sections: tuple[str, ...], fields: list[Field]
) -> None:
    """Adds problems of overrides: of an unknown method, of a field that methods share, of an invalid value.

    Args:
        checks: gets the problems.
        methods: all that are known.
        sections: names of those that single methods may have otherwise.
        fields: all that the config declares.
    """
    valid = {field.name: field for field in fields if field.name.split(".")[0] in sections}
    if not isinstance(checks.config.overrides, ConfigDict):
        checks.require(False, "overrides", "a ConfigDict of methods")
        return
    for method, given in checks.config.overrides.items():
        name = f"overrides.{method}"
        checks.require(method in methods, name, f"overrides of one of {methods}")
        checks.require(isinstance(given, ConfigDict), name, f"a ConfigDict of sections, of {sections}")
        if not isinstance(given, ConfigDict) or not checks.sound(name):
            continue
        for field, value in flat(given.to_dict()).items():
            place = f"{name}.{field}"
            checks.require(field in valid, place, f"a field of one of {sections}", value)
            if field in valid and (wrong := invalid(valid[field], value)):
                checks.require(False, place, wrong, value)
