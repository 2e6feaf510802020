"""Serves a reward model over HTTP, with workers in processes of their own (Mosec).

    python -m sea_jax.serve.oracle_service --model=<folder or hub name> --port=8000
    python -m sea_jax.serve.oracle_service --model=mini_tldr --port=8000      # the embedded task's rewards

POST /probability, /rewards and /about take the messages of `sea_jax/oracles/messages.py`; GET / answers while
the service is alive; GET /metrics returns counts for Prometheus. Waiting requests are answered in one batch.

The service listens on this machine alone unless --host says otherwise. Then it requires a token in
SEA_JAX_ORACLE_TOKEN that clients must send (not for / and /metrics). Nothing is encrypted: outside a trusted
network, put a proxy with TLS in front.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
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
from sea_jax.oracles import messages
from sea_jax.oracles.access import check_address

_MODEL = flags.DEFINE_string(
    "model", None, "A reward model in Hugging Face's layout, by folder or hub name; or an embedded task's "
    "hidden reward: mini_tldr:<oracle seed>, or mini_tldr for the seed of each request.", required=True,
)  # fmt: skip
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on, IPv4.")
_PORT = flags.DEFINE_integer("port", 8000, "Port to listen on.", 1, 65535)
_WORKERS = flags.DEFINE_integer("workers", 2, "Processes, each with a model; one that dies is replaced.", 1)
_DEVICES = flags.DEFINE_list("devices", [], "GPUs by number, one per worker; sets the number of workers.")
_BATCH = flags.DEFINE_integer("max_batch", 32, "Requests per batch of a worker; 1: no batching.", 1)
_WAIT = flags.DEFINE_integer("max_wait_ms", 1, "Milliseconds for which a batch is filled.", 1)
_TIMEOUT = flags.DEFINE_float("timeout_s", 20.0, "Seconds for a request, waiting included.", 0.1)
_TEXTS = flags.DEFINE_integer("batch_size", 8, "Texts per batch of the model.", 1)
_LONGEST = flags.DEFINE_integer("longest", 0, "Tokens of the longest text; 0: the model's context.", 0)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the model's activations.")
_CHAT = flags.DEFINE_enum("chat", "auto", ["auto", "yes", "no"], "Use the tokenizer's chat template.")
_CACHE = flags.DEFINE_string("cache_dir", "", "Folder of compiled programs, for a faster next start.")
_START = flags.DEFINE_float("start_s", 900.0, "Seconds within which a worker must be ready.", 1.0)


def main(argv: list[str]) -> None:
    """Serves until a signal ends it; a mistake is one line on stderr and exit status 2."""
    if len(argv) > 1:
        fail(f"unexpected argument {argv[1]!r}: valid are flags, such as --model")
    os.environ.setdefault("MOSEC_LOG_LEVEL", "warning")  # read on import
    if importlib.util.find_spec("mosec") is None:
        fail("mosec is not installed; valid: pip install sea_jax[serve]")
    try:
        host = check_address(_HOST.value, _PORT.value, messages.TOKEN_VARIABLE)
        check_model(_MODEL.value)
    except InputError as error:
        fail(error)
    sys.exit(serve(host))


def check_model(model: str) -> None:
    """Raises InputError unless --model is a reward model; reads its config.json only."""
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
            f"--model={model!r}: valid is a reward model of one number, or an embedded task, as "
            "mini_tldr[:<oracle seed>]"
        )


def serve(host: str) -> int:
    """Runs the service; returns 0 if a signal ended it, else 1."""
    from sea_jax.serve.oracle_worker import SETTINGS_VARIABLE, OracleWorker, Settings

    folder = Path(tempfile.mkdtemp(prefix="oracle-"))  # private to this user: it holds the workers' socket
    error_file = folder / "error.txt"
    settings = Settings(
        _MODEL.value, _TEXTS.value, _LONGEST.value, _DTYPE.value, _CHAT.value, _CACHE.value, str(error_file)
    )
    os.environ[SETTINGS_VARIABLE] = json.dumps(settings._asdict())
    # Mosec parses the command line, here and in its workers; these are its flags.
    sys.argv[1:] = [
        f"--path={folder}", f"--address={host}", f"--port={_PORT.value}",
        f"--timeout={int(1000 * _TIMEOUT.value)}", "--namespace=oracle",
    ]  # fmt: skip
    server = _make_server()
    devices = [dict(CUDA_VISIBLE_DEVICES=device) for device in _DEVICES.value]
    server.append_worker(
        OracleWorker, num=len(devices) or _WORKERS.value, max_batch_size=_BATCH.value, env=devices or None,
        max_wait_time=_WAIT.value, timeout=_TIMEOUT.value, route=[f"/{x}" for x in messages.TEXT_FIELDS],
    )  # fmt: skip
    address = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{_PORT.value}/"
    threading.Thread(target=_announce, args=(server, address, error_file), daemon=True).start()
    try:
        server.run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if server.reason in (signal.SIGTERM, signal.SIGINT):
        return 0
    print(f"error: the service ended: {' '.join(str(server.failure).split())}", file=sys.stderr)
    return 1


def _announce(server: Any, address: str, error_file: Path) -> None:
    """Prints a line when the service answers; ends it if no worker starts within --start_s."""
    end = time.monotonic() + _START.value
    while time.monotonic() < end and not server.reason:
        try:
            with urllib.request.urlopen(address, timeout=5):
                print(f"oracle service: {_MODEL.value} ready at {address}", flush=True)
                return
        except OSError:
            time.sleep(0.1)
        if error_file.exists():
            server.end(f"a worker could not start: {error_file.read_text()}")
    server.end(f"no worker was ready within --start_s={_START.value:g}")


def _make_server() -> Any:
    """Makes a server that remembers why it ended."""
    import mosec

    class Server(mosec.Server):
        reason, failure = 0, ""

        def _terminate(self, signum, framestack):
            if not self.reason:
                self.reason, self.failure = signum, framestack
            super()._terminate(signum, framestack)

        def end(self, failure: str) -> None:
            self._terminate(-1, failure)

    return Server()


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
