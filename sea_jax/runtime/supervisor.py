"""Runs a process of a run on several hosts as a child, so that an abort by JAX ends with a line and a status.

JAX aborts a process whose coordination service is gone. No Python code runs after that, so another process
has to say what happened.
"""

import ctypes
import os
import signal
import subprocess
import sys

from sea_jax.runtime.process import LOST_STATUS

_SUPERVISOR = "SEA_JAX_SUPERVISOR"  # its process id, in the child's environment
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl
_LOST = (
    "error: JAX aborted: another process of the run is lost, unless the lines above say otherwise; the same "
    "command on all hosts goes on"
)


def go_on_in_child() -> None:
    """Returns in a child that runs the same command; this process waits and ends with the child's status.

    SIGTERM and Ctrl-C reach the child once. An abort becomes a line on stderr and status 69; another signal n
    that ends the child becomes status 128 + n. If this process is killed, so is the child (on Linux).
    """
    if os.environ.get(_SUPERVISOR) == str(os.getppid()):
        _end_with_parent(os.getppid())
        return
    # A session of its own: a terminal sends Ctrl-C to all processes of one, and a second signal ends at once.
    child = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]],
        env=os.environ | {_SUPERVISOR: str(os.getpid())},
        start_new_session=True,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: child.send_signal(number))
    status = child.wait()
    if status == -signal.SIGABRT:
        print(_LOST, file=sys.stderr, flush=True)
        status = LOST_STATUS
    sys.exit(status if status >= 0 else 128 - status)


def _end_with_parent(parent: int) -> None:
    """Asks Linux to kill this process when its parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # which ended before it was asked
        os.kill(os.getpid(), signal.SIGKILL)
