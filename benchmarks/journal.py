"""Measures the label journal: a durable batch, and a journal of a million labels.

python -m benchmarks.journal --labels=1000000
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sea_jax.labels.journal import FILE, Answer, Journal, Question

B, T, PROMPT, RESPONSE = 4, 64, "x" * 400, "y" * 200  # a batch of the harder miniature


def batch(step: int, size: int) -> list[Question]:
    tokens = np.arange(T, dtype=np.int32) + step
    return [
        Question(row, PROMPT, f"{RESPONSE}{step}", f"{RESPONSE}-{step}", tokens, tokens + 1)
        for row in range(size)
    ]


def buy(journal: Journal, step: int, size: int, proposal: bytes) -> None:
    entries = journal.ask(step, step, batch(step, size), proposal)
    journal.answer([Answer(entry.id, True, 0.75, True) for entry in entries], 0.1)


def microseconds(call: Callable[[int], Any], repeats: int) -> dict[str, float]:
    """Returns the median and the 90th percentile of a call, given its index."""
    taken = []
    for i in range(repeats):
        start = time.perf_counter()
        call(i)
        taken.append(1e6 * (time.perf_counter() - start))
    return dict(median=float(np.median(taken)), p90=float(np.quantile(taken, 0.9)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures the label journal.")
    parser.add_argument("--labels", type=int, default=1_000_000)
    parser.add_argument(
        "--folder", type=Path, help="a folder on the disk to measure; default: a temporary one"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder, proposal = Path(name), np.random.default_rng(0).bytes(16_000)
        with Journal(folder, "nobody") as journal:
            report(
                "a durable batch of 4 labels, µs", microseconds(lambda i: buy(journal, i, B, proposal), 200)
            )
            journal.forget_proposals(10**9)
            start = time.perf_counter()
            for step in range(200, 200 + (options.labels - 200 * B) // 1000):
                buy(journal, step, 1000, b"")
            report("filling it with batches of 1,000", dict(seconds=time.perf_counter() - start))
        report("size", dict(megabytes=(folder / FILE).stat().st_size / 1e6))
        start = time.perf_counter()
        with Journal(folder, "nobody") as journal:
            report("opening", dict(milliseconds=1e3 * (time.perf_counter() - start)))
            new = microseconds(lambda i: buy(journal, 10**7 + i, B, proposal), 200)
            report("a durable batch of 4 labels, µs", new)
            report("counting, µs", microseconds(lambda _: journal.count(), 3))
        for command in (["list"], ["verify"], ["export", "--output", str(folder / "labels.jsonl")]):
            start = time.perf_counter()
            call = [sys.executable, "-m", "sea_jax.labels", command[0], str(folder), *command[1:]]
            subprocess.run(call, check=True, stdout=subprocess.DEVNULL)
            used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
            report(command[0], dict(seconds=time.perf_counter() - start, megabytes_of_memory=used))


def report(what: str, numbers: dict[str, float]) -> None:
    print(f"{what}: {json.dumps({name: round(value, 1) for name, value in numbers.items()})}", flush=True)


if __name__ == "__main__":
    main()
