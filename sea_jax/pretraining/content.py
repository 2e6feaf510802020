"""Names models and data by their content, so that what was made from others is not taken for theirs."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sea_jax import hub, models
from sea_jax.errors import InputError
from sea_jax.runtime.mesh import bytes_from_main
from sea_jax.tasks.sources import data_files
from sea_jax.tasks.tokenizer import FILES

_THREADS = 4  # that read files; hashing leaves the interpreter's lock
_known: dict[tuple[str, int, int, int], str] = {}  # path, inode, size and time of change -> hash


def of_model(name: str) -> str:
    """Returns what tells a model and its tokenizer from every other.

    Args:
        name: a folder in Hugging Face's layout, or a hub name.

    Returns:
        'sha256:…' of the files that are read; of a hub name 'hub:<name>@<commit>', which no file must be read
        for. In a run on several hosts the main process finds it out.
    """
    return from_main(lambda: _of_model(name))


def _of_model(name: str) -> str:
    folder = models.find(name)
    # A snapshot of the hub's cache is named by its commit.
    if (
        not Path(name).is_dir()
        and folder.parent.name == "snapshots"
        and re.fullmatch("[0-9a-f]{40}", folder.name)
    ):
        return f"hub:{hub.split_revision(name)[0]}@{folder.name}"
    read = ("config.json", "*.safetensors", "*.safetensors.index.json", *FILES)
    return of_files(folder, {file for pattern in read for file in folder.glob(pattern)})


def of_data(path: str) -> str:
    """Returns 'sha256:…' of the files of config.task.path, as the main process reads them."""
    return from_main(lambda: of_files(Path(path), data_files(path)))


def of_files(folder: Path, files: Iterable[Path]) -> str:
    """Returns 'sha256:…' of the names and bytes of files; a file that has not changed is read once a process.

    Raises:
        InputError: a file cannot be read.
    """
    ordered = sorted(files)
    try:
        with ThreadPoolExecutor(_THREADS) as threads:
            digests = list(threads.map(_of_file, ordered))
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; valid: a file that can be read") from None
    return of_value([(str(file.relative_to(folder)), d) for file, d in zip(ordered, digests, strict=True)])


def _of_file(file: Path) -> str:
    stat = file.stat()
    key = str(file.resolve()), stat.st_ino, stat.st_size, stat.st_mtime_ns
    if key not in _known:
        with file.open("rb") as opened:
            _known[key] = hashlib.file_digest(opened, "sha256").hexdigest()
    return _known[key]


def of_value(value: Any) -> str:
    """Returns 'sha256:…' of a value that JSON can hold."""
    return f"sha256:{hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()}"


def from_main(compute: Callable[[], str]) -> str:
    """Runs a function on the main process and returns its text on all processes."""
    return bytes_from_main(lambda: compute().encode()).decode()
