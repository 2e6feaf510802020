"""Python environments beside our own, for what does not fit into it.

The libraries we measure ourselves against pin other versions; compilers for accelerators that this machine
lacks weigh gigabytes. Each set has a virtual environment under `.peers/<name>`: created on first use, reused
as long as its requirement list stays the same.

    python = environments.ensure("trl", TRL)
    subprocess.Popen([python, "benchmarks/trl_worker.py", …])
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NoReturn

from sea_jax.config.flags import fail

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".peers"


def ensure(name: str, requirements: list[str]) -> Path:
    """Returns the Python of environment `name`, making or remaking it only if the list changed.

    Args:
        name: a folder name under `.peers`: letters, digits, '.', '_' and '-'.
        requirements: pip requirements with exact pins ('package==version' or 'package[extra]==version').

    Returns:
        Path of the environment's Python interpreter.

    Raises:
        ValueError: a name that is no folder name, or a requirement without an exact pin.
        RuntimeError: the environment could not be made.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(f"environment name: {name!r}; valid: letters, digits, '.', '_', '-'")
    loose = [r for r in requirements if not re.fullmatch(r"[^\s=<>!~]+==[^\s=*]+", r)]
    if not requirements or loose:
        raise ValueError(
            f"requirements of environment {name!r}: {loose or 'none given'}; valid: 'package==version' each"
        )

    folder = FOLDER / name
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    stamp = folder / "requirements.stamp"
    wanted = "".join(f"{r}\n" for r in requirements)
    if python.exists() and stamp.is_file() and stamp.read_text() == wanted:
        return python

    print(f"making the environment {name!r}: {' '.join(requirements)}", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (FOLDER / ".gitignore").write_text("*\n")  # the folder hides itself from git, wherever it is made
    _run(name, [sys.executable, "-m", "venv", str(folder)])
    # -I: a PYTHONPATH meant for our own environment must not decide what pip believes to be installed.
    _run(name, [str(python), "-I", "-m", "pip", "install", "--quiet", *requirements])
    stamp.write_text(wanted)  # last, so that an interrupted installation is made again
    return python


def own_requirements(extra: str) -> list[str]:
    """Our own pins with those of an extra of pyproject.toml, such as 'cuda' or 'tpu'."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["dependencies"] + project["optional-dependencies"][extra]


def launch_requirements() -> list[str]:
    """The pins of requirements.txt and requirements-launch.txt; of a package in both, the latter's."""
    found = {}
    for name in ("requirements.txt", "requirements-launch.txt"):
        for line in (ROOT / name).read_text().splitlines():
            pin, _, marker = (part.strip() for part in line.partition("#")[0].partition(";"))
            if pin and not (sys.platform == "win32" and "win32" in marker):
                found[pin.partition("==")[0].lower()] = pin
    return list(found.values())


def xmanager_launch(script: str, arguments: list[str]) -> NoReturn:
    """Becomes `xmanager launch <script> -- <arguments>`, in an environment of its own if ours lacks it."""
    python = Path(sys.executable)
    if importlib.util.find_spec("xmanager") is None:
        try:
            python = ensure("xmanager", launch_requirements())
        except RuntimeError as error:
            fail(error)
    os.execv(python, [str(python), str(python.parent / "xmanager"), "launch", script, "--", *arguments])


def _run(name: str, command: list[str]) -> None:
    """Runs one set-up command silently; RuntimeError with the line that says why if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip() and not line.startswith("WARNING")]
        lines = lines or [f"exit status {done.returncode}"]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        raise RuntimeError(f"environment {name!r}: {' '.join(command[1:5])} … failed: {errors[-1]}")
