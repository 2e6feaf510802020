"""Makes Python environments beside our own, for packages that do not fit into it.

The libraries that we compare ourselves with pin other versions; compilers for accelerators that this machine
lacks take up gigabytes. Each list of requirements gets a virtual environment under `.peers/<name>`, made on
first use and kept as long as the list stays the same.

    python = environments.ensure("trl", TRL)
    subprocess.Popen([python, "benchmarks/trl_worker.py", …])

Python's venv and pip make them. uv would be faster, but it would be one more requirement, and it ignores
pip's settings, which hold the address of the package index on many machines.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import NoReturn

from sea_jax.config.flags import fail

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".peers"


def ensure(name: str, requirements: list[str]) -> Path:
    """Makes environment `name`, unless it exists with the same requirements.

    Args:
        name: a folder name under `.peers`: letters, digits, '.', '_' and '-'.
        requirements: pip requirements with exact pins ('package==version' or 'package[extra]==version').

    Returns:
        Path of the environment's Python interpreter.

    Raises:
        ValueError: `name` is not a folder name, or a requirement has no exact pin.
        RuntimeError: the environment could not be made.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(f"environment name: {name!r}; valid: letters, digits, '.', '_', '-'")
    unpinned = [r for r in requirements if not re.fullmatch(r"[^\s=<>!~]+==[^\s=*]+", r)]
    if not requirements or unpinned:
        given = unpinned or "none given"
        raise ValueError(f"requirements of environment {name!r}: {given}; valid: 'package==version' each")

    folder = FOLDER / name
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    stamp, wanted = folder / "requirements.stamp", "".join(f"{r}\n" for r in requirements)
    if python.exists() and stamp.is_file() and stamp.read_text() == wanted:
        return python
    print(f"making the environment {name!r}: {' '.join(requirements)}", file=sys.stderr, flush=True)
    stamp.unlink(missing_ok=True)
    try:
        venv.create(folder, clear=True, symlinks=os.name != "nt", with_pip=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(f"environment {name!r}: cannot be made: {error}") from None
    (FOLDER / ".gitignore").write_text("*\n")  # hides the folder from git
    _pip_install(name, python, requirements)
    stamp.write_text(wanted)  # last, so that an interrupted installation is repeated
    return python


def own_requirements(extra: str) -> list[str]:
    """Returns our own pins and those of an extra of pyproject.toml, such as 'cuda' or 'tpu'."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["dependencies"] + project["optional-dependencies"][extra]


def launch_requirements() -> list[str]:
    """Returns the pins of requirements.in and requirements-launch.txt; the latter's take precedence."""
    pins = {}
    for name in ("requirements.in", "requirements-launch.txt"):
        for line in (ROOT / name).read_text().splitlines():
            pin, _, marker = (part.strip() for part in line.partition("#")[0].partition(";"))
            if pin and not (sys.platform == "win32" and "win32" in marker):
                pins[pin.partition("==")[0].lower()] = pin
    return list(pins.values())


def xmanager_launch(script: str, arguments: list[str]) -> NoReturn:
    """Replaces this process by `xmanager launch <script> -- <arguments>`.

    XManager runs in our environment, or in a separate one if ours lacks it.
    """
    python = Path(sys.executable)
    if importlib.util.find_spec("xmanager") is None:
        try:
            python = ensure("xmanager", launch_requirements())
        except RuntimeError as error:
            fail(error)
    os.execv(python, [str(python), str(python.parent / "xmanager"), "launch", script, "--", *arguments])


def _pip_install(name: str, python: Path, requirements: list[str]) -> None:
    """Installs requirements silently; raises RuntimeError with the error line of pip's output."""
    # -I: a PYTHONPATH meant for our own environment must not affect which packages pip finds installed.
    command = [str(python), "-I", "-m", "pip", "install", "--quiet", *requirements]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        said = error_line(done.stdout, done.returncode)
        raise RuntimeError(f"environment {name!r}: pip install failed: {said}")


def error_line(output: str, status: int) -> str:
    """Returns the line of pip's output that says what failed, or its exit status where it said nothing."""
    lines = [line for line in output.splitlines() if line.strip() and not line.startswith("WARNING")]
    lines = lines or [f"exit status {status}"]
    return ([line for line in lines if line.startswith("ERROR")] or lines)[-1]
