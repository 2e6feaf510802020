"""Makes the small whole files that `benchmarks.bad_input` damages."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from flax.traverse_util import unflatten_dict
from tokenizers import decoders, pre_tokenizers, processors, trainers

from sea_jax import models
from sea_jax.experiment.base_config import base_config
from sea_jax.labels.journal import Answer, Journal, Question
from sea_jax.models import DebertaConfig, GatedRewardConfig, LlamaConfig, PythiaConfig, RewardConfig
from sea_jax.models.convert import shapes
from sea_jax.runtime.run_folder import Summary, run_folder, write_summary

_TINY = dict(vocab_size=330, num_layers=1, width=16, num_heads=2, mlp_width=24, max_length=128)
_LLAMA = LlamaConfig(**_TINY, num_kv_heads=1, head_dim=8, rope_scaling=None)  # pyright: ignore[reportArgumentType]
MODELS: dict[str, Any] = {
    "pythia": PythiaConfig(**_TINY),  # pyright: ignore[reportArgumentType]
    "llama": _LLAMA,
    "reward": RewardConfig(PythiaConfig(**_TINY), padding_idx=0),  # pyright: ignore[reportArgumentType]
    "gated": GatedRewardConfig(_LLAMA, 1, 0, 5, 7, 2, 0.7, (8, 9)),
    "encoder": DebertaConfig(
        vocab_size=330, num_layers=1, width=8, num_heads=2, mlp_width=12, position_buckets=4, max_length=64
    ),
}
_SPECIAL = ("<|endoftext|>", "<|start|>", "<|end|>")
_CHAT = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
SAMPLE = {"queries": 4, "prompt": "p ≻ 犬", "chosen": "a", "rejected": "b"}  # a row of samples.jsonl
_WORDS = "my dog ran off with the red ball and then it was late so we went home again é ≻ 犬 🙂".split()  # noqa: SIM905


def posts(number: int) -> list[dict[str, str]]:
    """Returns rows of prompts and references, as those of trl-lib/tldr."""
    rng = np.random.default_rng(0)
    text = lambda n: " ".join(rng.choice(_WORDS, n))  # noqa: E731
    return [dict(prompt=f"POST: {i} {text(9)}\n\nTL;DR:", completion=f" {text(3)}") for i in range(number)]


def pairs(number: int) -> list[dict[str, str]]:
    """Returns rows of preferences."""
    return [dict(prompt=row["prompt"], chosen=row["completion"], rejected=" no") for row in posts(number)]


def tokenizer(special: Sequence[str] = _SPECIAL) -> tokenizers.Tokenizer:
    """Returns a byte-level tokenizer of 320 tokens, which can spell every text."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=list(special), show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    made.train_from_iterator([row["prompt"] for row in posts(40)], trainer)
    return made


def save_model(folder: Path, kind: str, shards: bool = False) -> None:
    """Writes a model of a kind of `MODELS` with random parameters, and a tokenizer with a chat template."""
    model, rng = MODELS[kind].build(), np.random.default_rng(0)
    flat = {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in shapes(model).items()}
    most = 4096 if shards else 5_000_000_000
    models.save(folder, model, unflatten_dict(flat, sep="/"), tokenizer(), max_shard_bytes=most)
    (folder / "chat_template.jinja").write_text(_CHAT)


def save_encoder_tokenizer(folder: Path) -> None:
    """Writes the tokenizer of an encoder, with its markers."""
    made = tokenizer(("[CLS]", "[SEP]", "<|source|>", "<|candidate1|>"))
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    made.save(str(folder / "tokenizer.json"))


def save_rows(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows as jsonl or parquet, by the file's ending."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".parquet":
        from pyarrow import Table, parquet

        parquet.write_table(Table.from_pylist(list(rows)), file)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def metrics(last: int = 64) -> list[dict[str, Any]]:
    """Returns rows of metrics.jsonl: steps of four labels, and evaluations."""
    steps = [
        {"step": t, "queries": 4 * t + 4, "policy/loss": 0.7, "time/learn_s": 0.1} for t in range(last // 4)
    ]
    ends = [
        {"step": n // 4, "queries": n, "eval/win_rate_sft": 0.5 + n / 200, "eval/win_rate_reference": 0.5,
         "eval/reward": n / 50, "ensemble/accuracy_heldout": 0.6, "time/evaluate_s": None}
        for n in range(0, last + 1, 16)
    ]  # fmt: skip
    return sorted([*ends, *steps], key=lambda row: (row["queries"], len(row)))


def save_workdir(folder: Path) -> None:
    """Writes a work directory with two finished runs."""
    folder.mkdir(parents=True)
    config = base_config()
    config.num_seeds = 1
    (folder / "config.json").write_text(json.dumps(json.loads(config.to_json()), indent=2) + "\n")
    for method in ("passive", "sea"):
        run = run_folder(folder, method, 0)
        save_rows(run / "metrics.jsonl", metrics())
        save_rows(run / "samples.jsonl", [SAMPLE] * 9)
        write_summary(run, Summary(64, method, method.upper(), method == "sea"))


def save_journal(folder: Path, duels: int = 12) -> None:
    """Writes the label journal of a run: a label a step, one without an answer, and one that waits."""
    rng = np.random.default_rng(0)
    with Journal(folder, "somebody") as journal:
        for step in range(duels + 2):
            tokens = rng.integers(2, 300, (2, 9)).astype(np.int32)
            question = Question(0, f"post {step} ≻ 犬", f"yes {step}", f"no {step} 🙂", tokens[0], tokens[1])
            [entry] = journal.ask(step, step, [question], f"S_{step}".encode() * 20)
            if step <= duels:
                answered, probability = step < duels, float(rng.random())
                journal.answer([Answer(entry.id, answered, probability, probability > 0.5)], 0.5, 0.25)
