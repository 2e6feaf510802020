"""Tests the oracle service: Mosec with its workers, as a user starts it."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import jax
import numpy as np
import psutil
import pytest
from helpers import ROOT, bomb
from real_text import posts, small_config, user_files
from services import QUICK_BACKOFF, Http, Service, comparisons, finished_run, free_port, local_run

from sea_jax.errors import InputError, ServiceError
from sea_jax.experiment import reward_scorer
from sea_jax.oracles import messages, patience
from sea_jax.oracles.bradley_terry import BradleyTerryOracle
from sea_jax.oracles.remote import RemoteOracle, RequestLimits
from sea_jax.runtime.mesh import make_mesh
from sea_jax.serve.oracle_service import check_model
from sea_jax.serve.oracle_worker import OracleWorker
from sea_jax.tasks import mini_tldr

TOKEN = "a token of our own"


@pytest.fixture(scope="module")
def service():
    with Service("--model=mini_tldr", "--timeout_s=2", token=TOKEN, host="0.0.0.0") as service:
        yield service


def get(url):
    with urllib.request.urlopen(url, timeout=10) as reply:
        return reply.status, reply.read().decode()


def test_health_and_metrics(service):
    assert get(service.url)[0] == 200
    oracle = RemoteOracle(service.url, token=TOKEN)
    oracle.check()
    status, text = get(f"{service.url}/metrics")
    assert status == 200 and 'oracle_throughput_total{code="200",endpoint="/about"}' in text


def test_who_listens_to_others_wants_a_token(service):
    assert RemoteOracle(service.url, token=TOKEN).about()["model"] == "mini_tldr"
    for wrong in ("", "another token of theirs"):
        with pytest.raises(ServiceError, match="the token is not the service's; set SEA_JAX_ORACLE_TOKEN"):
            RemoteOracle(service.url, token=wrong).rewards(["x"], ["y"])


def test_a_text_that_is_none_of_the_tasks(service):
    with pytest.raises(InputError, match=r"/rewards: .*no post"):
        RemoteOracle(service.url, token=TOKEN).rewards(["no post"], ["y"])


@pytest.mark.parametrize("endpoint", ["rewards", "probability", "about"])
def test_a_pickle_is_not_read(service, endpoint, tmp_path):
    """Neither by the workers, who run as this user and would make the file, nor by Mosec between them."""
    body = bomb(tmp_path / "made")
    with urllib.request.urlopen(f"{service.url}/{endpoint}", body, timeout=10) as reply:
        answer = reply.read()
    with pytest.raises(messages.RefusedError, match="the body is not a msgpack map"):
        messages.read_answer(answer, "", endpoint, 1)
    assert not (tmp_path / "made").exists()
    for between_stages in (OracleWorker.serialize_ipc, OracleWorker.deserialize_ipc):
        with pytest.raises(NotImplementedError, match="pickle is not used"):
            between_stages(object.__new__(OracleWorker), body)


def without(rows, *prefixes):
    return [{k: v for k, v in row.items() if not k.startswith(prefixes)} for row in rows]


def test_the_quickstart_through_the_service_is_the_quickstart(service, tmp_path, monkeypatch):
    """Labels are bit-identical to those of the in-process oracle, and so are metrics and policy."""
    monkeypatch.setenv(messages.TOKEN_VARIABLE, TOKEN)
    remote = {"oracle.kind": "remote", "oracle.url": service.url, "oracle.request_size": 3}
    (here, rows), (there, remote_rows) = local_run(), finished_run(tmp_path, **remote)
    assert there.labeller.num_queries == 16
    assert without(rows, "time/", "oracle/") == without(remote_rows, "time/", "oracle/")
    assert {row["duel/from_oracle"] for row in rows if "duel/from_oracle" in row} == {1.0, 0.5}
    jax.tree.map(np.testing.assert_array_equal, here.state.policy.params, there.state.policy.params)
    last = [row for row in remote_rows if "oracle/requests" in row][-1]
    assert last["oracle/requests"] > 8 and last["oracle/retries"] == last["oracle/dropped"] == 0


def test_thousands_of_comparisons_while_workers_are_killed(service):
    """No comparison is lost, duplicated or reordered; killed workers are replaced."""
    prompts, first, second = comparisons(4_000)
    wanted = BradleyTerryOracle(mini_tldr.reward_fn(3)).probability(prompts, first, second)
    assert len(np.unique(wanted)) > 3_200
    oracle = RemoteOracle(service.url, 3, RequestLimits(10.0, 60.0, 10, 16, 20), TOKEN)
    killed, ended, delays = [], threading.Event(), np.random.default_rng(0)

    def kill():
        """Kills one worker at a time, since the service ends if both are dead."""
        while not ended.is_set():
            alive = set()
            while len(alive) < 2 and not ended.wait(0.02):
                alive |= {RemoteOracle(service.url, token=TOKEN).about()["pid"]} - set(killed)
            if not ended.wait(delays.uniform(0, 0.1)):
                killed.append(alive.pop())
                os.kill(killed[-1], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            np.testing.assert_array_equal(oracle.probability(prompts, first, second), wanted)
            if killed and oracle.metrics()["oracle/retries"]:
                break  # a worker died during requests
    finally:
        ended.set()
        killer.join(30)
    sent, retries = oracle.metrics().values()
    assert killed and retries and (sent - retries) % 200 == 0
    end = time.monotonic() + 30
    alive = set()
    while len(alive) < 2 and time.monotonic() < end:
        alive |= {oracle.about()["pid"]}
    assert len(alive) == 2 and not alive & set(killed)


def test_an_outage_of_the_service_is_waited_out(monkeypatch):
    """The service and its workers are killed during requests and restarted at the same port."""
    monkeypatch.setattr(patience, "_BACKOFF", QUICK_BACKOFF)
    prompts, first, second = comparisons(600)
    wanted = BradleyTerryOracle(mini_tldr.reward_fn(3)).probability(prompts, first, second)
    before = Service("--model=mini_tldr:3", "--workers=1").wait_until_ready()
    oracle = RemoteOracle(before.url, 3, RequestLimits(10.0, 60.0, 3, 2, 3))
    found = {}
    asking = threading.Thread(target=lambda: found.update(p=oracle.probability(prompts, first, second)))
    asking.start()
    while oracle.metrics()["oracle/requests"] < 20:
        time.sleep(0.001)
    os.killpg(before.process.pid, signal.SIGKILL)
    before.process.wait(10)
    assert asking.is_alive()
    with Service("--model=mini_tldr:3", "--workers=1", port=before.port):
        asking.join(60)
        np.testing.assert_array_equal(found["p"], wanted)
        assert oracle.metrics()["oracle/retries"] >= 2
        with pytest.raises(InputError, match="seed=4; valid: 3, as the service holds mini_tldr:3"):
            RemoteOracle(before.url, 4).check()


def test_a_reward_model_is_served_with_its_own_numbers(tmp_path):
    """Numbers equal the in-process oracle's to the bit in any batch; all programs are compiled beforehand."""
    user_files(tmp_path)
    config = small_config(tmp_path).oracle
    config.update(dict(chat="no", dtype="float32"))
    local = reward_scorer.load_oracle(config, make_mesh())
    rows = posts(24)
    prompts, first = [row["prompt"] for row in rows], [row["completion"] for row in rows]
    second = [" ".join(first[: i % 5]) for i in range(24)]
    flags = [
        f"--model={config.folder}",
        "--batch_size=4",
        "--chat=no",
        f"--cache_dir={ROOT}/.cache/jax",
        "--workers=1",
    ]
    with Service(*flags) as service:
        found = {
            size: RemoteOracle(service.url, limits=RequestLimits(request_size=size)).probability(
                prompts, first, second
            )
            for size in (1, 5, 24)
        }
        with pytest.raises(
            InputError, match=r"text 1: \d+ tokens; valid: 1 to 128, the reward model's context"
        ):
            RemoteOracle(service.url).rewards(["a", "word " * 400], ["b", "c"])
        status, _ = service.stop()
    wanted = local.probability(prompts, first, second)
    assert np.ptp(wanted) > 0.1 and status == 0
    for probability in found.values():
        np.testing.assert_array_equal(probability, wanted)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_each_worker_has_its_device_and_all_end_when_told():
    """Nobody else reaches the service by default."""
    service = Service("--model=mini_tldr", "--devices=3,5").wait_until_ready()
    processes = [
        psutil.Process(service.process.pid),
        *psutil.Process(service.process.pid).children(recursive=True),
    ]
    sockets = [
        c for process in processes for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN
    ]
    assert {c.laddr for c in sockets} == {("127.0.0.1", service.port)}
    pids, end = set(), time.monotonic() + 20
    while len(pids) < 2 and time.monotonic() < end:
        pids.add(RemoteOracle(service.url).about()["pid"])
    seen = {Path(f"/proc/{pid}/environ").read_text().split("CUDA_VISIBLE_DEVICES=")[1][0] for pid in pids}
    assert seen == {"3", "5"}  # a worker has a GPU of its own
    status, said = service.stop()
    assert status == 0 and "Traceback" not in said
    end = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(alive, pids))
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", service.port)) != 0


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def command(*flags, **env):
    env = (
        {k: v for k, v in os.environ.items() if k != messages.TOKEN_VARIABLE}
        | {"PYTHONPATH": str(ROOT)}
        | env
    )
    call = [sys.executable, "-m", "sea_jax.serve.oracle_service", *flags]
    return subprocess.run(call, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model=mini_tldr", "--port={taken}"], ["--port={taken}: 127.0.0.1:{taken}: Address already in use", "a free port"]),
        (["--model=mini_tldr", "--host=0.0.0.0"], ["--host=0.0.0.0", "a token of at least 16 characters", "SEA_JAX_ORACLE_TOKEN"]),
        (["--model=mini_tldr", "--host=here"], ["--host='here'", "an IPv4 address"]),
        (["--model=no/such"], ["--model='no/such'", "neither a folder here nor"]),
        (["--model=mini_tldr", "--port=0"], ["--port", "0"]),
        (["--model=mini_tldr", "extra"], ["'extra'"]),
        ([], ["--model"]),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(flags, said):
    with Http(lambda *_: None) as other:
        done = command(*(flag.format(taken=other.port) for flag in flags))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: "), (
        done.stderr
    )
    assert all(part.format(taken=other.port) in done.stderr for part in said), done.stderr


def test_a_model_that_is_no_reward_model(tmp_path):
    """Its config suffices to refuse it; a test above covers the command's error message."""
    user_files(tmp_path)
    check_model(str(tmp_path / "reward"))
    for model, said in (
        ("mini_tldr:x", "neither"),
        (str(tmp_path / "policy"), "a reward model of one number"),
    ):
        with pytest.raises(InputError, match=said) as error:
            check_model(model)
        assert str(error.value).startswith(f"--model={model!r}: ")


def test_a_worker_that_cannot_begin_ends_the_service(tmp_path):
    """Mosec on its own restarts such a worker forever."""
    user_files(tmp_path)
    (tmp_path / "reward" / "tokenizer.json").write_text("{}")
    done = command(
        f"--model={tmp_path / 'reward'}", f"--port={free_port()}", "--workers=1", JAX_PLATFORMS="cpu"
    )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith(
        "error: the service ended: a worker could not start: InputError: tokenizer"
    )
