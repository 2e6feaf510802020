"""Python environments for the libraries we measure ourselves against.

A peer's pins conflict with ours (and with other peers'), so each has a virtual environment of its own under
`.peers/<name>`: created on first use, reused as long as its requirement list stays the same.

    python = peer_env.ensure("trl", peer_env.TRL)
    subprocess.Popen([python, "benchmarks/trl_worker.py", …])

`python benchmarks/peer_env.py` prepares TRL's and prints its Python.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

PEERS = Path(__file__).resolve().parent.parent / ".peers"

# Read together with benchmarks/trl_worker.py: 1.16 keeps OnlineDPOTrainer in trl.experimental.online_dpo, whose
# behaviour may change in any release. Everything that runs inside a timed step is pinned.
TRL = [
    "trl==1.16.0",
    "torch==2.13.0",
    "transformers==5.23.0",
    "accelerate==1.15.0",
    "datasets==5.2.0",
    "tokenizers==0.23.3",
    "safetensors==0.8.0",
    "numpy==2.4.6",
]


def ensure(name: str, requirements: list[str]) -> Path:
    """Returns the Python of peer `name`, making or remaking its environment only if the list changed.

    Args:
      name: a folder name under `.peers`: letters, digits, '.', '_' and '-'.
      requirements: pip requirements with exact pins ('package==version').

    Returns:
      Path of the environment's Python interpreter.

    Raises:
      ValueError: a name that is no folder name, or a requirement without an exact pin.
      RuntimeError: the environment could not be made.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(f"peer name: {name!r}; valid: letters, digits, '.', '_', '-'")
    loose = [r for r in requirements if not re.fullmatch(r"[^\s=<>!~]+==[^\s=*]+", r)]
    if not requirements or loose:
        raise ValueError(
            f"requirements of peer {name!r}: {loose or 'none given'}; valid: 'package==version' each"
        )

    folder = PEERS / name
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    stamp = folder / "requirements.stamp"
    wanted = "".join(f"{r}\n" for r in requirements)
    if python.exists() and stamp.is_file() and stamp.read_text() == wanted:
        return python

    print(f"making the environment of peer {name!r}: {' '.join(requirements)}", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (PEERS / ".gitignore").write_text("*\n")  # the folder hides itself from git, wherever it is made
    _run(name, [sys.executable, "-m", "venv", str(folder)])
    # -I: a PYTHONPATH meant for our own environment must not decide what pip believes to be installed.
    _run(name, [str(python), "-I", "-m", "pip", "install", "--quiet", *requirements])
    stamp.write_text(wanted)  # last, so that an interrupted installation is made again
    return python


def _run(name: str, command: list[str]) -> None:
    """Runs one set-up command silently; RuntimeError with the line that says why if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip()] or ["no output"]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        raise RuntimeError(f"environment of peer {name!r}: {' '.join(command[1:5])} … failed: {errors[-1]}")


if __name__ == "__main__":
    print(ensure("trl", TRL))
