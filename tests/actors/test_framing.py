"""Messages arrive unchanged, waits time out, and malformed messages are refused."""

import json
import socket
import threading
import time

import numpy as np
import pytest

from sea_jax.actors import framing


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_header_and_arrays_arrive(pair):
    """The arrays include one larger than the socket's buffer, a transposed one and empty ones."""
    rng = np.random.default_rng(0)
    arrays = [
        rng.integers(0, 9, (700, 900)), rng.normal(size=(3, 4)).astype(np.float32).T,
        np.zeros((0, 5), np.int32), np.array(7, np.int64), np.array([True, False]),
    ]  # fmt: skip
    header = {"kind": "generate", "temperature": 0.7, "rows": [["a", [1, 2]]], "text": "ä"}
    sender = threading.Thread(target=framing.send, args=(pair[0], header, *arrays), kwargs={"timeout": 9})
    sender.start()
    got, out = framing.receive(pair[1], 9)
    sender.join()
    assert got == header
    for a, b in zip(arrays, out, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype and a.shape == b.shape


def test_waits_end(pair):
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        framing.receive(pair[0], 0.1)
    framing.send(pair[0], {}, timeout=1)
    prefix = pair[1].recv(3)  # a truncated message
    pair[0].sendall(prefix)
    pair[1].sendall(prefix)
    with pytest.raises(TimeoutError):
        framing.receive(pair[0], 0.1)
    with pytest.raises(TimeoutError):  # no process reads the socket
        framing.send(pair[1], {}, np.zeros(10_000_000), timeout=0.1)
    assert time.monotonic() - start < 5


def test_the_other_side_has_gone(pair):
    pair[1].close()
    with pytest.raises(framing.ClosedError):
        framing.receive(pair[0], 9)
    with pytest.raises(framing.ClosedError):
        framing.send(pair[0], {}, np.zeros(10_000_000), timeout=9)


def test_what_is_no_message_is_refused(pair):
    pair[0].sendall(b"\xff" * 8)
    with pytest.raises(ValueError, match="a header of"):
        framing.receive(pair[1], 1)
    text = json.dumps({"arrays": [["|O", [1]]]}).encode()
    pair[0].sendall(framing._PREFIX.pack(len(text), 1) + text + bytes(8))
    with pytest.raises(ValueError, match="dtype"):
        framing.receive(pair[1], 1)
