"""A stub sidecar without vLLM, which speaks the protocol and injects the faults of test_sidecar.py.

Its responses repeat the last digits of the seed.
"""

import mmap
import os
import pathlib
import signal
import socket
import time

import numpy as np

from sea_jax.actors import framing, weight_sync


def main(how, sock_fd, weights_fd):
    sock, weights = socket.socket(fileno=sock_fd), None
    asked = 0  # requests for responses
    print("a line of the log", flush=True)
    while True:
        header, arrays = framing.receive(sock, 30)
        kind, out = header["kind"], ()
        asked += kind == "generate"
        if how == f"die in {kind}" or (kind == "generate" and how.startswith("die once") and first(how)):
            os.kill(os.getpid(), signal.SIGKILL)
        if how == f"sleep in {kind}" or (how == "sleep in the second generate" and asked == 2):
            time.sleep(60)
        if how == f"fail in {kind}":
            framing.send(sock, {"error": "ValueError: of its own"}, timeout=9)
            continue
        if kind == "load" and not (how == "stale" and weights):
            size = os.fstat(weights_fd).st_size
            memory = np.frombuffer(mmap.mmap(weights_fd, size, prot=mmap.PROT_READ), np.uint8)
            weights = {"version": header["version"], "digest": weight_sync.digest(memory, header["rows"])}
            if how == "torn":
                weights["digest"] = "0" * 16
        if kind == "generate":
            tokens, lengths, seeds = arrays
            assert tokens.size == lengths.sum() and len(seeds) == len(lengths)
            each = (seeds[:, None] + np.arange(header["num_responses"])).reshape(-1)
            ends = 1 + (each % header["max_tokens"]).astype(np.int32)
            flat = np.concatenate(
                [np.full(n, seed % 97, np.int32) for seed, n in zip(each, ends, strict=True)]
            )
            out = flat, ends, -flat.astype(np.float32)
        framing.send(sock, weights or {"ready": True}, *out, timeout=9)


def first(how):
    """Returns whether this is the first call by any process with the same file."""
    file = pathlib.Path(how.removeprefix("die once "))
    if file.exists():
        return False
    file.touch()
    return True
