"""Trained parts on disk: each in a folder whose name is a fingerprint of what it depends on."""

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
    """Ten hexadecimal digits that change with any of the fields."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:10]


def write_atomically(folder: Path, write: Callable[[Path], None]) -> None:
    """Writes a folder whole or not at all, so that a killed run leaves no half of a model.

    Of runs that make the same folder together, the first to end leaves its own. Of a run on several hosts
    its main process writes, and the others wait for it.
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


def write_params(folder: Path, params: Params) -> None:
    """Keeps a tree of arrays."""
    flat: dict[str, np.ndarray] = to_host(flatten_dict(params, sep="/"))
    write_atomically(folder, lambda part: save_file(flat, part / "params.safetensors"))


def read_params(folder: Path) -> Params:
    """Raises InputError if the file is spoilt."""
    file = folder / "params.safetensors"
    try:
        flat = load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cache {file}: {error}; valid: delete {folder}, to have it made again") from None
    return jax.tree.map(jnp.asarray, unflatten_dict(flat, sep="/"))
