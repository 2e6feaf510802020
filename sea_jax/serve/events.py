"""Requests to the engine, and the events that answer them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

ONE, TWO, CONTROL = (
    "one",
    "two",
    "control",
)  # kinds of requests; CONTROL: the starting policy writes one of two


class Part(NamedTuple):
    """A further piece of an answer."""

    text: str


class Answer(NamedTuple):
    """The end of a single answer."""

    reason: str  # 'stop' at the EOS, else 'length'
    prompt_tokens: int
    tokens: int
    version: int


class Two(NamedTuple):
    """Two complete answers, to be compared."""

    texts: tuple[str, str]
    tokens: tuple[np.ndarray, np.ndarray]  # int32, EOS included
    version: int
    reference: int | None  # the starting policy wrote the first (0) or the second (1)
    prompt_tokens: int


class Failure(NamedTuple):
    """The end of a request that could not be answered; the reason is in the log."""


Event = Part | Answer | Two | Failure


class BusyError(Exception):
    """More requests wait than may."""


@dataclasses.dataclass(eq=False)
class Request:
    """A prompt to answer; `emit` is called in the engine's thread."""

    prompt: str
    emit: Callable[[Event], None]
    kind: str = ONE
    temperature: float = 1.0
    max_tokens: int = 2**31 - 1
    cancelled: bool = False  # nobody waits any more
