"""Measures the labelling page under load: annotators who answer without a pause for thought.

    python -m benchmarks.page_load --annotators=64 --questions=4000

Annotators are threads of processes of their own; each loads a question ahead and answers the one that is shown, as
the page's script does, after a pause. Prints the latency of requests and what became of the questions.
"""

import argparse
import concurrent.futures
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx2
import numpy as np

from sea_jax.labels.desk import Desk
from sea_jax.labels.questions import Question, Questions

RUN = "load"


def annotate(job: tuple[int, int, str, float]) -> tuple[list[float], list[str], int]:
    """Runs some annotators in threads until there is no question; returns latencies, errors and verdicts."""
    first, count, address, pause_s = job
    seconds: list[float] = []
    errors: list[str] = []
    verdicts: list[int] = []
    threads = [
        threading.Thread(
            target=_one, args=(f"annotator {first + i}", address, pause_s, seconds, errors, verdicts)
        )
        for i in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seconds, errors, len(verdicts)


def _one(
    name: str, address: str, pause_s: float, seconds: list[float], errors: list[str], verdicts: list[int]
) -> None:
    rng = random.Random(name)
    with httpx2.Client(base_url=address, timeout=30) as client:

        def call(path: str, **body: object) -> dict | None:
            start = time.perf_counter()
            reply = client.post(path, json=body) if body else client.get(path)
            seconds.append(time.perf_counter() - start)
            if reply.status_code != 200:
                errors.append(f"{path}: status {reply.status_code}")
                return None
            return reply.json()

        while client.post("/login", data=dict(name=name)).status_code == 429:
            time.sleep(1 + rng.random())  # all come from one address, whose logins are bounded
        page = client.get("/").text
        client.headers["x-csrf-token"] = page.split('name="csrf" content="')[1].split('"')[0]
        while found := (call("/api/next") or {}).get("question"):
            call(f"/api/next?ahead=1&besides={found['id']}")
            time.sleep(pause_s * rng.lognormvariate(0.0, 0.6))
            choice = rng.choice(["left", "right", "tie", "both_bad"])
            if call("/api/answer", question=found["id"], choice=choice, seconds=1.0) is not None:
                verdicts.append(found["id"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures the labelling page under load.")
    parser.add_argument("--annotators", type=int, default=64)
    parser.add_argument("--questions", type=int, default=4000)
    parser.add_argument("--pause_s", type=float, default=1.0, help="an annotator's median pause")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--port", type=int, default=8511)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Questions(folder) as questions:
            texts = [f"text {i} " * 40 for i in range(options.questions)]
            duels = [Question(i, x, x + "a", x + "b") for i, x in enumerate(texts)]
            questions.offer(RUN, duels)
        call = [
            sys.executable,
            "-m",
            "sea_jax.people.server",
            f"--workdir={folder}",
            f"--port={options.port}",
        ]
        with subprocess.Popen(call) as server:
            _load(options, folder, server)


def _load(options: argparse.Namespace, folder: Path, server: subprocess.Popen) -> None:
    address = f"http://127.0.0.1:{options.port}"
    while True:
        try:
            httpx2.get(address)
            break
        except httpx2.HTTPError:
            time.sleep(0.1)
    each = options.annotators // options.processes
    jobs = [(i * each, each, address, options.pause_s) for i in range(options.processes)]
    start = time.monotonic()
    with concurrent.futures.ProcessPoolExecutor(options.processes) as pool:
        found = list(pool.map(annotate, jobs))
    passed = time.monotonic() - start
    server.terminate()
    seconds = np.concatenate([np.array(latencies) for latencies, _, _ in found])
    errors = [error for _, these, _ in found for error in these]
    given = sum(count for _, _, count in found)
    with Desk(folder) as desk:
        counts = desk.counts()
    p50, p99 = 1000 * np.quantile(seconds, (0.5, 0.99))
    print(
        f"{each * options.processes} annotators: {len(seconds)} requests in {passed:.0f} s, p50 {p50:.0f} ms, p99 "
        f"{p99:.0f} ms, slowest {1000 * seconds.max():.0f} ms; {len(errors)} errors {sorted({*errors})[:3]}; "
        f"{given} verdicts given, {counts.verdicts} on the disk, {counts.open} questions open"
    )


if __name__ == "__main__":
    main()
