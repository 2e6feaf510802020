"""Trains SEA on labels of a simulated crowd, through the page's own HTTP interface, and beside it in process.

    python -m benchmarks.crowd --workdir=runs/crowd --annotators=8 --delay_s=1

Each annotator logs in, loads questions as the page's script does (one shown, one ahead), takes a lognormal time
for each and answers as the miniature's hidden reward; some answers are wrong, and some annotators leave with a
question on their page. Prints labels a minute, how long annotators waited for a question, how stale the labels
were, and the reports of both runs.
"""

import argparse
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2
import numpy as np

from sea_jax import tasks
from sea_jax.labels import reading
from sea_jax.labels.journal import FILE
from sea_jax.oracles.bradley_terry import BradleyTerryOracle

SIGMA = 0.6  # of the logarithm of an annotator's time for a question


class Annotator(threading.Thread):
    """One annotator; answers until there has been no question for a minute, or until it leaves.

    Attributes:
        waits: seconds from each answer to the next question.
        failures: replies other than 200 and 409, which says that somebody else has the question.
    """

    def __init__(self, number: int, options: argparse.Namespace, oracle: BradleyTerryOracle):
        super().__init__(daemon=True)
        self.waits: list[float] = []
        self.failures: list[str] = []
        self._rng, self._oracle, self._options = np.random.default_rng([7, number]), oracle, options
        leaves = number < options.leavers
        self._most = options.leave_after if leaves else 10**9
        self._name = f"annotator {number}"

    def run(self) -> None:
        """Labels."""
        with httpx2.Client(base_url=f"http://127.0.0.1:{self._options.port}", timeout=30) as client:
            client.post("/login", data=dict(name=self._name))
            page = client.get("/").text
            client.headers["x-csrf-token"] = page.split('name="csrf" content="')[1].split('"')[0]
            shown, ahead, since = None, None, time.monotonic()
            while len(self.waits) < self._most and time.monotonic() - since < 60:
                if shown is None:
                    shown = self._call(client, "/api/next")
                    if shown is None:
                        time.sleep(0.2)
                        continue
                self.waits.append(time.monotonic() - since)
                ahead = self._call(client, f"/api/next?ahead=1&besides={shown['id']}")
                time.sleep(self._options.delay_s * self._rng.lognormal(0.0, SIGMA))
                self._answer(client, shown)
                since, shown = time.monotonic(), None
                if ahead is not None:
                    shown = self._call(client, "/api/show", question=ahead["id"])

    def _answer(self, client: httpx2.Client, shown: dict) -> None:
        (left,) = self._oracle.probability([shown["prompt"]], [shown["left"]], [shown["right"]])
        wrong = self._rng.random() < self._options.noise
        choice = "tie" if left == 0.5 else "left" if (left > 0.5) != wrong else "right"
        self._call(client, "/api/answer", question=shown["id"], choice=choice, seconds=1.0)

    def _call(self, client: httpx2.Client, path: str, **body: object) -> dict | None:
        try:
            reply = client.post(path, json=body) if body else client.get(path)
        except httpx2.HTTPError as error:  # the run has ended, and its page with it
            self.failures.append(type(error).__name__)
            time.sleep(0.2)
            return None
        if reply.status_code not in (200, 409):
            self.failures.append(f"status {reply.status_code}")
        return reply.json().get("question") if reply.status_code == 200 else None


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains SEA on labels of a simulated crowd.")
    parser.add_argument("--workdir", type=Path, default=Path("runs/crowd"))
    parser.add_argument("--annotators", type=int, default=8)
    parser.add_argument(
        "--delay_s", type=float, default=1.0, help="an annotator's median time for a question"
    )
    parser.add_argument("--noise", type=float, default=0.05, help="share of wrong answers")
    parser.add_argument("--leavers", type=int, default=2, help="annotators who leave")
    parser.add_argument("--leave_after", type=int, default=10, help="questions")
    parser.add_argument("--port", type=int, default=8501)
    parser.add_argument("--seed", type=int, default=0, help="of the run and of the hidden reward")
    options, fields = parser.parse_known_args()
    reward_fn = tasks.find("mini_tldr").reward_fn
    assert reward_fn is not None
    call = [
        sys.executable, "-m", "sea_jax.main", "--config=configs/quickstart.py", "--config.methods=('sea',)",
        "--config.progress=False", f"--config.cache_dir={options.workdir / 'cache'}",
        f"--config.seed={options.seed}", f"--config.task.oracle_seed={options.seed}", *fields,
    ]  # fmt: skip
    alone = [*call, f"--workdir={options.workdir / 'in_process'}"]
    alone.append(f"--config.oracle.flip_probability={options.noise}")
    in_process = subprocess.run(alone, check=True, stdout=subprocess.PIPE, text=True).stdout
    crowd = [
        *call, f"--workdir={options.workdir / 'people'}", "--config.oracle.kind=people",
        f"--config.people.port={options.port}", "--config.people.undo_s=0", "--config.people.lease_s=20",
    ]  # fmt: skip
    with subprocess.Popen(crowd, stdout=subprocess.PIPE, text=True) as run:
        _wait_for_page(options.port, run)
        oracle = BradleyTerryOracle(reward_fn(options.seed))
        annotators = [Annotator(i, options, oracle) for i in range(options.annotators)]
        for annotator in annotators:
            annotator.start()
        said, _ = run.communicate()
    _tell(options.workdir / "people", annotators)
    print(f"people:\n{said}\nin process, {options.noise:.0%} of the labels flipped:\n{in_process}")
    sys.exit(run.returncode)


def _wait_for_page(port: int, run: subprocess.Popen) -> None:
    while run.poll() is None:
        try:
            httpx2.get(f"http://127.0.0.1:{port}/")
            return
        except httpx2.HTTPError:
            time.sleep(0.2)


def _tell(workdir: Path, annotators: list[Annotator]) -> None:
    """Prints the figures of the crowd's run."""
    (journal,) = workdir.glob(f"runs/*/{FILE}")
    rows = list(reading.labels(journal))
    ends = sorted(row["answered_at"] for row in rows)
    span = np.datetime64(ends[-1][:-6]) - np.datetime64(ends[0][:-6])
    minutes = span / np.timedelta64(60, "s")
    # The first question is waited for until the run asks one.
    waits = np.array([wait for annotator in annotators for wait in annotator.waits[1:]])
    stale = np.array([row["step"] - row["policy_step"] for row in rows])
    failures = [failure for annotator in annotators for failure in annotator.failures]
    refused = sum(failure.startswith("status") for failure in failures)
    print(
        f"{len(rows)} labels by {len(annotators)} annotators, {len(rows) / minutes:.0f} a minute; an annotator "
        f"waits for a question p50 {np.median(waits):.2f} s, p99 {np.quantile(waits, 0.99):.2f} s, not at all "
        f"{(waits < 0.1).mean():.0%}; labels are {stale.mean():.2f} steps old; {refused} replies were errors"
    )


if __name__ == "__main__":
    main()
