"""Checks of a config and a work directory, before anything expensive runs."""

import json
from pathlib import Path

from sea_jax.ensemble.pretrain import SEED_OFFSET
from sea_jax.losses import DAP_LOSSES
from sea_jax.methods import METHODS
from sea_jax.oracles.labels import MODES
from sea_jax.tasks.protocol import SPLITS, Task

# Fields that a later call on the same work directory may change: they add runs, and alter none.
FREE_FIELDS = ("methods", "num_seeds", "cache_dir", "progress")


def validate(config, task: Task) -> None:
    """Raises ValueError, one line, at the first field that cannot work.

    Args:
        config: the experiment's config.
        task: its task.
    """
    for method in config.methods:
        _require(method in METHODS, "methods", method, f"one of {sorted(METHODS)}")
    _require(len(config.methods) > 0, "methods", config.methods, "at least one method")
    _require(config.task.name == "mini_tldr", "task.name", config.task.name, "'mini_tldr'")
    _require(config.train.dap in DAP_LOSSES, "train.dap", config.train.dap, f"one of {sorted(DAP_LOSSES)}")
    _require(config.oracle.labels in MODES, "oracle.labels", config.oracle.labels, f"one of {MODES}")
    _one_of(config, "train.schedule", ("constant", "cosine"))
    _one_of(config, "sea.gamma_mode", ("count", "bernoulli"))
    _one_of(config, "sea.synthetic_pairs", ("thompson", "max_margin"))
    _one_of(config, "eval.split", SPLITS)
    active = [m for m in config.methods if METHODS[m].active]
    M = config.sea.num_responses
    _require(not active or M >= 2, "sea.num_responses", M, f"at least 2 for {active}")
    for name in (
        "num_seeds", "train.batch_size", "train.query_budget", "ensemble.num_members",
        "ensemble.steps", "ensemble.batch_size", "ensemble.capacity", "sft.steps", "sft.batch_size",
        "backbone.steps", "eval.every_queries", "eval.batch_size", "eval.num_prompts", "eval.num_pairs",
        "policy.num_layers", "policy.width", "policy.num_heads", "policy.mlp_width",
    ):  # fmt: skip
        _require(_get(config, name) >= 1, name, _get(config, name), "at least 1")
    for name in ("seed", "sea.burn_in", "train.warmup_steps", "eval.num_samples"):
        _require(_get(config, name) >= 0, name, _get(config, name), "at least 0")
    # Above are the rewards that the backbone was pretrained on; the oracle's own is never among them.
    first, most = config.task.oracle_seed, SEED_OFFSET - config.num_seeds
    _require(0 <= first <= most, "task.oracle_seed", first, f"in [0, {most}]")
    for name in ("train.learning_rate", "train.beta", "train.temperature", "ensemble.learning_rate"):
        _require(_get(config, name) > 0, name, _get(config, name), "above 0")
    _require(0 < config.sea.gamma <= 1, "sea.gamma", config.sea.gamma, "in (0, 1]")
    flip = config.oracle.flip_probability
    _require(0 <= flip <= 1, "oracle.flip_probability", flip, "in [0, 1]")
    heads, width = config.policy.num_heads, config.policy.width
    _require(width % heads == 0, "policy.width", width, f"a multiple of policy.num_heads={heads}")
    for name, split in (("eval.num_prompts", config.eval.split), ("eval.num_pairs", "tuning")):
        most = len(task.prompts[split])
        _require(_get(config, name) <= most, name, _get(config, name), f"at most {most} ({split} split)")
    most = len(task.prompts["train"])
    n = config.backbone.num_prompts
    least = config.backbone.batch_size
    _require(least <= n <= most, "backbone.num_prompts", n, f"{least} (its batch_size) to {most}")
    if config.policy.folder:
        _validate_model(config, task)


def _validate_model(config, task: Task) -> None:
    """Of a given policy, vocabulary and context must hold the task; only config.json is read."""
    file = Path(config.policy.folder) / "config.json"
    _require(file.exists(), "policy.folder", config.policy.folder, "a folder with a config.json")
    try:
        hf = json.loads(file.read_text())
        size = hf["vocab_size"]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ValueError(
            f"config.policy.folder={config.policy.folder!r}: valid is a folder whose config.json is "
            "a Hugging Face model's, with a vocab_size"
        ) from None
    words = task.tokenizer.get_vocab_size()
    _require(
        size >= words, "policy.folder", config.policy.folder,
        f"a vocabulary of at least the task's {words} tokens, not {size}",
    )  # fmt: skip
    most, need = hf.get("max_position_embeddings", 2048), task.prompt_length + task.response_length
    _require(
        most >= need, "policy.folder", config.policy.folder,
        f"a context of at least {need} tokens (prompt {task.prompt_length} + response "
        f"{task.response_length}), not {most}",
    )  # fmt: skip


def claim_workdir(config, folder: Path) -> None:
    """Writes the config into a fresh work directory; refuses one that holds another config.

    Raises:
        ValueError: naming the first field that differs.
    """
    mine = json.loads(config.to_json())
    file = folder / "config.json"
    if file.exists():
        theirs = json.loads(file.read_text())
        for name in sorted(_flat(mine).keys() | _flat(theirs).keys()):
            if name in FREE_FIELDS:
                continue
            here, there = _flat(mine).get(name, "(absent)"), _flat(theirs).get(name, "(absent)")
            if here != there:
                raise ValueError(
                    f"workdir {folder}: holds runs with {name}={there!r}, not {here!r}; "
                    "valid: that config, or another --workdir"
                )
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(mine, indent=2) + "\n")


def _flat(tree: dict, prefix: str = "") -> dict:
    out = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value
    return out


def _get(config, name: str):
    for part in name.split("."):
        config = config[part]
    return config


def _one_of(config, name: str, valid: tuple[str, ...]) -> None:
    _require(_get(config, name) in valid, name, _get(config, name), f"one of {valid}")


def _require(condition: bool, name: str, value: object, valid: str) -> None:
    if not condition:
        raise ValueError(f"config.{name}={value!r}: valid is {valid}")
