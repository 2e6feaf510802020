"""Prompt sets of real text: TL;DR, UltraFeedback, and local files.

References:
    Stiennon et al. (2020), Learning to summarize from human feedback, arXiv:2009.01325.
    Cui et al. (2023), UltraFeedback, arXiv:2310.01377.
    Paper, App. F.1 and F.2, Data: 50k TL;DR prompts; UltraFeedback prompts of at most 1,800 tokens.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections import Counter
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from absl import logging

from sea_jax.errors import InputError
from sea_jax.tasks import columns, sources
from sea_jax.tasks.protocol import Task
from sea_jax.tasks.sources import Table
from sea_jax.tasks.tokenizer import Tokenizer

# Fields of config.task that `load` reads; the paper's values where it gives them.
_FIELDS: dict[str, Any] = dict(
    path="",  # a file or folder of jsonl or parquet; empty: `dataset`
    dataset="",  # 'name' or 'name@revision' on the hub
    subset="",  # of that data set, if it has several
    prompt_column="",  # empty: one of the columns known below
    reference_column="",  # empty: one of those known, or none; 'none': none
    chosen_column="",  # of a preference set; empty: 'chosen'
    rejected_column="",  # empty: 'rejected'
    prompt_length=1024,  # tokens; longer prompts are dropped
    response_length=512,  # tokens, EOS included
    num_train=0,  # 0: all that is left
    num_tuning=500,
    num_heldout=1000,
    split_seed=0,  # decides which prompts are chosen, and their order
)
DEFAULTS: dict[str, dict[str, Any]] = {
    "tldr": _FIELDS
    | dict(dataset="trl-lib/tldr", prompt_length=512, response_length=53, num_train=50_000),
    "ultrafeedback": _FIELDS
    | dict(dataset="HuggingFaceH4/ultrafeedback_binarized", prompt_length=1800, response_length=1024),
    "local": _FIELDS,
}  # fmt: skip

# The splits that prompts come from: the first of each row that exists.
TRAIN_SPLITS = ("train_prefs", "train")
HELDOUT_SPLITS = ("test_prefs", "heldout", "test", "validation", "valid")
_CHUNK = 2048  # prompts tokenised at once
Pair = tuple[str, str]  # prompt and reference, '' for none


def load(config_task: Any, tokenizer: Tokenizer, cache_dir: str | Path | None = None) -> Task:
    """Loads a task of real prompts for the policy of a tokenizer.

    Drops prompts that are empty, repeated, or longer than `prompt_length` tokens with template and BOS and,
    if references are read, prompts without one; counts them in one log line. No prompt is truncated. Prompts
    are ordered by a hash of `split_seed` and the text, whatever the order of the rows; no two splits share a
    prompt. Held-out prompts come from the data's own test split if there is one, else from train; tuning
    prompts are the end of train.

    Args:
      config_task: name ('tldr', 'ultrafeedback' or 'local'), and any of the fields of `DEFAULTS[name]`.
      tokenizer: the policy's.
      cache_dir: for files from the hub; None: the hub's own.

    Returns:
      The task. Its references are empty tuples if the data has none (UltraFeedback); it has no
      demonstrations.

    Raises:
      InputError: an unknown name, no data, a missing column, or too few prompts.
    """
    cfg = fields(config_task)
    keep = columns.KNOWN | {cfg["prompt_column"], cfg["reference_column"]}
    train, heldout = read(cfg, keep, cache_dir)
    found = columns.find(
        train, cfg["prompt_column"], cfg["reference_column"], cfg["name"] == "tldr", cfg["where"]
    )
    task = Task(
        name=cfg["name"], tokenizer=tokenizer.backend, pad_id=tokenizer.pad_id, eos_id=tokenizer.eos_id,
        prompt_length=cfg["prompt_length"], response_length=cfg["response_length"],
        prompts={}, references={}, prefix_ids=tokenizer.prefix_ids,
        template=tokenizer.chat if tokenizer.template is not None else None,
    )  # fmt: skip
    selection = _Selection(task, cfg, found)
    chosen = selection.splits(train, heldout)
    sizes = ", ".join(f"{len(pairs)} {split}" for split, pairs in chosen.items())
    logging.info("task %s: %s prompts; dropped: %s", task.name, sizes, selection.describe_dropped())
    return dataclasses.replace(
        task,
        prompts={split: tuple(x for x, _ in pairs) for split, pairs in chosen.items()},
        references={split: tuple(y for _, y in pairs if y) for split, pairs in chosen.items()},
    )


def fields(given: Any) -> dict[str, Any]:
    """Checks the fields of `DEFAULTS` and fills in defaults; adds `name`, and `where` the data is, in words.

    Raises:
      InputError: at the first invalid field.
    """
    name = given.get("name", "")
    if name not in DEFAULTS:
        raise InputError(f"config.task.name={name!r}: valid is one of {tuple(DEFAULTS)}")
    cfg = {field: given.get(field, default) for field, default in DEFAULTS[name].items()}
    for field, default in DEFAULTS[name].items():
        value, least = cfg[field], int(field.endswith("_length"))
        if isinstance(default, int) and (type(value) is not int or value < least):
            raise InputError(f"config.task.{field}={value!r}: valid is a whole number of at least {least}")
        if isinstance(default, str) and not isinstance(value, str):
            raise InputError(f"config.task.{field}={value!r}: valid is a text")
    if not cfg["path"] and not cfg["dataset"]:
        raise InputError("config.task.path='': valid is a file or folder of jsonl or parquet")
    source = "path" if cfg["path"] else "dataset"
    return cfg | dict(name=name, where=f"config.task.{source}={cfg[source]!r}")


def read(
    cfg: dict[str, Any], keep: Container[str], cache_dir: str | Path | None = None
) -> tuple[Table, Table]:
    """Reads the rows to train on, and those of the data's own test split, if there is one.

    Args:
      cfg: the result of `fields`.
      keep: columns to hold.
      cache_dir: as in `load`.

    Raises:
      InputError: no readable data.
    """
    if cfg["path"]:
        splits = sources.read_path(cfg["path"], keep)
    else:
        splits = sources.read_hub(cfg["dataset"], cfg["subset"], keep, Path(cache_dir) if cache_dir else None)
    splits = {name: table for name, table in splits.items() if table.rows}
    if not splits:
        raise InputError(f"{cfg['where']}: holds no row")
    return _train_and_heldout(splits)


def prompt_key(seed: int, prompt: str) -> bytes:
    """Hashes seed and prompt to the key that prompts are sorted by."""
    return hashlib.blake2b(f"{seed}\0{prompt.strip()}".encode(), digest_size=16).digest()


def _train_and_heldout(splits: dict[str, Table]) -> tuple[Table, Table]:
    """Returns the rows to train on and the data's own test split, empty if that is the only split."""
    name = next((name for name in TRAIN_SPLITS if name in splits), None)
    names = [name] if name else [name for name in splits if name not in HELDOUT_SPLITS]
    held = next((name for name in HELDOUT_SPLITS if name in splits), None) if names else None
    train = Table()
    for name in names or splits:
        train += splits[name]
    return train, splits[held] if held else Table()


