"""Reads and writes AlpacaEval's files: prompts, outputs and annotations, each a JSON list of objects."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sea_jax import json_files
from sea_jax.errors import InputError, StorageError

Row = dict[str, Any]
_ANNOTATION = ("instruction", "output_1", "output_2", "generator_1", "generator_2")


def read_prompts(file: Path) -> list[Row]:
    """Reads prompts; rows of AlpacaEval's own file have an output of the baseline besides.

    Raises:
        InputError: as `read_list`; an instruction is empty or repeated, or there is none.
    """
    rows = read_list(file, ("instruction",))
    if not rows:
        raise InputError(f"{file}: no prompt; valid is a list with at least one")
    _require_different(file, rows)
    return rows


def read_outputs(file: Path) -> list[Row]:
    """Reads the outputs of one model.

    Raises:
        InputError: as `read_list`; an instruction is empty or repeated, or there are several generators.
    """
    rows = read_list(file, ("instruction", "output", "generator"))
    _require_different(file, rows)
    require_one(file, rows, "generator")
    return rows


def read_annotations(file: Path) -> list[Row]:
    """Reads annotations of one model against one baseline: output_2 against output_1.

    `preference` is 1 + P(output_2 ≻ output_1), 0 for a draw in old files, None where there is none.

    Raises:
        InputError: as `read_list`; a preference is another value, or there are several models or baselines.
    """
    rows = read_list(file, _ANNOTATION)
    for at, row in enumerate(rows):
        value = row.get("preference")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (value is None or (number and (1 <= value <= 2 or value == 0 or math.isnan(value)))):
            valid = "a number from 1 (output_1 is better) to 2, 0 for a draw, or null"
            raise InputError(f"{file}, row {at}: preference={value!r:.60}; valid is {valid}")
    for name in ("generator_1", "generator_2"):
        require_one(file, rows, name)
    return rows


def share(preference: float | None) -> float:
    """Converts a preference to P(output_2 ≻ output_1); NaN where there is none."""
    if preference is None:
        return math.nan
    return 0.5 if preference == 0 else preference - 1


def read_list(file: Path, texts: Sequence[str]) -> list[Row]:
    """Reads a JSON list of objects, or jsonl.

    Args:
        file: its path; one that ends in .jsonl has an object per line.
        texts: names of the fields that must be texts.

    Raises:
        InputError: it cannot be read, holds something else, or a field is absent or no text.
    """
    valid = f"a JSON list of objects with {', '.join(texts)}"
    if file.suffix == ".jsonl":
        rows = [row for _, row in json_files.read_rows(file, valid)]
    else:
        rows = _json_list(file, valid)
    for at, row in enumerate(rows):
        if not isinstance(row, dict):
            raise InputError(f"{file}, row {at}: {row!r:.60} is no object; valid is {valid}")
        for name in texts:
            if not isinstance(row.get(name), str):
                raise InputError(f"{file}, row {at}: {name}={row.get(name)!r:.60}; valid is a text")
    return rows


def _json_list(file: Path, valid: str) -> list[Any]:
    try:
        rows = json.loads(file.read_bytes())
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}; valid is {valid}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not JSON ({error}); valid is {valid}") from None
    if not isinstance(rows, list):
        raise InputError(f"{file}: holds {rows!r:.60}; valid is {valid}")
    return rows


def _require_different(file: Path, rows: Sequence[Row]) -> None:
    seen: dict[str, int] = {}
    for at, row in enumerate(rows):
        text = row["instruction"]
        if not text.strip():
            raise InputError(f"{file}, row {at}: instruction={text!r}; valid is a text that is not empty")
        if text in seen:
            said = f"instruction={text!r:.60} is that of row {seen[text]}"
            raise InputError(f"{file}, row {at}: {said}; valid is each instruction once")
        seen[text] = at


def require_one(file: Path, rows: Sequence[Row], name: str) -> None:
    """Raises InputError where rows have several values of a field."""
    for at, row in enumerate(rows):
        if row[name] != rows[0][name]:
            valid = f"{rows[0][name]!r:.60}, as in row 0"
            raise InputError(f"{file}, row {at}: {name}={row[name]!r:.60}; valid is {valid}")


def write_list(file: Path, rows: Sequence[Row]) -> None:
    """Writes a JSON list by one rename, so that the file is the old one or the new one at every instant.

    Raises:
        StorageError: the disk did not take it.
    """
    part = file.with_name(f".{file.name}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w", encoding="utf-8") as out:
            json.dump(rows, out, indent=2)  # ASCII, as a text may hold half a surrogate pair
            out.flush()
            os.fsync(out.fileno())
        part.replace(file)
    except OSError as error:
        raise StorageError(f"{file}: {error.strerror}") from error


@contextlib.contextmanager
def owned(option: str, file: Path) -> Iterator[None]:
    """Makes the folder of a file, and lets one process at a time write it.

    Args:
        option: that names the file.
        file: what is written.

    Raises:
        InputError: another process writes it, or nobody can.
    """
    lock = FileLock(file.with_name(f".{file.name}.lock"), timeout=0)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        valid = "another file, or wait for its end"
        raise InputError(f"{option}={file}: another process writes it; valid is {valid}") from None
    except OSError as error:
        raise InputError(f"{option}={file}: {error.strerror}; valid is a file that can be written") from None
    try:
        yield
    finally:
        lock.release()
