"""Lets one process at a time write into a work directory. Imports no JAX."""

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from sea_jax.errors import InputError

_LOCK, _OWNER = ".lock", ".owner.json"


@contextlib.contextmanager
def own(folder: Path, main: bool = True) -> Iterator[None]:
    """Holds a work directory.

    The operating system ends the hold of a process that dies, so there is no stale lock.

    Args:
        folder: the work directory.
        main: False: another process of the same run holds it, and this one does nothing.

    Raises:
        InputError: another process holds it; with its pid and host.
    """
    if not main:
        yield
        return
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(
            f"--workdir: {folder} is in use by {_holder(folder)}; valid: another folder, or wait for its end"
        ) from None
    try:
        (folder / _OWNER).write_text(json.dumps(dict(pid=os.getpid(), host=socket.gethostname())))
        yield
    finally:
        (folder / _OWNER).unlink(missing_ok=True)
        lock.release()


def _holder(folder: Path) -> str:
    try:
        owner = json.loads((folder / _OWNER).read_text())
        return f"process {owner['pid']} on host {owner['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
