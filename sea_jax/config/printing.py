"""Prints a config: every field with its value, its meaning, and its base value where they differ."""

from typing import Any

from sea_jax.config.checks import Checks, flat
from sea_jax.config.fields import Field, Section, declared
from sea_jax.credentials import redact
from sea_jax.types import Config


def describe(config: Config, sections: tuple[type[Section], ...]) -> str:
    """Returns a line for every field, grouped by section.

    A line is 'name = value   # meaning (valid values)'; one whose value is not the base config's begins with
    '*' and has '(base: value)'. Keys and tokens of the environment, and passwords of URLs, are not shown.

    Args:
        config: the config.
        sections: that it should have; their defaults are the base config.
    """
    groups = [_group(Checks(config), section) for section in sections]
    if overrides := flat(config.to_dict().get("overrides", {})):
        lines = [f"* overrides.{name} = {value!r}" for name, value in overrides.items()]
        groups.append("\n".join(["# overrides: fields that single methods have otherwise", *lines]))
    return redact("\n\n".join(groups))


def _group(checks: Checks, section: type[Section]) -> str:
    fields = [field for field in declared(section) if checks.has(field.name)]
    about = (section.__doc__ or "").partition("\n")[0]
    head = f"# {section.section_name}: {about}" if section.section_name else f"# {about}"
    settings = [_setting(field, checks.get(field.name)) for field in fields]
    width = max((len(setting) for setting in settings if len(setting) <= _WIDEST), default=0)
    notes = [_note(field) for field in fields]
    lines = [f"{setting:{width}}   # {note}" for setting, note in zip(settings, notes, strict=True)]
    return "\n".join([head, *lines])


_WIDEST = 60  # characters; a longer value does not move the comments of its section


def _setting(field: Field, value: Any) -> str:
    if value == field.default:
        return f"  {field.name} = {value!r}"
    return f"* {field.name} = {value!r} (base: {field.default!r})"


def _note(field: Field) -> str:
    rule = field.rule
    bounds = f"one of {', '.join(map(repr, rule.one_of))}" if rule.one_of else rule.bounds
    return f"{rule.meaning} ({bounds})" if bounds else rule.meaning
