"""Messages between the oracle service and its clients: msgpack maps, nothing executable.

Request:  version, id, token, seed, and endpoint: 'probability' with prompts, first and second; 'rewards' with
          prompts and responses; or 'about'.
Answer:   version, id, and the result under the endpoint's name; or error, and kind: 'input', 'token' or
          'model'.

The service is stateless: a request that is sent again gets the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgpack
import numpy as np

from sea_jax.credentials import ORACLE_TOKEN

VERSION = 2
TEXT_FIELDS = {
    "probability": ("prompts", "first", "second"),
    "rewards": ("prompts", "responses"),
    "about": (),
}  # of each endpoint
MAX_ROWS = 4096  # comparisons or responses in one request
TOKEN_VARIABLE = ORACLE_TOKEN  # in the environment, since a config is written to disk


class Request(NamedTuple):
    """A well-formed request."""

    id: str
    token: str
    endpoint: str
    seed: int  # of the reward, where a service has several
    texts: tuple[Sequence[str], ...]  # in the order of TEXT_FIELDS, equally many each


class RefusedError(Exception):
    """A request that the service refuses; the reason is sent to the client.

    Args:
        kind: 'input', 'token' or 'model'.
        reason: for people.
    """

    def __init__(self, kind: str, reason: str):
        super().__init__(reason)
        self.kind = kind


def pack_request(id: str, token: str, endpoint: str, seed: int, texts: Sequence[Sequence[str]]) -> bytes:
    """Packs a request; `texts` are the columns of TEXT_FIELDS[endpoint]."""
    fields = dict(zip(TEXT_FIELDS[endpoint], map(list, texts), strict=True))
    return _pack(version=VERSION, id=id, token=token, endpoint=endpoint, seed=seed, **fields)


def read_request(body: bytes) -> Request:
    """Unpacks a request; raises RefusedError if it is malformed."""
    message = _unpack(body)
    if message is None:
        raise RefusedError("input", "the body is not a msgpack map")
    if message.get("version") != VERSION:
        raise RefusedError("input", f"version={message.get('version')!r}; valid: {VERSION}")
    endpoint, seed = message.get("endpoint"), message.get("seed", 0)
    if not isinstance(endpoint, str) or endpoint not in TEXT_FIELDS:
        raise RefusedError("input", f"endpoint={endpoint!r}; valid: one of {tuple(TEXT_FIELDS)}")
    if type(seed) is not int or seed < 0:
        raise RefusedError("input", f"seed={seed!r}; valid: a whole number of at least 0")
    texts = _text_columns(message, TEXT_FIELDS[endpoint])
    return Request(str(message.get("id", "")), str(message.get("token", "")), endpoint, seed, texts)


def _text_columns(message: dict[str, Any], names: tuple[str, ...]) -> tuple[list[str], ...]:
    """Returns the named columns of texts; raises RefusedError unless all have the same valid length."""
    columns: tuple[Any, ...] = tuple(message.get(name) for name in names)
    for name, column in zip(names, columns, strict=True):
        if not isinstance(column, list) or not all(isinstance(text, str) for text in column):
            raise RefusedError("input", f"{name}: valid is a list of texts")
        if len(column) != len(columns[0]) or len(column) > MAX_ROWS:
            valid = f"as many as prompts, at most {MAX_ROWS}"
            raise RefusedError("input", f"{name}: {len(column)} texts; valid: {valid}")
    return columns


def pack_answer(id: str, **fields: Any) -> bytes:
    """Packs an answer; arrays become lists of numbers."""
    plain = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in fields.items()}
    return _pack(version=VERSION, id=id, **plain)


def read_answer(body: bytes, id: str, endpoint: str, size: int) -> Any:
    """Unpacks an answer.

    Args:
        body: the packed answer.
        id: of the request.
        endpoint: of the request.
        size: number of rows in the request.

    Returns:
        [size] float64; of the endpoint 'about' a map.

    Raises:
        RefusedError: the service refused the request.
        ValueError: the answer is malformed, or belongs to another request.
    """
    message = _unpack(body)
    if message is None:
        raise ValueError(f"{len(body)} bytes that are not a msgpack map")
    if message.get("version") != VERSION:
        raise ValueError(f"version {message.get('version')!r}, must be {VERSION}")
    if "error" in message:
        raise RefusedError(str(message.get("kind")), str(message["error"]))
    if message.get("id") != id:
        raise ValueError(f"an answer to {message.get('id')!r}, not to {id!r}")
    result = message.get(endpoint)
    if endpoint != "about":
        return _numbers(result, endpoint, size)
    if not isinstance(result, dict):
        raise ValueError("no 'about'")
    return result


def _numbers(result: Any, endpoint: str, size: int) -> np.ndarray:
    """Returns a list of numbers as [size] float64; raises ValueError if it is anything else."""
    if not isinstance(result, list) or not all(type(x) in (int, float) for x in result):
        raise ValueError(f"no list of numbers {endpoint!r}")
    if len(result) != size:
        raise ValueError(f"{len(result)} numbers, must be {size}")
    numbers = np.array(result, np.float64)
    high = 1.0 if endpoint == "probability" else np.finfo(np.float32).max
    low = 0.0 if endpoint == "probability" else -high
    bad = np.flatnonzero(~((numbers >= low) & (numbers <= high)))  # a NaN fails both comparisons
    if bad.size:
        raise ValueError(f"{endpoint}[{bad[0]}] is {numbers[bad[0]]}")
    return numbers


def _pack(**fields: Any) -> bytes:
    return msgpack.packb(fields)  # pyright: ignore[reportReturnType]


def _unpack(body: bytes) -> dict | None:
    """Returns the map that was packed; None if the bytes are anything else."""
    try:
        message = msgpack.unpackb(body)
    except Exception:  # msgpack raises errors of many types on foreign bytes
        return None
    return message if isinstance(message, dict) else None
