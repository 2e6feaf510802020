"""Generates bad configs, damaged files and damaged label journals, and counts what comes of each.

python -m benchmarks.bad_input --configs=10000 --files=1000 --journals=1000

Every case runs in a process beside this one, which is killed after --seconds. It ends as one of

    named      our error, on one line, which names the field or the file
    unnamed    our error, which names neither
    valid      it was accepted, and what was read is valid. A config: every value is in its field's range, and the
               mistake is none for the command. A file: what was read has the right types, shapes and order, all
               numbers are finite, and the texts are texts; a changed letter or digit of a text, a weight or a
               metric cannot be told from another value. A journal: its labels equal those that were written.
    nonsense   it was accepted, and what was read is not valid
    traceback  another exception
    hang       it was killed

Exit status 1 if any is unnamed, nonsense, a traceback or a hang. A case can be run again with --only and --seed.
"""

import argparse
import multiprocessing
import os
import random
import sys
import tempfile
import traceback
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

NAMED, UNNAMED, VALID, NONSENSE, TRACEBACK, HANG = (
    "named",
    "unnamed",
    "valid",
    "nonsense",
    "traceback",
    "hang",
)
OUTCOMES = (NAMED, UNNAMED, VALID, NONSENSE, TRACEBACK, HANG)
CONFIGS = "configs"
_START_SECONDS = 300  # for the process, which imports JAX and makes the whole files


class Outcome(NamedTuple):
    """What came of a case: one of OUTCOMES, what was damaged how, and the error."""

    verdict: str
    what: str
    error: str = ""


class Trial:
    """Runs cases in a folder.

    Args:
        place: gets the whole files, and a copy of those of the case under way.
        on_task: whether configs are checked on the embedded task too, which takes seconds to build.

    Attributes:
        place: the folder.
        folders: field -> folder of a small model or data set, for configs.
    """

    def __init__(self, place: Path, on_task: bool = True):
        from benchmarks import bad_files, good_files
        from sea_jax.tasks import mini_tldr

        self.place = place
        self._cases = bad_files.FILES | bad_files.JOURNALS
        bad_files.prepare(place, self._cases)
        self._task = mini_tldr.load(place / "task") if on_task else None
        models = {"policy": "pythia", "oracle": "reward", "encoder": "encoder"}
        for kind in models.values():
            if not (place / kind).exists():
                good_files.save_model(place / kind, kind)
        good_files.save_encoder_tokenizer(place / "encoder")
        good_files.save_rows(place / "posts/train.jsonl", good_files.posts(12))
        self.folders = {f"{section}.folder": str(place / kind) for section, kind in models.items()}
        self.folders["task.path"] = str(place / "posts")

    def __call__(self, kind: str, rng: random.Random) -> Outcome:
        """Runs one case."""
        return self._config(rng) if kind == CONFIGS else self._file(kind, rng)

    def _config(self, rng: random.Random) -> Outcome:
        from benchmarks import bad_configs
        from sea_jax.errors import InputError

        bad = bad_configs.draw(rng, self.folders)
        what = f"{bad.how}: {', '.join(bad.names)} of {bad.source} {bad.command}"
        try:
            bad_configs.check(bad, self._task)
        except InputError as error:
            return Outcome(NAMED if bad_configs.named(error, bad) else UNNAMED, what, str(error))
        except Exception:
            return Outcome(TRACEBACK, what, traceback.format_exc())
        return Outcome(NONSENSE if bad.certain else VALID, what)

    def _file(self, kind: str, rng: random.Random) -> Outcome:
        from benchmarks import bad_files
        from sea_jax.errors import InputError, StorageError

        to = self.place / "now"
        file, how = bad_files.draw(rng, self.place, kind, self._cases[kind], to)
        what = f"{how}: {file.relative_to(to)}"
        try:
            valid = self._cases[kind].use(to)
        except (InputError, StorageError, SystemExit) as error:
            lines = error.problems if isinstance(error, InputError) else (str(error),)
            # Of a folder of models or of runs, the folder may be named.
            names = file.name in str(error) or str(file.parent) in str(error)
            return Outcome(NAMED if names and "\n" not in lines[0] else UNNAMED, what, str(error))
        except BaseException:  # tokenizers panics with one that is no Exception
            return Outcome(TRACEBACK, what, traceback.format_exc())
        return Outcome(VALID if valid else NONSENSE, what)


def random_of(kind: str, seed: int) -> random.Random:
    """Returns the draws of a case."""
    return random.Random(f"{kind} {seed}")


class Worker:
    """A process that runs cases, and another one after one that was killed."""

    def __init__(self, place: Path, seconds: float):
        self._place, self._seconds = place, seconds
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._place), daemon=True)
        self._process.start()
        theirs.close()
        if not self._pipe.poll(_START_SECONDS) or self._pipe.recv() != "ready":
            raise SystemExit("error: the process of the cases did not start")

    def run(self, kind: str, seed: int) -> Outcome:
        """Runs a case; a process that does not answer, or dies, is replaced."""
        self._pipe.send((kind, seed))
        try:
            if self._pipe.poll(self._seconds):
                return Outcome(*self._pipe.recv())
            found = Outcome(HANG, "", f"{self._seconds:g} s")
        except EOFError:
            found = Outcome(TRACEBACK, "", "the process died")
        self._process.kill()
        self._process.join()
        self._start()
        return found

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.join()


def _serve(pipe: Connection, place: Path) -> None:
    trial = Trial(place)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # warnings of libraries about damaged files
    pipe.send("ready")
    while True:
        kind, seed = pipe.recv()
        pipe.send(tuple(trial(kind, random_of(kind, seed))))


def table(counts: dict[str, Counter[str]]) -> str:
    """Formats a row for each kind of case, and one for all of them."""
    total = sum(counts.values(), Counter())
    rows = [["", "cases", *OUTCOMES]]
    rows += [
        [kind, str(found.total()), *(str(found[name]) for name in OUTCOMES)]
        for kind, found in (counts | {"all": total}).items()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _numbers(options: argparse.Namespace) -> dict[str, int]:
    """Shares the cases among the kinds of files and of journals."""
    from benchmarks import bad_files

    numbers = {CONFIGS: options.configs}
    for kinds, number in ((bad_files.FILES, options.files), (bad_files.JOURNALS, options.journals)):
        for i, kind in enumerate(kinds):
            numbers[kind] = number // len(kinds) + (i < number % len(kinds))
    return {kind: n for kind, n in numbers.items() if n and options.only in ("", kind)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Counts what comes of bad input.")
    parser.add_argument("--configs", type=int, default=10_000)
    parser.add_argument("--files", type=int, default=1_000)
    parser.add_argument("--journals", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=30.0, help="of a case before it counts as a hang")
    parser.add_argument("--seed", type=int, default=0, help="of the first case of each kind")
    parser.add_argument("--only", default="", help="one kind, as the table names it")
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu", "MPLBACKEND": "Agg"}
    counts: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as place:
        worker = Worker(Path(place), options.seconds)
        for kind, number in _numbers(options).items():
            counts[kind] = Counter()
            for seed in range(options.seed, options.seed + number):
                found = worker.run(kind, seed)
                counts[kind][found.verdict] += 1
                if found.verdict not in (NAMED, VALID):
                    print(f"{found.verdict}: {kind}, seed {seed}: {found.what}\n{found.error}", flush=True)
        worker.close()
    print(table(counts))
    sys.exit(any(found[name] for found in counts.values() for name in (UNNAMED, NONSENSE, TRACEBACK, HANG)))


if __name__ == "__main__":
    main()
