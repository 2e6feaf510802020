"""Checks of a config and a work directory, before anything expensive runs."""

import json
import tempfile
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sea_jax import models, tasks
from sea_jax.ensemble.pretrain import SEED_OFFSET
from sea_jax.errors import InputError
from sea_jax.losses import DAP_LOSSES
from sea_jax.methods import METHODS
from sea_jax.models.convert import CLASSES
from sea_jax.models.remat import POLICIES
from sea_jax.oracles.labels import MODES
from sea_jax.runtime import samplers
from sea_jax.runtime.mesh import is_main
from sea_jax.tasks.protocol import SPLITS, Task
from sea_jax.tasks.tokenizer import CHAT

# Fields that a later call on the same work directory may change: they add runs, and alter none.
FREE_FIELDS = ("methods", "num_seeds", "cache_dir", "progress")
REWARD_CLASSES = [name for heads in CLASSES.values() for name, head in heads.items() if head]
DTYPES = ("float32", "bfloat16")
OVERRIDABLE = ("train", "ensemble", "sea")  # all else is shared by the methods of an experiment


def for_method(config: ConfigDict, method: str) -> ConfigDict:
    """The config of one method: with what `config.overrides` says of it, if anything."""
    merged = ConfigDict(config.to_dict())
    overrides: Any = config.get("overrides", {})
    merged.update(overrides.get(method, {}))
    return merged


def validate_sft(config, task: Task) -> None:
    """Raises InputError at the first field that supervised fine-tuning cannot work with."""
    for name in ("sft.steps", "sft.batch_size", "eval.batch_size", "mesh.data", "mesh.fsdp", "mesh.tensor"):
        _require(_get(config, name) >= 1, name, _get(config, name), "at least 1")
    _validate_sft(config)
    one_of(config, "eval.split", SPLITS)
    if config.policy.folder:
        _validate_model(config, task)


def _validate_sft(config) -> None:
    weight, chunk = config.sft.prompt_weight, config.sft.token_chunk
    _require(0 <= weight < float("inf"), "sft.prompt_weight", weight, "a number of at least 0")
    _require(
        chunk == 0 or (chunk > 0 and weight == 0), "sft.token_chunk", chunk,
        f"0, or more with sft.prompt_weight=0, not {weight:g}",
    )  # fmt: skip


def needs_family(config: ConfigDict, method: str) -> bool:
    """Whether a method's prior is drawn from the heads that are pretrained with the backbone."""
    return METHODS[method].learns_ensemble and for_method(config, method).ensemble.prior == "pretrained"


def validate_compute(config) -> None:
    """Raises InputError at a name that says how to compute and is none."""
    one_of(config, "policy.dtype", DTYPES)
    one_of(config, "policy.remat", tuple(POLICIES))
    one_of(config, "train.dap", tuple(sorted(DAP_LOSSES)))
    for method in config.methods:
        _require(method in METHODS, "methods", method, f"one of {sorted(METHODS)}, or 'sft' alone")


def validate_parts(config, supervised_only: bool = False) -> None:
    """Raises InputError where task, policy and backbone do not fit together; before any is loaded.

    Args:
        config: the experiment's config.
        supervised_only: it needs no backbone.
    """
    one_of(config, "task.name", tasks.NAMES)
    validate_compute(config)
    text = config.task.name != "mini_tldr"
    if text:
        _require(
            "path" in config.task, "task.name", config.task.name,
            "'mini_tldr' in this config; the fields of real text are in configs/tldr.py",
        )  # fmt: skip
        one_of(config, "task.chat", CHAT)
        folder = config.policy.folder
        _require(
            folder != "", "policy.folder", folder, "a folder or a hub name, whose tokenizer the task takes"
        )
    if supervised_only:
        return
    samplers.validate(config)
    _validate_oracle(config, text)
    one_of(config, "backbone.kind", ("encoder",) if text else ("ranker", "encoder"))
    kind, folder = config.backbone.kind, config.encoder.folder
    _require(
        kind == "ranker" or folder != "",
        "encoder.folder",
        folder,
        f"a folder or a hub name with backbone.kind={kind!r}",
    )
    _require(
        config.backbone.kind == "ranker" or not any(needs_family(config, m) for m in config.methods),
        "ensemble.prior", "pretrained", "'random' with backbone.kind='encoder'",
    )  # fmt: skip
    _require(config.encoder.batch_size >= 1, "encoder.batch_size", config.encoder.batch_size, "at least 1")
    _require(len(config.encoder.markers) == 2, "encoder.markers", config.encoder.markers, "two tokens")
    for name in ("encoder.source_length", "encoder.candidate_length"):
        _require(_get(config, name) >= 4, name, _get(config, name), "at least 4 tokens, the special ones in")


