"""Work directories: one config each, whose runs share trained parts and a report."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from sea_jax.config.checks import flat
from sea_jax.errors import InputError
from sea_jax.experiment.base_config import base_config
from sea_jax.json_files import read_object
from sea_jax.runtime.mesh import is_main
from sea_jax.types import Config

# The address of an oracle, how long it is waited for and what it may cost do not change its labels.
_ORACLE_FIELDS = (
    "url", "timeout_s", "patience_s", "attempts", "in_flight", "request_size", "requests_per_minute",
    "max_calls", "max_usd",
)  # fmt: skip
# Nor do the page's address, its guideline and how long a duel or a verdict is kept for an annotator.
_PAGE_FIELDS = ("host", "port", "guideline", "lease_s", "undo_s", "skips", "requests_per_s")
_BUDGET = "train.query_budget"  # also at the end of the names of its overrides
# Sections of which a later call may change every field: the bounds of watches, and what users of a chat see.
_FREE_SECTIONS = re.compile(r"(overrides\.[^.]+\.)?(watch|serve)\.")
# Further fields that a later call on the same work directory may change: they add runs, and alter no number
# of any.
FREE_FIELDS = (
    "methods", "num_seeds", "cache_dir", "progress", "checkpoint.every_s", "checkpoint.keep",
    "checkpoint.best", "checkpoint.grace_s",
    *(f"oracle.{name}" for name in _ORACLE_FIELDS), *(f"people.{name}" for name in _PAGE_FIELDS),
)  # fmt: skip


def require_writable(name: str, folder: Path) -> None:
    """Makes a folder; raises InputError, naming the option that it came from, where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{name}: {folder}: {error.strerror}; valid: a folder that can be written") from None


def claim_workdir(config: Config, folder: Path, extend: bool = False) -> None:
    """Writes the config into a fresh work directory; refuses one that holds another config.

    Args:
        config: of this call.
        folder: the work directory; until a run has begun there, a function that failed may be mended.
        extend: allows other budgets of labels.

    Raises:
        InputError: naming the first field that differs, or a file that is no config.
    """
    mine = json.loads(config.to_json())
    file = folder / "config.json"
    free = () if (folder / "runs").exists() else ("oracle.function",)
    if file.exists() and (found := difference(mine, _read_config(file), extend, free)):
        name, here, there = found
        raise InputError(
            f"workdir {folder}: holds runs with {name}={there!r}, not {here!r}; "
            f"valid: that config{_hint(name)}, or another --workdir"
        )
    require_writable("--workdir", folder)
    if is_main():
        # Whole or not at all: the processes of other hosts may be reading it.
        part = folder / "config.json.part"
        part.write_text(json.dumps(mine, indent=2) + "\n")
        part.replace(file)


def _hint(name: str) -> str:
    return ", --extend" if name.endswith(_BUDGET) else ""


def difference(
    mine: dict, theirs: dict, extend: bool = False, free: tuple[str, ...] = ()
) -> tuple[str, Any, Any] | None:
    """Returns name, mine and theirs of the first field that differs and is not free to; None without one.

    Args:
        mine, theirs: configs, as JSON holds them. A field that an older version of the package did not know
            had what is its default now.
        extend: budgets are free.
        free: further fields that are.
    """
    here, there, defaults = flat(mine), flat(theirs), flat(json.loads(base_config().to_json()))
    for name in sorted((here.keys() | there.keys()) - {*FREE_FIELDS, *free}):
        if _FREE_SECTIONS.match(name) or (extend and name.endswith(_BUDGET)):
            continue
        values = here.get(name, "(absent)"), there.get(name, defaults.get(name, "(absent)"))
        if values[0] != values[1]:
            return name, *values
    return None


def _read_config(file: Path) -> dict:
    try:
        return read_object(file, "a run's")
    except InputError as error:
        raise InputError(
            f"workdir {file.parent}: its config.json is no run's ({error}); valid: another --workdir"
        ) from None
