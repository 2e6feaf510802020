"""Shapes of published models by name, for plans that need no weights.

References:
    Biderman et al. (2023), Pythia, arXiv:2304.01373.
    Grattafiori et al. (2024), The Llama 3 Herd of Models, arXiv:2407.21783.
    He et al. (2023), DeBERTaV3, arXiv:2111.09543; PairRM (arXiv:2306.02561) is its large one.
"""

import dataclasses
from typing import Any

from sea_jax.errors import InputError
from sea_jax.hub import split_revision
from sea_jax.models.deberta import DebertaConfig
from sea_jax.models.layers import RopeScaling
from sea_jax.models.llama import LLAMA_3_2_SCALING, LlamaConfig
from sea_jax.models.pythia import PythiaConfig
from sea_jax.models.reward import GatedRewardConfig, RewardConfig

Shape = PythiaConfig | LlamaConfig | DebertaConfig | RewardConfig


def _pythia(num_layers: int, width: int, num_heads: int, vocab_size: int = 50_304) -> PythiaConfig:
    return PythiaConfig(vocab_size, num_layers, width, num_heads, 4 * width)


_LLAMA_3 = LlamaConfig(
    num_layers=32, width=4096, num_heads=32, head_dim=128, mlp_width=14_336, rope_scaling=None, tied=False,
    max_length=8192,
)  # fmt: skip
_LLAMA_3_1 = dataclasses.replace(
    _LLAMA_3, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192), max_length=131_072
)  # fmt: skip

SIZES: dict[str, Shape] = {
    "pythia-70m": _pythia(6, 512, 8),
    "pythia-160m": _pythia(12, 768, 12),
    "pythia-410m": _pythia(24, 1024, 16),
    "pythia-1b": _pythia(16, 2048, 8),
    "pythia-1.4b": _pythia(24, 2048, 16),
    "pythia-2.8b": _pythia(32, 2560, 32),
    "pythia-6.9b": _pythia(32, 4096, 32, 50_432),
    "pythia-12b": _pythia(36, 5120, 40, 50_688),
    "llama-3-8b": _LLAMA_3,
    "llama-3.1-8b": _LLAMA_3_1,
    "llama-3.2-1b": LlamaConfig(rope_scaling=LLAMA_3_2_SCALING),
    "llama-3.2-3b": LlamaConfig(num_layers=28, width=3072, num_heads=24, head_dim=128),
    "deberta-v3-large": DebertaConfig(),
    "pairrm": DebertaConfig(),
    "skywork-reward-llama-3.1-8b": RewardConfig(_LLAMA_3_1),
    "armorm-llama3-8b": GatedRewardConfig(_LLAMA_3),
}


def shape(name: str, **overrides: Any) -> Shape:
    """Returns the shape of a published model.

    Args:
        name: a row of SIZES, or a hub name that holds one, such as
            'trl-lib/pythia-1b-deduped-tldr-sft@main'; case and revision are ignored.
        **overrides: fields of the architecture's config; of a reward model, of its trunk.

    Raises:
        InputError: if the name holds no row of SIZES.
    """
    held = [row for row in SIZES if row in split_revision(name)[0].lower()]
    if not held:
        raise InputError(f"model {name!r}: shape unknown; valid: a name that holds one of {', '.join(SIZES)}")
    found = SIZES[max(held, key=len)]
    if isinstance(found, RewardConfig):
        return dataclasses.replace(found, trunk=dataclasses.replace(found.trunk, **overrides))
    return dataclasses.replace(found, **overrides)
