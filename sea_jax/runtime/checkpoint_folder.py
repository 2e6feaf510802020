"""A folder of checkpoints, written by Orbax while the next steps run.

A checkpoint is written under another name until it is whole, so one that a killed process left is never read.
Once it is whole, the checksums of its files are written beside them, so that one whose files have changed on
the disk is not read.
"""

import errno
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from sea_jax import __version__
from sea_jax.errors import InputError, StorageError
from sea_jax.runtime import checksums
from sea_jax.runtime.mesh import from_all, is_main, wait_for_all
from sea_jax.runtime.stop import StopRequest
from sea_jax.types import Config

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO)
_UNREADABLE = (OSError, ValueError, KeyError, TypeError)
_NO_SCORE = -1e30  # of a checkpoint that is not the best one
LAYOUT = 1  # of what is saved
_ARGS = ocp.args


class CheckpointFolder:
    """Checkpoints by step: trees of arrays, and a record in JSON.

    Args:
        folder: made if absent.
        every_s: seconds between two checkpoints; 0: every step is due.
        keep: newest checkpoints that are kept.
        best: keeps the one of the highest score too.
    """

    def __init__(self, folder: Path, every_s: float, keep: int, best: bool = False):
        self.folder, self._every_s, self._last = folder, every_s, time.monotonic()
        self.best, self._keep = best, keep
        self._sealing: threading.Thread | None = None
        if is_main():
            folder.mkdir(parents=True, exist_ok=True)
        wait_for_all(str(folder))
        kept: list[Any] = [policies.LatestN(keep)]
        if best:
            kept.append(policies.BestN(get_metric_fn=_score, n=1))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept), cleanup_tmp_directories=True,
            best_fn=_score if best else None,
        )  # fmt: skip
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, the newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def newest_steps(self) -> list[int]:
        """Returns the steps whose checkpoints are kept because they are new, the newest first."""
        return self.steps()[: self._keep]

    def poll(self, stop: StopRequest) -> tuple[bool, int]:
        """Tells whether a checkpoint is due, and which signal asks for the end, 0 without one.

        All processes of a run return the same: the main one says what is due, and any of them gets signals.
        """
        due = time.monotonic() - self._last >= self._every_s
        if not self._manager.is_saving_in_progress():
            self._begin_to_seal()
        flags = from_all(np.array([due, stop.number], np.int32))
        return bool(flags[0, 0]), int(flags[:, 1].max())

    def overdue(self, stop: StopRequest, grace_s: float) -> int:
        """Tells which signal some process of the run got so many seconds ago; 0 without one."""
        return int(from_all(np.array([stop.number * stop.overdue(grace_s)], np.int32)).max())

    def save(self, step: int, record: dict[str, Any], score: float | None = None, **trees: Any) -> None:
        """Copies the arrays to the host, and begins to write them.

        Args:
            step: t.
            record: JSON.
            score: of an evaluation that was the best so far; None: another checkpoint.
            **trees: arrays by name.

        Raises:
            StorageError: this checkpoint, or the one before, could not be written.
        """
        if step in self._manager.all_steps():
            return
        self.wait()
        items: dict[str, Any] = {name: _ARGS.StandardSave(tree) for name, tree in trees.items()}
        items["record"] = _ARGS.JsonSave(dict(layout=LAYOUT, version=__version__, step=step, **record))
        try:
            metrics = {"score": _NO_SCORE if score is None else score}  # Orbax warns of one without a score
            self._manager.save(step, args=_ARGS.Composite(**items), metrics=metrics if self.best else None)
        except (OSError, ValueError) as error:
            raise self._storage_error(error) from error
        self._last = time.monotonic()

    def newest(self, **trees: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Reads the newest checkpoint that can be read; renames newer ones to damaged-<step>, with a warning.

        Args:
            trees: arrays of the shapes and shardings that the restored ones shall have; None: those that were
                saved, on the host. A tree that the checkpoint lacks is left out.

        Returns:
            The record and the trees by name; None without a checkpoint.

        Raises:
            InputError: one was written by a newer version, or there are some and none can be read.
        """
        damaged: list[int] = []
        for step in self.steps():
            try:
                found = self._read(step, trees)
            except InputError:
                raise
            except _UNREADABLE as error:
                logging.warning("%s cannot be read: %s", self.folder / str(step), _line(error))
                damaged.append(step)
            else:
                self._set_aside(damaged)
                return found
        if damaged:  # they stay as they are: the disk may be at fault
            raise InputError(f"{self.folder}: none of its checkpoints can be read; valid: delete the folder")
        return None

    def _set_aside(self, steps: list[int]) -> None:
        """Renames checkpoints, whose steps are saved again."""
        if not steps:
            return
        for step in steps if is_main() else ():
            place = self.folder / f"damaged-{step}"
            shutil.rmtree(place, ignore_errors=True)
            (self.folder / str(step)).rename(place)
        wait_for_all(f"{self.folder}: damaged checkpoints")
        self._manager.reload()

    def read(self, step: int, *names: str, **trees: Any) -> dict[str, Any]:
        """Reads trees of one checkpoint: those in `names` as arrays on the host, others as by `newest`.

        Raises:
            InputError: it cannot be read.
        """
        try:
            return self._read(step, dict.fromkeys(names) | trees)[1]
        except _UNREADABLE as error:
            place = self.folder / str(step)
            raise InputError(
                f"{place}: cannot be read ({_line(error)}); valid: a whole checkpoint"
            ) from error

    def _read(self, step: int, trees: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        place = self.folder / str(step)
        checksums.verify(place)
        record = self._manager.restore(step, args=_ARGS.Composite(record=_ARGS.JsonRestore()))["record"]
        if record["layout"] > LAYOUT:
            valid = f"valid: at most {LAYOUT}"
            raise InputError(f"{place}: layout {record['layout']}, written by a newer version; {valid}")
        items = {
            name: _ARGS.StandardRestore(None if like is None else jax.tree.map(_abstract, like))
            for name, like in trees.items()
            if (place / name).is_dir()
        }
        found = self._manager.restore(step, args=_ARGS.Composite(**items))
        return record, {name: found[name] for name in items}

    def wait(self) -> None:
        """Waits until the last checkpoint is on the disk.

        Raises:
            StorageError: it could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise self._storage_error(error) from error
        self._begin_to_seal()
        self._end_sealing()

    def _begin_to_seal(self) -> None:
        """Begins to write the checksums of whole checkpoints that have none, in a thread."""
        open_ones = [place for step in self.newest_steps() if not checksums.exist(place := self._place(step))]
        if not is_main() or not open_ones or (self._sealing is not None and self._sealing.is_alive()):
            return
        self._sealing = threading.Thread(target=checksums.write, args=(open_ones,), daemon=True)
        self._sealing.start()

    def _end_sealing(self) -> None:
        if self._sealing is not None:
            self._sealing.join()

    def _place(self, step: int) -> Path:
        return self.folder / str(step)

    def _storage_error(self, error: OSError | ValueError) -> Exception:
        """Returns one line about a disk that cannot be written; another error as it is."""
        # TensorStore raises ValueError, with the words of the operating system.
        known = isinstance(error, OSError) or any(os.strerror(code) in str(error) for code in _DISK)
        return StorageError(f"{self.folder}: no checkpoint was saved ({_line(error)})") if known else error

    def __enter__(self) -> "CheckpointFolder":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            self.wait()
        self._manager.close()
        self._end_sealing()


def open_folder(folder: Path, config: Config) -> CheckpointFolder:
    """Opens a folder of checkpoints by the fields of section `checkpoint`."""
    return CheckpointFolder(folder, config.every_s, config.keep, config.best)


def _score(metrics: Any) -> float:
    return metrics["score"]


def _abstract(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [repr(error)])[0]