class _Selection:
    """Chooses the prompts of a task, and counts the dropped ones by reason."""

    def __init__(self, task: Task, cfg: dict[str, Any], found: columns.Columns):
        self.task, self.cfg, self.found = task, cfg, found
        self.dropped: Counter[str] = Counter()

    def splits(self, train: Table, heldout: Table) -> dict[str, list[Pair]]:
        """Returns the pairs of every split; raises InputError if there are too few."""
        held_pool, train_pool = self._ordered(heldout), self._ordered(train)
        repeated = held_pool.keys() & train_pool.keys()
        self.dropped["repeated"] += len(repeated)
        train_pairs = self._short_enough([train_pool[key] for key in train_pool if key not in repeated])
        held_pairs = self._short_enough(list(held_pool.values())) if held_pool else train_pairs
        heldout_chosen = self._take(held_pairs, "num_heldout")
        tuning = self.cfg["num_tuning"]
        size = self.cfg["num_train"]
        rest = list(itertools.islice(train_pairs, size + tuning if size else None))
        if len(rest) <= tuning:
            raise self._too_few("num_tuning", len(rest) - 1)
        if len(rest) < size + tuning:
            raise self._too_few("num_train", len(rest) - tuning)
        return {"train": rest[: len(rest) - tuning], "tuning": rest[len(rest) - tuning :],
                "heldout": heldout_chosen}  # fmt: skip

    def describe_dropped(self) -> str:
        """Describes the dropped rows in words."""
        return ", ".join(f"{count} {why}" for why, count in self.dropped.items() if count) or "none"

    def _ordered(self, table: Table) -> dict[bytes, Pair]:
        """Maps hashes of seed and prompt to pairs, in their order; each prompt once."""
        seed, rows = self.cfg["split_seed"], []
        for row in table.rows:
            prompt, reference = self.found.pair(row)
            if not prompt.strip():
                self.dropped["without a prompt"] += 1
            elif self.found.reference and not reference.strip():
                self.dropped["without a reference"] += 1
            else:
                rows.append((prompt_key(seed, prompt), prompt, reference))
        pool: dict[bytes, Pair] = {}
        for key, *pair in sorted(rows):  # keeps the same one of equal prompts, whatever the rows' order
            pool.setdefault(key, (pair[0], pair[1]))
        self.dropped["repeated"] += len(rows) - len(pool)
        return pool

    def _short_enough(self, pairs: list[Pair]) -> Iterator[Pair]:
        """Yields pairs whose prompt has at most `prompt_length` tokens; tokenises lazily."""
        most, seen = self.cfg["prompt_length"], f"over prompt_length={self.cfg['prompt_length']} tokens"
        for start in range(0, len(pairs), _CHUNK):
            chunk = pairs[start : start + _CHUNK]
            for pair, ids in zip(chunk, self.task.prompt_ids([x for x, _ in chunk]), strict=True):
                if len(ids) <= most:
                    yield pair
                else:
                    self.dropped[seen] += 1

    def _take(self, pairs: Iterator[Pair], field: str) -> list[Pair]:
        taken = list(itertools.islice(pairs, self.cfg[field]))
        if len(taken) < self.cfg[field]:
            raise self._too_few(field, len(taken))
        return taken

    def _too_few(self, field: str, most: int) -> InputError:
        at = f"config.task.{field}={self.cfg[field]}"
        return InputError(f"{at}: valid is at most {max(most, 0)}, what {self.cfg['where']} leaves "
                          f"(dropped: {self.describe_dropped()})")  # fmt: skip
