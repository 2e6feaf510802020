"""Messages between a run and the processes it starts: a JSON header and raw arrays on a Unix socket.

No pickle: what comes in can be nothing but numbers, text and arrays. NumPy only, since processes of other
environments import this too.
"""

import json
import math
import socket
import struct
import time
from typing import Any

import numpy as np

_PREFIX = struct.Struct("<II")  # bytes of the header, number of arrays
_LONGEST_HEADER = 1 << 28  # bytes; more is no header


class ClosedError(ConnectionError):
    """The other side has gone."""


def send(sock: socket.socket, header: dict[str, Any], *arrays: np.ndarray, timeout: float) -> None:
    """Writes one message.

    Args:
        sock: a stream socket.
        header: what JSON can hold.
        *arrays: of numbers; they arrive with dtype and shape.
        timeout: seconds for all of it.

    Raises:
        ClosedError: where nobody reads any more.
        TimeoutError: where nobody has read in time.
    """
    described = [[array.dtype.str, list(array.shape)] for array in arrays]
    text = json.dumps(header | {"arrays": described}).encode()
    sock.settimeout(timeout)
    try:
        sock.sendall(_PREFIX.pack(len(text), len(arrays)) + text)
        for array in arrays:
            sock.sendall(array.tobytes())
    except (BrokenPipeError, ConnectionResetError) as error:
        raise ClosedError(str(error)) from None


def receive(sock: socket.socket, timeout: float | None) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Reads one message: header and arrays.

    Args:
        sock: a stream socket.
        timeout: seconds for all of it; None waits for as long as the other side lives.

    Raises:
        ClosedError: where the other side is gone.
        TimeoutError: where the message is not there in time.
        ValueError: on bytes that are no message.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    size, count = _PREFIX.unpack(_read(sock, _PREFIX.size, deadline))
    if size > _LONGEST_HEADER:
        raise ValueError(f"a header of {size} bytes; valid: at most {_LONGEST_HEADER}")
    header = json.loads(bytes(_read(sock, size, deadline)))
    described = header.pop("arrays")
    if len(described) != count:
        raise ValueError(f"{len(described)} arrays described, {count} announced")
    arrays = []
    for name, shape in described:
        dtype = np.dtype(name)
        if dtype.hasobject:
            raise ValueError(f"an array of dtype {name}; valid: numbers")
        content = _read(sock, dtype.itemsize * math.prod(shape), deadline)
        arrays.append(np.frombuffer(content, dtype).reshape(shape))
    return header, arrays


def _read(sock: socket.socket, size: int, deadline: float | None) -> bytearray:
    content = bytearray(size)
    view, got = memoryview(content), 0
    while got < size:
        if deadline is not None and (left := deadline - time.monotonic()) <= 0:
            raise TimeoutError
        sock.settimeout(None if deadline is None else left)
        try:
            n = sock.recv_into(view[got:])
        except ConnectionResetError as error:
            raise ClosedError(str(error)) from None
        if n == 0:
            raise ClosedError("end of the stream")
        got += n
    return content
