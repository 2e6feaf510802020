"""Kills the processes around a run at random instants, while the run goes on; says what became of its labels.

python -m benchmarks.fault_victims --victim=service --kills=20 --workdir=runs/faults

| victim | what is killed, by SIGKILL | who replaces it |
|---|---|---|
| service | the oracle service with all its workers | this program, as systemd would |
| judge | a small server of OpenAI's chat completions | this program |
| ray_actor | a Ray actor that samples | Ray |
| ray_oracle | a Ray worker that scores | Ray |
| ray_learner | the learner of a Ray run | `launch.ray_run` |
| sidecar | the vLLM sidecar (needs `make sidecar`) | the run; where its start fails, this program gives the same command again |

Each time a short quickstart runs to its end; then again, until there were so many kills. Its labels are compared
with those of an undisturbed run of the same kind.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from benchmarks import faults

PORT = 8765
JUDGE = """
import sys, time
sys.path[:0] = ["tests", "."]
from services import Http, Judging
with Http(Judging(), port=int(sys.argv[1])):
    time.sleep(1e9)
"""
CHILDREN = {  # of the run, by a part of their command lines
    "ray_actor": "ray::SamplingWorker",
    "ray_oracle": "ray::RewardWorker",
    "ray_learner": "ray::Learner",
    "sidecar": "import vllm_sidecar",
}
PAUSES = ((1.0, 10.0), (5.0, 25.0))  # seconds between kills; a child takes longer to come back than a server
MAIN = "sea_jax.main"
FIELDS = {
    "service": (MAIN, {"oracle.kind": "remote", "oracle.url": f"http://127.0.0.1:{PORT}", "oracle.timeout_s": 5.0}),
    "judge": (MAIN, {
        "oracle.kind": "judge", "oracle.base_url": f"http://127.0.0.1:{PORT}/v1", "oracle.model": "longer",
        "oracle.timeout_s": 5.0,
    }),
    **{
        name: ("launch.ray_run", {"ray.actors": 2, "ray.oracles": 1, "ray.retries": 100})
        for name in CHILDREN if name.startswith("ray")
    },
    "sidecar": (MAIN, {"sampler.kind": "vllm"}),
}  # fmt: skip


def start_server(victim: str, log: Path) -> subprocess.Popen | None:
    """Starts the server that a run of this kind asks; None if it asks none."""
    calls = {
        "service": ["-m", "sea_jax.serve.oracle_service", "--model=mini_tldr", f"--port={PORT}"],
        "judge": ["-c", JUDGE, str(PORT)],
    }
    if victim not in calls:
        return None
    with open(log, "a") as out:
        return subprocess.Popen(
            [sys.executable, *calls[victim]], stdout=out, stderr=out, start_new_session=True
        )


def kill(victim: str, server: subprocess.Popen | None, run: subprocess.Popen, rng: random.Random) -> bool:
    """Kills one process; False if none is there yet."""
    if server is not None:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        return True
    found = []
    for process in psutil.Process(run.pid).children(recursive=True):
        try:
            if CHILDREN[victim] in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    if found:
        rng.choice(found).kill()
    return bool(found)


def one_run(victim: str, folder: Path, cache: Path, log: Path, kills: int, rng: random.Random) -> int:
    """Runs to the end, with at most so many kills; returns how many there were."""
    call, env = faults.command(folder, cache, *FIELDS[victim]), os.environ | {"OPENAI_API_KEY": "none"}
    server, made, before = start_server(victim, log), 0, 0
    try:
        with open(log, "a") as out:
            run = subprocess.Popen(call, stdout=out, stderr=out, env=env)
            while True:
                try:
                    status = run.wait(rng.uniform(*PAUSES[victim in CHILDREN]) if made < kills else None)
                except subprocess.TimeoutExpired:
                    made += kill(victim, server, run, rng)
                    if server is not None:
                        time.sleep(rng.uniform(0.0, 2.0))
                        server = start_server(victim, log)
                    continue
                if status == 0:
                    return made
                # A sidecar that is lost while it starts ends the run with one line; the same command goes on.
                assert victim == "sidecar" and status == 2 and made > before, (
                    f"exit status {status}; see {log}"
                )
                run, before = subprocess.Popen(call, stdout=out, stderr=out, env=env), made
    finally:
        if server is not None:
            os.killpg(server.pid, signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser(description="Kills the processes around a run at random instants.")
    parser.add_argument("--victim", choices=list(FIELDS), required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workdir", type=Path, default=Path("runs/faults"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    place = options.workdir / options.victim
    place.mkdir(parents=True, exist_ok=True)
    cache, whole, folder = options.workdir / "cache", place / "whole", place / "killed"
    log, rng = place / "log.txt", random.Random(options.seed)
    shutil.rmtree(whole, ignore_errors=True)
    one_run(options.victim, whole, cache, log, 0, rng)
    counts, made, runs = faults.Counts(), 0, 0
    while made < options.kills:
        shutil.rmtree(folder, ignore_errors=True)
        made += one_run(options.victim, folder, cache, log, options.kills - made, rng)
        runs += 1
        counts.add_ended(folder, whole)
        print(f"  {made} kills, {runs} runs that ended: {counts}", flush=True)
    print(f"{options.victim}: {made} kills in {runs} runs that ended: {counts}")
    sys.exit(counts.bad)


if __name__ == "__main__":
    main()
