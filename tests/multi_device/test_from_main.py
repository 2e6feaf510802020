"""Of a run on several hosts one process asks the oracle for all: no label is bought twice."""

import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_one_process_asks_for_both(tmp_path):
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    port = free_port()
    group = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path), str(port), str(i)],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    for i, process in enumerate(group):
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0 and f"process {i} ended" in said, said[-3000:]
    main, other = (np.load(tmp_path / f"{i}.npy") for i in range(2))
    np.testing.assert_array_equal(main, other)
    assert main.dtype == other.dtype == np.float64 and len(np.unique(main)) == len(main) == 40


def asks_a_function_on_main(folder, index, function, broadcast, failure):
    """Each process has a file of its own; the other's function would fail, and the main one's does at last."""
    file = folder / f"rules{index}.py"
    file.write_text(f"def score(prompts, responses): return [len(y) / (1 - {index}) for y in responses]\n")
    oracle = function.make_oracle(function.load(f"{file}:score"), broadcast)
    assert oracle.rewards(["x", "x", "z"], ["a", "bb", ""]).tolist() == [1, 2, 0]
    file.write_text("def prefer(prompts, first, second): return [None, 0.25, float('nan')][: len(prompts)]\n")
    oracle = function.make_oracle(function.load(f"{file}:prefer"), broadcast)
    probability, answered = oracle.answers(["x"] * 2, ["y"] * 2, ["z"] * 2)
    assert answered.tolist() == [False, True] and probability[1] == 0.25
    try:
        oracle.answers(["x"] * 3, ["y"] * 3, ["z"] * 3)
    except failure as error:
        assert ("row 2: nan" in str(error)) == (index == 0), error
    else:
        raise AssertionError("that is no probability")


def a_stop_of_main_stops_both(ask, breaks_off, broadcast, stopped):
    """The main process is stopped while it waits; the other learns of it."""

    def stop():
        raise stopped("by SIGTERM")

    with breaks_off(stop):
        try:
            broadcast(ask, np.zeros(1))
        except stopped as error:
            return str(error)
    raise AssertionError("it went on")


def main(folder, port, index):
    import jax

    jax.distributed.initialize(f"127.0.0.1:{port}", 2, index, initialization_timeout=60)
    from services import oracle_http

    from sea_jax.errors import InputError, ServiceError, StoppedError
    from sea_jax.oracles import function
    from sea_jax.oracles.patience import breaks_off, map_in_order
    from sea_jax.oracles.remote import RemoteOracle, RequestLimits
    from sea_jax.runtime.mesh import broadcast_from_main, wait_for_all

    texts = [f"x{i}" for i in range(40)], ["a" * i for i in range(40)], [""] * 40
    with oracle_http() as server:  # each has one of its own; only the main process's is asked
        oracle = RemoteOracle(server.url, limits=RequestLimits(1.0, 1.0), broadcast=broadcast_from_main)
        oracle.check()
        np.save(folder / f"{index}.npy", oracle.rewards(*texts[:2]) + oracle.probability(*texts) / 3)
        assert (server.requests == 0) == (index == 1) and oracle.rewards([], []).shape == (0,)
        wait_for_all("answers")
    try:
        oracle.probability(*texts)
    except ServiceError as error:
        assert ("the main process failed" in str(error)) == (index == 1), error
    else:
        raise AssertionError("nobody is there any more")
    asks_a_function_on_main(folder, index, function, broadcast_from_main, (InputError, ServiceError)[index])
    ask = lambda: map_in_order(lambda *_: time.sleep(60), [0], 1, 60.0, "it")  # noqa: E731
    said = a_stop_of_main_stops_both(ask, breaks_off, broadcast_from_main, StoppedError)
    assert said == (
        "the main process was stopped; the same command on all hosts goes on" if index else "by SIGTERM"
    )
    wait_for_all("the end")
    print(f"process {index} ended")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:]))
