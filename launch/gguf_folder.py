"""Converts a GGUF file of a Llama with a byte-level BPE tokenizer to a folder in Hugging Face's layout.

llama.cpp rotates neighbouring features of a head, Hugging Face features that are half a head apart. So GGUF
files hold the rows of q and k in another order, which is undone here. Quantised matrices become f32.

References:
    llama.cpp, convert_hf_to_gguf.py: `LlamaModel.permute`, and the pre-tokenizer 'smollm'.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, pre_tokenizers

from sea_jax import models
from sea_jax.errors import InputError
from sea_jax.models import LlamaConfig
from sea_jax.models.convert import from_hf

# Names of tensors, in GGUF and in Hugging Face's layout.
_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_OF_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL = 3  # the type of tokens that are not text, such as <|im_end|>


def require_gguf() -> Any:
    """Returns the module gguf, which only this conversion needs.

    Raises:
        InputError: it is not installed.
    """
    try:
        import gguf
    except ImportError:
        valid = "pip install -r requirements-real.txt"
        raise InputError(f"gguf is not installed, which reads the model's file; valid: {valid}") from None
    return gguf


def convert(file: Path, folder: Path) -> int:
    """Writes config.json, model.safetensors (f32) and the tokenizer's files.

    Args:
        file: a GGUF file.
        folder: made if absent.

    Returns:
        The number of parameters.

    Raises:
        InputError: gguf is not installed; or the file is broken, no Llama, or has a tokenizer, a tensor or a
            quantisation that is not covered.
    """
    gguf = require_gguf()
    try:
        reader = gguf.GGUFReader(file)
        fields = _Fields(file, {name: field.contents() for name, field in reader.fields.items()})
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise InputError(f"{file}: no whole GGUF file ({error})") from None
    tensors = _tensors(gguf, reader, fields)
    config = _config(fields, tied="lm_head.weight" not in tensors)
    model = config.build()
    try:
        params = from_hf(model, tensors)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    models.save(folder, model, params)
    _write_tokenizer(fields, folder)
    return sum(tensor.size for tensor in tensors.values())


class _Fields:
    """The metadata of a GGUF file; a field that is absent or has another value is an InputError."""

    def __init__(self, file: Path, values: dict[str, Any]):
        self.file, self.values = file, values

    def get(self, name: str) -> Any:
        if name not in self.values:
            raise InputError(f"{self.file}: no {name}; valid is a GGUF file of a Llama that has it")
        return self.values[name]

    def expect(self, name: str, valid: Any) -> None:
        if (found := self.get(name)) != valid:
            raise InputError(f"{self.file}: {name}={found!r}; valid is {valid!r}")

    def token(self, kind: str) -> tuple[int, str]:
        """Returns id and text of a special token."""
        index = self.get(f"tokenizer.ggml.{kind}_token_id")
        return index, self.get("tokenizer.ggml.tokens")[index]


def _config(fields: _Fields, tied: bool) -> LlamaConfig:
    fields.expect("general.architecture", "llama")
    width, heads = fields.get("llama.embedding_length"), fields.get("llama.attention.head_count")
    fields.expect("llama.rope.dimension_count", width // heads)
    return LlamaConfig(
        vocab_size=fields.get("llama.vocab_size"),
        num_layers=fields.get("llama.block_count"),
        width=width,
        num_heads=heads,
        num_kv_heads=fields.get("llama.attention.head_count_kv"),
        head_dim=width // heads,
        mlp_width=fields.get("llama.feed_forward_length"),
        rope_base=float(fields.get("llama.rope.freq_base")),
        rope_scaling=None,
        # A float32 in the file: 1e-05 was written as 9.999999747378752e-06.
        norm_eps=float(f"{fields.get('llama.attention.layer_norm_rms_epsilon'):.6g}"),
        tied=tied,
        max_length=fields.get("llama.context_length"),
    )


def _tensors(gguf: Any, reader: Any, fields: _Fields) -> dict[str, np.ndarray]:
    """Returns all tensors, f32, under Hugging Face's names and in its order of rows."""
    heads = {"attn_q": "llama.attention.head_count", "attn_k": "llama.attention.head_count_kv"}
    tensors = {}
    for tensor in reader.tensors:
        name, part = _hf_name(fields.file, tensor.name)
        try:
            array = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        except NotImplementedError:
            kind = tensor.tensor_type.name
            raise InputError(
                f"{fields.file}: {tensor.name} is {kind}; valid is a type that gguf reads"
            ) from None
        tensors[name] = unpermute(array, fields.get(heads[part])) if part in heads else array
    return tensors


def _hf_name(file: Path, name: str) -> tuple[str, str]:
    """Returns Hugging Face's name of a tensor, and its part of a layer or of the whole."""
    match name.split("."):
        case [part, "weight"] if part in _WHOLE:
            return f"{_WHOLE[part]}.weight", part
        case ["blk", layer, part, "weight"] if part in _OF_LAYER:
            return f"model.layers.{layer}.{_OF_LAYER[part]}.weight", part
    raise InputError(
        f"{file}: tensor {name}; valid are those of a Llama without biases and scaled rotary embedding"
    )


def unpermute(matrix: np.ndarray, heads: int) -> np.ndarray:
    """Restores the order of the rows of q or k: within each head, even rows first, then odd ones.

    Args:
        matrix: [heads · D, W], D even.
        heads: their number.

    Returns:
        [heads · D, W]; row 2i of a head becomes its row i, row 2i + 1 becomes row D/2 + i.
    """
    rows, width = matrix.shape
    pairs = matrix.reshape(heads, rows // heads // 2, 2, width)
    return pairs.swapaxes(1, 2).reshape(rows, width)


def _write_tokenizer(fields: _Fields, folder: Path) -> None:
    """Writes tokenizer.json, its config with the chat template, and the ids in the model's configs."""
    fields.expect("tokenizer.ggml.model", "gpt2")
    fields.expect("tokenizer.ggml.pre", "smollm")
    tokens = fields.get("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in fields.get("tokenizer.ggml.merges")]
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
    )
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    kinds = zip(tokens, fields.get("tokenizer.ggml.token_type"), strict=True)
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token, kind in kinds if kind == _CONTROL]
    )
    backend.save(str(folder / "tokenizer.json"))
    special = {
        kind: fields.token(name) for kind, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    named = {f"{kind}_token": text for kind, (_, text) in special.items()}
    ids = {f"{kind}_token_id": index for kind, (index, _) in special.items()}
    template = fields.get("tokenizer.chat_template")
    described = dict(tokenizer_class="PreTrainedTokenizerFast", chat_template=template, **named)
    _write_json(folder / "tokenizer_config.json", described)
    _write_json(folder / "generation_config.json", ids)
    config = json.loads((folder / "config.json").read_text())
    _write_json(folder / "config.json", config | ids)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")
