"""Lists, exports, verifies and imports labels.

python -m sea_jax.labels list runs/a                          # how many, by whom, when, at what cost
python -m sea_jax.labels export runs/a --output labels.jsonl  # or .csv, .parquet; without it to the terminal
python -m sea_jax.labels verify runs/a                        # finds damage; exit status 1 if there is some
python -m sea_jax.labels import runs/b labels.jsonl           # runs of runs/b use these before they buy any
python -m sea_jax.labels export runs/c --open --format=csv    # the questions that people have not answered
python -m sea_jax.labels import runs/c answers.csv            # their answers
python -m sea_jax.labels export runs/c --verdicts             # every answer: who, when, how long
python -m sea_jax.labels agreement runs/c                     # of the people who labelled

The folder is that of a run, or a work directory with several; of `import` it is a work directory, new or not.
A journal may be read while its run writes.
"""

import argparse
import contextlib
import csv
import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from sea_jax.config.flags import fail
from sea_jax.errors import InputError, StorageError
from sea_jax.labels import imports, reading
from sea_jax.labels import question_files as files
from sea_jax.labels.agreement import cohen_kappa, krippendorff_alpha
from sea_jax.labels.desk import Desk
from sea_jax.labels.question_tables import FILE as QUESTIONS
from sea_jax.labels.questions import COLUMNS, Questions
from sea_jax.runtime.owner import own

_BATCH = 10_000  # rows in memory at once