def _validate_oracle(config, text: bool) -> None:
    """Of the oracle's model only config.json is read."""
    one_of(config, "oracle.kind", ("reward_model",) if text else ("task", "reward_model"))
    if config.oracle.kind == "task":
        return
    one_of(config, "oracle.dtype", DTYPES)
    one_of(config, "oracle.chat", CHAT)
    _require(config.oracle.batch_size >= 1, "oracle.batch_size", config.oracle.batch_size, "at least 1")
    folder = config.oracle.folder
    _require(folder != "", "oracle.folder", folder, "a folder or a hub name with oracle.kind='reward_model'")
    model = _read_model("oracle.folder", folder)
    _require(
        isinstance(model, models.RewardConfig) and model.num_labels == 1, "oracle.folder", folder,
        f"a reward model of one number, one of {sorted(REWARD_CLASSES)}",
    )  # fmt: skip


def validate(config, task: Task) -> None:
    """Raises InputError, one line, at the first field that cannot work.

    Args:
        config: the experiment's config.
        task: its task.
    """
    _validate(config, task)
    _validate_overrides(config)
    for method in set(config.methods) & set(config.get("overrides", {})):
        _validate(for_method(config, method), task)


def _validate_overrides(config) -> None:
    """Overrides name a method, and fields that exist and differ between methods."""
    for method, fields in config.get("overrides", {}).items():
        name = f"overrides.{method}"
        _require(method in METHODS, name, fields.to_dict(), f"overrides of one of {sorted(METHODS)}")
        valid = {f for f in _flat(config.to_dict()) if f.split(".")[0] in OVERRIDABLE}
        for field, value in _flat(fields.to_dict()).items():
            _require(field in valid, f"{name}.{field}", value, f"a field of one of {OVERRIDABLE}")
        hidden = for_method(config, method).ensemble.hidden
        _require(
            not needs_family(config, method) or tuple(hidden) == tuple(config.ensemble.hidden),
            f"{name}.ensemble.hidden", hidden,
            f"{config.ensemble.hidden}, as all have with ensemble.prior='pretrained'",
        )  # fmt: skip


