"""Fields of a config, declared on dataclasses: default, meaning and valid values stand in one place.

    @dataclasses.dataclass(frozen=True)
    class Xpo(Section):
        section_name = "xpo"
        alpha: float = field(5e-6, "weight of the optimism term (Eq. 19)", at_least=0)

`to_config` makes an `ml_collections.ConfigDict` of a section, and `invalid` says why a value cannot be one of
a field's.
"""

import dataclasses
import math
import typing
from typing import Any, ClassVar

from ml_collections import ConfigDict

from sea_jax.config.checks import Checks
from sea_jax.types import Config

_WORDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}
LARGEST_INT = 2**31 - 1  # of 32 bits
_FLOATS = (1.2e-38, 3.4e38)  # the sizes of normal numbers of float32
_PLURALS = {int: "whole numbers", float: "numbers", str: "texts"}


class Section:
    """Base of the dataclasses that declare the fields of one section.

    Attributes:
        section_name: of the section in a config; empty for fields of the config itself.
    """

    section_name: ClassVar[str]

    @classmethod
    def check(cls, checks: Checks) -> None:
        """Adds problems between fields of the section and others; single fields are checked by `invalid`."""

    @classmethod
    def check_on_task(cls, checks: Checks, num_prompts: int) -> None:
        """Adds problems between fields of the section and a task of `num_prompts` train prompts."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """The meaning of a field, and its valid values.

    Attributes:
        meaning: one line, with the unit.
        at_least, above, at_most: bounds of a number, or of each number of a tuple.
        one_of: the valid values; empty: no such list.
        infinite: whether infinity is valid.
    """

    meaning: str
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    one_of: tuple[Any, ...] = ()
    infinite: bool = False

    def holds(self, value: Any) -> bool:
        """Returns whether a value of the right type is valid."""
        if isinstance(value, tuple | list):
            return all(map(self.holds, value))
        if isinstance(value, float) and not (math.isfinite(value) or (self.infinite and value == math.inf)):
            return False
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (not self.one_of or value in self.one_of)
        )

    @property
    def bounds(self) -> str:
        """The valid values in words; empty if there is no bound."""
        if self.one_of:
            return f"one of {self.one_of}"
        if self.at_most is not None:
            low = f"({self.above:g}" if self.at_least is None else f"[{self.at_least:g}"
            return f"in {low}, {self.at_most:g}]"
        if self.above is not None:
            return f"above {self.above:g}"
        return "" if self.at_least is None else f"at least {self.at_least:g}"


def field(
    default: Any,
    meaning: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    one_of: tuple[Any, ...] = (),
    infinite: bool = False,
) -> Any:
    """Declares a field of a section; the arguments after `default` are those of `Rule`."""
    rule = Rule(meaning, at_least, above, at_most, one_of, infinite)
    return dataclasses.field(default=default, metadata={"rule": rule})


class Field(typing.NamedTuple):
    """A declared field.

    Attributes:
        name: with its section, as 'train.beta'.
        kind: its type, as float or tuple[int, ...].
        default: its value in the base config.
        rule: its meaning and valid values.
    """

    name: str
    kind: Any
    default: Any
    rule: Rule


def declared(section: type[Section]) -> list[Field]:
    """Returns the fields of a section, in the order of their declaration."""
    kinds = typing.get_type_hints(section)
    prefix = f"{section.section_name}." if section.section_name else ""
    fields = dataclasses.fields(typing.cast(Any, section))
    return [Field(prefix + f.name, kinds[f.name], f.default, f.metadata["rule"]) for f in fields]


def to_config(section: Section) -> Config:
    """Returns the values of a section as a ConfigDict."""
    fields = dataclasses.fields(typing.cast(Any, section))
    return ConfigDict({f.name: getattr(section, f.name) for f in fields})


def invalid(field: Field, value: Any) -> str | None:
    """Returns the valid values in words if `value` is none of them, None if it is one."""
    typed = _has_type(field.kind, value)
    if typed and (limit := _beyond_limits(value)):
        return limit
    if typed and field.rule.holds(value):
        return None
    if field.rule.one_of:
        return field.rule.bounds
    infinite = isinstance(value, float) and not math.isfinite(value)
    return _described(field, short=typed and not infinite, finite=infinite and not field.rule.infinite)


def _beyond_limits(value: Any) -> str | None:
    """Returns the valid values in words where no program here can hold a value, else None.

    JAX computes with 32 bits: a larger seed would be another one, and a smaller rate 0.
    """
    if isinstance(value, tuple | list):
        return next(filter(None, map(_beyond_limits, value)), None)
    if isinstance(value, str):
        whole = "\0" not in value and value.encode("utf-8", "replace").decode() == value
        return None if whole else "a text of UTF-8 without NUL"
    if isinstance(value, int) and not -LARGEST_INT - 1 <= value <= LARGEST_INT:
        return f"a number of at most {LARGEST_INT} (32 bits)"
    if isinstance(value, float) and math.isfinite(value) and value:
        small, large = _FLOATS
        return (
            None if small <= abs(value) <= large else f"a number of float32, in size {small:g} to {large:g}"
        )
    return None


def _described(field: Field, short: bool, finite: bool) -> str:
    """Describes the type and bounds of a field; if `short`, only the bounds of a whole number."""
    bounds, items = field.rule.bounds, typing.get_args(field.kind)
    words = f"a tuple of {_PLURALS[items[0]]}" if items else _WORDS[field.kind]
    if short and not items and (field.kind is int or field.rule.at_most is not None):
        return bounds
    if finite:
        words = words.replace("number", "finite number")
    joint = " of " if bounds.startswith("at least") else " "
    return f"{words}{joint}{bounds}" if bounds else words


def _has_type(kind: Any, value: Any) -> bool:
    if items := typing.get_args(kind):
        return isinstance(value, tuple | list) and all(_has_type(items[0], item) for item in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def check_values(checks: Checks, fields: list[Field]) -> None:
    """Adds a problem for every field that is absent, or whose value is invalid by itself.

    Args:
        checks: gets the problems.
        fields: all that the config declares, but for its overrides.
    """
    for field in fields:
        if not checks.has(field.name):
            checks.add(f"config.{field.name}: absent; valid: {field.default!r}, its default", field.name)
        elif valid := invalid(field, checks.get(field.name)):
            checks.require(False, field.name, valid)
