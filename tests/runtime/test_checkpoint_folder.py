"""Checkpoints on a disk that cannot be written, and of other versions; experiment/test_resume.py has the rest."""

import json
import resource
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from sea_jax.errors import InputError, StorageError
from sea_jax.labels.journal import Journal, Question
from sea_jax.runtime import checksums
from sea_jax.runtime.checkpoint_folder import CheckpointFolder


@pytest.fixture
def full_disk():
    """A function after which no file may grow past 64 KiB, as on a full disk; lifted after the test."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def arrays(seed, size=1000):
    return {"w": jnp.asarray(np.random.default_rng(seed).normal(size=size).astype(np.float32))}


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(tmp_path, full_disk):
    folder = CheckpointFolder(tmp_path / "c", 0, 2)
    folder.save(1, {"seen": 1}, tree=arrays(1))
    folder.wait()
    full_disk()
    with pytest.raises(StorageError, match=str(tmp_path)) as error:
        folder.save(2, {"seen": 2}, tree=arrays(2, 1_000_000))
        folder.wait()
    assert "\n" not in str(error.value)
    record, trees = CheckpointFolder(tmp_path / "c", 0, 2).newest(tree=arrays(0))
    assert (record["step"], record["seen"]) == (1, 1)
    np.testing.assert_array_equal(trees["tree"]["w"], arrays(1)["w"])


def test_a_full_disk_is_one_line_of_the_journal_and_its_answers_stay(tmp_path, full_disk):
    tokens = np.arange(3, dtype=np.int32)
    with Journal(tmp_path, "o") as journal:
        journal.ask(0, 0, [Question(0, "x", "y", "z", tokens, tokens)], b"")
        full_disk()
        with pytest.raises(StorageError, match=r"labels\.sqlite"):
            for step in range(1, 100):
                journal.ask(step, 0, [Question(0, "x" * 10_000, "y", "z", tokens, tokens)], b"")
    with Journal(tmp_path, "o") as journal:
        assert [
            entry.id for entry in journal.ask(0, 0, [Question(0, "x", "y", "z", tokens, tokens)], b"")
        ] == [1]


def test_the_newest_are_kept(tmp_path):
    with CheckpointFolder(tmp_path / "c", 0, 2) as folder:
        for step in range(4):
            folder.save(step, {}, tree=arrays(step))
        folder.wait()
        assert folder.steps() == [3, 2]


def test_the_best_is_kept_beside_the_newest(tmp_path):
    """Also by a process that did not save it."""
    for steps in ((0, 1, 2), (3, 4, 5)):
        with CheckpointFolder(tmp_path / "c", 0, 1, best=True) as folder:
            for step in steps:
                folder.save(step, {}, {1: 0.5, 2: 0.25}.get(step), tree=arrays(step))
    assert folder.steps() == [5, 1] and folder.newest_steps() == [5]
    np.testing.assert_array_equal(folder.read(1, "tree")["tree"]["w"], arrays(1)["w"])


def test_one_changed_bit_of_any_file_is_found(tmp_path, caplog):
    """The checkpoint before is read instead; without damage the last one is."""
    with CheckpointFolder(tmp_path / "c", 0, 2) as folder:
        for step in (1, 2):
            folder.save(step, {}, tree=arrays(step), memory=arrays(step))
    rng = np.random.default_rng(0)
    files = [file for file in sorted((tmp_path / "c/2").rglob("*")) if file.is_file() and file.stat().st_size]
    assert len(files) > 5
    for file in files:
        shutil.copytree(tmp_path / "c", tmp_path / "copy")
        damaged = tmp_path / "copy" / file.relative_to(tmp_path / "c")
        content = bytearray(damaged.read_bytes())
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        damaged.write_bytes(content)
        (record, _) = CheckpointFolder(tmp_path / "copy", 0, 2).newest(tree=arrays(0))
        assert record["step"] == 1, file
        shutil.rmtree(tmp_path / "copy")
    assert caplog.text.count("is not what was written") >= len(files) - 1
    assert CheckpointFolder(tmp_path / "c", 0, 2).newest(tree=arrays(0))[0]["step"] == 2


def test_a_checkpoint_without_checksums_is_read(tmp_path):
    """A process was killed between the two."""
    with CheckpointFolder(tmp_path / "c", 0, 2) as folder:
        folder.save(1, {}, tree=arrays(1))
    (tmp_path / "c/1/sha256.json").unlink()
    with CheckpointFolder(tmp_path / "c", 0, 2) as folder:
        assert folder.newest(tree=arrays(0))[0]["step"] == 1
    assert checksums.exist(tmp_path / "c/1")


def test_a_newer_layout_is_refused(tmp_path):
    with CheckpointFolder(tmp_path / "c", 0, 2) as folder:
        folder.save(1, {}, tree=arrays(1))
    [record] = [file for file in (tmp_path / "c/1/record").glob("*") if '"layout"' in file.read_text()]
    record.write_text(json.dumps(json.loads(record.read_text()) | {"layout": 9}))
    checksums.write([tmp_path / "c/1"])
    with pytest.raises(InputError, match="layout 9, written by a newer version"):
        CheckpointFolder(tmp_path / "c", 0, 2).newest(tree=arrays(0))


def test_without_a_readable_one_nothing_begins_anew_by_itself(tmp_path):
    with CheckpointFolder(tmp_path / "c", 0, 2) as folder:
        folder.save(1, {}, tree=arrays(1))
    for file in (tmp_path / "c/1/tree").rglob("*"):
        if file.is_file():
            file.unlink()
    with pytest.raises(InputError, match="none of its checkpoints can be read; valid: delete the folder"):
        CheckpointFolder(tmp_path / "c", 0, 2).newest(tree=arrays(0))
    assert (tmp_path / "c/1").is_dir()  # the disk may be at fault
