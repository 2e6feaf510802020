"""Child processes that answer messages: started, watched and ended here. Every wait has a limit."""

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

from sea_jax.actors import framing
from sea_jax.errors import ServiceError

_LOG_LINES = 3
_EXIT_TIMEOUT_S = 10.0  # after SIGKILL, or after the socket was closed


class SidecarError(ServiceError):
    """A sidecar did not do what was requested."""


class SidecarLostError(SidecarError):
    """A sidecar has ended or does not answer; another one may."""


class Sidecar:
    """A child process and the socket to it.

    Args:
        name: for messages.
        command: its arguments; appended are the file descriptor of the socket, then `fds`, then the id of
            this process.
        env: its environment.
        fds: file descriptors that it inherits.
    """

    def __init__(self, name: str, command: list[str], env: dict[str, str], fds: tuple[int, ...] = ()):
        self.name = name
        self._log = tempfile.TemporaryFile()
        self._sock, theirs = socket.socketpair()
        with theirs:
            inherited = (theirs.fileno(), *fds)
            self._process = subprocess.Popen(
                [*command, *map(str, inherited), str(os.getpid())],
                stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, env=env, pass_fds=inherited,
                start_new_session=True,  # Ctrl-C does not reach it, and its own children end with its group
            )  # fmt: skip
        self._finalizer = weakref.finalize(self, _end, self._process, self._sock)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def request(
        self, awaited: str, header: dict[str, Any], *arrays: np.ndarray, timeout: float
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        """Sends a message and waits for the answer, within one timeout; see `send` and `receive`."""
        start = time.monotonic()
        with self._ended_on_failure(awaited, timeout):
            framing.send(self._sock, header, *arrays, timeout=timeout)
            left = timeout - (time.monotonic() - start)
            answer = framing.receive(self._sock, max(left, 1e-3))
        return self._checked(answer, awaited)

    def send(self, awaited: str, header: dict[str, Any], *arrays: np.ndarray, timeout: float) -> None:
        """Sends a message; its answer must be received before the next message is sent.

        Args:
            awaited: what the message requests, for errors.
            header, arrays: see `framing.send`.
            timeout: seconds.

        Raises:
            SidecarLostError: the process has ended or does not read; it is ended.
        """
        with self._ended_on_failure(awaited, timeout):
            framing.send(self._sock, header, *arrays, timeout=timeout)

    def receive(self, awaited: str, *, timeout: float) -> tuple[dict[str, Any], list[np.ndarray]]:
        """Waits for the answer to the message that was sent last.

        Args:
            awaited: what the message requests, for errors.
            timeout: seconds.

        Returns:
            The answer's header and arrays.

        Raises:
            SidecarLostError: the process has ended, or did not answer in time; it is ended.
            SidecarError: it answered with an error.
        """
        with self._ended_on_failure(awaited, timeout):
            answer = framing.receive(self._sock, timeout)
        return self._checked(answer, awaited)

    def _checked(
        self, answer: tuple[dict[str, Any], list[np.ndarray]], awaited: str
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        """Returns the answer; raises SidecarError if it is an error."""
        if "error" in answer[0]:
            raise SidecarError(f"{self.name}: waited for {awaited}: it answered {answer[0]['error']}")
        return answer

    @contextlib.contextmanager
    def _ended_on_failure(self, awaited: str, timeout: float) -> Iterator[None]:
        """Ends the process and raises SidecarLostError if the socket is closed or a timeout passes."""
        try:
            yield
        except (TimeoutError, framing.ClosedError) as error:
            closed = isinstance(error, framing.ClosedError)
            reason = self._exit_reason() if closed else f"no answer within {timeout:.3g} s"
            self.end()
            message = f"{self.name}: waited for {awaited}: {reason}{self._log_tail()}"
            raise SidecarLostError(message) from None

    def end(self) -> None:
        """Ends the process and its children; may be called twice."""
        self._finalizer()

    def _exit_reason(self) -> str:
        try:
            status = self._process.wait(_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return "it closed its socket"
        if status < 0:
            return f"it was ended by {signal.Signals(-status).name}"
        return f"it ended with status {status}"

    def _log_tail(self) -> str:
        """Returns the last lines of its output, for errors."""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(size - 4000, 0))
        lines = [line.strip() for line in self._log.read().decode(errors="replace").splitlines()]
        lines = [line for line in lines if line][-_LOG_LINES:]
        return f"; its last lines: {' | '.join(lines)}" if lines else ""


def _end(process: subprocess.Popen, sock: socket.socket) -> None:
    """Ends a sidecar, also when this process exits. If this process is killed, the sidecar ends itself."""
    sock.close()
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_EXIT_TIMEOUT_S)
    # Its children get SIGTERM instead of SIGKILL: Python's resource tracker ignores that, removes the
    # semaphores that the process has left in /dev/shm, and ends by itself.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
