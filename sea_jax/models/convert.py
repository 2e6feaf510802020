"""Converts Hugging Face folders to our parameters and back, by each architecture's PARAMS table."""

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sea_jax import hub
from sea_jax.errors import InputError
from sea_jax.json_files import read_object
from sea_jax.models import hf_fields
from sea_jax.models.deberta import DebertaConfig, Encoder
from sea_jax.models.decoder import Decoder
from sea_jax.models.llama import LlamaConfig
from sea_jax.models.params import Param, View
from sea_jax.models.pythia import PythiaConfig
from sea_jax.models.reward import GatedRewardConfig, RewardConfig, RewardModel
from sea_jax.types import Params

Config = DebertaConfig | LlamaConfig | PythiaConfig | RewardConfig
Model = Decoder | Encoder | RewardModel

ARCHITECTURES = {"deberta-v2": DebertaConfig, "gpt_neox": PythiaConfig, "llama": LlamaConfig}

# The head on a decoder by Hugging Face's class; None is the decoder's own.
CLASSES: dict[str, dict[str, type[RewardConfig] | None]] = {
    "gpt_neox": {"GPTNeoXForCausalLM": None, "GPTNeoXForSequenceClassification": RewardConfig},
    "llama": {
        "LlamaForCausalLM": None,
        "LlamaForSequenceClassification": RewardConfig,
        "LlamaForRewardModelWithGating": GatedRewardConfig,
    },
}

# Fields that every config.json must have, under names that the architectures share.
_LAYERS = "num_hidden_layers"
_SIZES = ("vocab_size", _LAYERS, "hidden_size", "num_attention_heads", "intermediate_size")

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = ("BF16", "F16", "F32", "F64")
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"

# Buffers that old checkpoints store and that no parameter corresponds to.
_BUFFERS = (".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")


def load(name: str, leave_out: tuple[str, ...] = (), **overrides: Any) -> tuple[Any, Params]:
    """Opens a model in Hugging Face's layout.

    Args:
        name: a folder with config.json and safetensors, or a hub name, which may be 'name@revision'.
        leave_out: prefixes of the names of tensors to ignore, such as those of an encoder's head.
        **overrides: fields of the architecture's config, e.g. dtype or remat.

    Returns:
        The module (a Decoder, an Encoder or a RewardModel) and its parameters (host arrays, f32), for
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
    """Returns the folder of a model: the named one, or a local copy of a repository of the hub.

    Args:
        name: a folder, or a hub name; 'name@revision' pins a branch, tag or commit.

    Raises:
        InputError: if there is neither, or if the weights are PyTorch pickles only.
    """
    folder = Path(name)
    if folder.is_dir():
        _reject_pickles(name, [file.name for file in folder.iterdir()])
        return folder
    # The one file first: a repository of pickles may also hold some shards, which nothing could open.
    folder = hub.download(str(name), ("*.json", _WHOLE), "model")
    if (folder / _INDEX).exists():
        return hub.download(str(name), ("*.json", "*.safetensors"), "model")
    if not (folder / _WHOLE).exists():
        _reject_pickles(name, hub.list_files(str(name)))
    return folder


def _reject_pickles(name: str | Path, files: Iterable[str]) -> None:
    """Raises InputError where the only whole set of weights is PyTorch's, whose pickles can run code."""
    files = set(files)
    if not files & {_WHOLE, _INDEX} and any(re.match(r"pytorch_model.*\.bin", file) for file in files):
        raise InputError(
            f"model {str(name)!r}: PyTorch .bin weights only; valid: safetensors, which transformers writes "
            "by from_pretrained(name).save_pretrained(folder, safe_serialization=True)"
        )


