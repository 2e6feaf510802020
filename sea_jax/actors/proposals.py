"""Packs the prompts and responses of a step into bytes, so that a restored run goes on from the same ones."""

import io
import json
from typing import NamedTuple

import numpy as np

from sea_jax.runtime.mesh import to_host


class Packed(NamedTuple):
    """A step's prompts and responses on the host."""

    rows: np.ndarray  # [B] int, of the train prompts
    tokens: np.ndarray  # [B, M, T] int32
    mask: np.ndarray  # [B, M, T] bool
    extra_tokens: np.ndarray | None  # [B, X, T] int32
    extra_mask: np.ndarray | None  # [B, X, T] bool
    metrics: dict[str, float]  # of the choice of prompts


def pack(packed: Packed) -> bytes:
    """Returns the arrays as a compressed npz file."""
    fields = packed._asdict()
    metrics = json.dumps({name: float(value) for name, value in fields.pop("metrics").items()})
    arrays = {name: value for name, value in to_host(fields).items() if value is not None}
    file = io.BytesIO()
    np.savez_compressed(file, metrics=metrics, **arrays)
    return file.getvalue()


def unpack(content: bytes) -> Packed:
    """Reads what `pack` made; nothing in it can be a pickle."""
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        fields = {name: file[name] for name in file.files}
    metrics = json.loads(str(fields.pop("metrics")))
    extra = fields.get("extra_tokens"), fields.get("extra_mask")
    return Packed(fields["rows"], fields["tokens"], fields["mask"], *extra, metrics)
