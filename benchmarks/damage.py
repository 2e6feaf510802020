"""Damages bytes and JSON in the ways that disks, editors and two processes at once do.

Every function draws from a `random.Random`; Hypothesis can give one too, so that tests and the command
`python -m benchmarks.bad_input` share what is here.
"""

import json
import random
from typing import Any

SURROGATE = "\ud83d"  # half of a character, which JSON can spell and UTF-8 cannot
ODD_TEXTS = (
    "", " ", "\0", "a\0b", SURROGATE, "ﷺ🙂\u200fé", "line\nline", "../..", "/dev/null", "x" * 5000, "http://[::1",
    "http://a:99999", "file:///etc", "null", "nan", "-1", "%s{}{0}", "a.b.c", "a@b@c", "~", "*",
)  # fmt: skip
ODD_NUMBERS = (
    0, -1, 1, 2, 7, 2**31 - 1, 2**31, 2**63, 10**30, 10**400, 0.5, -0.5, 1e-45, 1e39, 1e308, -1e308,
    float("nan"), float("inf"), float("-inf"),
)  # fmt: skip


def damage(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    """Returns the content with one kind of damage, and the name of the kind."""
    kind = rng.choice(sorted(_KINDS))
    return _KINDS[kind](rng, content), kind


def _cut(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _cut_begin(rng: random.Random, content: bytes) -> bytes:
    return content[rng.randrange(len(content) + 1) :]


def flip_bits(rng: random.Random, content: bytes) -> bytes:
    """Flips one to eight bits."""
    found = bytearray(content)
    for _ in range(rng.randrange(1, 9) if found else 0):
        found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def _zero(rng: random.Random, content: bytes) -> bytes:
    """Zeroes a block, as file systems do after a power failure."""
    start, size = _block(rng, content)
    return content[:start] + bytes(size) + content[start + size :]


def _noise(rng: random.Random, content: bytes) -> bytes:
    start, size = _block(rng, content)
    return content[:start] + bytes(rng.randrange(256) for _ in range(size)) + content[start + size :]


def _remove(rng: random.Random, content: bytes) -> bytes:
    start, size = _block(rng, content)
    return content[:start] + content[start + size :]


def _repeat(rng: random.Random, content: bytes) -> bytes:
    start, size = _block(rng, content)
    return content[: start + size] + content[start:]


def _append(rng: random.Random, content: bytes) -> bytes:
    return content + rng.choice(
        (b"\0" * 9, b"{", b"\n\n", b"[1]\n", b"\xff\xfe", content[: len(content) // 2])
    )


def _swap(rng: random.Random, content: bytes) -> bytes:
    """Replaces a line by another one, or by a part of it, as two writers of one file leave it."""
    lines = content.split(b"\n")
    at, other = rng.randrange(len(lines)), lines[rng.randrange(len(lines))]
    lines[at] = other if rng.random() < 0.5 else other[: len(other) // 2]
    return b"\n".join(lines)


def _block(rng: random.Random, content: bytes) -> tuple[int, int]:
    """Draws where a block begins, and its size of at most 64 bytes."""
    start = rng.randrange(max(len(content), 1))
    return start, min(rng.randrange(1, 65), len(content) - start)


_KINDS = {
    "cut": _cut, "cut at the beginning": _cut_begin, "bits flipped": flip_bits, "zeroed": _zero,
    "noise": _noise, "removed": _remove, "repeated": _repeat, "appended": _append, "lines swapped": _swap,
}  # fmt: skip


def spoil_value(rng: random.Random) -> Any:
    """Returns a value that few fields expect."""
    return rng.choice(
        (
            None, True, False, rng.choice(ODD_NUMBERS), rng.choice(ODD_TEXTS), [], {}, [None], [[1]], {"a": 1},
            ["text", 3], {"": {}},
        )
    )  # fmt: skip


def spoil_json(rng: random.Random, value: Any) -> Any:
    """Returns JSON of which one part has another value, name or place, or is gone."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        found, name = dict(value), rng.choice(sorted(value))
        how = rng.random()
        if how < 0.1:
            del found[name]
        elif how < 0.2:
            found[rng.choice(ODD_TEXTS)] = found.pop(name)
        else:
            found[name] = spoil_json(rng, value[name])
        return found
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return [*value[:at], spoil_json(rng, value[at]), *value[at + 1 :]]
    return spoil_value(rng)


def spoil_text(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    """Damages the values of JSON, or of one line of JSON lines; or nests it deeply."""
    if rng.random() < 0.05:
        deep = rng.choice((100, 900, 100_000))
        return b"[" * deep + b"]" * deep, "nested deeply"
    lines = content.strip().split(b"\n")
    try:
        json.loads(lines[0])
    except ValueError:  # one value in many lines
        return json.dumps(spoil_json(rng, json.loads(content)), indent=1).encode(), "values"
    at = rng.randrange(len(lines))
    lines[at] = json.dumps(spoil_json(rng, json.loads(lines[at]))).encode()
    return b"\n".join(lines) + b"\n", "values"
