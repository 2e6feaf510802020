"""Serves the page in a process of its own, which ends with the run's; a page that dies is started again.

python -m sea_jax.people.server --workdir=runs/a --port=8501    # what a run starts; also by hand, to look
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from absl import logging

from sea_jax.credentials import PEOPLE_TOKEN, without_credentials
from sea_jax.errors import InputError, ServiceError
from sea_jax.labels.desk import Desk
from sea_jax.oracles.access import check_address, read_key

if TYPE_CHECKING:
    from sea_jax.types import Config  # imports JAX, which the page does without

_START_S = 60.0  # within which the page must answer
_PARENT = "SEA_JAX_PAGE_OF_A_RUN"  # set: standard input ends when the run does
_PACKAGES = ("starlette", "uvicorn", "jinja2")


class PageServer:
    """The page's process, as a run sees it.

    Args:
        config: the experiment's; its section `people`.
        workdir: of the questions.

    Raises:
        InputError: a package is missing, or the address is taken, or can be reached without a token.
        ServiceError: by `start` and `watch`, if the page does not answer within a minute.
    """

    def __init__(self, config: Config, workdir: Path):
        missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            raise InputError(
                f"config.oracle.kind='people': {', '.join(missing)} not installed; valid: "
                "pip install 'sea_jax[people]'"
            )
        people = config.people
        host = check_address(
            people.host, people.port, PEOPLE_TOKEN, ("config.people.host", "config.people.port")
        )  # fmt: skip
        self._call = [
            sys.executable, "-m", "sea_jax.people.server", f"--workdir={workdir}", f"--host={host}",
            f"--port={people.port}", f"--guideline={people.guideline}", f"--lease_s={people.lease_s}",
            f"--skips={people.skips}", f"--requests_per_s={people.requests_per_s}",
        ]  # fmt: skip
        self.address = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{people.port}/"
        self._log = workdir / "page.log"
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        """Starts the page and waits until it answers."""
        env = without_credentials(os.environ) | {_PARENT: "1"}
        if token := read_key(PEOPLE_TOKEN):
            env[PEOPLE_TOKEN] = token
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                self._call, stdin=subprocess.PIPE, stdout=log, stderr=log, env=env, start_new_session=True
            )
        end = time.monotonic() + _START_S
        while time.monotonic() < end and self._process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(self.address, timeout=5):
                return
            time.sleep(0.05)
        self.end()
        lines = self._log.read_text(errors="replace").splitlines()
        raise ServiceError(f"the page at {self.address} does not answer; {' | '.join(lines[-2:])}")

    def watch(self) -> None:
        """Starts the page again if it has ended; questions and sessions are on the disk."""
        if self._process is not None and self._process.poll() is not None:
            logging.warning("the page ended with status %d and is started again", self._process.returncode)
            self.start()

    def end(self) -> None:
        """Ends the page."""
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            self._process.kill()
            self._process.wait()
            assert self._process.stdin is not None
            self._process.stdin.close()


@contextlib.contextmanager
def page(config: Config, workdir: Path) -> Iterator[PageServer]:
    """Serves the page while the context lasts, and says where it is."""
    server = PageServer(config, workdir)
    try:
        server.start()
        token = f" (token: {PEOPLE_TOKEN})" if read_key(PEOPLE_TOKEN) else ""
        print(f"label at {server.address}{token}", file=sys.stderr, flush=True)
        yield server
    finally:
        server.end()


def main() -> None:
    """Serves until it is ended, or the run that started it ends."""
    import uvicorn

    from sea_jax.people.page import Page, PageSettings

    options = _parser().parse_args()
    if _PARENT in os.environ:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        host = check_address(options.host, options.port, PEOPLE_TOKEN)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    guideline = Path(options.guideline).read_text("utf-8") if options.guideline else ""
    token = read_key(PEOPLE_TOKEN)
    # Without a token another site's name must not reach the page (DNS rebinding); with one a proxy's may.
    hosts = ("*",) if token else (host, "localhost")
    settings = PageSettings(token, guideline, hosts, options.requests_per_s)
    desk = Desk(options.workdir, options.lease_s, options.skips)
    uvicorn.run(
        Page(desk, settings).app, host=host, port=options.port, log_level="warning",
        server_header=False, date_header=False, timeout_keep_alive=30, limit_concurrency=1000,
    )  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Serves the labelling page.")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8501)
    parser.add_argument("--guideline", default="")
    parser.add_argument("--lease_s", type=float, default=300.0)
    parser.add_argument("--skips", type=int, default=1)
    parser.add_argument("--requests_per_s", type=float, default=20.0)
    return parser


def _end_with_parent() -> None:
    """Ends this process when its standard input ends: whoever started it is gone."""
    with contextlib.suppress(OSError):
        while sys.stdin.buffer.read(1):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
