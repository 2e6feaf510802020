"""A whole run of two processes, as on two hosts, against the same run of one."""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import numpy as np
import psutil
import pytest
from small_run import go_on, small_run

from sea_jax.labels.journal import Journal
from sea_jax.runtime.process import meet

ROOT = pathlib.Path(__file__).resolve().parents[2]
MESHES = [dict(data=4), dict(fsdp=2, tensor=2)]  # the first axis lies between the processes


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(folder, processes):
    """One process a host; each has its share of four devices, and the first listens to its own machine."""
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "JAX_NUM_CPU_DEVICES": str(4 // processes),
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), str(port), str(processes), str(i)],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for i in range(processes)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The runs on all meshes, by one process and by two: folder/processes/mesh."""
    folder = tmp_path_factory.mktemp("runs")
    started = {n: start(folder / str(n), n) for n in (1, 2)}
    for n, group in started.items():
        for i, process in enumerate(group):
            said, _ = process.communicate(timeout=300)
            assert process.returncode == 0, said[-3000:]
            assert f"process {i} of {n} ended" in said
    return folder


@pytest.mark.parametrize("i", range(len(MESHES)), ids=lambda i: str(MESHES[i]))
def test_two_processes_equal_one(i, folders):
    of_one, of_two = (folders / n / str(i) for n in ("1", "2"))
    one, two = (np.load(folder / "state.npz") for folder in (of_one, of_two))
    assert set(one.files) == set(two.files) and len(one.files) > 20
    for name in one.files:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-5, atol=1e-5, err_msg=name)
    assert np.ptp(one[".policy.params['head']['kernel']"]) > 0
    # Of two processes one writes, and it writes what one alone does.
    for file in ("metrics.jsonl", "samples.jsonl"):
        rows = [
            [json.loads(line) for line in (folder / file).read_text().splitlines()]
            for folder in (of_one, of_two)
        ]
        assert len(rows[0]) == len(rows[1]) > 2
        for a, b in zip(*rows, strict=True):
            assert a.keys() == b.keys()
            for name in a.keys() - {k for k in a if k.startswith("time/")}:
                wanted = b[name]
                if isinstance(wanted, float):
                    wanted = pytest.approx(wanted, rel=1e-4, abs=1e-5)
                assert a[name] == wanted, name


def test_a_run_saved_by_two_processes_goes_on_with_one(folders):
    """It ends with the labels that two processes would have bought, and nearly their parameters."""
    run = small_run(folders / "2" / "saved", "sea", **{"sea.burn_in": 4})
    assert go_on(run)
    state = np.load(folders / "2/0/state.npz")
    for name in ("saved", "anew"):
        with Journal(folders / "2" / name, "the task") as journal:
            assert journal.count() == 16
    with Journal(run.folder, "the task") as journal:
        assert run.labeller.num_queries == journal.count() == int(state[".num_queries"]) == 16
    kernel = state[".policy.params['head']['kernel']"]
    np.testing.assert_allclose(run.state.policy.params["head"]["kernel"], kernel, rtol=1e-5, atol=1e-5)


def test_of_two_processes_the_main_one_writes_a_part(folders):
    """The other one reads it: `check_cache` compares."""
    assert len(list((folders / "2" / "cache").glob("heads-*"))) == 1


SURVIVE = """
import sys
import numpy as np
from jax.experimental import multihost_utils
from sea_jax.runtime.process import end_where_another_is_lost, meet
from sea_jax.runtime.supervisor import go_on_in_child
go_on_in_child()
meet(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
with end_where_another_is_lost():
    while True:
        multihost_utils.process_allgather(np.ones(1))
        print("together", flush=True)
"""


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_other(lost):
    """With status 69 and one line of ours, whether a collective fails first or JAX aborts."""
    port, env = free_port(), os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", SURVIVE, str(port), str(i)],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in (0, 1)
    ]  # fmt: skip
    for process in pair:
        assert "together\n" in process.stdout  # reads until that line; Gloo writes some before
    [child] = psutil.Process(pair[lost].pid).children()
    pair[lost].kill()
    _, said = pair[1 - lost].communicate(timeout=60)
    assert pair[1 - lost].returncode == 69, said
    assert re.findall("^error: .*$", said, re.MULTILINE) and "the same command on all hosts goes on" in said
    assert said.count("error: ") == 1 and "Traceback" not in said
    assert child.wait(10) is None or not child.is_running()  # it ended with its parent


ABORT = """
import os, sys, time
from sea_jax.runtime.supervisor import go_on_in_child
go_on_in_child()
import signal
signal.signal(signal.SIGTERM, lambda *_: print("told", flush=True) or os._exit(75))
print("begins", flush=True)
if sys.argv[1] == "abort":
    os.abort()
elif sys.argv[1] == "wait":
    time.sleep(60)
os.kill(os.getpid(), signal.SIGKILL) if sys.argv[1] == "kill" else sys.exit(int(sys.argv[1]))
"""


@pytest.mark.parametrize(("how", "status"), [("0", 0), ("2", 2), ("abort", 69), ("kill", 137), ("wait", 75)])
def test_a_process_ends_as_its_child_does(how, status):
    process = subprocess.Popen(
        [sys.executable, "-c", ABORT, how],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "begins\n"
    if how == "wait":
        process.terminate()
    out, said = process.communicate(timeout=60)
    assert process.returncode == status and out == ("told\n" if how == "wait" else "")
    assert ("error: JAX aborted: another process of the run is lost" in said) == (how == "abort")


def check_cache(folder, index):
    """Each process makes other values and gets the main one's; it alone looks for the part."""
    from sea_jax.pretraining import cache

    recipe, made = cache.Recipe("heads", 1, {}, {}), []
    found = cache.obtain_arrays(folder, recipe, lambda: {"x": np.full(3, float(index))})
    np.testing.assert_array_equal(found["x"], 0)
    for _ in range(2):  # as if the disk showed the part late to the second process
        seen = folder if index == 0 else folder / "late"
        cache.obtain(seen, recipe, lambda saved: made.append(saved) or cache.writer({}))
    assert not made


def main(folder, port, processes, index):
    import jax

    if processes > 1:
        meet(f"127.0.0.1:{port}", processes, index)
        listening = {
            c.laddr for c in psutil.Process().net_connections("tcp") if c.status == psutil.CONN_LISTEN
        }
        at = {address.removeprefix("::ffff:") for address, there in listening if there == port}
        assert at == ({"127.0.0.1"} if index == 0 else set()), listening
    from small_run import loop

    from sea_jax.runtime.mesh import is_main, to_host, wait_for_all

    assert jax.device_count() == 4 and jax.local_device_count() == 4 // processes
    assert is_main() == (index == 0)
    check_cache(folder / "cache", index)
    for i, mesh in enumerate(MESHES):
        fields = {f"mesh.{axis}": size for axis, size in mesh.items()}
        run = small_run(folder / str(i), "sea", **fields, **{"sea.burn_in": 4})
        loop(run)
        state = to_host(run.state._replace(key=jax.random.key_data(run.state.key)))
        if is_main():
            leaves, _ = jax.tree_util.tree_flatten_with_path(state)
            np.savez(folder / str(i) / "state.npz", **{jax.tree_util.keystr(k): v for k, v in leaves})
        wait_for_all(f"the end of {mesh}")
    if processes > 1:  # saved by two processes, on all devices at the same step
        go_on(small_run(folder / "saved", "sea", **{"mesh.data": 4, "sea.burn_in": 4}), 2)
        for last_step in (2, None):  # the second begins anew, and reads the journal of the first
            go_on(small_run(folder / "anew", "sea", **{"mesh.data": 4, "sea.burn_in": 4}), last_step, 1e9)
    print(f"process {index} of {processes} ended")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:]))
