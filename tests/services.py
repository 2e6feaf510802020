"""Services for tests: the real one, small ones of the standard library that misbehave on demand, and the run that
a run with services must equal."""

import contextlib
import functools
import http.server
import json
import os
import queue
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import tenacity
from helpers import ROOT

from sea_jax.oracles import messages
from sea_jax.oracles.bradley_terry import preference
from sea_jax.tasks import mini_tldr_grammar as grammar

# Pauses between attempts that are a twentieth of the real ones, for `patience._BACKOFF`; test_patience.py tests those.
QUICK_BACKOFF = tenacity.wait_exponential(multiplier=0.005, max=0.25)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def comparisons(size, seed=0):
    """Posts of the embedded task, and two noisy summaries of each."""
    rng = random.Random(seed)
    posts = [grammar.make_post(rng) for _ in range(size)]
    return [p.text for p in posts], *(
        [grammar.make_demonstration(rng, p)[0] for p in posts] for _ in range(2)
    )


def finished_run(folder, prepare=lambda run: None, **fields):
    """A small run, and its rows of metrics; `prepare` gets the run before it begins."""
    from small_run import loop, small_run  # JAX, which other users of this file do without

    fields = {"sea.burn_in": 8, "sea.gamma": 0.5, "task.oracle_seed": 3, "eval.online": "yes"} | fields
    run = small_run(Path(folder), "sea", **fields)
    prepare(run)
    return run, loop(run)[0]


@functools.cache
def local_run():
    """`finished_run` in this process alone, once for all tests."""
    with tempfile.TemporaryDirectory() as folder:
        return finished_run(folder)


class Service:
    """`python -m sea_jax.serve.oracle_service` in a process group of its own."""

    def __init__(self, *flags, port=None, host=None, token=None):
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1"}
        env.pop(messages.TOKEN_VARIABLE, None)
        if token:
            env[messages.TOKEN_VARIABLE] = token
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sea_jax.serve.oracle_service", f"--port={self.port}",
             *([f"--host={host}"] if host else []), *flags],
            cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        self.said, self._lines = [], queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.said.append(line)
            self._lines.put(line)

    def wait_until_ready(self, seconds=60):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(queue.Empty):
                if " ready at " in self._lines.get(timeout=0.2):
                    return self
            assert self.process.poll() is None, "".join(self.said)
        raise AssertionError(f"not ready within {seconds} s: {''.join(self.said)}")

    def stop(self, seconds=15):
        """Exit status and all that it said."""
        self.process.terminate()
        try:
            return self.process.wait(seconds), "".join(self.said)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def __enter__(self):
        return self.wait_until_ready()

    def __exit__(self, *_):
        self.stop()


class Http:
    """A server of the standard library. `answer`: (path, headers, body) -> (status, headers, body), or None to hang up."""

    def __init__(self, answer, port=0):
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                with outer.lock:
                    outer.requests += 1
                reply = outer.answer(self.path, self.headers, body)
                if reply is None or outer.ended:
                    self.close_connection = True
                    return
                status, headers, content = reply
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

            def handle(self):
                with contextlib.suppress(ConnectionError):
                    super().handle()

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads, request_queue_size = True, 64

        self.answer, self.lock, self.requests, self.ended = answer, threading.Lock(), 0, False
        self.server = Server(("127.0.0.1", port), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        threading.Thread(
            target=self.server.serve_forever, kwargs=dict(poll_interval=0.02), daemon=True
        ).start()
        return self

    def __exit__(self, *_):
        self.ended = True  # also on connections that are open
        self.server.shutdown()
        self.server.server_close()


def by_length(request):
    """An oracle service whose reward is a text's length."""
    _, *columns = request.texts
    lengths = [np.array([len(text) for text in column], np.float32) for column in columns]
    found = preference(*lengths) if request.endpoint == "probability" else lengths[0].astype(float)
    return messages.pack_answer(request.id, **{request.endpoint: found})


def oracle_http(spoil=lambda request, good: good, port=0):
    """`Http` that answers by length; `spoil` makes of a request and its good answer what is sent: bytes, a whole
    reply, or None."""

    def answer(path, headers, body):
        request = messages.read_request(body)
        good = (
            messages.pack_answer(request.id, about=dict(model="length", pid=1))
            if request.endpoint == "about"
            else by_length(request)
        )
        sent = spoil(request, good)
        return (200, {}, sent) if isinstance(sent, bytes) else sent

    return Http(answer, port)


class Judging:
    """OpenAI's chat completions: a judge that likes long outputs, and `bias` nats more what stands first.

    Args:
        spoil: (number of the request from 0, top_logprobs) -> top_logprobs to send, or a whole reply. Of a request
            without log-probs it takes and returns the text of the verdict.
    """

    def __init__(self, bias=0.0, spoil=lambda n, top: top):
        self.bias, self.spoil, self.lock = bias, spoil, threading.Lock()
        self.seen, self.keys = [], []

    def draw(self, n):
        """A number in [0, 1) for the n-th request, by its key: the same request gets the same verdict."""
        return int(self.keys[n][:8], 16) / 2**32

    def __call__(self, path, headers, body):
        asked = json.loads(body)
        text = asked["messages"][0]["content"]
        with self.lock:
            n = len(self.seen)
            self.seen.append((path, headers["authorization"], asked))
            self.keys.append(headers["idempotency-key"])
        outputs = [entry["output"] for entry in entries(text)]
        if "logprobs" not in asked:  # a sampled verdict
            first = self.draw(n) < 1 / (1 + np.exp(len(outputs[1]) - len(outputs[0]) - self.bias))
            sent = self.spoil(n, " 0" if first else "1")
            whole = isinstance(sent, tuple) or sent is None
            return sent if whole else (200, {"content-type": "application/json"}, completion(None, text=sent))
        scores = np.array([len(outputs[0]) + self.bias, len(outputs[1])], float)
        logprobs = scores - np.logaddexp.reduce(scores) - 0.1
        top = [dict(token=str(i), logprob=float(logprobs[i]), bytes=None) for i in np.argsort(-logprobs)]
        sent = self.spoil(n, top)
        if isinstance(sent, tuple) or sent is None:
            return sent
        return 200, {"content-type": "application/json"}, completion(sent)


def entries(text):
    """The JSON objects of a judge's prompt, wherever in it they begin on a line of their own."""
    starts = [found.start() for found in re.finditer(r"^\{", text, re.MULTILINE)]
    return [json.JSONDecoder().raw_decode(text, start)[0] for start in starts]


def completion(top, prompt_tokens=200, completion_tokens=1, text="0"):
    token = dict(token="0", logprob=-1.0, bytes=None, top_logprobs=top)
    choice = dict(
        index=0, finish_reason="length", message=dict(role="assistant", content=text),
        logprobs=None if top is None else dict(content=[token], refusal=None),
    )  # fmt: skip
    usage = dict(
        prompt_tokens=prompt_tokens, completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
    )  # fmt: skip
    return json.dumps(
        dict(id="x", object="chat.completion", created=0, model="judge", choices=[choice], usage=usage)
    ).encode()
