"""Checksums of the files of a folder, by which damage is found. Imports no JAX."""

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

_FILE = "sha256.json"


def exist(folder: Path) -> bool:
    """Tells whether a folder has its checksums."""
    return (folder / _FILE).exists()


def write(folders: Sequence[Path]) -> None:
    """Writes the checksums of all files of each folder, by one rename.

    A folder that is deleted meanwhile, or a disk that is full, is left without: checksums only add certainty.
    """
    for folder in folders:
        with contextlib.suppress(OSError):
            part = folder / f"{_FILE}.part"
            with open(part, "w") as file:
                json.dump({name: _sha256(folder / name) for name in _names(folder)}, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(folder / _FILE)


def verify(folder: Path) -> None:
    """Compares the files of a folder with their checksums, where it has some.

    Raises:
        ValueError: a file is absent, new or changed; with its name.
    """
    if not exist(folder):
        return
    sums = json.loads((folder / _FILE).read_text())
    if not isinstance(sums, dict):
        raise ValueError(f"{_FILE} holds no checksums")
    for name in sorted({*sums, *_names(folder)}):
        if not (folder / name).is_file() or _sha256(folder / name) != sums.get(name):
            raise ValueError(f"{name} is not what was written")


def _names(folder: Path) -> list[str]:
    own = (_FILE, f"{_FILE}.part")
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return [name for file in files if (name := str(file.relative_to(folder))) not in own]


def _sha256(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
