"""Folders of any model: tensors in one file or several, what an earlier save left, heads stored twice."""

import json
import resource
import subprocess
import sys

import huggingface_hub
import jax
import numpy as np
import pytest
from helpers import ROOT, assert_equal, decoder, edit_tensors, llama, rewarder
from safetensors.numpy import load_file, save_file

from sea_jax import models
from sea_jax.errors import InputError
from sea_jax.models import convert

INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
EMBEDDING = "model.embed_tokens.weight"


def files(folder):
    return sorted(f.name for f in folder.iterdir() if "safetensors" in f.name)


def shards(count):
    return [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]


@pytest.fixture(params=["pythia", "llama", "reward"])
def small(request):
    make = dict(pythia=decoder, llama=llama, reward=lambda: rewarder("gated"))
    return make[request.param]()


def test_shards(small, tmp_path):
    """Hugging Face's names and index, no file larger than asked, and the same parameters back."""
    models.save(tmp_path / "whole", *small)
    models.save(tmp_path / "parts", *small, max_shard_bytes=4_000)
    assert files(tmp_path / "whole") == [WHOLE]
    whole = load_file(tmp_path / "whole" / WHOLE)
    index = json.loads((tmp_path / "parts" / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in whole.values())
    names = sorted(set(index["weight_map"].values()))
    assert (
        len(names) > 2
        and names == shards(len(names))
        and files(tmp_path / "parts") == sorted([*names, INDEX])
    )
    assert index["weight_map"].keys() == whole.keys()
    for name in names:
        content = load_file(tmp_path / "parts" / name)
        assert sum(array.nbytes for array in content.values()) <= 4_000
        assert set(content) == {tensor for tensor, file in index["weight_map"].items() if file == name}
        for tensor, array in content.items():
            np.testing.assert_array_equal(array, whole[tensor], err_msg=tensor)
    model, params = models.load(tmp_path / "parts")
    assert model.config == small[0].config
    assert_equal(params, small[1])


def test_the_limit_is_what_a_file_may_hold(tmp_path):
    """A total of exactly the limit is one file, a byte less two; a tensor beyond it has a file to itself."""
    model, params = decoder()
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    for most, count in ((total, 1), (total - 1, 2)):
        models.save(tmp_path / str(count), model, params, max_shard_bytes=most)
        assert len(set(files(tmp_path / str(count))) - {INDEX}) == count
    models.save(tmp_path / "each", model, params, max_shard_bytes=1)
    assert files(tmp_path / "each") == sorted([*shards(len(convert.to_hf(model, params))), INDEX])
    assert_equal(models.load(tmp_path / "each")[1], params)
    with pytest.raises(InputError, match="max_shard_bytes=0; valid: at least 1"):
        models.save(tmp_path / "none", model, params, max_shard_bytes=0)
    assert not (tmp_path / "none").exists()


def test_an_earlier_save_leaves_nothing(tmp_path):
    """Many shards, fewer, one file, shards again: each time another model, and what is loaded is the last."""
    for seed, most in enumerate((2_000, 6_000, 10**9, 4_000)):
        model, params = decoder(seed)
        models.save(tmp_path, model, params, max_shard_bytes=most)
        assert_equal(models.load(tmp_path)[1], params)
        if most == 10**9:
            assert files(tmp_path) == [WHOLE]
        else:
            count = len(files(tmp_path)) - 1
            assert count > 1 and files(tmp_path) == sorted([*shards(count), INDEX])
    (tmp_path / "adapter_model.safetensors").write_bytes(b"another program's")
    models.save(tmp_path, model, params)
    assert files(tmp_path) == ["adapter_model.safetensors", WHOLE]


def test_a_save_of_a_loaded_folder_onto_itself(tmp_path):
    model, params = decoder()
    models.save(tmp_path, model, params)
    models.save(tmp_path, *models.load(tmp_path), max_shard_bytes=3_000)
    assert_equal(models.load(tmp_path)[1], params)


def test_a_link_is_replaced_and_not_written_through(tmp_path):
    """As in the hub's cache, where files of a folder are links to shared ones."""
    (tmp_path / "model").mkdir()
    (tmp_path / "blob").write_bytes(b"shared")
    (tmp_path / "model" / WHOLE).symlink_to(tmp_path / "blob")
    models.save(tmp_path / "model", *decoder())
    assert (tmp_path / "blob").read_bytes() == b"shared"
    assert_equal(models.load(tmp_path / "model")[1], decoder()[1])


def test_parameters_on_devices_are_saved_alike(tmp_path):
    model, params = decoder()
    models.save(tmp_path / "host", model, params)
    models.save(tmp_path / "device", model, jax.device_put(params))
    for name in ("config.json", WHOLE):
        assert (tmp_path / "device" / name).read_bytes() == (tmp_path / "host" / name).read_bytes()


def test_layers_that_the_config_has_not_are_not_left_out(tmp_path):
    model, _ = decoder(num_layers=1)
    with pytest.raises(ValueError, match=r"layers/\S+: 2 layers, the config has 1"):
        models.save(tmp_path / "model", model, decoder(num_layers=2)[1])
    assert not (tmp_path / "model").exists()


def test_one_shard_at_a_time_is_in_memory(tmp_path):
    """Peak memory of saving 256 MB in shards of 8 MB, in a process of its own: less than 64 MB more."""
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "JAX_PLATFORMS": "cpu", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) < 64
    assert len(files(tmp_path)) > 30


