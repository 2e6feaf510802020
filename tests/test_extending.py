"""Executes the code blocks of docs/extending.md, so that the examples stay true."""

import re

import pytest
from helpers import ROOT

from launch.experiments import EXPERIMENTS
from launch.experiments.rows import GRIDS
from sea_jax.ensemble.selection import STRATEGIES
from sea_jax.losses.dap import DAP_LOSSES
from sea_jax.methods import METHODS
from sea_jax.models.convert import ARCHITECTURES, CLASSES
from sea_jax.tasks.registry import TASKS

TABLES = (STRATEGIES, DAP_LOSSES, METHODS, ARCHITECTURES, CLASSES, TASKS, GRIDS, EXPERIMENTS)
TEXT = (ROOT / "docs/extending.md").read_text()
BLOCKS = re.findall(r"<!-- test: (\w+) -->\n\n```python\n(.*?)```", TEXT, re.DOTALL)
EXAMPLES = ("loss", "strategy", "method", "oracle", "model", "task", "metric", "command", "experiment")


@pytest.fixture(autouse=True)
def tables():
    """Takes the rows that an example adds out of the tables again."""
    before = [dict(table) for table in TABLES]
    yield
    for table, rows in zip(TABLES, before, strict=True):
        table.clear()
        table.update(rows)


def test_every_block_is_marked():
    assert len(BLOCKS) == TEXT.count("```python") and {name for name, _ in BLOCKS} == set(EXAMPLES)


@pytest.mark.parametrize("example", EXAMPLES)
def test_example(example):
    """Runs an example's blocks one after the other in one namespace; they hold their own assertions."""
    code = "\n".join(block for name, block in BLOCKS if name == example)
    assert "assert " in code
    exec(compile(code, f"docs/extending.md: {example}", "exec"), {"__name__": "example"})
