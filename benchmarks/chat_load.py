"""Measures the chat under load, and what its users teach it: simulated users of the miniature, who choose by its reward.

    python -m benchmarks.chat_load --users=200 --seconds=120
    python -m benchmarks.chat_load --users=32 --seconds=300 --kills=10

Starts `sea_jax.serve` on configs/chat.py. Users are threads of processes of their own. Each sends posts of the task one
by one after a pause for thought and, where there are two answers, chooses as the task's hidden reward does, which nobody
else reads. With --kills the chat's process is killed at random instants and started again, and users send a choice until
it is taken. Prints latencies, errors, what became of the choices, and the online win rate.
"""

import argparse
import concurrent.futures
import contextlib
import json
import random
import signal
import sqlite3
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
        self.busy = self.broken = 0


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
        time.sleep(rng.random() * pause_s)
        while client.post("/login", data=dict(name=f"user {number}")).status_code == 429:
            time.sleep(1 + rng.random())  # all users come from one address, whose logins are bounded
        client.headers["x-csrf-token"] = client.get("/").text.split('name="csrf" content="')[1].split('"')[0]
        while time.monotonic() < end:
            prompt, two = rng.choice(task.prompts["train"]), None
            try:
                two = _ask(client, prompt, log)
            except httpx2.TransportError:  # the chat was killed
                log.broken += 1
            time.sleep(pause_s * rng.lognormvariate(0.0, 0.6))
            if two is not None:
                left, right = reward([prompt] * 2, [two["left"], two["right"]])
                _choose(
                    client, two["duel"], "left" if left > right else "right" if right > left else "tie", log
                )


def _choose(client: httpx2.Client, duel: int, choice: str, log: Log) -> None:
    """Sends a choice until it is taken, or refused."""
    while True:
        start = time.perf_counter()
        try:
            reply = client.post("/api/choose", json=dict(duel=duel, choice=choice))
        except httpx2.TransportError:
            time.sleep(0.5)
            continue
        log.choose_s.append(time.perf_counter() - start)
        if reply.status_code == 200:
            log.chosen.append(duel)
        else:
            log.errors.append(f"choose: {reply.status_code}")
        return


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


class Server:
    """The chat's process, which may be killed and started again."""

    def __init__(self, call: list[str]):
        self._call = call
        self.start()

    def start(self) -> None:
        """Starts it, and waits until it serves."""
        self.process = subprocess.Popen(self._call, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line.startswith("chat at"):
                break
        else:
            raise SystemExit(f"the chat ended with status {self.process.wait()}")
        threading.Thread(target=self._drain, args=(self.process.stderr,), daemon=True).start()

    def _drain(self, lines) -> None:
        for line in lines:
            if not line.startswith("SIGTERM"):
                print(line, end="", file=sys.stderr)

    def kill(self, kills: int, seconds: float, over: threading.Event) -> None:
        """Kills it so many times, at random instants within some seconds, and starts it again each time."""
        rng = random.Random(0)
        for _ in range(kills):
            if over.wait(2 * rng.random() * seconds / (kills + 1)):
                return
            self.process.kill()
            self.process.wait()
            self.start()
            print("killed, and started again", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures the chat under load.")
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--pause_s", type=float, default=10.0, help="a user's median pause")
    parser.add_argument("--kills", type=int, default=0)
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
        _load(options, workdir, Server(call))


def _load(options: argparse.Namespace, workdir: Path, server: Server) -> None:
    address, each = f"http://127.0.0.1:{options.port}", options.users // options.processes
    jobs = [(i * each, each, address, options.pause_s, options.seconds) for i in range(options.processes)]
    over = threading.Event()
    killer = threading.Thread(target=server.kill, args=(options.kills, options.seconds, over))
    killer.start()
    with concurrent.futures.ProcessPoolExecutor(options.processes) as pool:
        logs = list(pool.map(chat, jobs))
    over.set()
    killer.join()
    server.process.send_signal(signal.SIGTERM)
    status = server.process.wait(120)
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
    busy, broken = sum(log.busy for log in logs), sum(log.broken for log in logs)
    print(
        f"  {len(errors)} errors {sorted({*errors})[:3]}; {busy} told to come again, {broken} broken off by kills"
    )
    with ChatDuels(workdir) as duels:
        totals, online = duels.totals(), duels.online()
        with duels.reading() as db:
            found = [n for (n,) in db.execute("SELECT id FROM duels WHERE verdict IS NOT NULL ORDER BY id")]
    rate = "unknown" if online.rate is None else f"{online.rate:.3f} of {online.compared}"
    print(f"  {len(chosen)} choices sent, {len(found)} on the disk, the same: {chosen == found}; {totals.learned} "
          f"learned from; online win rate {rate}; the chat ended with status {status}")  # fmt: skip
    with contextlib.closing(sqlite3.connect(next(workdir.glob("runs/*/labels.sqlite")))) as db:
        labels, duels_of_labels = db.execute(
            "SELECT count(*), count(DISTINCT step * 1000 + row) FROM duels WHERE state = 'answered'"
        ).fetchone()
    print(f"  {labels} labels in the journal, of {duels_of_labels} places")


if __name__ == "__main__":
    main()
