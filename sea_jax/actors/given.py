"""Duels whose labels exist already: their texts and token ids take the place of a step's samples."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sea_jax.labels.imports import Duel
from sea_jax.tasks.protocol import Task

_CHUNK = 1024  # duels that are tokenised at once


class Given(NamedTuple):
    """The prompts and pairs of a step: n ≤ B duels."""

    prompts: list[str]  # n
    tokens: np.ndarray  # [n, 2, T] int32
    mask: np.ndarray  # [n, 2, T] bool


def by_step(duels: Sequence[Duel]) -> dict[int, list[Duel]]:
    """Groups duels by the step that uses them, in the order of their rows."""
    found: dict[int, list[Duel]] = {}
    for duel in sorted(duels, key=lambda duel: (duel.step, duel.row)):
        found.setdefault(duel.step, []).append(duel)
    return found


def fits(task: Task, duels: Sequence[Duel]) -> np.ndarray:
    """Marks the duels that a policy can learn from, [n] bool: short enough, with two different responses."""
    found = []
    for start in range(0, len(duels), _CHUNK):
        part = duels[start : start + _CHUNK]
        lengths = [len(ids) for ids in task.prompt_ids([duel.prompt for duel in part])]
        pairs = zip(_response_ids(task, part, 0), _response_ids(task, part, 1), strict=True)
        found += [
            len(task.prefix_ids) < length <= task.prompt_length
            and all(0 < len(ids) <= task.response_length for ids in pair)
            and pair[0] != pair[1]
            for length, pair in zip(lengths, pairs, strict=True)
        ]
    return np.array(found, bool)


def encode(task: Task, duels: Sequence[Duel]) -> Given:
    """Tokenises the duels of a step; all of them fit."""
    tokens = np.full((len(duels), 2, task.response_length), task.pad_id, np.int32)
    mask = np.zeros(tokens.shape, bool)
    for place in (0, 1):
        for row, ids in enumerate(_response_ids(task, duels, place)):
            tokens[row, place, : len(ids)], mask[row, place, : len(ids)] = ids, True
    return Given([duel.prompt for duel in duels], tokens, mask)


def _response_ids(task: Task, duels: Sequence[Duel], place: int) -> list[list[int]]:
    """Returns the token ids of one response of each duel; empty where there are none.

    The ids that were sampled are kept where this task's tokenizer reads the same text from them: a text has
    several tokenisations, and one that was cut off has no EOS.
    """
    texts = [(duel.first, duel.second)[place] for duel in duels]
    stored = [np.frombuffer((duel.first_tokens, duel.second_tokens)[place], "<i4") for duel in duels]
    size = task.tokenizer.get_vocab_size()
    known = [ids if ids.size and ids.max() < size else ids[:0] for ids in stored]
    longest = max((len(ids) for ids in known), default=0)
    padded = np.full((len(duels), longest), task.pad_id, np.int32)
    for row, ids in enumerate(known):
        padded[row, : len(ids)] = ids
    decoded = task.decode(padded, np.ones(padded.shape, bool)) if longest else [""] * len(duels)
    encoded = task.response_ids(texts)
    return [
        ids.tolist() if ids.size and read == text else new
        for ids, read, text, new in zip(known, decoded, texts, encoded, strict=True)
    ]
