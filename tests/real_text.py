"""What a user brings to a run on real text, in miniature: folders in Hugging Face's layout and a file of prompts."""

import json

import numpy as np
import tokenizers
from helpers import random_params
from tokenizers import decoders, pre_tokenizers, processors, trainers

from configs import tldr
from sea_jax import models
from sea_jax.models import PythiaConfig, RewardConfig

CHAT = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def posts(number, seed=0):
    """Rows with the columns of trl-lib/tldr."""
    rng = np.random.default_rng(seed)
    words = "my dog ran off with the red ball and then it was late so we went home again".split()  # noqa: SIM905
    text = lambda n: " ".join(rng.choice(words, n))  # noqa: E731
    return [
        dict(prompt=f"SUBREDDIT: r/dogs\n\nPOST: {i} {text(9)}\n\nTL;DR:", completion=f" {text(3)}")
        for i in range(number)
    ]


def byte_tokenizer(rows, vocab_size=320, special=("<|endoftext|>", "<|start|>", "<|end|>")):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(special), show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    tokenizer.train_from_iterator([row["prompt"] + row["completion"] for row in rows], trainer)
    return tokenizer


def user_files(folder, number=40, policy=None, chat=False):
    """Makes them.

    Args:
        folder: gets `policy`, `reward`, `encoder` and `posts`.
        number: of prompts.
        policy: shape of the policy; None: a tiny one.
        chat: whether policy and reward model have a chat template.

    Returns:
        configs/tldr.py on these files, its sizes such that a run takes seconds.
    """
    rows = posts(number)
    tokenizer = byte_tokenizer(rows)
    tiny = dict(vocab_size=330, num_layers=1, width=16, num_heads=2, mlp_width=24, max_length=128)
    for name, config in (
        ("policy", policy or PythiaConfig(**tiny)),
        ("reward", RewardConfig(PythiaConfig(**tiny), padding_idx=0)),
    ):
        model = config.build()
        models.save(folder / name, model, random_params(model), tokenizer)
        if chat:
            (folder / name / "chat_template.jinja").write_text(CHAT)
    encoder = models.DebertaConfig(
        vocab_size=330, num_layers=1, width=8, num_heads=2, mlp_width=12, position_buckets=4, max_length=64
    ).build()
    models.save(folder / "encoder", encoder, random_params(encoder))
    marked = byte_tokenizer(rows, special=("[CLS]", "[SEP]", "<|source|>", "<|candidate1|>"))
    marked.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    marked.save(str(folder / "encoder" / "tokenizer.json"))
    (folder / "posts").mkdir()
    (folder / "posts" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return small_config(folder)


def small_config(folder):
    config = tldr.get_config()
    config.num_seeds, config.progress, config.mesh.fsdp = 1, False, 1
    config.policy.folder, config.oracle.folder = str(folder / "policy"), str(folder / "reward")
    config.encoder.update(
        dict(
            folder=str(folder / "encoder"), leave_out=(), source_length=32, candidate_length=16, batch_size=8
        )
    )
    config.task.update(
        dict(path=str(folder / "posts"), num_train=0, num_tuning=4, num_heldout=4, prompt_length=64,
             response_length=6)
    )  # fmt: skip
    config.oracle.batch_size = 4
    config.train.update(dict(batch_size=4, micro_batch=2, token_chunk=3, query_budget=8, learning_rate=1e-3))
    config.sampler.micro_batch = 2
    config.ensemble.update(dict(num_members=3, hidden=(8,), capacity=64, batch_size=8))
    config.sea.update(dict(num_responses=5, burn_in=4, gamma=0.5))
    config.eval.update(dict(num_prompts=4, batch_size=4, num_pairs=4, every_queries=4))
    return config