def read_config(folder: Path, **overrides: Any) -> Config:
    """Reads the shape of a model in Hugging Face's layout, before any tensor.

    Args:
        folder: holds config.json.
        **overrides: fields of the architecture's config.

    A file without `architectures` is a decoder with its own head, or an encoder.

    Raises:
        InputError: naming file and field, on a missing or broken file, an unknown architecture or class, a
            missing or invalid size, or a feature that the port does not have.
    """
    file = folder / "config.json"
    hf = read_object(file, "a Hugging Face folder's")
    kind = hf.get("model_type")
    if kind not in list(ARCHITECTURES):
        raise InputError(f"{file}: model_type={kind!r}; valid: one of {sorted(ARCHITECTURES)}")
    try:
        for name in (*_SIZES, *(hf.keys() & {"max_position_embeddings"})):  # the last has a default
            hf_fields.size(hf, name, most=hf_fields.MOST_LAYERS if name == _LAYERS else 2**31 - 1)
        width, heads = hf["hidden_size"], hf["num_attention_heads"]
        if width % heads:
            raise ValueError(f"hidden_size={width}; valid: a multiple of num_attention_heads={heads}")
        head, config = _head(kind, hf), ARCHITECTURES[kind].from_hf(hf, **overrides)
        return config if head is None else head.from_hf(hf, config)
    except ValueError as error:
        raise InputError(f"{file}: {error}") from None


def _head(kind: str, hf: dict[str, Any]) -> type[RewardConfig] | None:
    """Returns the reward head that a config.json names, None for a decoder's own head or an encoder."""
    names, classes = hf.get("architectures"), CLASSES.get(kind)
    if names in (None, []) or classes is None:
        return None
    if not isinstance(names, list) or len(names) != 1 or names[0] not in list(classes):
        raise ValueError(f"architectures={names!r}; valid: one of {sorted(classes)} in a list")
    return classes[names[0]]


def save(
    folder: str | Path, model: Model, params: Params, tokenizer: Any = None,
    eos_token: str = "<|endoftext|>", max_shard_bytes: int = 5_000_000_000,
) -> None:  # fmt: skip
    """Writes config.json, the tensors and tokenizer.json, which transformers and vLLM open.

    The tensors are in model.safetensors, or in several files with an index, one made after the other.
    Tensors of an earlier save in the folder go.

    Args:
        folder: made if absent.
        model: the module.
        params: its parameters, on the host or on devices.
        tokenizer: a `tokenizers.Tokenizer`, or None.
        eos_token: what ends a text, of the tokenizer's vocabulary.
        max_shard_bytes: the most bytes of tensors in a file that holds more than one.

    Raises:
        InputError: if the tokenizer has no such token, or on fewer than 1 byte; nothing is written then.
    """
    if max_shard_bytes < 1:
        raise InputError(f"max_shard_bytes={max_shard_bytes}; valid: at least 1")
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
    tensors = _tensors(model, params)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    _write_tensors(folder, tensors, max_shard_bytes)


class _Tensor(NamedTuple):
    """A tensor that is converted when its file is written."""

    nbytes: int
    make: Callable[[], np.ndarray]


def _tensors(model: Model, params: Params) -> dict[str, _Tensor]:
    """Lists our parameters under Hugging Face's names, one tensor per layer."""
    flat: dict[str, Any] = flatten_dict(params, sep="/")
    if problem := _difference(set(flat), {row.path for row in model.config.params_table}, "PARAMS row"):
        raise ValueError(problem)
    layers, tensors = model.config.num_layers, {}
    for row in model.config.params_table:
        array = flat[row.path]
        if row.stacked and len(array) != layers:
            raise ValueError(f"{row.path}: {len(array)} layers, the config has {layers}")
        for i, name in enumerate(row.hf_names(layers)):
            nbytes = array.nbytes // layers if row.stacked else array.nbytes
            tensors[name] = _Tensor(nbytes, functools.partial(_export, row, array, i))
    return tensors


def _export(row: Param, array: Any, layer: int) -> np.ndarray:
    # Only this layer is copied from device to host.
    return row.to_hf(np.asarray(array[layer] if row.stacked else array))


def _write_tensors(folder: Path, tensors: dict[str, _Tensor], most: int) -> None:
    """Writes one file, or several of at most `most` bytes each, unless a single tensor has more."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > most:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    for stale in (_WHOLE, _INDEX, "model-*-of-*.safetensors"):
        for file in folder.glob(stale):
            file.unlink()
    names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names if len(shards) > 1 else [_WHOLE], shards, strict=True):
        content = {tensor: tensors[tensor].make() for tensor in shard}
        save_file(content, folder / name, metadata={"format": "pt"})
    if len(shards) > 1:  # last, so that a folder without it is unfinished
        where = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = dict(metadata=dict(total_size=total), weight_map=dict(sorted(where.items())))
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n")


def to_hf(model: Model, params: Params) -> dict[str, np.ndarray]:
    """Converts our parameters to Hugging Face's names and layout, one array per layer."""
    return {name: tensor.make() for name, tensor in _tensors(model, params).items()}


