"""Prints the report of work directories or of a sweep, and writes it there.

    python -m sea_jax.report runs/quickstart
    python -m sea_jax.report runs/sample_efficiency runs/control    # the second's runs beside the first's
    python -m sea_jax.report runs/sweep-tldr                        # a whole sweep, a part for each size

A table names a run by its method, and one of another folder by method and folder.
"""

import sys
from pathlib import Path

from sea_jax.errors import InputError
from sea_jax.report.configs import read_config
from sea_jax.report.report import write_sweep, write_workdirs
from sea_jax.report.sweep import FILE

USAGE = f"""usage: python -m sea_jax.report <work directory with a config.json> [<another> …]
       python -m sea_jax.report <root of one sweep, with a {FILE}>"""


def main(folders: list[Path]) -> str:
    """Writes the report of a sweep, or of all finished runs of work directories.

    Raises:
        SystemExit: with one line, where the folders are no such folders.
    """
    try:
        if len(folders) == 1 and (folders[0] / FILE).exists():
            return write_sweep(folders[0])
        if not folders or not all((folder / "config.json").exists() for folder in folders):
            raise SystemExit(USAGE)
        return write_workdirs(folders, read_config(folders[0] / "config.json"))
    except InputError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    print(main([Path(name) for name in sys.argv[1:]]))
