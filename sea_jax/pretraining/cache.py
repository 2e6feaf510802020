"""Keeps trained parts on disk, each in a folder named by a fingerprint of its inputs."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from sea_jax.errors import InputError
from sea_jax.runtime.mesh import is_main, to_host, wait_for_all
from sea_jax.types import Params


def fingerprint(fields: dict) -> str:
    """Returns ten hexadecimal digits of a hash of the fields."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:10]


def write_atomically(folder: Path, write: Callable[[Path], None]) -> None:
    """Writes a folder completely or not at all, so that a killed run leaves no partial model.

    If several runs write the same folder at once, the first to finish wins. In a run on several hosts the
    main process writes, and the others wait for it.
    """
    if is_main():
        _write_atomically(folder, write)
    wait_for_all(str(folder))


def _write_atomically(folder: Path, write: Callable[[Path], None]) -> None:
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    part.mkdir(parents=True, exist_ok=True)
    write(part)
    try:
        part.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(part)


def remove(folder: Path) -> None:
    """Deletes a folder that nothing reads any more; in a run on several hosts the main process does."""
    if is_main():
        shutil.rmtree(folder, ignore_errors=True)


def write_params(folder: Path, params: Params) -> None:
    """Writes a tree of arrays to a folder."""
    flat: dict[str, np.ndarray] = to_host(flatten_dict(params, sep="/"))
    write_atomically(folder, lambda part: save_file(flat, part / "params.safetensors"))


def read_params(folder: Path) -> Params:
    """Reads the tree that `write_params` wrote; raises InputError if the file is broken."""
    file = folder / "params.safetensors"
    try:
        flat = load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cache {file}: {error}; valid: delete {folder}, to have it made again") from None
    return jax.tree.map(jnp.asarray, unflatten_dict(flat, sep="/"))