def hf_views(model: Model, params: Params) -> Iterator[View]:
    """Yields views of our host parameters under Hugging Face's names, without copying them."""
    flat: dict[str, Any] = flatten_dict(params, sep="/")
    for row in model.config.params_table:
        array = flat[row.path]
        for i, name in enumerate(row.hf_names(model.config.num_layers)):
            view, transposed = row.view(array[i] if row.stacked else array)
            yield View(name, view, transposed)


def from_hf(model: Model, tensors: dict[str, np.ndarray]) -> Params:
    """Inverts `to_hf`; raises InputError on a missing, unexpected, misshapen or non-finite tensor."""
    if hasattr(model.config, "base_tensors"):  # an encoder's names may have a prefix
        tensors = model.config.base_tensors(tensors)
    if getattr(model.config, "tied", False):
        tensors = _without_tied_head(tensors)
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
            parts.append(row.from_hf(_floats(name, tensors[name]), shape))
        flat[row.path] = np.stack(parts) if row.stacked else np.array(parts[0])
    return unflatten_dict(flat, sep="/")


def _floats(name: str, tensor: np.ndarray) -> np.ndarray:
    """Returns a tensor as f32; raises InputError on one of another kind, NaN or infinity."""
    if tensor.dtype.kind in "biu":
        raise InputError(f"tensor {name}: no floats, expected one of {', '.join(_DTYPES)}")
    if not np.isfinite(tensor := tensor.astype(np.float32)).all():
        raise InputError(f"tensor {name}: NaN or infinity, expected finite floats")
    return tensor


def _without_tied_head(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Drops the second copy of the embedding that some checkpoints store as the head."""
    head, embedding = (tensors.get(name) for name in (_HEAD, _EMBEDDING))
    if head is None or embedding is None:
        return tensors
    pairs = zip(head, embedding, strict=False)  # row by row, to avoid copies of these arrays
    if head.shape != embedding.shape or any(a.tobytes() != b.tobytes() for a, b in pairs):
        raise InputError(
            f"tensor {_HEAD}: differs from {_EMBEDDING}, to which tie_word_embeddings=True ties it"
        )
    return {name: array for name, array in tensors.items() if name != _HEAD}


def shapes(model: Model) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shape and dtype of every parameter by path, without allocating them."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    tree = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens))["params"]
    return flatten_dict(tree, sep="/")  # pyright: ignore[reportReturnType]


def _difference(found: set[str], expected: set[str], what: str) -> str | None:
    for problem, names in (("missing", expected - found), ("unexpected", found - expected)):
        if names:
            return f"{problem} {what}: {', '.join(sorted(names)[:3])} ({len(names)} in all)"
    return None


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
    index = folder / _INDEX
    if index.exists():
        shards = read_object(index, "a Hugging Face folder's").get("weight_map")
        if not isinstance(shards, dict) or not shards or not all(isinstance(f, str) for f in shards.values()):
            raise InputError(f"{index}: no weight_map; valid: one of tensor names to files")
        files = sorted(set(shards.values()))
    else:
        files = [_WHOLE]
    tensors = {}
    for file in files:
        if not (folder / file).is_file():
            raise InputError(f"{folder / file}: no such file; valid: a Hugging Face folder")
        try:
            with safe_open(folder / file, framework="flax") as f:
                tensors |= {name: _read_tensor(f, name) for name in f.keys()}
        except (SafetensorError, OSError) as e:
            raise InputError(f"{folder / file}: not a whole safetensors file ({e})") from None
    return tensors


def _read_tensor(file: Any, name: str) -> np.ndarray:
    """Reads a tensor as f32; in place of one of another kind, such as a buffer of positions, gives bools."""
    about = file.get_slice(name)
    if about.get_dtype() not in _DTYPES:
        return np.broadcast_to(np.zeros((), bool), about.get_shape())
    return np.asarray(file.get_tensor(name).astype(jnp.float32))
