"""Writes open questions into files of labelling tools, and reads the answers that came back in them.

| format | file | a question | an answer |
|---|---|---|---|
| jsonl, csv | .jsonl, .csv | a row with an empty `choice` | `choice`: 1, 2, tie, both_bad or skip |
| argilla | .json | a record; its fields are the texts | responses to the question `choice` |
| label-studio | .json | a task whose data are these | choices of the control `choice` |

The texts are `prompt`, `answer_1` and `answer_2`. Which response is `answer_1` follows from the question's
id, so that it is the same at each export and neither is favoured. An answer is known by its question's id,
and its texts must be the question's.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sea_jax.errors import InputError
from sea_jax.labels.desk import Verdict
from sea_jax.labels.question_tables import BOTH_BAD, FIRST, SECOND, SKIP, TIE
from sea_jax.labels.questions import Open

COLUMNS: tuple[str, ...] = ("question", "prompt", "answer_1", "answer_2", "choice", "annotator")
CHOICES = ("1", "2", TIE, BOTH_BAD, SKIP)
_TEXTS = ("prompt", "answer_1", "answer_2")
_UNNAMED = "somebody"


class Answered(NamedTuple):
    """An answer in a file, as it stands there."""

    question: Any
    texts: tuple[Any, Any, Any]  # prompt, answer_1, answer_2
    choice: Any
    annotator: str
    place: str  # file and row, for errors


def write(questions: Iterable[Open], form: str, output: Any) -> None:
    """Writes questions in one of the formats to a text file."""
    _WRITERS[form]([_row(question) for question in questions], output)


def read(file: Path) -> list[Answered] | None:
    """Reads a file of answers; None if its first row names no question, so that it holds something else.

    Questions without an answer are left out.

    Raises:
        InputError: the file cannot be read, or a row is none of the format; with the row.
    """
    rows = {".csv": _read_csv, ".jsonl": _read_jsonl, ".json": _read_json}.get(file.suffix)
    if rows is None:
        return None
    try:
        answers = rows(file)
        first = next(answers, None)
        if first is None or first.question is None:
            return None
        found = [first, *answers]
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}; valid: a file that can be read") from None
    except (ValueError, csv.Error, RecursionError) as error:
        valid = "valid: UTF-8, as `export` writes it"
        raise InputError(f"{file}: no {file.suffix[1:]} ({error}); {valid}") from None
    return [answer for answer in found if answer.choice not in (None, "")]


def verdicts(answers: Iterable[Answered], questions: dict[int, Open]) -> list[Verdict]:
    """Returns the verdicts of answers.

    Args:
        answers: of `read`.
        questions: all that were ever asked, by id.

    Raises:
        InputError: an answer is to no question, has other texts or another choice; with file and row.
    """
    found = []
    for answer in answers:
        where, number = answer.place, str(answer.question).strip()
        asked = (
            questions.get(int(number)) if number.isascii() and number.isdigit() and len(number) < 19 else None
        )
        if asked is None:
            raise InputError(
                f"{where}: question={answer.question!r}: was not asked; valid: the ids of the export"
            )
        if answer.texts != tuple(_row(asked)[name] for name in _TEXTS):
            raise InputError(
                f"{where}: question {number}: its texts are not those that were asked; valid: unchanged"
            )
        choice = str(answer.choice).strip()
        if choice not in CHOICES:
            raise InputError(
                f"{where}: choice={answer.choice!r}; valid: one of {', '.join(CHOICES)}, or empty"
            )
        sides = (FIRST, SECOND) if _first_is_1(asked.id) else (SECOND, FIRST)
        verdict = sides[int(choice) - 1] if choice in ("1", "2") else choice
        found.append(Verdict(asked.id, answer.annotator, verdict, _first_is_1(asked.id), where))
    return found


def _first_is_1(question: int) -> bool:
    return random.Random(question).random() < 0.5


def _row(question: Open) -> dict[str, Any]:
    pair = question.first, question.second
    answers = pair if _first_is_1(question.id) else pair[::-1]
    return dict(zip(COLUMNS, (question.id, question.prompt, *answers, "", ""), strict=True))


def _write_csv(rows: list[dict[str, Any]], output: Any) -> None:
    writer = csv.DictWriter(output, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def _write_jsonl(rows: list[dict[str, Any]], output: Any) -> None:
    for row in rows:
        output.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_argilla(rows: list[dict[str, Any]], output: Any) -> None:
    records = [
        dict(
            id=str(row["question"]), fields={name: row[name] for name in _TEXTS},
            metadata={"question": row["question"]}, suggestions={}, responses={}, vectors={},
        )
        for row in rows
    ]  # fmt: skip
    json.dump(records, output, ensure_ascii=False, indent=1)


def _write_label_studio(rows: list[dict[str, Any]], output: Any) -> None:
    tasks = [dict(data={name: row[name] for name in ("question", *_TEXTS)}) for row in rows]
    json.dump(tasks, output, ensure_ascii=False, indent=1)


_WRITERS: dict[str, Callable[[list[dict[str, Any]], Any], None]] = {
    "jsonl": _write_jsonl, "csv": _write_csv, "argilla": _write_argilla, "label-studio": _write_label_studio,
}  # fmt: skip
FORMATS = tuple(_WRITERS)


def _read_csv(file: Path) -> Iterator[Answered]:
    with open(file, encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        for row in reader:
            yield from _plain(row, f"{file}, line {reader.line_num}")


def _read_jsonl(file: Path) -> Iterator[Answered]:
    with open(file, encoding="utf-8", newline="\n") as lines:  # by lines: it may be a million labels
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise InputError(f"{file}, line {number}: {error}; valid: an object of JSON") from None
                yield from _plain(row, f"{file}, line {number}")


def _plain(row: Any, place: str) -> Iterator[Answered]:
    """Yields the answer of a row in our own columns; its choice is empty or None where there is none."""
    if not isinstance(row, dict):
        raise InputError(f"{place}: {str(row)[:40]!r}; valid: a row with the columns {', '.join(COLUMNS)}")
    texts = row.get("prompt"), row.get("answer_1"), row.get("answer_2")
    who = str(row.get("annotator") or _UNNAMED)
    yield Answered(row.get("question"), texts, row.get("choice"), who, place)


def _read_json(file: Path) -> Iterator[Answered]:
    rows = json.loads(file.read_text("utf-8"))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{file}: valid: a list of Argilla's records or of Label Studio's tasks")
    for number, row in enumerate(rows, 1):
        place = f"{file}, entry {number}"
        try:
            yield from (_argilla if "fields" in row else _label_studio)(row, place)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            kind = "Argilla's record" if "fields" in row else "Label Studio's task"
            said = f"{type(error).__name__} {error}".strip()
            raise InputError(
                f"{place}: no {kind} of an export ({said}); valid: what the tool writes"
            ) from None


def _argilla(row: dict[str, Any], place: str) -> Iterator[Answered]:
    texts = tuple(row["fields"][name] for name in _TEXTS)
    question = (row.get("metadata") or {}).get("question", row.get("id"))
    for response in (row.get("responses") or {}).get("choice") or [{"value": None}]:
        yield Answered(question, texts, response["value"], str(response.get("user_id") or _UNNAMED), place)


def _label_studio(row: dict[str, Any], place: str) -> Iterator[Answered]:
    data = row["data"]
    texts = tuple(data[name] for name in _TEXTS)
    if not row.get("annotations"):
        yield Answered(data["question"], texts, None, _UNNAMED, place)
    for annotation in row.get("annotations", ()):
        who = annotation.get("completed_by") or _UNNAMED
        who = who.get("email", who.get("id")) if isinstance(who, dict) else who
        if annotation.get("was_cancelled"):
            yield Answered(data["question"], texts, SKIP, str(who), place)
            continue
        for result in annotation["result"]:
            if result["from_name"] == "choice":
                yield Answered(data["question"], texts, result["value"]["choices"][0], str(who), place)
