"""Damages the files that a user or a run brings, reads them as our programs do, and judges what came of it."""

import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import good_files
from benchmarks.damage import damage, flip_bits, spoil_json, spoil_text
from sea_jax import models
from sea_jax.labels import reading
from sea_jax.labels.journal import FILE, Journal, Question
from sea_jax.pretraining import cache
from sea_jax.report import __main__ as report
from sea_jax.runtime.metrics import MetricWriter
from sea_jax.runtime.run_folder import run_folder
from sea_jax.tasks import preferences, text
from sea_jax.tasks.tokenizer import Tokenizer, load_tokenizer

VALID, NONSENSE = "valid", "nonsense"
_FLOATS = {"F16", "BF16", "F32", "F64"}


class Case(NamedTuple):
    """A kind of file.

    Attributes:
        make: writes whole files into a folder.
        files: those to damage, as globs.
        use: reads the folder as our programs do; raises our errors; returns whether what it got is valid, by a
            rule of its own.
    """

    make: Callable[[Path], None]
    files: tuple[str, ...]
    use: Callable[[Path], bool]


def prepare(place: Path, cases: dict[str, Case]) -> None:
    """Writes the whole files of all cases."""
    for name, case in cases.items():
        if not (place / name).exists():
            case.make(place / name)


def copy(place: Path, name: str, to: Path) -> None:
    """Copies the whole files of a case."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(place / name, to)


def draw(rng: random.Random, place: Path, name: str, case: Case, to: Path) -> tuple[Path, str]:
    """Copies the whole files of a case, and damages one of them.

    Returns:
        The damaged file, and how it was damaged.
    """
    copy(place, name, to)
    file = rng.choice(sorted(file for pattern in case.files for file in to.glob(pattern)))
    content = file.read_bytes()
    if rng.random() < 0.02:
        file.unlink()
        file.mkdir()
        return file, "a folder"
    if file.suffix in (".json", ".jsonl") and rng.random() < 0.5:
        changed, how = spoil_text(rng, content)
    elif file.suffix == ".safetensors" and rng.random() < 0.6:
        changed, how = spoil_header(rng, content), "header"
    else:
        changed, how = damage(rng, content)
    file.write_bytes(changed)
    return file, how


def spoil_header(rng: random.Random, content: bytes) -> bytes:
    """Damages the header of a safetensors file: its size, its bytes, or the entry of a tensor."""
    size = struct.unpack("<Q", content[:8])[0]
    header, body = content[8 : 8 + size], content[8 + size :]
    how = rng.random()
    if how < 0.15:
        return (
            struct.pack("<Q", rng.choice((0, 1, size - 1, size + 1, 2**31, 2**63, len(content))))
            + header
            + body
        )
    if how < 0.4:
        return content[:8] + flip_bits(rng, header) + body
    entries = json.loads(header)
    name = rng.choice(sorted(set(entries) - {"__metadata__"}))
    if how < 0.6:
        entries[name]["dtype"] = rng.choice(("I32", "U32", "F16", "F64", "BF16", "BOOL", "F8_E4M3", "X9"))
    elif how < 0.75:
        entries[name]["shape"] = rng.choice(([], [0], [-1], [2**40, 2**40], entries[name]["shape"][::-1]))
    elif how < 0.85:
        entries[rng.choice(("other", "", "a\0b"))] = entries.pop(name)
    else:
        entries = spoil_json(rng, entries)
    spoilt = json.dumps(entries).encode()
    return struct.pack("<Q", len(spoilt)) + spoilt + body


# --- models ---------------------------------------------------------------------------------------


def _model(kind: str, shards: bool = False) -> Case:
    files = ("config.json", "*.safetensors", "*.safetensors", "*.index.json")

    def use(folder: Path) -> bool:
        _, params = models.load(str(folder))
        leaves = _leaves(params)
        return all(np.isfinite(leaf).all() for leaf in leaves) and _dtypes(folder) <= _FLOATS

    return Case(lambda folder: good_files.save_model(folder, kind, shards), files, use)


def _leaves(tree: Any) -> list[np.ndarray]:
    return [
        leaf for value in tree.values() for leaf in (_leaves(value) if isinstance(value, dict) else [value])
    ]


def _dtypes(folder: Path) -> set[str]:
    """Returns the dtypes that the headers in a folder name."""
    found = set()
    for file in folder.glob("*.safetensors"):
        content = file.read_bytes()
        entries = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
        found |= {entry["dtype"] for name, entry in entries.items() if name != "__metadata__"}
    return found


def _use_tokenizer(folder: Path) -> bool:
    loaded = load_tokenizer(folder, vocab_size=330)
    ids = loaded.encode([loaded.chat("a 犬")])[0]
    return 0 <= loaded.eos_id < 330 and 0 <= loaded.pad_id < 330 and all(0 <= i < 330 for i in ids)


def _make_params(folder: Path) -> None:
    (folder / "part").mkdir(parents=True)
    cache.writer({"a/b": np.arange(99, dtype=np.float32), "c": np.ones(7, np.float32)})(folder / "part")


def _use_params(folder: Path) -> bool:
    params = cache.read_params(folder / "part")
    return all(np.isfinite(np.asarray(leaf)).all() for leaf in _leaves(params))


# --- data -----------------------------------------------------------------------------------------


def _tokenizer() -> Tokenizer:
    return Tokenizer("ours", Path(), good_files.tokenizer(), 0, 0, 320, (), None, None)


_FIELDS = dict(name="local", num_train=0, num_tuning=2, num_heldout=2, prompt_length=200)


def _use_prompts(folder: Path) -> bool:
    task = text.load(_FIELDS | dict(path=str(folder)), _tokenizer())
    prompts = [prompt for split in task.prompts.values() for prompt in split]
    for split, shown in task.prompts.items():
        if task.references[split] and len(task.references[split]) != len(shown):
            return False
    task.encode_prompts(prompts)
    return len(set(prompts)) == len(prompts) and all(isinstance(p, str) and p.strip() for p in prompts)


def _use_pairs(folder: Path) -> bool:
    fields = _FIELDS | dict(path=str(folder))
    train, held = preferences.load(fields, lambda pairs: [len(p.chosen) for p in pairs], 1000)
    sound = all(isinstance(part, str) and part.strip() for pair in train + held for part in pair)
    return sound and not {p.prompt for p in train} & {p.prompt for p in held}


# --- runs -----------------------------------------------------------------------------------------


def _use_report(folder: Path) -> bool:
    report.main([folder])
    return all(_sound(run / "metrics.jsonl") for run in folder.glob("runs/*"))


def _use_writer(folder: Path) -> bool:
    """Goes on with a run, as one that was restored from a checkpoint after its last step."""
    run = run_folder(folder, "passive", 0)
    size = len("".join(json.dumps(row) + "\n" for row in good_files.metrics()))
    line = len(json.dumps(good_files.SAMPLE)) + 1
    with MetricWriter(run, {"metrics.jsonl": size, "samples.jsonl": line}) as writer:
        writer.write(99, 99, {"a": 1.0})
    return _sound(run / "metrics.jsonl")


def _sound(file: Path) -> bool:
    """Judges metrics.jsonl: objects of finite numbers or null, and labels that do not become fewer."""
    last = 0
    for line in filter(str.strip, file.read_text().split("\n")):
        row = json.loads(line)
        values = [value for name, value in row.items() if value is not None]
        if not all(type(value) in (int, float) and np.isfinite(value) for value in values):
            return False
        if type(row["queries"]) is not int or row["queries"] < last:
            return False
        last = row["queries"]
    return True


# --- label journals -------------------------------------------------------------------------------


def _make_open_journal(folder: Path) -> None:
    """Leaves a journal as a killed process does: with a write-ahead log."""
    kept = folder.with_suffix(".kept")
    good_files.save_journal(kept)
    with Journal(kept, "somebody") as journal:
        tokens = np.arange(9, dtype=np.int32)
        question = Question(1, "the last", "yes", "no", tokens, tokens + 1)
        journal.ask(99, 99, [question], b"")
        shutil.copytree(kept, folder)
    shutil.rmtree(kept)


def _use_journal(folder: Path) -> bool:
    """Reads a journal as the commands and a restored run do; compares the labels with the whole ones."""
    file = folder / FILE
    found = reading.faults(file)
    if found:
        raise reading.InputError(*found)
    reading.summary(file)
    rows = list(reading.labels(file))
    with Journal(folder, "somebody") as journal:
        journal.count()
        for content in journal.proposals(0).values():
            assert isinstance(content, bytes)
        tokens = np.arange(9, dtype=np.int32)
        journal.ask(50, 50, [Question(0, "new", "a", "b", tokens, tokens + 1)], b"x")
    return [_fields(row) for row in rows] == _whole_labels()


def _fields(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in sorted(row) if name not in ("run", "asked_at", "answered_at"))


_WHOLE: list[tuple[Any, ...]] = []


def _whole_labels() -> list[tuple[Any, ...]]:
    """Returns the labels of the journal before it was damaged."""
    if not _WHOLE:
        import tempfile

        with tempfile.TemporaryDirectory() as place:
            good_files.save_journal(Path(place))
            _WHOLE.extend(_fields(row) for row in reading.labels(Path(place) / FILE))
    return _WHOLE


FILES: dict[str, Case] = {
    **{f"model, {kind}": _model(kind) for kind in good_files.MODELS},
    "model, shards": _model("pythia", shards=True),
    "tokenizer": Case(
        lambda folder: good_files.save_model(folder, "pythia"), ("tokenizer*.json", "chat*"), _use_tokenizer
    ),
    "trained parts": Case(_make_params, ("part/*",), _use_params),
    "prompts, jsonl": Case(
        lambda f: good_files.save_rows(f / "train.jsonl", good_files.posts(12)), ("*",), _use_prompts
    ),
    "prompts, parquet": Case(
        lambda f: good_files.save_rows(f / "train.parquet", good_files.posts(12)), ("*",), _use_prompts
    ),
    "pairs, jsonl": Case(
        lambda f: good_files.save_rows(f / "train.jsonl", good_files.pairs(12)), ("*",), _use_pairs
    ),
    "report": Case(
        good_files.save_workdir, ("config.json", "runs/*/metrics.jsonl", "runs/*/done.json"), _use_report
    ),
    "restored run": Case(
        good_files.save_workdir, ("runs/passive*/metrics.jsonl", "runs/passive*/samples.jsonl"), _use_writer
    ),
}  # fmt: skip
JOURNALS: dict[str, Case] = {
    "journal": Case(good_files.save_journal, (FILE,), _use_journal),
    "journal, killed": Case(_make_open_journal, (f"{FILE}*",), _use_journal),
}
