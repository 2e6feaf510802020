"""Reads JSON files that an editor, a full disk or a second process may have damaged. Imports no JAX."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sea_jax.errors import InputError

_DEEPEST = 50  # lists and objects within one another; what Python can read depends on its own stack


def read_object(file: Path, valid: str) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Args:
        file: its path.
        valid: what it should be, in words, for errors.

    Raises:
        InputError: it is absent, cannot be read, is no JSON or holds something else.
    """
    return _object(_read(file, valid), f"{file}", valid)


def read_rows(file: Path, valid: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the lines of a file, a JSON object each, with their numbers from 1; empty ones are left out.

    Args, Raises: as `read_object`; an error names the line too.
    """
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, _object(line, f"{file}, line {number}", valid)
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}; valid: {valid}") from None


def _read(file: Path, valid: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}; valid: {valid}") from None


def _object(content: bytes, place: str, valid: str) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except RecursionError:
        raise InputError(f"{place}: nested too deeply; valid: {valid}") from None
    except ValueError as error:  # no JSON, or no text
        raise InputError(f"{place}: not JSON ({error}); valid: {valid}") from None
    if content.count(b"[") + content.count(b"{") > _DEEPEST and _depth(value) > _DEEPEST:
        raise InputError(f"{place}: nested too deeply; valid: {valid}")
    if not isinstance(value, dict):
        raise InputError(f"{place}: holds {value!r:.50}, no JSON object; valid: {valid}")
    return value


def _depth(value: Any) -> int:
    """Counts how many lists and objects are within one another, without recursion."""
    depth, level = 0, [value]
    while level := [part for part in level if isinstance(part, dict | list)]:
        depth += 1
        level = [item for part in level for item in (part.values() if isinstance(part, dict) else part)]
    return depth
