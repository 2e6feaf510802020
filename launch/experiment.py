"""Runs an experiment of the paper: its figure, its table, and where it agrees with the paper, in words.

    python -m launch.experiment --name=regret
    python -m launch.experiment --name=fig3                          # the whole grid on the miniature
    python -m launch.experiment --name=fig3 --dry_run                # the commands of its runs
    python -m launch.experiment --name=fig1 --scale=paper --dry_run  # commands, labels and device-hours

`<root>/<name>` gets `figure.png`, `report.txt` and `data.csv`. A call that was stopped goes on, and
experiments share the runs that they have in common.
"""

import argparse
from pathlib import Path

from launch.experiments import EXPERIMENTS, SCALES, Options
from sea_jax.errors import InputError


def main(arguments: list[str] | None = None) -> None:
    """Runs the experiment that the command line names, and prints its report.

    Raises:
        SystemExit: with one line, where an argument is not valid, a run failed or a folder cannot be written.
    """
    parser = _parser()
    given = parser.parse_args(arguments)
    for name, least in (("seeds", 2), ("parallel", 1)):
        value = getattr(given, name)
        if value is not None and value < least:
            parser.error(f"--{name}={value}: valid is at least {least}")
    options = Options(given.root, given.seeds, given.scale, given.parallel, given.topology)
    row, folder = EXPERIMENTS[given.name], given.root / given.name
    try:
        if given.dry_run:
            print(row.plan(options))
            return
        folder.mkdir(parents=True, exist_ok=True)
        text = row.run(options)
        (folder / "report.txt").write_text(text)
    except InputError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")  # without the usage: the command was right
    except OSError as error:
        parser.error(f"{error.filename or folder}: {error.strerror}")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted; the same command goes on with what has not finished\n")
    figure = folder / "figure.png"
    print(text + (f"\nfigure: {figure}" if figure.exists() else ""))


def _parser() -> argparse.ArgumentParser:
    about = "\n".join(f"  {name}: {row.about} ({row.source})" for name, row in EXPERIMENTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m launch.experiment", description=f"Runs an experiment:\n{about}",
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    default = Options()
    parser.add_argument("--name", required=True, choices=list(EXPERIMENTS))
    parser.add_argument("--seeds", type=int, help="of each method, at least 2; default: the experiment's")
    parser.add_argument("--root", type=Path, default=default.root, help="of results; default: %(default)s")
    about = (
        "mini: on this machine; paper: the paper's models and data, through XManager; default: %(default)s"
    )
    parser.add_argument("--scale", choices=SCALES, default=default.scale, help=about)
    about = "mini: runs at a time; default: the processors, %(default)s"
    parser.add_argument("--parallel", type=int, default=default.parallel, help=about)
    about = "paper: devices of a run, for the device-hours of --dry_run; '': none; default: %(default)s"
    parser.add_argument("--topology", default=default.topology, help=about)
    parser.add_argument("--dry_run", action="store_true", help="say what would run, and run nothing")
    return parser


if __name__ == "__main__":
    main()
