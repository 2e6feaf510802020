"""Hugging Face folders to and from our parameters, driven by each architecture's PARAMS table."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sea_jax.errors import InputError
from sea_jax.models.deberta import DebertaConfig, Encoder
from sea_jax.models.decoder import Decoder
from sea_jax.models.llama import LlamaConfig
from sea_jax.models.pythia import PythiaConfig
from sea_jax.types import Params

ARCHITECTURES = {"deberta-v2": DebertaConfig, "gpt_neox": PythiaConfig, "llama": LlamaConfig}

# What every config.json must say, under names that the architectures share.
_SIZES = ("vocab_size", "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")

# Buffers that old checkpoints store and that no parameter corresponds to.
_BUFFERS = (".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")


def load(name: str, leave_out: tuple[str, ...] = (), **overrides: Any) -> tuple[Any, Params]:
    """Opens a model in Hugging Face's layout.

    Args:
        name: a folder with config.json and safetensors, or a name on the hub.
        leave_out: beginnings of the names of tensors that are not wanted, as of an encoder's head.
        **overrides: fields of the architecture's config, e.g. dtype or remat.

    Returns:
        The module (a Decoder or an Encoder) and its parameters (host arrays, f32), for
        `model.apply({"params": params}, …)`.

    Raises:
        InputError: on a missing or broken file, an unknown architecture, a missing, extra or
            misshapen tensor.
    """
    folder = find(name)
    model = read_config(folder, **overrides).build()
    tensors = {k: v for k, v in _read_tensors(folder).items() if not k.startswith(leave_out)}
    try:
        return model, from_hf(model, tensors)
    except InputError as error:
        raise InputError(f"{folder}: {error}; valid: what its config.json describes") from None


def find(name: str) -> Path:
    """The folder of a model: the one that is named, or a copy of what the hub has under that name.

    Raises:
        InputError: where there is neither.
    """
    return Path(name) if Path(name).is_dir() else _download(name)


def read_config(folder: Path, **overrides: Any) -> PythiaConfig | LlamaConfig | DebertaConfig:
    """The shape of a model in Hugging Face's layout, checked before any tensor is read.

    Args:
        folder: holds config.json.
        **overrides: fields of the architecture's config.

    Raises:
        InputError: naming file and field, on a missing or broken file, an unknown architecture, a
            size that is absent or none, and what the architecture's port does not have.
    """
    file = folder / "config.json"
    hf = _read_json(file)
    kind = hf.get("model_type")
    if kind not in list(ARCHITECTURES):
        raise InputError(f"{file}: model_type={kind!r}; valid: one of {sorted(ARCHITECTURES)}")
    for name in (*_SIZES, *(hf.keys() & {"max_position_embeddings"})):  # the last has a default
        if type(hf.get(name)) is not int or hf[name] < 1:  # a bool is no size
            given = f"{name}={hf[name]!r}" if name in hf else f"no {name}"
            raise InputError(f"{file}: {given}; valid: {name}, a whole number of at least 1")
    width, heads = hf["hidden_size"], hf["num_attention_heads"]
    if width % heads:
        raise InputError(f"{file}: hidden_size={width}; valid: a multiple of num_attention_heads={heads}")
    try:
        return ARCHITECTURES[kind].from_hf(hf, **overrides)
    except ValueError as error:
        raise InputError(f"{file}: {error}") from None


def save(
    folder: str | Path, model: Decoder | Encoder, params: Params, tokenizer: Any = None,
    eos_token: str = "<|endoftext|>",
) -> None:  # fmt: skip
    """Writes config.json, model.safetensors and tokenizer.json, which transformers and vLLM open.

    Args:
        folder: made if absent.
        model: the module.
        params: its parameters.
        tokenizer: a `tokenizers.Tokenizer`, or None.
        eos_token: what ends a text, of the tokenizer's vocabulary.

    Raises:
        InputError: if the tokenizer has no such token; nothing is written then.
    """
    config, files = model.config.to_hf(), {}
    if tokenizer is not None:
        eos = tokenizer.token_to_id(eos_token)
        if eos is None:
            raise InputError(
                f"eos_token={eos_token!r}: not in the vocabulary; valid: a token of the tokenizer"
            )
        config |= dict(eos_token_id=eos, bos_token_id=eos)
        described = dict(tokenizer_class="PreTrainedTokenizerFast", eos_token=eos_token)
        files = {"tokenizer.json": tokenizer.to_str(), "tokenizer_config.json": json.dumps(described)}
    files["config.json"] = json.dumps(config, indent=2) + "\n"
    tensors = to_hf(model, params)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def to_hf(model: Decoder | Encoder, params: Params) -> dict[str, np.ndarray]:
    """Our parameters under Hugging Face's names, one array a layer."""
    flat = flatten_dict(params, sep="/")
    if problem := _difference(set(flat), {row.path for row in model.config.params_table}, "PARAMS row"):
        raise ValueError(problem)
    tensors = {}
    for row in model.config.params_table:
        array = np.asarray(flat[row.path])
        parts = array if row.stacked else [array]
        for name, part in zip(row.hf_names(model.config.num_layers), parts, strict=True):
            tensors[name] = row.to_hf(part)
    return tensors


