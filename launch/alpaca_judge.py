"""Annotates outputs by a judge: each answer is on the disk before the next one is waited for."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from launch import alpaca_files
from launch.alpaca_files import Row
from sea_jax import json_files
from sea_jax.errors import InputError, StorageError
from sea_jax.oracles.judge import Judge

_KEY = ("instruction", "output_1", "output_2", "annotator")


class Annotator(NamedTuple):
    """A judge, and where its annotations go."""

    judge: Judge
    name: str  # of the model, its endpoint and the seed of the order of outputs
    file: Path  # annotations.json; annotations.jsonl beside it has each answer as it came


def folder_of(outputs: Path, model: str) -> Path:
    """Returns the folder of a judge's annotations, beside the outputs, as AlpacaEval's package has it."""
    return outputs.parent / re.sub(r"[^\w.-]+", "_", model)


def comparisons(outputs: Sequence[Row], references: Sequence[Row], file: Path, annotator: str) -> list[Row]:
    """Pairs each output with the baseline's for the same instruction; returns annotations without preference.

    Args:
        outputs: of the model; output_2.
        references: of the baseline; output_1.
        file: of the references, for the error.
        annotator: the judge's name.

    Raises:
        InputError: the baseline has no output for an instruction.
    """
    baseline, rows = {row["instruction"]: row for row in references}, []
    for output in outputs:
        if (reference := baseline.get(output["instruction"])) is None:
            valid = "outputs for all of --prompts"
            raise InputError(f"{file}: no instruction={output['instruction']!r:.60}; valid are {valid}")
        row = {name: output[name] for name in ("instruction", "dataset") if name in output}
        row |= dict(output_1=reference["output"], generator_1=reference["generator"])
        row |= dict(output_2=output["output"], generator_2=output["generator"], annotator=annotator)
        rows.append(row)
    return rows


def waiting(rows: Sequence[Row], file: Path) -> list[Row]:
    """Returns the comparisons that the journal of an annotations file has no answer to."""
    bought = _bought(file)
    return [row for row in rows if _key(row) not in bought]


def annotate(rows: Sequence[Row], annotator: Annotator) -> list[Row]:
    """Asks the judge about the comparisons that have no answer yet, and writes all annotations.

    The order of the two outputs is drawn per comparison, as in AlpacaEval's package: a judge's liking for a
    position cancels in the mean, at half the price of asking in both orders.

    Args:
        rows: see `comparisons`.
        annotator: see `Annotator`.

    Returns:
        The annotations, with preference 1 + P(output_2 ≻ output_1); None where no reply could be read, and
        the next call asks again.

    Raises:
        ServiceError: the judge does not answer; the answers that came are kept.
        StorageError: the disk did not take an answer.
    """
    todo, journal = waiting(rows, annotator.file), _journal(annotator.file)
    if todo:

        def arrived(rows: Sequence[int], probability: np.ndarray, by: Sequence[str] = ()) -> None:
            del by
            values = zip(rows, probability.tolist(), strict=True)
            _append(journal, [todo[at] | {"preference": 1 + p} for at, p in values if p == p])

        columns = ([row[name] for row in todo] for name in ("instruction", "output_2", "output_1"))
        annotator.judge.answers(*columns, arrived=arrived)
    bought = _bought(annotator.file)
    annotations = [row | {"preference": bought.get(_key(row))} for row in rows]
    alpaca_files.write_list(annotator.file, annotations)
    return annotations


def _journal(file: Path) -> Path:
    return file.with_suffix(".jsonl")


def _key(row: Row) -> tuple[str, ...]:
    return tuple(str(row.get(name)) for name in _KEY)


def _bought(file: Path) -> dict[tuple[str, ...], float]:
    """Returns the preferences in the journal, by comparison.

    Raises:
        InputError: a line is no annotation.
    """
    journal = _journal(file)
    if not journal.exists():
        return {}
    _mend(journal)
    found, valid = {}, "an annotation, as this command writes it"
    for number, row in json_files.read_rows(journal, valid):
        preference = row.get("preference")
        if not isinstance(preference, float | int) or not 1 <= preference <= 2:
            said = f"preference={preference!r:.60}; valid is a number from 1 to 2"
            raise InputError(f"{journal}, line {number}: {said}")
        found[_key(row)] = preference
    return found


def _mend(journal: Path) -> None:
    """Ends a last line that a kill left without its end, or cuts it off where it is no whole annotation."""
    content = journal.read_bytes()
    whole, _, last = content.rpartition(b"\n")
    if not last:
        return
    try:
        json.loads(last)
        mended = content + b"\n"
    except ValueError:
        mended = whole + b"\n" if whole else b""
    part = journal.with_name(f".{journal.name}.part")
    part.write_bytes(mended)
    part.replace(journal)


def _append(journal: Path, rows: Sequence[Row]) -> None:
    try:
        journal.parent.mkdir(parents=True, exist_ok=True)
        with journal.open("a", encoding="utf-8") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)
            out.flush()
            os.fsync(out.fileno())
    except OSError as error:
        raise StorageError(f"{journal}: {error.strerror}") from error