def _validate(config, task: Task) -> None:
    _validate_methods(config)
    _require(config.oracle.labels in MODES, "oracle.labels", config.oracle.labels, f"one of {MODES}")
    one_of(config, "train.schedule", ("constant", "cosine"))
    one_of(config, "sea.gamma_mode", ("count", "bernoulli"))
    one_of(config, "sea.synthetic_pairs", ("thompson", "max_margin"))
    one_of(config, "eval.split", SPLITS)
    _validate_prior(config)
    _validate_sft(config)
    for name in (
        "num_seeds", "mesh.data", "mesh.fsdp", "mesh.tensor",
        "train.batch_size", "train.query_budget", "train.max_idle_steps",
        "ensemble.num_members", "ensemble.steps", "ensemble.batch_size", "ensemble.capacity",
        "sft.steps", "sft.batch_size", "backbone.steps", "family.steps", "family.batch_size",
        "eval.every_queries", "eval.batch_size", "eval.num_prompts", "eval.num_pairs",
        "eval.best_of",
        "policy.num_layers", "policy.width", "policy.num_heads", "policy.mlp_width",
    ):  # fmt: skip
        _require(_get(config, name) >= 1, name, _get(config, name), "at least 1")
    for name in ("seed", "sea.burn_in", "train.warmup_queries", "train.token_chunk", "eval.num_samples"):
        _require(_get(config, name) >= 0, name, _get(config, name), "at least 0")
    # Above are the rewards that the backbone was pretrained on; the oracle's own is never among them.
    first, most = config.task.oracle_seed, SEED_OFFSET - config.num_seeds
    _require(0 <= first <= most, "task.oracle_seed", first, f"in [0, {most}]")
    for name in ("train.learning_rate", "train.beta", "train.temperature", "ensemble.learning_rate"):
        _require(_get(config, name) > 0, name, _get(config, name), "above 0")
    _validate_loss(config)
    B, micro = config.train.batch_size, config.train.micro_batch
    valid = f"0, or a divisor of train.batch_size={B}"
    _require(micro >= 0 and B % (micro or B) == 0, "train.micro_batch", micro, valid)
    at_once = config.sampler.micro_batch
    _require(at_once >= 0 and B % (at_once or B) == 0, "sampler.micro_batch", at_once, valid)
    shards = config.mesh.data * config.mesh.fsdp
    parts = {"train.batch_size": B, "train.micro_batch": micro, "sampler.micro_batch": at_once}
    valid = f"such that data · fsdp divides {', '.join(f'{k}={v}' for k, v in parts.items())}"
    _require(not any(n % shards for n in parts.values()), "mesh", config.mesh.to_dict(), valid)
    gamma = config.sea.gamma
    _require(0 < gamma <= 1, "sea.gamma", gamma, "in (0, 1]")
    asks = config.sea.gamma_mode != "count" or round(gamma * B) > 0
    _require(
        asks, "sea.gamma", gamma, f"above {0.5 / B:g}, so that round(γB) of train.batch_size={B} is not 0"
    )
    flip = config.oracle.flip_probability
    _require(0 <= flip <= 1, "oracle.flip_probability", flip, "in [0, 1]")
    heads, width = config.policy.num_heads, config.policy.width
    _require(width % heads == 0, "policy.width", width, f"a multiple of policy.num_heads={heads}")
    _validate_splits(config, task)
    if config.policy.folder:
        _validate_model(config, task)


def _validate_methods(config) -> None:
    """The methods, and what only some of them need."""
    for method in config.methods:
        _require(method in METHODS, "methods", method, f"one of {sorted(METHODS)}, or 'sft' alone")
    _require(len(config.methods) > 0, "methods", config.methods, "at least one method")
    active = [m for m in config.methods if METHODS[m].active]
    M = config.sea.num_responses
    _require(not active or M >= 2, "sea.num_responses", M, f"at least 2 for {active}")
    learners = sorted(m for m in METHODS if METHODS[m].learns_ensemble)
    _require(
        config.eval.best_of == 1 or not set(learners).isdisjoint(config.methods), "eval.best_of",
        config.eval.best_of, f"1 (off) unless methods has one whose ensemble can choose: {learners}",
    )  # fmt: skip
    capacity, batch = config.ensemble.capacity, config.train.batch_size
    _require(
        not active or capacity >= batch, "ensemble.capacity", capacity,
        f"at least train.batch_size={batch}, the pairs of a step, for {active}",
    )  # fmt: skip


def _validate_prior(config) -> None:
    """Heads that a prior is drawn from are as many as are pretrained, one for each of the rewards."""
    one_of(config, "ensemble.prior", ("pretrained", "random"))
    P, S = config.family.num_heads, config.backbone.num_rewards
    _require(1 <= P <= S, "family.num_heads", P, f"1 to backbone.num_rewards={S}")
    K = config.ensemble.num_members
    _require(
        config.ensemble.prior == "random" or K <= P, "ensemble.num_members", K,
        f"at most family.num_heads={P} with ensemble.prior='pretrained'",
    )  # fmt: skip


