"""Kills a run at random instants and goes on with it each time; says what was lost.

python -m benchmarks.faults --kills=100 --workdir=runs/faults

Runs a short quickstart once without a fault. Then it runs it again: SIGKILL at a random instant, the same
command, until a run has ended; and again in a new folder until there were so many kills. It counts labels that
were lost or bought twice, checkpoints that could not be read, and files that differ from the undisturbed run's.
"""

import argparse
import dataclasses
import filecmp
import json
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

from sea_jax.labels.journal import FILE
from sea_jax.labels.reading import faults

METHODS = ("sea", "posterior_rl")
SHORT = {
    "num_seeds": 1, "methods": METHODS, "progress": False, "sft.steps": 60, "backbone.steps": 10,
    "backbone.num_prompts": 200, "prior_heads.steps": 20, "train.query_budget": 96,
    "overrides.posterior_rl.train.query_budget": 48, "sea.burn_in": 32, "eval.num_prompts": 50,
    "eval.batch_size": 50, "eval.num_pairs": 50, "eval.every_queries": 32, "rloo.updates_per_label": 0.5,
    "rloo.burst_updates": (5, 5), "checkpoint.every_s": 1.0,
}  # fmt: skip
VARYING = ("time/", "oracle/")  # metrics: seconds; requests that were sent again
COLUMNS = (
    "step, row, policy_step, prompt, first, second, first_tokens, second_tokens, state, probability, "
    "prefers_first, labelled_by"
)


@dataclasses.dataclass
class Counts:
    """What was found after kills."""

    lost: int = 0
    twice: int = 0
    unread: int = 0
    failed: int = 0
    unequal: list[str] = dataclasses.field(default_factory=list)

    def add_ended(self, folder: Path, whole: Path) -> None:
        """Compares a run that has ended with the undisturbed one."""
        mine, theirs = bought(folder), bought(whole)
        self.lost += sum(len(set(rows) - set(mine.get(run, ()))) for run, rows in theirs.items())
        self.twice += sum(map(len, mine.values())) - sum(len(set(rows)) for rows in mine.values())
        self.unequal += differences(folder, whole)
        self.unequal += [line for file in folder.glob(f"runs/*/{FILE}") for line in faults(file)]

    def __str__(self) -> str:
        return (
            f"{self.lost} labels lost, {self.twice} bought twice, {self.unread} checkpoints that could not be "
            f"read, {self.failed} restarts that failed, {len(self.unequal)} files that differ "
            f"{sorted(set(self.unequal)) or ''}"
        )

    @property
    def bad(self) -> bool:
        """True if anything went wrong."""
        return bool(self.lost or self.twice or self.unread or self.failed or self.unequal)


def command(
    folder: Path, cache: Path, module: str = "sea_jax.main", more: dict[str, object] | None = None
) -> list[str]:
    fields = [f"--config.{name}={value}" for name, value in (SHORT | (more or {})).items()]
    call = [sys.executable, "-m", module, "--config=configs/quickstart.py", f"--workdir={folder}"]
    return [*call, f"--config.cache_dir={cache}", *fields]


def bought(folder: Path) -> dict[str, list[tuple]]:
    """Returns the answered duels of the runs of a work directory."""
    found = {}
    for file in filter(Path.exists, (folder / f"runs/{method}-seed0/{FILE}" for method in METHODS)):
        with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as db:
            query = f"SELECT id, {COLUMNS} FROM duels WHERE state = 'answered' ORDER BY id"
            found[file.parent.name] = db.execute(query).fetchall()
    return found


def kill_once(call: list[str], log: Path, seconds: float) -> int | None:
    """Runs a command and kills it after so many seconds; returns the exit status if it ended before."""
    with open(log, "a") as out:
        process = subprocess.Popen(call, stdout=out, stderr=out)
        try:
            return process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return None


def differences(folder: Path, whole: Path) -> list[str]:
    """Returns the files of the runs that differ from the undisturbed ones in more than seconds."""
    found = []
    for method in METHODS:
        mine, theirs = (place / f"runs/{method}-seed0" for place in (folder, whole))
        names = ("samples.jsonl", "responses.jsonl", "policy/model.safetensors", "done.json")
        same = {name: filecmp.cmp(mine / name, theirs / name, shallow=False) for name in names}
        found += [f"{method}/{name}" for name in names if not same[name]]
        rows = [
            [
                {key: value for key, value in json.loads(line).items() if not key.startswith(VARYING)}
                for line in (run / "metrics.jsonl").read_text().splitlines()
            ]
            for run in (mine, theirs)
        ]
        if rows[0] != rows[1]:
            found.append(f"{method}/metrics.jsonl")
    if bought(folder) != bought(whole):
        found.append(FILE)
    return found


def undisturbed(folder: Path, cache: Path, log: Path) -> float:
    """Makes the run that all others must equal; returns its seconds, with trained parts and compiled programs."""
    seconds = 0.0
    for _ in range(1 if cache.exists() else 2):
        shutil.rmtree(folder, ignore_errors=True)
        start = time.monotonic()
        with open(log, "a") as out:
            subprocess.run(command(folder, cache), check=True, stdout=out, stderr=out)
        seconds = time.monotonic() - start
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description="Kills a run at random instants and goes on with it.")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--workdir", type=Path, default=Path("runs/faults"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, help="trained parts; default: those of the workdir")
    parser.add_argument("--whole", type=Path, help="an undisturbed run; default: one is made")
    parser.add_argument(
        "--within", type=float, help="seconds to the latest kill; default: the undisturbed run's"
    )
    options = parser.parse_args()
    if options.whole and not options.within:
        parser.error("--whole: valid with --within=SECONDS")
    options.workdir.mkdir(parents=True, exist_ok=True)
    cache, log = options.cache or options.workdir / "cache", options.workdir / "log.txt"
    log.unlink(missing_ok=True)
    whole, whole_s = options.whole, options.within
    if not whole:
        whole = options.workdir / "whole"
        whole_s = undisturbed(whole, cache, log)
    print(
        f"undisturbed: {sum(map(len, bought(whole).values()))} labels; kills within {whole_s:.0f} s",
        flush=True,
    )

    rng, kills, ended, counts = random.Random(options.seed), 0, 0, Counts()
    folder = options.workdir / "killed"
    shutil.rmtree(folder, ignore_errors=True)
    before: dict[str, list[tuple]] = {}
    while kills < options.kills or ended == 0:
        seconds = rng.uniform(0, whole_s) if kills < options.kills else 10 * whole_s
        fresh, start = not folder.exists(), time.monotonic()
        status = kill_once(command(folder, cache), log, seconds)
        now = bought(folder)
        for run, rows in before.items():
            counts.lost += len(set(rows) - set(now.get(run, ())))
        before = now
        if status is None:
            kills += 1
            continue
        if status:
            counts.failed += 1
            print(f"exit status {status}; see {log}", flush=True)
            break
        ended += 1
        if fresh:
            whole_s = min(whole_s, time.monotonic() - start)
        counts.add_ended(folder, whole)
        print(f"  {kills} kills, {ended} runs that ended: {counts}", flush=True)
        shutil.rmtree(folder)
        before = {}
    counts.unread = log.read_text().count("cannot be read")
    print(f"learner: {kills} kills, {ended} runs that ended: {counts}")
    sys.exit(counts.bad)


if __name__ == "__main__":
    main()
