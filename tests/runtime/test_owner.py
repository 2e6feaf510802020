"""One process at a time in a work directory."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from helpers import ROOT

from sea_jax.errors import InputError
from sea_jax.runtime import owner

HOLD = "import sys, time, pathlib\nfrom sea_jax.runtime.owner import own\nwith own(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()


def test_a_folder_in_use_is_refused_with_pid_and_host(tmp_path, holder):
    with pytest.raises(InputError) as error, owner.own(tmp_path):
        pass
    said = f"process {holder.pid} on host {socket.gethostname()}"
    assert str(error.value).startswith(f"--workdir: {tmp_path} is in use by {said}; valid: ")


def test_a_lock_of_a_dead_process_is_taken_over(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with owner.own(tmp_path):
        pass


def test_a_lock_ends_with_its_context_even_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), owner.own(tmp_path):
            assert owner._holder(tmp_path) == f"process {os.getpid()} on host {socket.gethostname()}"
            with pytest.raises(InputError, match=f"process {os.getpid()}"), owner.own(tmp_path):
                pass
            raise ZeroDivisionError
    assert owner._holder(tmp_path) == "another process"
    start = time.monotonic()
    with owner.own(tmp_path):
        assert time.monotonic() - start < 5