def from_hf(model: Decoder | Encoder, tensors: dict[str, np.ndarray]) -> Params:
    """Inverse of `to_hf`; an InputError unless every tensor is there, with its shape, and no other."""
    if hasattr(model.config, "base_tensors"):  # an encoder may lie under a prefix, beside a head
        tensors = model.config.base_tensors(tensors)
    expected = shapes(model)
    table, layers = model.config.params_table, model.config.num_layers
    names = {name for row in table for name in row.hf_names(layers)}
    if problem := _difference({n for n in tensors if not n.endswith(_BUFFERS)}, names, "tensor"):
        raise InputError(problem)
    flat = {}
    for row in table:
        shape = expected[row.path].shape[1:] if row.stacked else expected[row.path].shape
        parts = []
        for name in row.hf_names(layers):
            if tensors[name].shape != row.hf_shape(shape):
                raise InputError(
                    f"tensor {name}: shape {tensors[name].shape}, expected {row.hf_shape(shape)}"
                )
            parts.append(row.from_hf(tensors[name], shape).astype(np.float32))
        flat[row.path] = np.stack(parts) if row.stacked else np.array(parts[0])
    return unflatten_dict(flat, sep="/")


def shapes(model: Decoder | Encoder) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every parameter by path, without allocating any."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    tree = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens))["params"]
    return flatten_dict(tree, sep="/")  # pyright: ignore[reportReturnType]


def _difference(found: set[str], expected: set[str], what: str) -> str | None:
    for problem, names in (("missing", expected - found), ("unexpected", found - expected)):
        if names:
            return f"{problem} {what}: {', '.join(sorted(names)[:3])} ({len(names)} in all)"
    return None


def _read_json(file: Path) -> dict[str, Any]:
    if not file.exists():
        raise InputError(f"{file}: no such file; valid: a Hugging Face folder")
    try:
        content = json.loads(file.read_text())
    except ValueError as error:  # no JSON, or no text
        raise InputError(f"{file}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: holds {content!r:.50}; valid: a JSON object")
    return content


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = _read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise InputError(f"{index}: no weight_map; valid: one of tensor names to files")
        files = sorted(set(shards.values()))
    else:
        files = ["model.safetensors"]
    tensors = {}
    for file in files:
        if not (folder / file).exists():
            raise InputError(f"{folder / file}: no such file; valid: a Hugging Face folder")
        try:
            with safe_open(folder / file, framework="flax") as f:
                tensors |= {k: np.asarray(f.get_tensor(k).astype(jnp.float32)) for k in f.keys()}
        except SafetensorError as e:
            raise InputError(f"{folder / file}: not a whole safetensors file ({e})") from None
    return tensors


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as e:
        reason = str(e).splitlines()[0]
        raise InputError(
            f"model {name!r}: neither a folder here nor to be had from the hub ({reason})"
        ) from e
