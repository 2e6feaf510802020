"""Describes the experiments of the paper that train a policy: methods × losses × seeds, figures and claims.

A `Grid` is data: which runs there are, what its figure shows, and what the paper says of them.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from launch.experiments.units import Unit


class Part(NamedTuple):
    """Runs that share a config.

    Attributes:
        name: of their folder.
        methods: rows of `METHODS`.
        dap: the preference loss.
        fields: of the config, by dotted name, at every scale.
        paper_fields: further ones at the paper's scale.
    """

    name: str
    methods: tuple[str, ...]
    dap: str = "dpo"
    fields: Mapping[str, Any] = {}
    paper_fields: Mapping[str, Any] = {}


class Line(NamedTuple):
    """The runs of a curve or bar: those of a method in a part."""

    part: str
    method: str
    label: str


class Panel(NamedTuple):
    """A panel of the figure.

    Attributes:
        kind: a row of `figure.KINDS`.
        title: above it.
        metric: of metrics.jsonl; of kind 'stages' the seconds of stages are shown.
        name: the metric's, for people.
        lines: those shown.
        x: 'queries', 'duels' (queries and duels of equal responses) or 'step' (gradient steps).
        levels: of kind 'levels': the queries to these are shown.
    """

    kind: str
    title: str
    metric: str
    name: str
    lines: tuple[Line, ...]
    x: str = "queries"
    levels: tuple[float, ...] = ()


class Claim(NamedTuple):
    """What the paper says of two lines: that one is ahead of the other in a metric.

    Attributes:
        said: the paper's statement.
        metric: of metrics.jsonl.
        ahead, behind: the lines, as (part, method).
        over: 'end': the last value; 'run': the mean of all after the first, which is higher for a line that
            learns with fewer labels.
    """

    said: str
    metric: str
    ahead: tuple[str, str]
    behind: tuple[str, str]
    over: str = "end"


MINI_FILE = "configs/mini_experiments.py"
FIRST_SEED = 120  # rewards that nobody has tuned on; settings are chosen on seeds 0 and 1


class Paper(NamedTuple):
    """The paper's models and data.

    Attributes:
        file: config file with options, in which {dap} stands for the preference loss.
        sizes: values of its option size; empty: it has none.
    """

    file: str
    sizes: tuple[str, ...] = ()


TLDR = Paper("configs/tldr.py:dap={dap}", ("1b", "2.8b", "6.9b"))
TLDR_1B = Paper("configs/tldr.py:dap={dap}", ("1b",))
ULTRAFEEDBACK = Paper("configs/ultrafeedback.py:model=llama3-8b")
ULTRAFEEDBACK_1B = Paper("configs/ultrafeedback.py:model=llama3.2-1b")


@dataclasses.dataclass(frozen=True)
class Grid:
    """An experiment as data.

    Attributes:
        about: what it shows, in one line.
        source: figure or table of the paper.
        parts: its runs; grids with equal parts share them.
        panels: of its figure.
        claims: of the paper.
        paper: the paper's models and data.
        seeds: runs of each method.
    """

    about: str
    source: str
    parts: tuple[Part, ...]
    panels: tuple[Panel, ...]
    claims: tuple[Claim, ...]
    paper: Paper
    seeds: int = 3

    @property
    def lines(self) -> tuple[Line, ...]:
        """Returns the lines of all panels, each once."""
        return tuple(dict.fromkeys(line for panel in self.panels for line in panel.lines))


def mini_unit(root: Path, part: Part, method: str, seed: int, tuned: Mapping[str, Any]) -> Unit:
    """Returns a run of the miniature with tuned settings."""
    folder = root / "mini" / part.name / f"{method}-seed{seed}"
    return Unit(folder, f"{MINI_FILE}:dap={part.dap}", method, seed, dict(tuned) | dict(part.fields))
