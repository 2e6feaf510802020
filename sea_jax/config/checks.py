"""Collects the problems of a config: one line each, with the field, its value and what is valid."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from typing import Any

from sea_jax.errors import InputError
from sea_jax.types import Config

_SHOWN = 200  # characters of a value in a problem


class Checks:
    """Collects every problem of a config, so that the user sees all of them at once.

    A field has at most one problem: the first. A check that reads several fields asks `sound` first, and is
    left out where one of them has a problem already.

    Args:
        config: the experiment's, or one method's.

    Attributes:
        problems: lines for people.
    """

    def __init__(self, config: Config):
        self.config = config
        self.problems: list[str] = []
        self._unsound: set[str] = set()
        self._overridden = ""  # 'overrides.<method>.' where the config is one method's

    def of_method(self, config: Config, method: str) -> "Checks":
        """Returns checks of one method's config that add to the same problems.

        A problem of a field that `config.overrides` sets names the override.
        """
        checks = Checks(config)
        checks.problems, checks._unsound = self.problems, self._unsound
        checks._overridden = f"overrides.{method}."
        return checks

    def has(self, name: str) -> bool:
        """Returns whether the config has the field, as 'policy.dtype'."""
        node = self.config
        for part in name.split("."):
            if not hasattr(node, "keys") or part not in node:
                return False
            node = node[part]
        return True

    def get(self, name: str) -> Any:
        """Returns the value of a field, as 'policy.dtype'."""
        return get(self.config, name)

    def sound(self, *names: str) -> bool:
        """Returns whether none of the fields has a problem; a section's name stands for all its fields."""
        wanted = {self._place(name) for name in names} | {*names}
        return not any(bad == name or bad.startswith(f"{name}.") for bad in self._unsound for name in wanted)

    def add(self, line: str, *names: str) -> None:
        """Adds a problem, and marks the fields that it is about."""
        self.problems.append(line)
        self._unsound.update(self._place(name) for name in names)

    def require(self, condition: bool, name: str, valid: str, value: Any = ...) -> None:
        """Adds a problem of a field unless the condition holds or the field has one already.

        Args:
            condition: what must hold.
            name: of the field, as 'policy.dtype'.
            valid: the valid values in words.
            value: shown; the field's by default.
        """
        if condition or not self.sound(name):
            return
        shown = self.get(name) if value is ... else value
        shown = shown.to_dict() if hasattr(shown, "to_dict") else shown
        self.add(f"config.{self._place(name)}={_short(shown)}: valid is {valid}", name)

    def one_of(self, name: str, valid: tuple[Any, ...]) -> None:
        """Adds a problem unless the field has one of the values."""
        if self.sound(name):
            self.require(self.get(name) in valid, name, f"one of {valid}")

    @contextlib.contextmanager
    def collecting(self, *names: str) -> Iterator[None]:
        """Adds the problems of an InputError that is raised within, as problems of the fields."""
        try:
            yield
        except InputError as error:
            for problem in error.problems:
                self.add(problem, *names)

    def raise_problems(self) -> None:
        """Raises InputError with all problems, if there are any."""
        if self.problems:
            raise InputError(*self.problems)

    def _place(self, name: str) -> str:
        """Returns the name under which the value of a field was given."""
        if self._overridden and self.has(f"{self._overridden}{name}"):
            return self._overridden + name
        return name


def get(config: Config, name: str) -> Any:
    """Returns the value of a field, as 'policy.dtype'."""
    for part in name.split("."):
        config = config[part]
    return config


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns '; nearest is …' with the known name that is most like one that is unknown; '' without one."""
    found = difflib.get_close_matches(name, sorted(known), 1)
    return f"; nearest is {found[0]}" if found else ""


def _short(value: Any) -> str:
    """Returns a value as Python writes it, at most 200 characters of it."""
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"


def flat(tree: dict, prefix: str = "", empty: bool = False) -> dict:
    """Flattens a tree: {'policy': {'dtype': …}} -> {'policy.dtype': …}; `empty` keeps empty trees."""
    out = {}
    for key, value in tree.items():
        if isinstance(value, dict) and (value or not empty):
            out |= flat(value, f"{prefix}{key}.", empty)
        else:
            out[prefix + key] = value
    return out
