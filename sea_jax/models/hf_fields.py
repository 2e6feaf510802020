"""Reads the fields of a config.json of Hugging Face's, and says which values are valid."""

from collections.abc import Sequence
from typing import Any

# More than any model has; a damaged number would make more names than memory holds.
MOST_LAYERS = 10_000


def size(hf: dict[str, Any], name: str, default: int | None = None, most: int = 2**31 - 1) -> int:
    """Reads a positive whole number; one with a default may be absent or null.

    Raises:
        ValueError: naming the field, its value and what is valid, as all functions here.
    """
    value = default if hf.get(name) is None else hf[name]
    if type(value) is not int or not 1 <= value <= most:  # a bool is no size
        given = f"{name}={value!r:.60}" if name in hf else f"no {name}"
        valid = "at least 1" if (value if type(value) is int else 0) < 1 else f"at most {most}"
        raise ValueError(f"{given}; valid: {name}, a whole number of {valid}")
    return value


def token(hf: dict[str, Any], name: str, default: int | None) -> int | None:
    """Reads the id of a token, or null."""
    value = hf.get(name, default)
    if value is not None and (type(value) is not int or not -1 <= value < 2**31):
        raise ValueError(f"{name}={value!r:.60}; valid: a token or null")
    return value


def number(hf: dict[str, Any], name: str, default: float, above: float = 0.0, at_most: float = 3e38) -> float:
    """Reads a number above `above`."""
    value = hf.get(name, default)
    if type(value) not in (int, float) or not above < value <= at_most:
        valid = f"a number above {above:g}" + (f" and at most {at_most:g}" if at_most < 3e38 else "")
        raise ValueError(f"{name}={value!r:.60}; valid: {valid}")
    return float(value)


def flag(hf: dict[str, Any], name: str, default: bool) -> bool:
    """Reads true or false; null is the default."""
    value = default if hf.get(name) is None else hf[name]
    if type(value) is not bool:
        raise ValueError(f"{name}={value!r:.60}; valid: true or false")
    return value


def choice(hf: dict[str, Any], name: str, default: str, valid: Sequence[str]) -> str:
    """Reads one of some texts."""
    value = hf.get(name, default)
    if value not in list(valid):  # a list, as a value may be one that cannot be hashed
        raise ValueError(f"{name}={value!r:.60}; valid: one of {sorted(valid)}")
    return value


def table(hf: dict[str, Any], name: str) -> dict[str, Any]:
    """Reads an object of further fields; one that is absent, null or empty has none."""
    value = hf.get(name) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{name}={value!r:.60}; valid: an object, or null")
    return value
