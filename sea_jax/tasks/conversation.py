"""Conversations of several turns as one prompt text, which oracles, people and journals read.

A prompt is a text. One user turn is its content as it stands; several turns are written as

    [user]
    What is JAX?

    [assistant]
    A library.

    [user]
    Of whom?

and read back by `to_messages`, so that a policy's chat template gets the turns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

ROLES = ("system", "user", "assistant")
_HEADER = re.compile(rf"^\\*\[(?:{'|'.join(ROLES)})\]$", re.MULTILINE)
_ESCAPED = re.compile(rf"^\\(?=\\*\[(?:{'|'.join(ROLES)})\]$)", re.MULTILINE)


class Message(NamedTuple):
    """A turn of a conversation."""

    role: str  # one of ROLES
    content: str


def to_text(messages: Sequence[Message]) -> str:
    """Writes a conversation as a prompt; `to_messages` reads the same one from it.

    A line of a content that could be a header gets a backslash in front of it.
    """
    if len(messages) == 1 and messages[0].role == "user" and not _begins_with_header(messages[0].content):
        return messages[0].content
    escaped = (f"[{role}]\n{_HEADER.sub(_with_backslash, content)}" for role, content in messages)
    return "\n\n".join(escaped)


def to_messages(prompt: str) -> list[Message]:
    """Reads the turns of a prompt; a text that `to_text` did not write is one user turn."""
    alone = [Message("user", prompt)]
    if not _begins_with_header(prompt):
        return alone
    turns: list[tuple[str, list[str]]] = []
    for line in prompt.split("\n"):
        if _HEADER.fullmatch(line) and not line.startswith("\\"):
            turns.append((line[1:-1], []))
        else:
            turns[-1][1].append(line)
    found = []
    for number, (role, lines) in enumerate(turns, 1):
        own = lines if number == len(turns) else lines[:-1]  # an empty line stands before the next header
        found.append(Message(role, _ESCAPED.sub("", "\n".join(own))))
    return found if to_text(found) == prompt else alone


def _begins_with_header(text: str) -> bool:
    first = text.partition("\n")[0]
    return bool(_HEADER.fullmatch(first)) and not first.startswith("\\")


def _with_backslash(found: re.Match[str]) -> str:
    return "\\" + found[0]
