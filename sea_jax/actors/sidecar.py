"""A child process that answers messages: started, watched and ended here. Every wait has a bound."""

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np

from sea_jax.actors import framing as wire
from sea_jax.errors import ServiceError

_LOG_LINES = 3
_PATIENCE = 10.0  # seconds for a process to be gone after SIGKILL


class SidecarError(ServiceError):
    """What a sidecar was asked for and did not give."""


class SidecarLostError(SidecarError):
    """It is gone, or does not answer: another one may."""


class Sidecar:
    """One process and the socket to it.

    Args:
        name: in messages.
        command: arguments; the number of the socket's file descriptor is appended, then `fds`, then our
            process id.
        env: its environment.
        fds: file descriptors that it inherits.
    """

    def __init__(self, name: str, command: list[str], env: dict[str, str], fds: tuple[int, ...] = ()):
        self.name = name
        self._log = tempfile.TemporaryFile()
        self._sock, theirs = socket.socketpair()
        with theirs:
            handed = (theirs.fileno(), *fds)
            self._process = subprocess.Popen(
                [*command, *map(str, handed), str(os.getpid())],
                stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, env=env, pass_fds=handed,
                start_new_session=True,  # Ctrl-C is ours to act on, and what it starts can be ended with it
            )  # fmt: skip
        self._finalizer = weakref.finalize(self, _end, self._process, self._sock)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def ask(
        self, awaited: str, header: dict[str, Any], *arrays: np.ndarray, timeout: float
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        """`tell`, then `hear`, within one timeout."""
        start = time.monotonic()
        self.tell(awaited, header, *arrays, timeout=timeout)
        return self.hear(awaited, timeout=max(timeout - (time.monotonic() - start), 1e-3))

    def tell(self, awaited: str, header: dict[str, Any], *arrays: np.ndarray, timeout: float) -> None:
        """Sends a message, whose answer has to be heard before the next is sent.

        Args:
            awaited: in words, for errors.
            header, arrays: see `wire.send`.
            timeout: seconds.

        Raises:
            SidecarLostError: where the process is gone or does not read; it is ended then.
        """
        with self._bounded(awaited, timeout):
            wire.send(self._sock, header, *arrays, timeout=timeout)

    def hear(self, awaited: str, *, timeout: float) -> tuple[dict[str, Any], list[np.ndarray]]:
        """Waits for an answer.

        Args: as `tell`.

        Raises:
            SidecarLostError: where the process is gone, or nothing came in time; it is ended then.
            SidecarError: where it answered that it could not.
        """
        with self._bounded(awaited, timeout):
            answer, out = wire.receive(self._sock, timeout)
        if "error" in answer:
            raise SidecarError(f"{self.name}: waited for {awaited}: it answered {answer['error']}")
        return answer, out

    @contextlib.contextmanager
    def _bounded(self, awaited: str, timeout: float) -> Iterator[None]:
        try:
            yield
        except (TimeoutError, wire.ClosedError) as error:
            gone = isinstance(error, wire.ClosedError)
            status = self._status() if gone else f"no answer within {timeout:.3g} s"
            self.end()
            raise SidecarLostError(f"{self.name}: waited for {awaited}: {status}{self._said()}") from None

    def end(self) -> None:
        """Ends the process and what it started; twice is as good as once."""
        self._finalizer()

    def _status(self) -> str:
        try:
            status = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            return "it closed its socket"
        if status < 0:
            return f"it was ended by {signal.Signals(-status).name}"
        return f"it ended with status {status}"

    def _said(self) -> str:
        """The end of what it printed."""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(size - 4000, 0))
        lines = [line.strip() for line in self._log.read().decode(errors="replace").splitlines()]
        lines = [line for line in lines if line][-_LOG_LINES:]
        return f"; its last lines: {' | '.join(lines)}" if lines else ""


def _end(process: subprocess.Popen, sock: socket.socket) -> None:
    """Also at the exit of this process; of a process that was killed, the sidecar ends itself."""
    sock.close()
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_PATIENCE)
    # What it started is asked to end, not killed: Python's resource tracker does not listen, and removes the
    # semaphores that the process has left in /dev/shm before it ends by itself.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