def peak_of_saving(folder):
    """MB that saving adds to the process's peak memory."""
    model, _ = decoder(num_layers=16, width=512, mlp_width=3072, num_heads=8)
    params = {path: np.ones(leaf.shape, np.float32) for path, leaf in convert.shapes(model).items()}
    params = convert.unflatten_dict(params, sep="/")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    models.save(folder, model, params, max_shard_bytes=8_000_000)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


# --- shards that are not as their index says ------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / shards(4)[1]).unlink(), r"model-00002-of-00004\.safetensors: no such file"),
        (
            lambda f: (f / shards(4)[3]).write_bytes(b"x" * 9),
            r"model-00004-of-00004\.safetensors: not a whole",
        ),
        (
            lambda f: (f / shards(4)[0]).write_bytes((f / shards(4)[1]).read_bytes()),
            "missing tensor: .*embed_in",
        ),
        (lambda f: (f / INDEX).write_text('{"weight_map": {"a": 1}}'), r"index\.json: no weight_map"),
        (lambda f: (f / INDEX).unlink(), r"model\.safetensors: no such file"),
    ],
)
def test_spoilt_shards_are_refused_in_one_line(spoil, said, tmp_path):
    model, params = decoder()
    size = max(array.nbytes for array in convert.to_hf(model, params).values())
    for most in range(size, 20 * size, 128):
        models.save(tmp_path, model, params, max_shard_bytes=most)
        if len(files(tmp_path)) == 5:
            break
    spoil(tmp_path)
    with pytest.raises(InputError, match=said) as error:
        models.load(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


# --- a head that is stored beside the embedding it is ---------------------------------------------


def test_a_tied_head_may_be_stored_too(tmp_path):
    """Equal bit for bit, also where both are in half precision; and it is not saved again."""
    model, params = llama()
    models.save(tmp_path, model, params)
    edit_tensors(tmp_path, lambda t: t.update({"lm_head.weight": t[EMBEDDING]}))
    assert_equal(models.load(tmp_path)[1], params)
    tensors = {k: v.astype(np.float16) for k, v in load_file(tmp_path / WHOLE).items()}
    save_file(tensors, tmp_path / WHOLE)
    _, half = models.load(tmp_path)
    np.testing.assert_array_equal(half["embed"]["embedding"], params["embed"]["embedding"].astype(np.float16))
    models.save(tmp_path, model, half)
    assert "lm_head.weight" not in load_file(tmp_path / WHOLE)


def turned(array):
    array = array.copy()
    array.view(np.uint32)[3, 4] ^= 1
    return array


def negative_zero(array):
    """0 and -0 are equal as numbers."""
    array = np.zeros_like(array)
    array[0, 0] = -0.0
    return array


@pytest.mark.parametrize(
    ("embedding", "head"),
    [
        (np.copy, turned),
        (np.zeros_like, negative_zero),
        (np.copy, lambda e: e[:-1].copy()),
        (np.copy, lambda e: e.T.copy()),
    ],
)
def test_a_tied_head_that_is_another_is_refused(embedding, head, tmp_path):
    models.save(tmp_path, *llama())
    edit_tensors(tmp_path, lambda t: t.update({EMBEDDING: embedding(t[EMBEDDING])}))
    edit_tensors(tmp_path, lambda t: t.update({"lm_head.weight": head(t[EMBEDDING])}))
    with pytest.raises(
        InputError, match=rf"tensor lm_head\.weight: differs from {EMBEDDING}, .*=True"
    ) as error:
        models.load(tmp_path)
    said = str(error.value)
    assert "\n" not in said and str(tmp_path) in said and "; valid: " in said


def test_an_untied_head_is_its_own(tmp_path):
    model, params = llama(tied=False)
    models.save(tmp_path, model, params)
    edit_tensors(tmp_path, lambda t: t.update({"lm_head.weight": t[EMBEDDING]}))
    np.testing.assert_array_equal(models.load(tmp_path)[1]["head"]["kernel"].T, params["embed"]["embedding"])


if __name__ == "__main__":
    print(peak_of_saving(sys.argv[1]))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub as a folder: repositories by name and revision; whole snapshots, whatever is asked for."""
    asked = []

    def repository(name, revision):
        asked.append((name, revision))
        folder = tmp_path / name / (revision or "main")
        if not folder.is_dir():
            raise FileNotFoundError("404\nfor this url")
        return folder

    def list_files(name, revision=None):
        return [file.name for file in repository(name, revision).iterdir()]

    def snapshot(name, revision=None, allow_patterns=()):
        return str(repository(name, revision))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", list_files)
    return tmp_path, asked


@pytest.mark.parametrize(
    ("name", "revision"), [("a/b", None), ("a/b@v2", "v2"), ("a/b@refs/pr/1", "refs/pr/1")]
)
def test_a_hub_name_may_carry_a_revision(hub, name, revision):
    folder, asked = hub
    models.save(folder / "a/b" / (revision or "main"), *decoder(seed=3))
    assert_equal(models.load(name)[1], decoder(seed=3)[1])
    assert set(asked) == {("a/b", revision)}


def test_a_revision_that_the_hub_has_not(hub):
    folder, _ = hub
    models.save(folder / "a/b/main", *decoder())
    with pytest.raises(InputError, match=r"model 'a/b@v3': neither a folder here nor .* the hub \(404\)$"):
        models.find("a/b@v3")


@pytest.mark.parametrize(
    "names",
    [
        ["pytorch_model.bin"],
        [
            "pytorch_model.bin.index.json",
            "pytorch_model-00001-of-00002.bin",
            "pytorch_model-00002-of-00002.bin",
        ],
        [
            "pytorch_model.bin.index.json",
            "pytorch_model-00001-of-00001.bin",
            "model-00001-of-00002.safetensors",
        ],
    ],
)
@pytest.mark.parametrize("local", [True, False])
def test_pickles_are_refused_and_the_way_out_is_named(hub, names, local):
    """Before anything is fetched; also where the safetensors beside them are a part without an index."""
    folder, _ = hub
    models.save(folder / "a/b/main", *decoder())
    (folder / "a/b/main" / WHOLE).unlink()
    for name in names:
        (folder / "a/b/main" / name).write_bytes(b"")
    with pytest.raises(InputError) as error:
        models.find(folder / "a/b/main" if local else "a/b")
    assert "a/b" in str(error.value) and "PyTorch .bin weights only" in str(error.value)
    assert "save_pretrained(folder, safe_serialization=True)" in str(error.value)
    assert "\n" not in str(error.value)


def test_pickles_beside_safetensors_are_left_alone(hub):
    folder, _ = hub
    models.save(folder / "a/b/main", *decoder())
    (folder / "a/b/main/pytorch_model.bin").write_bytes(b"")
    assert_equal(models.load("a/b")[1], decoder()[1])


def test_without_a_network_the_copy_on_disk_serves(hub, monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("no route")

    folder, _ = hub
    models.save(folder / "a/b/main", *decoder())
    monkeypatch.setattr(huggingface_hub, "list_repo_files", refuse)
    assert_equal(models.load("a/b")[1], decoder()[1])
