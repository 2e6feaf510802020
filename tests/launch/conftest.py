"""What the tests of `launch.alpaca_eval` share: a tiny policy, prompts and references, and its outputs."""

import pytest
from alpaca_calls import ASKED, outputs, write
from helpers import random_params
from real_text import byte_tokenizer, posts

from sea_jax import models
from sea_jax.models import PythiaConfig, RewardConfig

TINY = dict(vocab_size=330, num_layers=1, width=16, num_heads=2, mlp_width=24, max_length=96)


@pytest.fixture(scope="session")
def alpaca(tmp_path_factory):
    """A folder with policy, a reward model, prompts and references."""
    folder = tmp_path_factory.mktemp("alpaca")
    tokenizer = byte_tokenizer(posts(20))
    for name, config in (
        ("policy", PythiaConfig(**TINY)),
        ("reward", RewardConfig(PythiaConfig(**TINY), padding_idx=0)),
    ):
        model = config.build()
        models.save(folder / name, model, random_params(model), tokenizer)
    write(folder / "prompts.json", [dict(instruction=text, dataset="made") for text in ASKED])
    baseline = [
        dict(instruction=text, output="b" * (2 + i), generator="baseline") for i, text in enumerate(ASKED)
    ]
    write(folder / "references.json", baseline[::-1])  # in any order
    return folder


@pytest.fixture(scope="session")
def whole(alpaca, tmp_path_factory):
    return outputs(alpaca, tmp_path_factory.mktemp("whole") / "a" / "out.json")
