"""Language and reward models in Flax, loaded from and saved to Hugging Face's layout."""

from sea_jax.models.convert import find, load, read_config, save
from sea_jax.models.deberta import DebertaConfig, Encoder, marker_states
from sea_jax.models.decoder import Decoder
from sea_jax.models.generate import Responses, generate
from sea_jax.models.llama import LlamaConfig
from sea_jax.models.pythia import PythiaConfig
from sea_jax.models.reward import GatedRewardConfig, GatedRewardModel, RewardConfig, RewardModel

__all__ = [
    "DebertaConfig", "Decoder", "Encoder", "GatedRewardConfig", "GatedRewardModel", "LlamaConfig",
    "PythiaConfig", "Responses", "RewardConfig", "RewardModel", "find", "generate", "load",
    "marker_states", "read_config", "save",
]  # fmt: skip
