"""Runs an experiment: its figure, its table, and what it says, in words.

    python -m launch.experiment --name=regret
    python -m launch.experiment --name=regret --seeds=100 --folder=runs/short

The folder gets `figure.png`, `report.txt` and `data.csv`.
"""

import argparse
from pathlib import Path

from launch.experiments import EXPERIMENTS
from sea_jax.errors import InputError


def main(arguments: list[str] | None = None) -> None:
    """Runs the experiment that the command line names, and prints its report.

    Raises:
        SystemExit: with one line, where an argument is not valid or the folder cannot be written.
    """
    about = "\n".join(f"  {name}: {row.about} ({row.source})" for name, row in EXPERIMENTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m launch.experiment", description=f"Runs an experiment:\n{about}",
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--name", required=True, choices=list(EXPERIMENTS))
    parser.add_argument("--seeds", type=int, help="number of seeds, at least 2; default: the experiment's")
    parser.add_argument("--folder", type=Path, help="what is written; default: runs/experiments/<name>")
    options = parser.parse_args(arguments)
    row = EXPERIMENTS[options.name]
    seeds = row.seeds if options.seeds is None else options.seeds
    if seeds < 2:
        parser.error(f"--seeds={seeds}: valid is at least 2")
    folder = options.folder or Path("runs/experiments") / options.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = row.run(folder, seeds)
        (folder / "report.txt").write_text(text)
    except InputError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"{folder}: {error.strerror}")
    print(f"{text}\nfigure: {folder / 'figure.png'}")


if __name__ == "__main__":
    main()
