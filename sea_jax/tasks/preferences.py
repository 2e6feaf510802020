"""Preference sets: pairs of responses to a prompt, and which of the two was preferred.

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
    """The texts of a prompt, the preferred response and the other."""

    prompt: str
    chosen: str
    rejected: str


Length = Callable[[Sequence[Pair]], Sequence[int]]


def load(
    config_task: Any, length: Length, longest: int, cache_dir: str | Path | None = None
) -> tuple[list[Pair], list[Pair]]:
    """Loads train pairs and held-out pairs, which share no prompt.

    A prompt may have several pairs. Pairs that are empty, of equal responses, of other conversations,
    repeated or too long are dropped and counted in one log line; none is truncated. Prompts are ordered as in
    `text.load`. Held-out pairs come from the data's own test split if there is one, else from train.

    Args:
      config_task: as in `text.load`; num_train and num_heldout count pairs, num_tuning is ignored.
      length: pairs -> tokens of the longer text of each.
      longest: tokens, the most that a text may have.
      cache_dir: as in `text.load`.

    Raises:
      InputError: no data, a missing column, or too few pairs.
    """
    cfg = text.fields(config_task)
    named = {cfg[field] for field in ("prompt_column", *columns.PREFERENCES)}
    train, heldout = text.read(cfg, columns.KNOWN | {*columns.PREFERENCES.values()} | named, cache_dir)
    if cfg["num_heldout"] < 1:
        raise InputError("config.task.num_heldout=0: valid is at least 1")
    found = columns.find_pairs(train, cfg, cfg["name"] == "tldr", cfg["where"])
    selection = _Selection(cfg, found, length, longest)
    chosen = selection.splits(train, heldout)
    logging.info(
        "preferences: %d to train on, %d held out; dropped: %s",
        *map(len, chosen),
        selection.describe_dropped(),
    )
    return chosen


class _Selection:
    """Chooses pairs, and counts the dropped ones by reason."""

    def __init__(self, cfg: dict[str, Any], found: columns.PairColumns, length: Length, longest: int):
        self.cfg, self.found, self.length, self.longest = cfg, found, length, longest
        self.dropped: Counter[str] = Counter()

    def splits(self, train: Table, heldout: Table) -> tuple[list[Pair], list[Pair]]:
        """Returns train and held-out pairs; raises InputError if there are too few."""
        pool = self._by_prompt(train)
        held = self._take(self._by_prompt(heldout) if heldout.rows else pool, "num_heldout")
        seen = {self._key(pair.prompt) for pair in held}
        if heldout.rows:
            self.dropped["of a held-out prompt"] += sum(len(pool[key]) for key in pool.keys() & seen)
        return self._take({key: pool[key] for key in pool if key not in seen}, "num_train"), held

    def describe_dropped(self) -> str:
        """Describes the dropped rows in words."""
        return ", ".join(f"{count} {why}" for why, count in self.dropped.items() if count) or "none"

    def _by_prompt(self, table: Table) -> dict[bytes, list[Pair]]:
        """Groups pairs by prompt, ordered by a hash of seed and prompt."""
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

    def _short_enough(self, groups: list[list[Pair]]) -> Iterator[Pair]:
        """Yields the pairs that are short enough; tokenises lazily."""
        for start in range(0, len(groups), _CHUNK):
            pairs = [pair for group in groups[start : start + _CHUNK] for pair in group]
            for pair, tokens in zip(pairs, self.length(pairs), strict=True):
                if tokens <= self.longest:
                    yield pair
                else:
                    self.dropped[f"over {self.longest} tokens"] += 1

    def _take(self, pool: dict[bytes, list[Pair]], field: str) -> list[Pair]:
        """Takes as many pairs as the field asks for, all if it is 0."""
        asked, taken = self.cfg[field], []
        for pair in self._short_enough(list(pool.values())):
            taken.append(pair)
            if len(taken) == asked:
                break
        if len(taken) < max(asked, 1):
            where = self.cfg["where"]
            valid = (
                f"valid is at most {len(taken)}, what {where} leaves" if taken else f"{where} leaves no pair"
            )
            raise InputError(f"config.task.{field}={asked}: {valid} (dropped: {self.describe_dropped()})")
        return taken