def _validate_splits(config, task: Task) -> None:
    """Every split must hold the prompts that are asked of it."""
    for name, split in (("eval.num_prompts", config.eval.split), ("eval.num_pairs", "tuning")):
        most = len(task.prompts[split])
        _require(_get(config, name) <= most, name, _get(config, name), f"at most {most} ({split} split)")
    most = len(task.prompts["train"])
    if config.backbone.kind != "ranker":
        return
    n = config.backbone.num_prompts
    least = config.backbone.batch_size
    _require(least <= n <= most, "backbone.num_prompts", n, f"{least} (its batch_size) to {most}")


def _validate_loss(config) -> None:
    """Options that single losses read; absent ones keep the loss's own default."""
    per_token, margin = config.train.get("per_token", False), config.train.get("margin_ratio", 0.3)
    _require(per_token in (True, False), "train.per_token", per_token, "True or False")
    _require(
        not per_token or config.train.dap == "ipo", "train.per_token", per_token,
        f"False unless train.dap is 'ipo', not {config.train.dap!r}",
    )  # fmt: skip
    _require(0 <= margin < float("inf"), "train.margin_ratio", margin, "a number of at least 0")


def _validate_model(config, task: Task) -> None:
    """Of a given policy, vocabulary and context must hold the task; only config.json is read."""
    folder = config.policy.folder
    model = _read_model("policy.folder", folder)
    _require(
        isinstance(model.build(), models.Decoder), "policy.folder", folder,
        "a language model, as encoders and reward models write no responses",
    )  # fmt: skip
    words = task.tokenizer.get_vocab_size()
    _require(
        model.vocab_size >= words, "policy.folder", folder,
        f"a vocabulary of at least the task's {words} tokens, not {model.vocab_size}",
    )  # fmt: skip
    need = task.prompt_length + task.response_length
    _require(
        model.max_length >= need, "policy.folder", folder,
        f"a context of at least {need} tokens (prompt {task.prompt_length} + response "
        f"{task.response_length}), not {model.max_length}",
    )  # fmt: skip


def _read_model(field: str, folder: str) -> Any:
    try:
        return models.read_config(models.find(folder))
    except InputError as error:
        raise InputError(f"config.{field}={folder!r}: {error}") from None


def require_writable(name: str, folder: Path) -> None:
    """Makes a folder; raises InputError, naming the option that it came from, where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{name}: {folder}: {error.strerror}; valid: a folder that can be written") from None


def claim_workdir(config, folder: Path) -> None:
    """Writes the config into a fresh work directory; refuses one that holds another config.

    Raises:
        InputError: naming the first field that differs, or a file that is no config.
    """
    mine = json.loads(config.to_json())
    file = folder / "config.json"
    if file.exists():
        theirs = _read_config(file)
        for name in sorted(_flat(mine).keys() | _flat(theirs).keys()):
            if name in FREE_FIELDS:
                continue
            here, there = _flat(mine).get(name, "(absent)"), _flat(theirs).get(name, "(absent)")
            if here != there:
                raise InputError(
                    f"workdir {folder}: holds runs with {name}={there!r}, not {here!r}; "
                    "valid: that config, or another --workdir"
                )
    require_writable("--workdir", folder)
    if is_main():
        # Whole or not at all: the processes of other hosts may be reading it.
        part = folder / "config.json.part"
        part.write_text(json.dumps(mine, indent=2) + "\n")
        part.replace(file)


def _read_config(file: Path) -> dict:
    try:
        config = json.loads(file.read_text())
    except ValueError:  # no JSON, or no text
        config = None
    if not isinstance(config, dict):
        raise InputError(f"workdir {file.parent}: its config.json is no run's; valid: another --workdir")
    return config


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


def one_of(config, name: str, valid: tuple[str, ...]) -> None:
    """Raises InputError unless the field `name`, as 'policy.dtype', has one of the values."""
    _require(_get(config, name) in valid, name, _get(config, name), f"one of {valid}")


def _require(condition: bool, name: str, value: object, valid: str) -> None:
    if not condition:
        raise InputError(f"config.{name}={value!r}: valid is {valid}")