def main() -> None:
    """Runs one of the commands; a mistake in its arguments is one line and exit status 2."""
    arguments = _parser().parse_args()
    commands = {"list": _list, "export": _export, "verify": _verify}
    try:
        if arguments.command == "import":
            sys.exit(_import(arguments))
        if arguments.command == "agreement":
            sys.exit(_agreement(arguments.folder))
        if arguments.command == "export" and (arguments.open or arguments.format):
            sys.exit(_export_open(arguments))
        if arguments.command == "export" and arguments.verdicts:
            sys.exit(_export_verdicts(arguments))
        sys.exit(commands[arguments.command](reading.journals(arguments.folder), arguments))
    except (InputError, StorageError) as error:
        fail(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sea_jax.labels", description="Labels that runs bought.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (
        ("list", "count the labels"),
        ("export", "write the labels"),
        ("verify", "find damage"),
        ("agreement", "measure how far annotators agree"),
        ("import", "add labels that runs use before they buy any"),
    ):
        command = commands.add_parser(name, help=what)
        command.add_argument("folder", type=Path, help="a run's folder, or a work directory of runs")
        if name == "import":
            command.add_argument(
                "source",
                type=Path,
                help="a file .jsonl, .csv or .parquet, a run's folder or a work directory",
            )
        if name == "export":
            command.add_argument("--output", type=Path, help="a file that ends in .jsonl, .csv or .parquet")
            command.add_argument(
                "--open", action="store_true", help="the questions that people have not answered"
            )
            command.add_argument("--verdicts", action="store_true", help="every answer of people")
            command.add_argument("--format", choices=files.FORMATS, help="of the questions; default: jsonl")
    return parser


def _list(journals: list[Path], arguments: argparse.Namespace) -> int:
    del arguments
    names = ("run", "labels", "imported", "unanswered", "waiting", "cost in $", "last answer", "labelled by")
    dollars = lambda cost: "" if cost is None else f"{cost:.4f}"  # noqa: E731
    rows = [
        (s.run, s.labels, s.imported, s.unanswered, s.waiting, dollars(s.cost), s.last, s.labelled_by)
        for s in map(reading.summary, journals)
    ]  # fmt: skip
    table = [names, *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _import(arguments: argparse.Namespace) -> int:
    folder: Path = arguments.folder
    if (folder / "metrics.jsonl").exists():
        raise InputError(f"{folder}: the folder of a single run; valid: a work directory")
    if not arguments.source.exists():
        raise InputError(f"{arguments.source}: no such file or folder")
    answers = None if arguments.source.is_dir() else files.read(arguments.source)
    if answers is not None:
        return _import_answers(folder, answers)
    folder.mkdir(parents=True, exist_ok=True)
    with own(folder), imports.open_imported(folder) as journal:
        added, known = imports.add(journal, imports.read(arguments.source))
    print(f"{folder}: {added} labels imported, {known} were there already")
    return 0


def _import_answers(folder: Path, answers: list[files.Answered]) -> int:
    """Writes answers to the questions of a work directory; also while a run waits for them."""
    with Desk(_with_questions(folder)) as desk:
        asked = {question.id: question for question in desk.asked()}
        added, known = desk.add(files.verdicts(answers, asked))
        print(
            f"{folder}: {added} answers, {known} were there already; {desk.counts().open} questions are open"
        )
    return 0


def _export_open(arguments: argparse.Namespace) -> int:
    """Writes the open questions of a work directory in the format of a tool."""
    if not arguments.open:
        raise InputError("--format: valid with --open")
    with Questions(_with_questions(arguments.folder)) as questions:
        found = questions.asked(only_open=True)
    output: Path | None = arguments.output
    form = arguments.format or "jsonl"
    if output is None:
        files.write(found, form, sys.stdout)
        return 0
    with _writable(output) as file:
        files.write(found, form, file)
    print(f"{output}: {len(found)} questions", file=sys.stderr)
    return 0


def _export_verdicts(arguments: argparse.Namespace) -> int:
    """Writes every answer of people as jsonl, or csv where --output says so."""
    with Questions(_with_questions(arguments.folder)) as questions:
        rows, output = questions.verdicts(), arguments.output
        if output is None:
            _write_jsonl(rows, sys.stdout)
            return 0
        if output.suffix not in (".jsonl", ".csv"):
            raise InputError(f"--output: {output}; valid with --verdicts: a file that ends in .jsonl or .csv")
        with _writable(output) as file:
            if output.suffix == ".csv":
                _write_csv(rows, file, COLUMNS)
            else:
                _write_jsonl(rows, file)
    return 0


def _agreement(folder: Path) -> int:
    """Prints Krippendorff's α of all annotators, and Cohen's κ of every two."""
    with Questions(_with_questions(folder)) as questions:
        votes = questions.votes()
    number = lambda value: f"{value:.3f}" if value == value else "unknown"  # noqa: E731
    asked = Counter(question for question, _, _ in votes)
    shared, people = sum(n > 1 for n in asked.values()), {name for _, name, _ in votes}
    alpha = number(krippendorff_alpha(votes))
    print(f"{len(votes)} answers to {len(asked)} questions by {len(people)} annotators")
    print(f"Krippendorff's alpha: {alpha}, of {shared} questions with several answers")
    for (first, second), (kappa, n) in cohen_kappa(votes).items():
        print(f"Cohen's kappa of {first} and {second}: {number(kappa)}, of {n} questions")
    return 0


def _with_questions(folder: Path) -> Path:
    if not (folder / QUESTIONS).exists():
        raise InputError(f"{folder}: holds no {QUESTIONS}; valid: the --workdir of runs that ask people")
    return folder


@contextlib.contextmanager
def _writable(output: Path) -> Iterator[TextIO]:
    """Opens the file of --output; an error of the disk is one line."""
    try:
        with open(output, "w", encoding="utf-8", newline="") as file:
            yield file
    except OSError as error:
        raise StorageError(f"--output: {output}: {error.strerror}") from error


def _verify(journals: list[Path], arguments: argparse.Namespace) -> int:
    del arguments
    found = [line for file in journals for line in reading.faults(file)]
    for line in found:
        print(line)
    total = sum(reading.summary(file).labels for file in journals)
    print(f"{len(journals)} journals, {total} labels, {len(found)} faults")
    return 1 if found else 0


def _export(journals: list[Path], arguments: argparse.Namespace) -> int:
    rows = (row for file in journals for row in reading.labels(file))
    output: Path | None = arguments.output
    if output is None:
        _write_jsonl(rows, sys.stdout)
        return 0
    writers = {".jsonl": _write_jsonl, ".csv": _write_csv}
    if output.suffix not in (*writers, ".parquet"):
        raise InputError(f"--output: {output}; valid: a file that ends in .jsonl, .csv or .parquet")
    if output.suffix == ".parquet":
        try:
            _write_parquet(rows, output)
        except OSError as error:
            raise StorageError(f"--output: {output}: {error.strerror}") from error
        return 0
    with _writable(output) as file:
        writers[output.suffix](rows, file)
    return 0


def _write_jsonl(rows: Iterable[dict[str, Any]], file: TextIO) -> None:
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_csv(
    rows: Iterable[dict[str, Any]], file: TextIO, columns: tuple[str, ...] = reading.COLUMNS
) -> None:
    writer = csv.DictWriter(file, [str(name) for name in columns])
    writer.writeheader()
    writer.writerows(rows)


def _write_parquet(rows: Iterator[dict[str, Any]], file: Path) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError("--output: .parquet needs pyarrow; valid: pip install 'sea_jax[data]'") from None
    kinds = {
        "step": pyarrow.int64(), "row": pyarrow.int64(), "policy_step": pyarrow.int64(),
        "times_asked": pyarrow.int64(), "first_tokens": pyarrow.list_(pyarrow.int32()),
        "second_tokens": pyarrow.list_(pyarrow.int32()), "probability": pyarrow.float64(),
        "cost": pyarrow.float64(), "seconds": pyarrow.float64(),
    }  # fmt: skip
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in reading.COLUMNS])
    with parquet.ParquetWriter(file, schema) as writer:
        while batch := list(itertools.islice(rows, _BATCH)):
            writer.write_table(pyarrow.Table.from_pylist(batch, schema))


if __name__ == "__main__":
    main()
