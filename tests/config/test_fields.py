"""What a field declares: type, default, meaning, and the words for values that are not valid."""

import ast
import dataclasses
import math

import pytest
from helpers import ROOT

from sea_jax.config.checks import Checks
from sea_jax.config.fields import Section, check_values, declared, field, invalid, to_config


@dataclasses.dataclass(frozen=True)
class Example(Section):
    """One field of every kind."""

    section_name = "example"
    count: int = field(2, "pairs", at_least=1)
    rate: float = field(0.5, "per query", above=0)
    weight: float = field(0.0, "of the penalty", at_least=0)
    share: float = field(1.0, "of the duels", above=0, at_most=1)
    norm: float = field(1.0, "largest norm", above=0, infinite=True)
    kind: str = field("a", "which", one_of=("a", "b"))
    folder: str = field("", "where")
    on: bool = field(True, "whether")
    widths: tuple[int, ...] = field((3, 4), "of layers", at_least=1)


FIELDS = {each.name: each for each in declared(Example)}


def test_declared():
    assert list(FIELDS) == [f"example.{f.name}" for f in dataclasses.fields(Example)]
    assert FIELDS["example.count"][1:3] == (int, 2) and FIELDS["example.count"].rule.meaning == "pairs"
    assert to_config(Example(rate=0.1)).to_dict() == {
        "count": 2, "rate": 0.1, "weight": 0.0, "share": 1.0, "norm": 1.0, "kind": "a", "folder": "",
        "on": True, "widths": (3, 4),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("count", 1), ("rate", 1), ("rate", 1e-9), ("weight", 0), ("share", 1), ("norm", math.inf),
        ("kind", "b"), ("folder", "x"), ("on", False), ("widths", ()), ("widths", [1]),
    ],
)  # fmt: skip
def test_valid(name, value):
    assert invalid(FIELDS[f"example.{name}"], value) is None


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("count", 0, "at least 1"),
        ("count", "2", "a whole number of at least 1"),
        ("count", 2.0, "a whole number of at least 1"),
        ("count", True, "a whole number of at least 1"),
        ("count", None, "a whole number of at least 1"),
        ("rate", 0.0, "a number above 0"),
        ("rate", "fast", "a number above 0"),
        ("rate", True, "a number above 0"),
        ("rate", math.nan, "a finite number above 0"),
        ("rate", math.inf, "a finite number above 0"),
        ("weight", -1.0, "a number of at least 0"),
        ("share", 0.0, "in (0, 1]"),
        ("share", 1.5, "in (0, 1]"),
        ("share", "half", "a number in (0, 1]"),
        ("norm", math.nan, "a number above 0"),
        ("norm", -math.inf, "a number above 0"),
        ("kind", "c", "one of ('a', 'b')"),
        ("kind", 1, "one of ('a', 'b')"),
        ("folder", 1, "a text"),
        ("folder", "a\0", "a text of UTF-8 without NUL"),
        ("folder", "\ud800", "a text of UTF-8 without NUL"),
        ("count", 2**31, "a number of at most 2147483647 (32 bits)"),
        ("widths", (3, 2**31), "a number of at most 2147483647 (32 bits)"),
        ("rate", 1e-45, "a number of float32, in size 1.2e-38 to 3.4e+38"),
        ("rate", 1e300, "a number of float32, in size 1.2e-38 to 3.4e+38"),
        ("on", 1, "True or False"),
        ("widths", (3, 0), "a tuple of whole numbers of at least 1"),
        ("widths", (3, 1.5), "a tuple of whole numbers of at least 1"),
        ("widths", 3, "a tuple of whole numbers of at least 1"),
    ],
)
def test_invalid(name, value, said):
    assert invalid(FIELDS[f"example.{name}"], value) == said


def test_an_absent_field_is_named():
    config = to_config(Example())
    del config.rate
    checks = Checks({"example": config})
    check_values(checks, list(FIELDS.values()))
    assert checks.problems == ["config.example.rate: absent; valid: 0.5, its default"]


def test_the_config_is_a_bottom_layer():
    """Rooms that import the config are not imported by it, so that no circle can come about."""
    allowed = {"config", "errors", "types", "credentials", "losses", "models", "tasks"}
    for file in (ROOT / "sea_jax/config").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("sea_jax"):
                room = str(node.module).split(".")[1:2] or [alias.name for alias in node.names]
                assert {*room} <= allowed, (file.name, room)
