"""Reads what a report needs of configs that JSON holds. Imports no JAX."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sea_jax.errors import InputError
from sea_jax.json_files import read_object

_LEVELS = ("levels", "reference_levels", "reward_levels")
_NEWER_LEVELS = ("gain_levels",)  # a config of an older version has none
_VALID = "as the work directory's run wrote it"


def read_config(file: Path) -> ConfigDict:
    """Reads the methods and the levels of a work directory's config.json.

    Raises:
        InputError: naming the field that is absent or spoilt.
    """
    config = read_object(file, _VALID)
    methods = items(config, "methods", str, f"{file}")
    return ConfigDict(dict(methods=methods, eval=levels(config, f"{file}")))


def levels(config: Any, place: str) -> ConfigDict:
    """Returns the levels of a config's section `eval`.

    Args:
        config: as JSON holds it.
        place: of the config, for errors.

    Raises:
        InputError: as `read_config`.
    """
    section = config.get("eval") if isinstance(config, dict) else None
    if not isinstance(section, dict):
        raise InputError(f"{place}: eval={section!r:.60}; valid: {_VALID}")
    given = section | {name: section.get(name, []) for name in _NEWER_LEVELS}
    return ConfigDict({name: items(given, name, float, place) for name in (*_LEVELS, *_NEWER_LEVELS)})


def items(fields: dict[str, Any], name: str, kind: type, place: str) -> tuple[Any, ...]:
    """Returns a list of texts, whole numbers or finite numbers as a tuple.

    Raises:
        InputError: it is no such list.
    """
    value = fields.get(name)
    if not isinstance(value, list) or not all(_is_kind(kind, item) for item in value):
        raise InputError(f"{place}: {name}={value!r:.60}; valid: {_VALID}")
    return tuple(value)


def _is_kind(kind: type, value: Any) -> bool:
    if kind is float:
        return type(value) in (int, float) and -1e300 < value < 1e300
    return type(value) is kind and (kind is not int or 0 <= value < 2**31)
