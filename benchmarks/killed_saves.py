"""Kills a process after every file operation of a checkpoint's save, and reads what is left.

python -m benchmarks.killed_saves

A process that has saved step 1 saves step 2 under strace, which tells each operation that changes a file; after the
n-th the process gets SIGKILL, for n = 1, 2, … until a save ends before. Each time a fresh process must read step 1
or step 2, bit by bit, and save step 3. Needs strace (Debian: apt install strace).
"""

import argparse
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

CHANGES = (
    "open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,rmdir,write,pwrite64,writev,"
    "pwritev,ftruncate,fallocate,fsync,fdatasync,link,linkat,symlink,symlinkat"
)
READ_ONLY = re.compile(r"open(at)?\(.*O_RDONLY(?!.*O_CREAT)")


def arrays(step: int) -> dict:
    import jax.numpy as jnp
    import numpy as np

    rng = np.random.default_rng(step)
    return {name: jnp.asarray(rng.normal(size=(300, 200)).astype(np.float32)) for name in ("policy", "adam")}


def save(folder: Path, step: int, stopped: bool) -> None:
    """Saves a step; `stopped` waits for SIGCONT before the first file operation."""
    from sea_jax.runtime.checkpoint_folder import CheckpointFolder

    tree = arrays(step)
    if stopped:
        os.kill(os.getpid(), signal.SIGSTOP)
    with CheckpointFolder(folder, 0, 2) as saved:
        saved.save(step, {"seen": step}, tree=tree)


def read(folder: Path) -> None:
    """Reads the newest checkpoint and saves step 3; the exit status is the step, or 99 if anything is wrong."""
    import numpy as np

    from sea_jax.runtime.checkpoint_folder import CheckpointFolder

    status = 99
    try:
        with CheckpointFolder(folder, 0, 2) as saved:
            found = saved.newest(tree=arrays(0))
            assert found is not None
            (record, trees), step = found, found[0]["step"]
            assert record["seen"] == step in (1, 2)
            for name, array in arrays(step).items():
                np.testing.assert_array_equal(trees["tree"][name], array)
            saved.save(3, {"seen": 3}, tree=arrays(3))
        with CheckpointFolder(folder, 0, 2) as saved:
            found = saved.newest(tree=arrays(0))
        assert found is not None and found[0]["step"] == 3
        status = step
    finally:
        sys.exit(status)


def changes(lines: Iterable[str], folder: Path) -> Iterable[str]:
    """Yields the names of the operations that change a file of the folder, from lines of strace."""
    for line in lines:
        call = re.search(r"(\w+)\(", line)
        if call and str(folder) in line and not READ_ONLY.search(line):
            yield call[1]


def kill_after(context, folder: Path, count: int) -> list[str]:
    """Saves step 2 and kills the process after so many operations; returns those that it made."""
    process = context.Process(target=save, args=(folder, 2, True))
    process.start()
    while "T (stopped)" not in Path(f"/proc/{process.pid}/status").read_text():
        pass
    # Every operation is held for 2 ms at its end, so that the kill comes before the thread's next one.
    call = ["strace", "-f", "-y", "-qq", "-p", str(process.pid), "-e", f"trace={CHANGES}"]
    call += ["-e", f"inject={CHANGES}:delay_exit=2000"]
    with subprocess.Popen(call, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None
        while f"TracerPid:\t{tracer.pid}" not in Path(f"/proc/{process.pid}/status").read_text():
            assert tracer.poll() is None, tracer.stderr.read()
        os.kill(process.pid, signal.SIGCONT)
        made = []
        for name in changes(tracer.stderr, folder):
            made.append(name)
            if len(made) == count:
                process.kill()
    process.join()
    return made


def kill_everywhere(counts: Iterable[int]) -> tuple[Counter, Counter]:
    """Kills a save after each of these numbers of operations, until one ends before.

    Returns:
        How often each step was read afterwards (99: none, or a wrong one), and the operations that were the last.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sea_jax.runtime.checkpoint_folder"])
    read_steps, last = Counter(), Counter()
    with tempfile.TemporaryDirectory() as scratch:
        before, folder = Path(scratch) / "before", Path(scratch) / "checkpoints"
        first = context.Process(target=save, args=(before, 1, False))
        first.start()
        first.join()
        for count in counts:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(before, folder)
            made = kill_after(context, folder, count)
            reader = context.Process(target=read, args=(folder,))
            reader.start()
            reader.join()
            read_steps[reader.exitcode] += 1
            if len(made) < count:
                break
            last[made[count - 1]] += 1
    return read_steps, last


def main() -> None:
    parser = argparse.ArgumentParser(description="Kills a save after every file operation.")
    parser.add_argument("--every", type=int, default=1, help="1: after every operation; n: after every n-th")
    options = parser.parse_args()
    read_steps, last = kill_everywhere(range(1, 100_000, options.every))
    print(f"{last.total()} kills, after {dict(last)}")
    print(f"read afterwards: step 1 {read_steps[1]} times, step 2 {read_steps[2]} times; "
          f"{read_steps.total() - read_steps[1] - read_steps[2]} times not what was saved")  # fmt: skip
    sys.exit(read_steps.total() != read_steps[1] + read_steps[2])


if __name__ == "__main__":
    main()
