"""Lets runs ask people: opens the questions of a work directory, and serves the page."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from sea_jax.config.people import PEOPLE_KINDS
from sea_jax.labels.questions import Questions
from sea_jax.people import server
from sea_jax.people.oracle import PeopleOracle
from sea_jax.types import Config

# (a method's config, a run's folder) -> who labels its duels; None: the oracle that evaluates.
LabellerOf = Callable[[Config, Path], PeopleOracle | None]


@contextlib.contextmanager
def people(config: Config, workdir: Path, partial: bool = False) -> Iterator[LabellerOf]:
    """Opens the questions of a work directory while runs ask them.

    Args:
        config: the experiment's. With oracle.kind='people' the page is served meanwhile.
        workdir: of the runs.
        partial: with oracle.kind='inbox': as `PeopleOracle`.

    Yields:
        A function that makes the oracle of a run; it returns None where no people are asked.

    Raises:
        InputError, ServiceError: as `server.PageServer`, or the questions are damaged.
    """
    if config.oracle.kind not in PEOPLE_KINDS:
        yield lambda own_config, folder: None
        return
    with contextlib.ExitStack() as files:
        questions = files.enter_context(Questions(workdir, config.people.undo_s))
        watch = None
        if config.oracle.kind == "people":
            watch = files.enter_context(server.page(config, workdir)).watch
        yield lambda own_config, folder: PeopleOracle(questions, folder.name, own_config, watch, partial)
