"""Measures the chat under load, and what its users teach it: simulated users of the miniature, who choose by its reward.

    python -m benchmarks.chat_load --users=200 --seconds=120

Starts `sea_jax.serve` on configs/chat.py. Users are threads of processes of their own. Each sends posts of the task one
by one after a pause for thought and, where there are two answers, chooses as the task's hidden reward does, which nobody
else reads. Prints latencies, errors, what became of the choices, and the online win rate by time.
"""

import argparse
import concurrent.futures
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx2
import numpy as np

from sea_jax.labels.chat import ChatDuels
from sea_jax.tasks import mini_tldr


class Log:
    """What the users of a process saw."""

    def __init__(self) -> None:
        self.first_s: list[float] = []  # until the first part of an answer, or until both answers
        self.whole_s: list[float] = []
        self.choose_s: list[float] = []
        self.errors: list[str] = []
        self.chosen: list[int] = []
        self.busy = 0


def chat(job: tuple[int, int, str, float, float]) -> Log:
    """Runs some users in threads until the time is over."""
    first, count, address, pause_s, seconds = job
    task, reward = mini_tldr.load(), mini_tldr.reward_fn(0)
    log, end = Log(), time.monotonic() + seconds
    threads = [
        threading.Thread(target=_one, args=(first + i, address, pause_s, end, task, reward, log))
        for i in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return log


def _one(number: int, address: str, pause_s: float, end: float, task, reward, log: Log) -> None:
    rng = random.Random(number)
    with httpx2.Client(base_url=address, timeout=120) as client:
        client.post("/login", data=dict(name=f"user {number}"))
        client.headers["x-csrf-token"] = client.get("/").text.split('name="csrf" content="')[1].split('"')[0]
        time.sleep(rng.random() * pause_s)
        while time.monotonic() < end:
            prompt = rng.choice(task.prompts["train"])
            two = _ask(client, prompt, log)
            time.sleep(pause_s * rng.lognormvariate(0.0, 0.6))
            if two is None:
                continue
            left, right = reward([prompt] * 2, [two["left"], two["right"]])
            choice = "left" if left > right else "right" if right > left else "tie"
            start = time.perf_counter()
            reply = client.post("/api/choose", json=dict(duel=two["duel"], choice=choice))
            log.choose_s.append(time.perf_counter() - start)
            if reply.status_code == 200:
                log.chosen.append(two["duel"])
            else:
                log.errors.append(f"choose: {reply.status_code}")


def _ask(client: httpx2.Client, prompt: str, log: Log) -> dict | None:
    """Sends a message; returns the pair, if there is one."""
    start, seen = time.perf_counter(), 0.0
    with client.stream("POST", "/api/chat", json=dict(messages=[dict(role="user", content=prompt)])) as reply:
        if reply.status_code in (429, 503):
            log.busy += 1
            return None
        if reply.status_code != 200:
            log.errors.append(f"chat: {reply.status_code}")
            return None
        for line in reply.iter_lines():
            if not line:
                continue
            event = json.loads(line.removeprefix("data: "))
            seen = seen or time.perf_counter() - start
            if "error" in event:
                log.errors.append(event["error"])
            if "two" in event or "end" in event:
                log.first_s.append(seen)
                log.whole_s.append(time.perf_counter() - start)
                return event.get("two")
    log.errors.append("chat: broke off")
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures the chat under load.")
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--pause_s", type=float, default=10.0, help="a user's median pause")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--port", type=int, default=8513)
    parser.add_argument("--workdir", default="", help="keeps the run; default: a folder that is deleted")
    parser.add_argument(
        "--cache", default="runs/quickstart/cache", help="of trained parts, as `make run` leaves them"
    )
    options, further = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(options.workdir or folder)
        call = [
            sys.executable, "-m", "sea_jax.serve", "--config=configs/chat.py", f"--workdir={workdir}",
            f"--config.serve.port={options.port}", f"--config.cache_dir={options.cache}", "--config.progress=False",
            "--config.task.oracle_seed=0", *further,
        ]  # fmt: skip
        with subprocess.Popen(call, stderr=subprocess.PIPE, text=True) as server:
            assert server.stderr is not None
            for line in server.stderr:
                if line.startswith("chat at"):
                    break
            threading.Thread(target=_drain, args=(server.stderr,), daemon=True).start()
            _load(options, workdir, server)


def _drain(lines) -> None:
    for line in lines:
        print(line, end="", file=sys.stderr)


def _load(options: argparse.Namespace, workdir: Path, server: subprocess.Popen) -> None:
    if server.poll() is not None:
        raise SystemExit(f"the chat ended with status {server.returncode}")
    address, each = f"http://127.0.0.1:{options.port}", options.users // options.processes
    jobs = [(i * each, each, address, options.pause_s, options.seconds) for i in range(options.processes)]
    with concurrent.futures.ProcessPoolExecutor(options.processes) as pool:
        logs = list(pool.map(chat, jobs))
    server.send_signal(signal.SIGTERM)
    status = server.wait(120)
    of = lambda name: np.array([value for log in logs for value in getattr(log, name)])  # noqa: E731
    errors = [error for log in logs for error in log.errors]
    chosen = sorted(number for log in logs for number in log.chosen)
    print(f"{each * options.processes} users, {options.seconds:.0f} s: {len(of('whole_s'))} answers")
    for name, what in (("first_s", "first part"), ("whole_s", "whole answer"), ("choose_s", "choice taken")):
        if len(seconds := of(name)):
            p50, p99 = np.quantile(seconds, (0.5, 0.99))
            print(
                f"  {what}: p50 {1000 * p50:.0f} ms, p99 {1000 * p99:.0f} ms, slowest {1000 * seconds.max():.0f} ms"
            )
    print(
        f"  {len(errors)} errors {sorted({*errors})[:3]}; {sum(log.busy for log in logs)} told to come again"
    )
    with ChatDuels(workdir) as duels:
        totals, online = duels.totals(), duels.online()
        with duels.reading() as db:
            found = [n for (n,) in db.execute("SELECT id FROM duels WHERE verdict IS NOT NULL ORDER BY id")]
    rate = "unknown" if online.rate is None else f"{online.rate:.3f} of {online.compared}"
    print(f"  {len(chosen)} choices sent, {len(found)} on the disk, the same: {chosen == found}; {totals.learned} "
          f"learned from; online win rate {rate}; the chat ended with status {status}")  # fmt: skip


if __name__ == "__main__":
    main()
