"""The oracle as a service: a reward model behind HTTP, its workers in processes of their own (Mosec).

    python -m sea_jax.serve.oracle_service --model=<folder or hub name> --port=8000
    python -m sea_jax.serve.oracle_service --model=mini_tldr --port=8000      # the embedded task's rewards

POST /probability, /rewards and /about take the messages of `sea_jax/oracles/messages.py`; GET / answers while
the service is alive, GET /metrics returns counts for Prometheus. Waiting requests are answered in one batch.
It listens on this machine alone unless --host says otherwise, and then requires a token in
SEA_JAX_ORACLE_TOKEN that clients must send (/ and /metrics need none). Nothing is encrypted: beyond a trusted
network put a proxy with TLS before it.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from absl import app, flags

from sea_jax.config.flags import fail, parse
from sea_jax.errors import InputError
from sea_jax.oracles import messages as wire

_MODEL = flags.DEFINE_string(
    "model", None, "A reward model in Hugging Face's layout: a folder or a hub name; or the embedded task's "
    "hidden reward: mini_tldr:<oracle seed>, or mini_tldr for the seed that a request names.", required=True,
)  # fmt: skip
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on, IPv4.")
_PORT = flags.DEFINE_integer("port", 8000, "Port to listen on.", 1, 65535)
_WORKERS = flags.DEFINE_integer("workers", 2, "Processes with a model each; one that dies is replaced.", 1)
_DEVICES = flags.DEFINE_list(
    "devices", [], "GPUs by number, one a worker; then there are as many workers as devices."
)
_BATCH = flags.DEFINE_integer("max_batch", 32, "Requests that a worker takes at once; 1: no batching.", 1)
_WAIT = flags.DEFINE_integer("max_wait_ms", 1, "Milliseconds that a first request waits for others.", 1)
_TIMEOUT = flags.DEFINE_float("timeout_s", 20.0, "Seconds that a request may wait and be computed.", 0.1)
_TEXTS = flags.DEFINE_integer("batch_size", 8, "Texts that the model reads at once.", 1)
_LONGEST = flags.DEFINE_integer("longest", 0, "Tokens of the longest text; 0: the model's context.", 0)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the model's activations.")
_CHAT = flags.DEFINE_enum("chat", "auto", ["auto", "yes", "no"], "Whether texts are in the chat template.")
_CACHE = flags.DEFINE_string("cache_dir", "", "Folder of compiled programs: the next start is faster.")
_START = flags.DEFINE_float("start_s", 900.0, "Seconds within which a worker must be ready.", 1.0)
_LEAST_TOKEN = 16  # characters


def main(argv: list[str]) -> None:
    """Serves until it is told to end; a mistake is one line on stderr and exit status 2."""
    if len(argv) > 1:
        fail(f"unexpected argument {argv[1]!r}: valid are flags, as --model")
    os.environ.setdefault("MOSEC_LOG_LEVEL", "warning")  # read when it is imported
    if importlib.util.find_spec("mosec") is None:
        fail("mosec is not installed; valid: pip install sea_jax[serve]")
    try:
        host = check_address(_HOST.value, _PORT.value, os.environ.get(wire.TOKEN, ""))
        check_model(_MODEL.value)
    except InputError as error:
        fail(error)
    sys.exit(serve(host))


def check_address(host: str, port: int, token: str) -> str:
    """The address to bind; raises InputError where that is none, is taken, or lacks a token."""
    host = "127.0.0.1" if host == "localhost" else host
    try:
        address = ipaddress.IPv4Address(host)
    except ValueError:
        raise InputError(f"--host={host!r}: valid is an IPv4 address, as 127.0.0.1 or 0.0.0.0") from None
    if not address.is_loopback and len(token) < _LEAST_TOKEN:
        raise InputError(
            f"--host={host}: others than this machine could ask; valid with a token of at least "
            f"{_LEAST_TOKEN} characters in the environment's {wire.TOKEN}, not {len(token)}"
        )
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(
                f"--port={port}: {host}:{port}: {error.strerror}; valid is a free port"
            ) from None
    return host


def check_model(model: str) -> None:
    """Raises InputError at what is no reward model; only its config.json is read."""
    from sea_jax.serve.oracle_worker import Settings

    if Settings(model).embedded:
        return
    from sea_jax import models

    try:
        config = models.read_config(models.find(model))
    except InputError as error:
        raise InputError(f"--model={model!r}: {error}") from None
    if not isinstance(config, models.RewardConfig) or config.num_labels != 1:
        raise InputError(
            f"--model={model!r}: valid is a reward model of one number, or mini_tldr[:<oracle seed>]"
        )


def serve(host: str) -> int:
    """Runs the service; 0 where a signal ended it, else 1."""
    from sea_jax.serve.oracle_worker import ENVIRONMENT, OracleWorker, Settings

    folder = Path(tempfile.mkdtemp(prefix="oracle-"))  # of the workers' socket: nobody else's to open
    report = folder / "failed.txt"
    settings = Settings(
        _MODEL.value, _TEXTS.value, _LONGEST.value, _DTYPE.value, _CHAT.value, _CACHE.value, str(report)
    )
    os.environ[ENVIRONMENT] = json.dumps(settings._asdict())
    # Mosec reads the command line, here and in its workers; its own flags are these.
    sys.argv[1:] = [
        f"--path={folder}", f"--address={host}", f"--port={_PORT.value}",
        f"--timeout={int(1000 * _TIMEOUT.value)}", "--namespace=oracle",
    ]  # fmt: skip
    server = _server()
    devices = [dict(CUDA_VISIBLE_DEVICES=device) for device in _DEVICES.value]
    server.append_worker(
        OracleWorker, num=len(devices) or _WORKERS.value, max_batch_size=_BATCH.value, env=devices or None,
        max_wait_time=_WAIT.value, timeout=_TIMEOUT.value, route=[f"/{ask}" for ask in wire.TEXTS],
    )  # fmt: skip
    address = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{_PORT.value}/"
    threading.Thread(target=_announce, args=(server, address, report), daemon=True).start()
    try:
        server.run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if server.reason in (signal.SIGTERM, signal.SIGINT):
        return 0
    print(f"error: the service ended: {' '.join(str(server.failure).split())}", file=sys.stderr)
    return 1


def _announce(server: Any, address: str, report: Path) -> None:
    """Says when the service answers; ends it if no worker can begin, or none has within --start_s."""
    end = time.monotonic() + _START.value
    while time.monotonic() < end and not server.reason:
        try:
            with urllib.request.urlopen(address, timeout=5):
                print(f"oracle service: {_MODEL.value} ready at {address}", flush=True)
                return
        except OSError:
            time.sleep(0.1)
        if report.exists():
            server.end(f"a worker could not begin: {report.read_text()}")
    server.end(f"no worker was ready within --start_s={_START.value:g}")


def _server() -> Any:
    import mosec

    class Server(mosec.Server):
        """Mosec's, which remembers why it ended."""

        reason, failure = 0, ""

        def _terminate(self, signum, framestack):
            if not self.reason:
                self.reason, self.failure = signum, framestack
            super()._terminate(signum, framestack)

        def end(self, why: str) -> None:
            self._terminate(-1, why)

    return Server()


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
