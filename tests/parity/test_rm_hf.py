"""What `rm` leaves, opened by transformers: the same scores, for one text and for padded ones."""

import json
import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from real_text import byte_tokenizer, posts, user_files

from sea_jax import models
from sea_jax.experiment import commands, reward_scorer
from sea_jax.models import LlamaConfig
from sea_jax.runtime.mesh import make_mesh

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LLAMA = LlamaConfig(
    vocab_size=330, num_layers=2, width=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_width=24,
    max_length=128,
)  # fmt: skip


@pytest.mark.parametrize("policy", [None, LLAMA], ids=["gpt_neox", "llama"])
@pytest.mark.parametrize("chat", [False, True])
def test_transformers_gives_the_oracles_rewards(tmp_path, policy, chat):
    config = user_files(tmp_path, policy=policy, chat=chat)
    special = ("<|endoftext|>", "<|start|>", "<|end|>", *(["<|padding|>"] if chat else []))
    byte_tokenizer(posts(40), special=special).save(str(tmp_path / "policy" / "tokenizer.json"))
    rows = [
        dict(prompt=row["prompt"], chosen=" went home" + " again" * (i % 4), rejected=row["completion"])
        for i, row in enumerate(posts(30))
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config.task.update(dict(path=str(tmp_path / "pairs.jsonl"), num_heldout=6))
    config.policy.dtype = config.oracle.dtype = "float32"
    config.rm.update(dict(steps=10, batch_size=8, micro_batch=0, learning_rate=1e-2, length=100))
    config.oracle.chat = "auto"
    commands.run("rm", config, str(tmp_path / "rm"))

    folder = tmp_path / "rm" / "reward_model"
    config.oracle.folder = str(folder)
    oracle = reward_scorer.load_oracle(config.oracle, make_mesh())
    prompts, responses = zip(*((row["prompt"], row["chosen"]) for row in rows[:6]), strict=True)
    expected = oracle.rewards(prompts, responses)
    assert expected.std() > 0.05

    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if chat:
        texts = [
            tokenizer.apply_chat_template(
                [dict(role="user", content=x), dict(role="assistant", content=y)], tokenize=False
            )
            for x, y in zip(prompts, responses, strict=True)
        ]
    else:
        texts = [x + y + tokenizer.eos_token for x, y in zip(prompts, responses, strict=True)]
    with torch.no_grad():
        alone = [
            theirs(**tokenizer(t, return_tensors="pt", add_special_tokens=False)).logits[0, 0] for t in texts
        ]
        np.testing.assert_allclose(np.array(alone), expected, atol=1e-4)
        assert len({len(tokenizer(t)["input_ids"]) for t in texts}) > 1
        tokenizer.padding_side = "right"
        padded = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        padded.pop("token_type_ids", None)
        np.testing.assert_allclose(theirs(**padded).logits[:, 0].numpy(), expected, atol=1e-4)
    # Neither is what texts end with, <|end|> in a chat and else <|endoftext|>.
    assert tokenizer.pad_token == ("<|padding|>" if chat else "<|start|>")
    assert models.read_config(folder).padding_idx == tokenizer.pad_token_id
