"""Lists the warnings of the watches of runs."""

from collections.abc import Iterable
from pathlib import Path

from sea_jax.runtime.run_folder import method_and_seed, read_warnings


def lines(folders: Iterable[Path], where: str = "") -> list[str]:
    """Returns a line for every warning: run, labels bought, watch, and its value in words.

    Args:
        folders: of the runs.
        where: follows the method's name, as '@folder'.
    """
    found = []
    for folder in folders:
        method, seed = method_and_seed(folder)
        for alarm in read_warnings(folder):
            run = f"{method}{where} seed {seed}, {alarm['queries']} labels"
            found.append(f"{run}: watch {alarm['watch']}: {alarm['said']}")
    return found


def block(found: list[str]) -> str:
    """Returns the lines under a heading; '' without any."""
    return "\n".join([f"WARNINGS: {len(found)}", *found]) if found else ""
