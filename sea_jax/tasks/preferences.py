"""Preference sets: which of two responses to a prompt people, or whoever labelled them, preferred.

References:
    Stiennon et al. (2020), Learning to summarize from human feedback, arXiv:2009.01325.
    Cui et al. (2023), UltraFeedback, arXiv:2310.01377.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from sea_jax.errors import InputError
from sea_jax.tasks import columns, text
from sea_jax.tasks.sources import Table

_CHUNK = 2048  # prompts whose pairs are tokenised at once


class Pair(NamedTuple):
    """A prompt, the response that was preferred, and the other: the texts."""

    prompt: str
    chosen: str
    rejected: str


Length = Callable[[Sequence[Pair]], Sequence[int]]


def load(
    config_task: Any, length: Length, longest: int, cache_dir: str | Path | None = None
) -> tuple[list[Pair], list[Pair]]:
    """The pairs to train on, and the held-out ones; no prompt is among both.

    A prompt may have several pairs. Pairs that are empty, of equal responses, of other conversations, there
    before, or too long are dropped and counted in one log line; none is cut. Prompts come in the order that
    `text.load` has them in. Held-out pairs come from the data's own test split if there is one, else from
    train.

    Args:
      config_task: as `text.load`; its num_train and num_heldout are numbers of pairs, num_tuning is not read.
      length: of pairs, how many tokens the longer text of each has.
      longest: the most that it may have.
      cache_dir: as `text.load`.

    Raises:
      InputError: no data, a column that is missing, too few pairs.
    """
    cfg = text.fields(config_task)
    named = {cfg[field] for field in ("prompt_column", *columns.PREFERENCES)}
    train, heldout = text.read(cfg, columns.KNOWN | {*columns.PREFERENCES.values()} | named, cache_dir)
    if cfg["num_heldout"] < 1:
        raise InputError("config.task.num_heldout=0: valid is at least 1")
    found = columns.find_pairs(train, cfg, cfg["name"] == "tldr", cfg["where"])
    choice = _Choice(cfg, found, length, longest)
    chosen = choice.splits(train, heldout)
    logging.info("preferences: %d to train on, %d held out; dropped: %s", *map(len, chosen), choice.said())
    return chosen


class _Choice:
    """Which pairs are taken, and how many were dropped on the way, by reason."""

    def __init__(self, cfg: dict[str, Any], found: columns.PairColumns, length: Length, longest: int):
        self.cfg, self.found, self.length, self.longest = cfg, found, length, longest
        self.dropped: Counter[str] = Counter()

    def splits(self, train: Table, heldout: Table) -> tuple[list[Pair], list[Pair]]:
        """To train on and held out. Raises InputError where there are fewer than asked for."""
        pool = self._by_prompt(train)
        held = self._take(self._by_prompt(heldout) if heldout.rows else pool, "num_heldout")
        seen = {self._key(pair.prompt) for pair in held}
        if heldout.rows:
            self.dropped["of a held-out prompt"] += sum(len(pool[key]) for key in pool.keys() & seen)
        return self._take({key: pool[key] for key in pool if key not in seen}, "num_train"), held

    def said(self) -> str:
        """What was dropped, in words."""
        return ", ".join(f"{count} {why}" for why, count in self.dropped.items() if count) or "none"

    def _by_prompt(self, table: Table) -> dict[bytes, list[Pair]]:
        """The pairs of each prompt, in the order of a hash of seed and prompt."""
        rows: list[tuple[bytes, Pair]] = []
        for row in table.rows:
            read = self.found.read(row)
            if isinstance(read, str):
                self.dropped[read] += 1
            else:
                rows.append((self._key(read[0]), Pair(*read)))
        pool: dict[bytes, list[Pair]] = {}
        for key, pair in sorted(set(rows)):
            pool.setdefault(key, []).append(pair)
        self.dropped["repeated"] += len(rows) - len(set(rows))
        return pool

    def _key(self, prompt: str) -> bytes:
        return text.prompt_key(self.cfg["split_seed"], prompt)

    def _fitting(self, groups: list[list[Pair]]) -> Iterator[Pair]:
        """Those that are not too long; tokenised only as far as they are taken."""
        for start in range(0, len(groups), _CHUNK):
            pairs = [pair for group in groups[start : start + _CHUNK] for pair in group]
            for pair, tokens in zip(pairs, self.length(pairs), strict=True):
                if tokens <= self.longest:
                    yield pair
                else:
                    self.dropped[f"over {self.longest} tokens"] += 1

    def _take(self, pool: dict[bytes, list[Pair]], field: str) -> list[Pair]:
        """As many as config.task asks for, all where that is 0."""
        asked, taken = self.cfg[field], []
        for pair in self._fitting(list(pool.values())):
            taken.append(pair)
            if len(taken) == asked:
                break
        if len(taken) < max(asked, 1):
            where = self.cfg["where"]
            valid = (
                f"valid is at most {len(taken)}, what {where} leaves" if taken else f"{where} leaves no pair"
            )
            raise InputError(f"config.task.{field}={asked}: {valid} (dropped: {self.said()})")
        return taken
