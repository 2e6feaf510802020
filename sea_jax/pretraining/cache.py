"""Keeps trained parts on disk, each in a folder named by a hash of what it is made from.

A part is keyed by the config fields that it reads, by the content of the data, models and other parts that it
reads, and by the version of the code that makes it. `made_from.json` in its folder holds all of them; it is
written last, and a folder without it, or with a file of another size than it says, is never taken.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from sea_jax import __version__
from sea_jax.errors import InputError, StorageError
from sea_jax.pretraining.content import from_main
from sea_jax.runtime.checkpoint_folder import CheckpointFolder, open_folder
from sea_jax.runtime.mesh import is_main, to_host, wait_for_all
from sea_jax.runtime.owner import own
from sea_jax.types import Config, Params

MADE_FROM = "made_from.json"
SILENT = "does not say what it was made from, as those of earlier versions"
_ARRAYS = "params.safetensors"
Write = Callable[[Path], None]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that a part depends on.

    Attributes:
        kind: of the part, as 'sft'; its folder's name begins with it.
        version: of how it is made; a constant beside the code that makes it.
        fields: the config fields that it reads, by name.
        content: hashes of the data and models that it reads, and names of the parts, by what they are.
    """

    kind: str
    version: int
    fields: Mapping[str, Any]
    content: Mapping[str, str]

    @functools.cached_property
    def described(self) -> dict[str, Any]:
        """The recipe as `made_from.json` holds it."""
        return json.loads(json.dumps(dataclasses.asdict(self), sort_keys=True))

    @functools.cached_property
    def name(self) -> str:
        """The kind, and ten hexadecimal digits of a hash of the recipe."""
        return f"{self.kind}-{hashlib.sha256(json.dumps(self.described).encode()).hexdigest()[:10]}"


def obtain(
    cache: Path,
    recipe: Recipe,
    make: Callable[[CheckpointFolder | None], Write],
    checkpoint: Config | None = None,
) -> Path:
    """Returns the folder of a part, which is made where the cache lacks it; the log says which, and why.

    If several processes make the same part, the first to finish wins. In a run on several hosts all processes
    make it, and the main one looks for it and writes it.

    Args:
        cache: folder of parts.
        recipe: of the part.
        make: makes the part, and returns a function that writes its files into a folder. It gets the folder
            of its checkpoints, from which it goes on; None: it has none.
        checkpoint: section `checkpoint` of the config; None: the part is made without checkpoints.

    Raises:
        StorageError: the part could not be written.
    """
    folder = cache / recipe.name
    if _told(lambda: is_whole(folder, recipe)):
        _log("reused: %s", folder)
        return folder
    reason = from_main(lambda: reason_to_make(cache, recipe))
    _log("makes %s: %s", folder, reason)
    with contextlib.ExitStack() as held:
        unfinished = cache / f"{recipe.name}.training"
        alone = checkpoint is not None and _told(lambda: _hold(held, unfinished))
        if alone and checkpoint is not None:
            with open_folder(unfinished / "checkpoints", checkpoint) as saved:
                write = make(saved)
        else:
            write = make(None)
        _publish(folder, recipe, write)
        if alone:
            remove(unfinished)
    return folder


def _hold(held: contextlib.ExitStack, unfinished: Path) -> bool:
    """Takes the folder of checkpoints of a part; returns whether no other process has it."""
    unfinished.mkdir(parents=True, exist_ok=True)
    try:
        held.enter_context(own(unfinished))
    except InputError:
        _log("another process makes the same part, so this one saves no checkpoints: %s", unfinished)
        return False
    return True


def is_whole(folder: Path, recipe: Recipe) -> bool:
    """Returns whether a folder holds all files of the part that the recipe describes."""
    made = _read_recipe(folder)
    sizes = made.pop("files", None)
    made.pop("made_by", None)
    if made != recipe.described or not isinstance(sizes, dict):
        return False
    try:
        return all((folder / file).stat().st_size == size for file, size in sizes.items())
    except OSError:
        return False


def _read_recipe(folder: Path) -> dict[str, Any]:
    """Returns what a part says that it was made from; {} where it does not."""
    try:
        made = json.loads((folder / MADE_FROM).read_text())
    except (OSError, ValueError):
        return {}
    return made if isinstance(made, dict) else {}


