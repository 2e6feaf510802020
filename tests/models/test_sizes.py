"""Shapes by name, against the numbers of parameters that their authors publish."""

import math

import jax.numpy as jnp
import pytest

from sea_jax.errors import InputError
from sea_jax.models import convert, sizes

# Pythia's README; of Llama and Skywork what their safetensors hold.
PUBLISHED = {
    "EleutherAI/pythia-70m": 70_426_624,
    "EleutherAI/pythia-160m-deduped": 162_322_944,
    "EleutherAI/pythia-410m": 405_334_016,
    "trl-lib/pythia-1b-deduped-tldr-sft": 1_011_781_632,
    "EleutherAI/pythia-1.4b": 1_414_647_808,
    "mnoukhov/EleutherAI_pythia-2.8b-deduped__sft__tldr_55513": 2_775_208_960,
    "cleanrl/EleutherAI_pythia-6.9b-deduped__sft__tldr@refs/pr/1": 6_857_302_016,
    "EleutherAI/pythia-12b": 11_846_072_320,
    "meta-llama/Meta-Llama-3-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "Skywork/Skywork-Reward-Llama-3.1-8B": 7_504_928_768,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_number_of_parameters(name):
    found = convert.shapes(sizes.shape(name).build())
    assert sum(math.prod(x.shape) for x in found.values()) == PUBLISHED[name]


def test_overrides_reach_a_trunk():
    assert sizes.shape("pythia-1b", remat="full").remat == "full"
    reward = sizes.shape("RLHFlow/ArmoRM-Llama3-8B-v0.1", dtype=jnp.bfloat16)
    assert reward.trunk.dtype == jnp.bfloat16 and reward.num_objectives == 19


def test_an_unknown_model_is_named():
    with pytest.raises(InputError, match=r"model 'gpt2': shape unknown; valid: .*pythia-1b"):
        sizes.shape("gpt2")


def test_a_revision_is_no_part_of_the_name():
    assert sizes.shape("EleutherAI/pythia-1b@llama-3-8b") == sizes.SIZES["pythia-1b"]
