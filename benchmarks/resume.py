"""Times a restart: the seconds from the command to the next step, beside those of a run that begins.

python -m benchmarks.resume --workdir=runs/resume

A short quickstart is killed after some checkpoints and given the same command again, several times for each
method. Parts are trained and programs compiled before, so both times are start-up, tracing and restoring.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import time
from pathlib import Path

from benchmarks import faults

LIMIT_S = 600.0
CHECKPOINTS = 3  # before the kill


def last_step(run: Path) -> int:
    """Returns the step of the last whole row of a run's metrics; -1 if there is none."""
    file = run / "metrics.jsonl"
    rows = file.read_text().split("\n")[:-1] if file.exists() else []
    return json.loads(rows[-1])["step"] if rows else -1


def newest_checkpoint(run: Path) -> int:
    """Returns the step of the newest checkpoint; -1 if there is none."""
    found = (run / "checkpoints").glob("[0-9]*")
    return max((int(place.name) for place in found if place.name.isdigit()), default=-1)


def seconds_to_step(call: list[str], run: Path, after: int, log: Path) -> tuple[subprocess.Popen, float]:
    """Starts a command; returns it, and the seconds until it has written a step after the given one."""
    metrics, start, began = run / "metrics.jsonl", time.perf_counter(), time.time()
    with open(log, "a") as out:
        process = subprocess.Popen(call, stdout=out, stderr=out)
    while time.perf_counter() - start < LIMIT_S:
        assert process.poll() is None, f"the run ended; see {log}"
        # What the killed process wrote after its checkpoint does not count.
        if metrics.exists() and metrics.stat().st_mtime > began and last_step(run) > after:
            return process, time.perf_counter() - start
        time.sleep(0.02)
    raise TimeoutError(f"no step after {after} in {LIMIT_S:.0f} s; see {log}")


def measure(method: str, folder: Path, cache: Path) -> tuple[float, float]:
    """Returns the seconds of a first start and of a restart."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    run, log = folder / f"runs/{method}-seed0", folder.parent / "log.txt"
    call = faults.command(folder, cache, more={"methods": (method,)})
    process, first = seconds_to_step(call, run, 0, log)
    saved = {newest_checkpoint(run)}
    while len(saved) <= CHECKPOINTS and process.poll() is None:
        time.sleep(0.02)
        saved.add(newest_checkpoint(run))
    process.kill()
    process.wait()
    process, again = seconds_to_step(call, run, newest_checkpoint(run), log)
    process.kill()
    process.wait()
    return first, again


def main() -> None:
    parser = argparse.ArgumentParser(description="Times restarts.")
    parser.add_argument("--workdir", type=Path, default=Path("runs/resume"))
    parser.add_argument("--methods", default="passive,sea,posterior_rl")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    cache, folder = options.workdir / "cache", options.workdir / "run"
    print("| method | first step after a start, s | next step after a restart, s |\n|---|---|---|")
    for method in options.methods.split(","):
        measure(method, folder, cache)  # trains the parts and compiles the programs
        first, again = zip(*(measure(method, folder, cache) for _ in range(options.repeats)), strict=True)
        print(f"| `{method}` | {statistics.median(first):.1f} | {statistics.median(again):.1f} |", flush=True)


if __name__ == "__main__":
    main()
