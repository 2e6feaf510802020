"""What oracle service and client say to each other: msgpack maps, nothing executable.

Request:  version, id, token, seed, and ask: 'probability' with prompts, first and second; 'rewards' with
          prompts and responses; or 'about'.
Answer:   version, id, and what was asked for by that name; or error with kind ('input', 'token', 'model').

The service keeps nothing: asking again gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgpack
import numpy as np

VERSION = 1
TEXTS = {"probability": ("prompts", "first", "second"), "rewards": ("prompts", "responses"), "about": ()}
MOST_ROWS = 4096  # comparisons or responses in one request
TOKEN = "SEA_JAX_ORACLE_TOKEN"  # the environment variable of both sides; a config is written to disk


class Request(NamedTuple):
    """A request that is well formed."""

    id: str
    token: str
    ask: str
    seed: int  # of the reward, where a service has several
    texts: tuple[Sequence[str], ...]  # in the order of TEXTS, equally many each


class Refusal(Exception):  # noqa: N818
    """Why there is no answer; told to the client.

    Args:
        kind: 'input', 'token' or 'model'.
        why: for people.
    """

    def __init__(self, kind: str, why: str):
        super().__init__(why)
        self.kind = kind


def pack_request(id: str, token: str, ask: str, seed: int, texts: Sequence[Sequence[str]]) -> bytes:
    """A request as bytes."""
    fields = dict(zip(TEXTS[ask], map(list, texts), strict=True))
    return msgpack.packb(dict(version=VERSION, id=id, token=token, ask=ask, seed=seed) | fields)  # pyright: ignore[reportReturnType]


def read_request(body: bytes) -> Request:
    """Raises Refusal where the bytes are no request."""
    message = _map(body)
    if message is None:
        raise Refusal("input", "the body is no msgpack map")
    if message.get("version") != VERSION:
        raise Refusal("input", f"version={message.get('version')!r}; valid: {VERSION}")
    ask, seed = message.get("ask"), message.get("seed", 0)
    if not isinstance(ask, str) or ask not in TEXTS:
        raise Refusal("input", f"ask={ask!r}; valid: one of {tuple(TEXTS)}")
    if type(seed) is not int or seed < 0:
        raise Refusal("input", f"seed={seed!r}; valid: a whole number of at least 0")
    texts: tuple[Any, ...] = tuple(message.get(name) for name in TEXTS[ask])
    for name, column in zip(TEXTS[ask], texts, strict=True):
        if not isinstance(column, list) or not all(isinstance(text, str) for text in column):
            raise Refusal("input", f"{name}: valid is a list of texts")
        if len(column) != len(texts[0]) or len(column) > MOST_ROWS:
            raise Refusal(
                "input", f"{name}: {len(column)} texts; valid: as many as prompts, at most {MOST_ROWS}"
            )
    return Request(str(message.get("id", "")), str(message.get("token", "")), ask, seed, texts)


def pack_answer(id: str, **fields: Any) -> bytes:
    """An answer as bytes; arrays become lists of numbers."""
    plain = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in fields.items()}
    return msgpack.packb(dict(version=VERSION, id=id) | plain)  # pyright: ignore[reportReturnType]


def read_answer(body: bytes, id: str, ask: str, size: int) -> Any:
    """The numbers [size] f64 that were asked for, or the map 'about'.

    Raises:
        Refusal: the service says why it does not answer.
        ValueError: the bytes are no answer to this request; the message says what is wrong with them.
    """
    message = _map(body)
    if message is None:
        raise ValueError(f"{len(body)} bytes that are no msgpack map")
    if message.get("version") != VERSION:
        raise ValueError(f"version {message.get('version')!r}, must be {VERSION}")
    if "error" in message:
        raise Refusal(str(message.get("kind")), str(message["error"]))
    if message.get("id") != id:
        raise ValueError(f"an answer to {message.get('id')!r}, not to {id!r}")
    found = message.get(ask)
    if ask == "about":
        if not isinstance(found, dict):
            raise ValueError("no 'about'")
        return found
    if not isinstance(found, list) or not all(type(x) in (int, float) for x in found):
        raise ValueError(f"no list of numbers {ask!r}")
    if len(found) != size:
        raise ValueError(f"{len(found)} numbers, must be {size}")
    numbers = np.array(found, np.float64)
    most = 1.0 if ask == "probability" else np.finfo(np.float32).max
    least = 0.0 if ask == "probability" else -most
    bad = np.flatnonzero(~((numbers >= least) & (numbers <= most)))  # a NaN fails both comparisons
    if bad.size:
        raise ValueError(f"{ask}[{bad[0]}] is {numbers[bad[0]]}")
    return numbers


def _map(body: bytes) -> dict | None:
    try:
        message = msgpack.unpackb(body)
    except Exception:  # whatever msgpack says of bytes that are none of its own
        return None
    return message if isinstance(message, dict) else None