def reason_to_make(cache: Path, recipe: Recipe) -> str:
    """Says in words why no part of the cache serves: what tells the nearest from the one that is wanted."""
    if (cache / recipe.name).exists():
        return "the one there is not whole"
    found = [f for f in sorted(cache.glob("*")) if re.fullmatch(f"{recipe.kind}-[0-9a-f]{{10}}", f.name)]
    if not found:
        return "the cache has none of its kind"
    known = {folder.name: told for folder in found if (told := _differences(recipe, folder))}
    if not known:
        return f"{found[0].name} {SILENT}"
    name, (first, *others) = min(known.items(), key=lambda item: len(item[1]))
    more = f", and in {len(others)} more" if others else ""
    return f"{name} differs in {first}{more}"


def _differences(recipe: Recipe, folder: Path) -> list[str]:
    """Lists in words what tells a part from the one that is wanted; none where it does not say."""
    theirs = _read_recipe(folder)
    if not theirs:
        return []
    here, there = _flat(recipe.described), _flat(theirs)
    names = [name for name in here | there if here.get(name) != there.get(name)]
    said = [f"{name}: {_short(there.get(name))}, not {_short(here.get(name))}" for name in names]
    return said or ["its name alone"]


def _short(value: Any) -> str:
    """Returns a value in at most 40 characters, and a hash in 19."""
    text = value[:19] if isinstance(value, str) and value.startswith("sha256:") else repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _flat(described: dict[str, Any]) -> dict[str, Any]:
    named = {"version": described.get("version")}
    named |= {f"config.{name}": value for name, value in described.get("fields", {}).items()}
    return named | {f"content of {name}": value for name, value in described.get("content", {}).items()}


def _publish(folder: Path, recipe: Recipe, write: Write) -> None:
    """Writes a part completely or not at all; the other processes of a run wait for the main one."""
    if is_main():
        part = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            part.mkdir(parents=True)
            write(part)
            _describe(part, recipe)
            _rename(part, folder, recipe)
        except (OSError, SafetensorError) as error:
            raise StorageError(f"{folder}: the part was not saved ({error})") from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
    wait_for_all(str(folder))


def _describe(part: Path, recipe: Recipe) -> None:
    """Writes what a part was made from, when its other files are on the disk."""
    files = sorted(file for file in part.rglob("*") if file.is_file())
    for file in files:
        _sync(file)
    sizes = {str(file.relative_to(part)): file.stat().st_size for file in files}
    described = recipe.described | {"made_by": __version__, "files": sizes}
    (part / MADE_FROM).write_text(json.dumps(described, indent=2) + "\n")
    _sync(part / MADE_FROM)


def _sync(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def _rename(part: Path, folder: Path, recipe: Recipe) -> None:
    """Gives a part its name, unless another process was faster; one that is not whole makes way."""
    try:
        part.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        if not is_whole(folder, recipe):
            folder.rename(part.with_suffix(".damaged"))
            part.rename(folder)


def obtain_arrays(
    cache: Path, recipe: Recipe, make: Callable[[], Mapping[str, Any]]
) -> dict[str, np.ndarray]:
    """Returns arrays by name as `obtain` does a part."""

    def made(saved: CheckpointFolder | None) -> Write:
        del saved
        return writer(make())

    return read_arrays(obtain(cache, recipe, made))


def obtain_params(cache: Path, recipe: Recipe, make: Callable[[], Params]) -> Params:
    """Returns a tree of arrays as `obtain` does a part."""
    flat = obtain_arrays(cache, recipe, lambda: flatten_dict(make(), sep="/"))
    return jax.tree.map(jnp.asarray, unflatten_dict(flat, sep="/"))


def writer(flat: Mapping[str, Any]) -> Write:
    """Returns a function that writes arrays by name into a folder; they are copied to the host here."""
    on_host = to_host(dict(flat))
    return lambda part: save_file(on_host, part / _ARRAYS)


def read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """Reads what `writer` wrote; raises InputError if the file is broken."""
    valid = f"valid: delete {folder}, to have it made again"
    try:
        arrays = load_file(folder / _ARRAYS)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cache {folder / _ARRAYS}: {error}; {valid}") from None
    for name, array in arrays.items():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise InputError(f"cache {folder / _ARRAYS}: {name} is not finite; {valid}")
    return arrays


def read_params(folder: Path) -> Params:
    """Reads a tree of arrays whose flat form `writer` wrote."""
    return jax.tree.map(jnp.asarray, unflatten_dict(read_arrays(folder), sep="/"))


def remove(folder: Path) -> None:
    """Deletes a folder that nothing reads any more; in a run on several hosts the main process does."""
    if is_main():
        shutil.rmtree(folder, ignore_errors=True)


def _told(compute: Callable[[], bool]) -> bool:
    """Returns on all processes what the main one finds."""
    return bool(from_main(lambda: "yes" if compute() else ""))


def _log(message: str, *args: Any) -> None:
    if is_main():
        logging.warning(message, *args)  # `main` shows warnings only
