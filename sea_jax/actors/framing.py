"""Messages over a Unix socket between a run and the processes it starts: a JSON header and raw arrays.

No pickle: a message can contain nothing but numbers, text and arrays. This file needs NumPy only, since
processes of other environments import it too.
"""

import json
import math
import socket
import struct
import time
from typing import Any

import numpy as np

_PREFIX = struct.Struct("<II")  # bytes of the header, number of arrays
_MAX_HEADER = 1 << 28  # bytes


class ClosedError(ConnectionError):
    """The other side has closed the socket."""


def send(sock: socket.socket, header: dict[str, Any], *arrays: np.ndarray, timeout: float) -> None:
    """Writes one message.

    Args:
        sock: a stream socket.
        header: values that JSON can represent.
        *arrays: numeric arrays; dtype and shape are kept.
        timeout: seconds for the whole message.

    Raises:
        ClosedError: the other side has closed the socket.
        TimeoutError: the other side has not read the message in time.
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
    """Reads one message.

    Args:
        sock: a stream socket.
        timeout: seconds for the whole message; None for no limit.

    Returns:
        The header and the arrays.

    Raises:
        ClosedError: the other side has closed the socket.
        TimeoutError: the message has not arrived in time.
        ValueError: the bytes are not a message.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    size, count = _PREFIX.unpack(_read(sock, _PREFIX.size, deadline))
    if size > _MAX_HEADER:
        raise ValueError(f"a header of {size} bytes; valid: at most {_MAX_HEADER}")
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
    """Reads exactly `size` bytes."""
    content = bytearray(size)
    view, filled = memoryview(content), 0
    while filled < size:
        if deadline is not None and (left := deadline - time.monotonic()) <= 0:
            raise TimeoutError
        sock.settimeout(None if deadline is None else left)
        try:
            n = sock.recv_into(view[filled:])
        except ConnectionResetError as error:
            raise ClosedError(str(error)) from None
        if n == 0:
            raise ClosedError("end of the stream")
        filled += n
    return content
