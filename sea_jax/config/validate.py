"""Checks of a config and a work directory, before anything expensive runs."""

import json
import math
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jax
from ml_collections import ConfigDict

from sea_jax import models, tasks
from sea_jax.actors.make import KINDS as SAMPLERS
from sea_jax.config.checks import at_least, flat, get, one_of, read_model, require
from sea_jax.errors import InputError
from sea_jax.losses import DAP_LOSSES
from sea_jax.methods import ALONE, METHODS
from sea_jax.methods.method import sea_responses
from sea_jax.models.convert import CLASSES
from sea_jax.models.remat import POLICIES
from sea_jax.oracles.labels import MODES
from sea_jax.pretraining.backbone import SEED_OFFSET
from sea_jax.runtime.mesh import is_main
from sea_jax.tasks.protocol import SPLITS, Task
from sea_jax.tasks.tokenizer import CHAT
from sea_jax.types import Config

REMOTE_KINDS = ("remote", "judge")
# How an oracle is reached, not who it is: a later call on the same work directory may change these.
ORACLE_FREE_FIELDS = tuple(
    f"oracle.{name}"
    for name in (
        "url", "timeout_s", "patience_s", "attempts", "in_flight", "request_size", "requests_per_minute",
    )
)  # fmt: skip
# Fields that a later call on the same work directory may change: they add runs, and alter none.
FREE_FIELDS = ("methods", "num_seeds", "cache_dir", "progress", *ORACLE_FREE_FIELDS)
REWARD_CLASSES = [name for heads in CLASSES.values() for name, head in heads.items() if head]
DTYPES = ("float32", "bfloat16")
OVERRIDABLE = ("train", "ensemble", "sea")  # all else is shared by the methods of an experiment


def for_method(config: Config, method: str) -> Config:
    """The config of one method: with what `config.overrides` says of it, if anything."""
    merged: Config = ConfigDict(config.to_dict())
    overrides: Any = config.get("overrides", {})
    merged.update(overrides.get(method, {}))
    return merged


def needs_family(config: Config, method: str) -> bool:
    """Whether a method's prior is drawn from the heads that are pretrained with the backbone."""
    return METHODS[method].learns_ensemble and for_method(config, method).ensemble.prior == "pretrained"


def validate_compute(config: Config) -> None:
    """Raises InputError at a name that says how to compute and is none."""
    _validate_precision(config)
    one_of(config, "train.dap", tuple(sorted(DAP_LOSSES)))
    _validate_names(config)
    for method in config.methods:
        dap, losses = for_method(config, method).train.dap, METHODS[method].losses
        valid = f"one of {tuple(losses)} with methods={method!r}, which is derived for it"
        require(not losses or dap in losses, "train.dap", dap, valid)


def _validate_names(config: Config) -> None:
    for method in config.methods:
        require(method in METHODS, "methods", method, f"one of {sorted(METHODS)}, or one of {ALONE} alone")


def _validate_precision(config: Config) -> None:
    one_of(config, "policy.dtype", DTYPES)
    one_of(config, "policy.remat", tuple(POLICIES))


def validate_task(config: Config) -> None:
    """Raises InputError where the task cannot be loaded, or a model cannot be computed."""
    one_of(config, "task.name", tasks.NAMES)
    _validate_precision(config)
    if not is_text(config):
        return
    require(
        "path" in config.task, "task.name", config.task.name,
        "'mini_tldr' in this config; the fields of real text are in configs/tldr.py",
    )  # fmt: skip
    one_of(config, "task.chat", CHAT)
    folder = config.policy.folder
    require(folder != "", "policy.folder", folder, "a folder or a hub name, whose tokenizer the task takes")


def is_text(config: Config) -> bool:
    """Whether the task is real text, and not embedded."""
    return config.task.name != "mini_tldr"


def validate_parts(config: Config) -> None:
    """Raises InputError where task, policy, oracle and backbone do not fit together; before any is loaded."""
    validate_task(config)
    validate_compute(config)
    text = is_text(config)
    _validate_ray(config)
    validate_sampler(config)
    validate_oracle(config)
    one_of(config, "backbone.kind", ("encoder",) if text else ("ranker", "encoder"))
    kind, folder = config.backbone.kind, config.encoder.folder
    require(
        kind == "ranker" or folder != "",
        "encoder.folder",
        folder,
        f"a folder or a hub name with backbone.kind={kind!r}",
    )
    require(
        config.backbone.kind == "ranker" or not any(needs_family(config, m) for m in config.methods),
        "ensemble.prior", "pretrained", "'random' with backbone.kind='encoder'",
    )  # fmt: skip
    one_of(config, "encoder.dtype", DTYPES)
    require(config.encoder.batch_size >= 1, "encoder.batch_size", config.encoder.batch_size, "at least 1")
    require(len(config.encoder.markers) == 2, "encoder.markers", config.encoder.markers, "two tokens")
    for name in ("encoder.source_length", "encoder.candidate_length"):
        require(get(config, name) >= 4, name, get(config, name), "at least 4 tokens, the special ones in")


def _validate_ray(config: Config) -> None:
    """Workers elsewhere: that there can be some, and how many."""
    at_least(config, 0, "ray.actors", "ray.oracles", "ray.retries")
    for name in ("ray.actors", "ray.oracles"):
        n = get(config, name)
        require(not n or find_spec("ray") is not None, name, n, "0 without Ray: pip install 'sea_jax[ray]'")
    for name in ("ray.actor_cpus", "ray.actor_gpus", "ray.oracle_cpus", "ray.oracle_gpus"):
        require(0 <= get(config, name) < float("inf"), name, get(config, name), "a number of at least 0")
    seconds = config.ray.timeout_s
    require(0 < seconds < float("inf"), "ray.timeout_s", seconds, "a number of seconds above 0")
    n, B = config.ray.actors, config.train.batch_size
    require(n <= B, "ray.actors", n, f"at most train.batch_size={B}, as they share its prompts")
    n, kind = config.ray.oracles, config.oracle.kind
    valid = f"0 with oracle.kind={kind!r}, which is elsewhere already"
    require(not n or kind not in REMOTE_KINDS, "ray.oracles", n, valid)


def validate_oracle(config: Config) -> None:
    """Raises InputError at what no oracle can be made of; of its model only config.json is read."""
    one_of(config, "oracle.labels", MODES)
    flip = config.oracle.flip_probability
    require(0 <= flip <= 1, "oracle.flip_probability", flip, "in [0, 1]")
    one_of(config, "oracle.kind", (*(() if is_text(config) else ("task",)), "reward_model", *REMOTE_KINDS))
    if config.oracle.kind in REMOTE_KINDS:
        _validate_remote_oracle(config)
    if config.oracle.kind != "reward_model":
        return
    one_of(config, "oracle.dtype", DTYPES)
    one_of(config, "oracle.chat", CHAT)
    require(config.oracle.batch_size >= 1, "oracle.batch_size", config.oracle.batch_size, "at least 1")
    folder = config.oracle.folder
    require(folder != "", "oracle.folder", folder, "a folder or a hub name with oracle.kind='reward_model'")
    model = read_model("oracle.folder", folder)
    require(
        isinstance(model, models.RewardConfig) and model.num_labels == 1, "oracle.folder", folder,
        f"a reward model of one number, one of {sorted(REWARD_CLASSES)}",
    )  # fmt: skip


def validate(config: Config, task: Task) -> None:
    """Raises InputError, one line, at the first field that cannot work.

    Args:
        config: the experiment's config.
        task: its task.
    """
    _validate(config, task)
    _validate_overrides(config)
    _validate_pools(config, task)
    for method in set(config.methods) & set(config.get("overrides", {})):
        _validate(for_method(config, method), task)


def validate_sft(config: Config) -> None:
    """Raises InputError at the first field that supervised fine-tuning cannot work with."""
    at_least(config, 1, "sft.steps", "sft.batch_size")
    weight, chunk = config.sft.prompt_weight, config.sft.token_chunk
    require(0 <= weight < float("inf"), "sft.prompt_weight", weight, "a number of at least 0")
    require(
        chunk == 0 or (chunk > 0 and weight == 0), "sft.token_chunk", chunk,
        f"0, or more with sft.prompt_weight=0, not {weight:g}",
    )  # fmt: skip


def validate_shape(config: Config) -> None:
    """Raises InputError at a shape that no policy can have; read where config.policy.folder is empty."""
    at_least(config, 1, *(f"policy.{name}" for name in ("num_layers", "width", "num_heads", "mlp_width")))
    heads, width = config.policy.num_heads, config.policy.width
    require(width % heads == 0, "policy.width", width, f"a multiple of policy.num_heads={heads}")


def _validate_overrides(config: Config) -> None:
    """Overrides name a method, and fields that exist and differ between methods."""
    for method, fields in config.get("overrides", {}).items():
        name = f"overrides.{method}"
        require(method in METHODS, name, fields.to_dict(), f"overrides of one of {sorted(METHODS)}")
        valid = {f for f in flat(config.to_dict()) if f.split(".")[0] in OVERRIDABLE}
        for field, value in flat(fields.to_dict()).items():
            require(field in valid, f"{name}.{field}", value, f"a field of one of {OVERRIDABLE}")
        hidden = for_method(config, method).ensemble.hidden
        require(
            not needs_family(config, method) or tuple(hidden) == tuple(config.ensemble.hidden),
            f"{name}.ensemble.hidden", hidden,
            f"{config.ensemble.hidden}, as all have with ensemble.prior='pretrained'",
        )  # fmt: skip


def _validate(config: Config, task: Task) -> None:
    _validate_methods(config)
    one_of(config, "train.schedule", ("constant", "cosine"))
    one_of(config, "sea.gamma_mode", ("count", "bernoulli"))
    one_of(config, "sea.synthetic_pairs", ("thompson", "max_margin"))
    one_of(config, "eval.split", SPLITS)
    _validate_prior(config)
    validate_sft(config)
    at_least(
        config, 1, "num_seeds", "mesh.data", "mesh.fsdp", "mesh.tensor",
        "train.batch_size", "train.query_budget", "train.max_idle_steps",
        "ensemble.num_members", "ensemble.steps", "ensemble.batch_size", "ensemble.capacity",
        "backbone.steps", "family.steps", "family.batch_size",
        "eval.every_queries", "eval.batch_size", "eval.num_prompts", "eval.num_pairs", "eval.best_of",
    )  # fmt: skip
    at_least(
        config, 0, "seed", "sea.burn_in", "train.warmup_queries", "train.token_chunk", "train.staleness",
        "eval.num_samples",
    )  # fmt: skip
    # Above are the rewards that the backbone was pretrained on; the oracle's own is never among them.
    first, most = config.task.oracle_seed, SEED_OFFSET - config.num_seeds
    require(0 <= first <= most, "task.oracle_seed", first, f"in [0, {most}]")
    for name in ("train.learning_rate", "train.beta", "train.temperature", "ensemble.learning_rate"):
        require(get(config, name) > 0, name, get(config, name), "above 0")
    _validate_loss(config)
    _validate_exploration(config)
    _validate_batches(config)
    validate_shape(config)
    _validate_splits(config, task)
    if config.policy.folder:
        validate_policy(config, task)


def _validate_batches(config: Config) -> None:
    """Parts of a batch: of a pass, of a device, of the oracle."""
    B, micro = config.train.batch_size, config.train.micro_batch
    valid = f"0, or a divisor of train.batch_size={B}"
    require(micro >= 0 and B % (micro or B) == 0, "train.micro_batch", micro, valid)
    at_once = config.sampler.micro_batch
    require(at_once >= 0 and B % (at_once or B) == 0, "sampler.micro_batch", at_once, valid)
    shards = config.mesh.data * config.mesh.fsdp
    parts = {"train.batch_size": B, "train.micro_batch": micro, "sampler.micro_batch": at_once}
    valid = f"such that data · fsdp divides {', '.join(f'{k}={v}' for k, v in parts.items())}"
    require(not any(n % shards for n in parts.values()), "mesh", config.mesh.to_dict(), valid)
    gamma = config.sea.gamma
    require(0 < gamma <= 1, "sea.gamma", gamma, "in (0, 1]")
    asks = config.sea.gamma_mode != "count" or round(gamma * B) > 0
    require(
        asks, "sea.gamma", gamma, f"above {0.5 / B:g}, so that round(γB) of train.batch_size={B} is not 0"
    )


def _validate_methods(config: Config) -> None:
    """The methods, and what only some of them need."""
    _validate_names(config)
    require(len(config.methods) > 0, "methods", config.methods, "at least one method")
    active = [m for m in config.methods if METHODS[m].num_responses is sea_responses]
    M = config.sea.num_responses
    require(not active or M >= 2, "sea.num_responses", M, f"at least 2 for {active}")
    learners = sorted(m for m in METHODS if METHODS[m].learns_ensemble)
    require(
        config.eval.best_of == 1 or not set(learners).isdisjoint(config.methods), "eval.best_of",
        config.eval.best_of, f"1 (off) unless methods has one whose ensemble can choose: {learners}",
    )  # fmt: skip
    capacity, batch = config.ensemble.capacity, config.train.batch_size
    require(
        not active or capacity >= batch, "ensemble.capacity", capacity,
        f"at least train.batch_size={batch}, the pairs of a step, for {active}",
    )  # fmt: skip


def _validate_exploration(config: Config) -> None:
    """What APL and XPO add."""
    at_least(config, 1, "apl.pool_factor", "apl.entropy_samples")
    at_least(config, 2, "apl.num_responses")
    alpha = config.xpo.alpha
    require(0 <= alpha < float("inf"), "xpo.alpha", alpha, "a number of at least 0")


def _validate_pools(config: Config, task: Task) -> None:
    """A pool has no prompt twice, so the task must have as many."""
    n, factor = len(task.prompts["train"]), config.apl.pool_factor
    for method in (m for m in config.methods if METHODS[m].prompts.pool_size(config)):
        B = for_method(config, method).train.batch_size
        most = f"at most {n // B} with train.batch_size={B} and methods={method!r}: {n} train prompts"
        require(factor * B <= n, "apl.pool_factor", factor, most)


def _validate_prior(config: Config) -> None:
    """Heads that a prior is drawn from are as many as are pretrained, one for each of the rewards."""
    one_of(config, "ensemble.prior", ("pretrained", "random"))
    P, S = config.family.num_heads, config.backbone.num_rewards
    require(1 <= P <= S, "family.num_heads", P, f"1 to backbone.num_rewards={S}")
    K = config.ensemble.num_members
    require(
        config.ensemble.prior == "random" or K <= P, "ensemble.num_members", K,
        f"at most family.num_heads={P} with ensemble.prior='pretrained'",
    )  # fmt: skip


def _validate_splits(config: Config, task: Task) -> None:
    """Every split must hold the prompts that are asked of it."""
    for name, split in (("eval.num_prompts", config.eval.split), ("eval.num_pairs", "tuning")):
        most = len(task.prompts[split])
        require(get(config, name) <= most, name, get(config, name), f"at most {most} ({split} split)")
    most = len(task.prompts["train"])
    if config.backbone.kind != "ranker":
        return
    n = config.backbone.num_prompts
    least = config.backbone.batch_size
    require(least <= n <= most, "backbone.num_prompts", n, f"{least} (its batch_size) to {most}")


def _validate_loss(config: Config) -> None:
    """Options that single losses read; absent ones keep the loss's own default."""
    per_token, margin = config.train.get("per_token", False), config.train.get("margin_ratio", 0.3)
    require(per_token in (True, False), "train.per_token", per_token, "True or False")
    require(
        not per_token or config.train.dap == "ipo", "train.per_token", per_token,
        f"False unless train.dap is 'ipo', not {config.train.dap!r}",
    )  # fmt: skip
    require(0 <= margin < float("inf"), "train.margin_ratio", margin, "a number of at least 0")


def validate_policy(config: Config, task: Task) -> None:
    """Raises InputError unless vocabulary and context of a given policy hold the task; reads config.json."""
    folder = config.policy.folder
    model = read_model("policy.folder", folder)
    require(
        isinstance(model.build(), models.Decoder), "policy.folder", folder,
        "a language model, as encoders and reward models write no responses",
    )  # fmt: skip
    words = task.tokenizer.get_vocab_size()
    require(
        model.vocab_size >= words, "policy.folder", folder,
        f"a vocabulary of at least the task's {words} tokens, not {model.vocab_size}",
    )  # fmt: skip
    need = task.prompt_length + task.response_length
    require(
        model.max_length >= need, "policy.folder", folder,
        f"a context of at least {need} tokens (prompt {task.prompt_length} + response "
        f"{task.response_length}), not {model.max_length}",
    )  # fmt: skip


def require_writable(name: str, folder: Path) -> None:
    """Makes a folder; raises InputError, naming the option that it came from, where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{name}: {folder}: {error.strerror}; valid: a folder that can be written") from None


def claim_workdir(config: Config, folder: Path) -> None:
    """Writes the config into a fresh work directory; refuses one that holds another config.

    Raises:
        InputError: naming the first field that differs, or a file that is no config.
    """
    mine = json.loads(config.to_json())
    file = folder / "config.json"
    if file.exists() and (found := difference(mine, _read_config(file))):
        name, here, there = found
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


def difference(mine: dict, theirs: dict) -> tuple[str, Any, Any] | None:
    """Name, mine and theirs of the first field that differs and is not free to; None if there is none."""
    here, there = flat(mine), flat(theirs)
    for name in sorted((here.keys() | there.keys()) - {*FREE_FIELDS}):
        values = here.get(name, "(absent)"), there.get(name, "(absent)")
        if values[0] != values[1]:
            return name, *values
    return None


def _read_config(file: Path) -> dict:
    try:
        config = json.loads(file.read_text())
    except ValueError:  # no JSON, or no text
        config = None
    if not isinstance(config, dict):
        raise InputError(f"workdir {file.parent}: its config.json is no run's; valid: another --workdir")
    return config


def validate_sampler(config: Config) -> None:
    """Raises InputError at the first field of config.sampler that cannot work, but for micro_batch."""
    cfg, batch = config.sampler, config.train.batch_size
    hosts = jax.distributed.is_initialized() and jax.process_count() > 1 and not config.ray.actors
    _require_sampler(cfg.kind in SAMPLERS, "kind", cfg.kind, f"one of {SAMPLERS}")
    _require_sampler(cfg.devices >= 0, "devices", cfg.devices, "at least 0")
    alone = not (cfg.devices and config.ray.actors)
    _require_sampler(
        alone, "devices", cfg.devices, f"0 with ray.actors={config.ray.actors}, which have devices"
    )
    if cfg.kind == "jax":
        _require_sampler(not (cfg.devices and hosts), "devices", cfg.devices, "0 in a run on several hosts")
        valid = f"0, or a divisor of train.batch_size={batch}"
        _require_sampler(batch % (cfg.devices or 1) == 0, "devices", cfg.devices, valid)
        return
    _require_sampler(not hosts, "kind", cfg.kind, "'jax' on several hosts")
    # A path is looked for where the command runs, a bare name on the PATH.
    found = shutil.which(cfg.python)
    _require_sampler(
        found is not None, "python", cfg.python, "the Python of an environment with vLLM: make sidecar"
    )
    for name in ("max_num_seqs", "restarts"):
        least = int(name == "max_num_seqs")
        _require_sampler(cfg[name] >= least, name, cfg[name], f"at least {least}")
    for name in ("kv_cache_gb", "start_timeout", "timeout"):
        _require_sampler(0 < cfg[name] < float("inf"), name, cfg[name], "a number above 0")


def _require_sampler(condition: bool, name: str, value: object, valid: str) -> None:
    require(condition, f"sampler.{name}", value, valid)


def _validate_remote_oracle(config: Config) -> None:
    """Raises InputError at the first field of config.oracle that cannot work; nobody is asked."""
    oracle = config.oracle
    for name in ("in_flight", "request_size", "attempts"):
        _require_oracle(oracle[name] >= 1, name, oracle[name], "at least 1")
    for name in ("timeout_s", "patience_s"):
        _require_oracle(0 < oracle[name] < math.inf, name, oracle[name], "a number of seconds above 0")
    if oracle.kind == "remote":
        _require_url("url", oracle.url, "http://127.0.0.1:8000")
        return
    _require_url("base_url", oracle.base_url, "https://api.openai.com/v1")
    _require_oracle(oracle.model != "", "model", oracle.model, "the name of a model at base_url")
    for name in ("requests_per_minute", "price_in", "price_out"):
        _require_oracle(0 <= oracle[name] < math.inf, name, oracle[name], "a number of at least 0")
    rated = [m for m in config.methods if m in METHODS and _reads_oracle(m)]
    if rated:
        raise InputError(f"config.methods={rated[0]!r}: valid with an oracle that has rewards, not a judge")


def _require_url(name: str, url: str, example: str) -> None:
    parts = urlsplit(url)
    _require_oracle(
        parts.scheme in ("http", "https") and bool(parts.hostname), name, url, f"a URL, as {example}"
    )


def _require_oracle(condition: bool, name: str, value: object, valid: str) -> None:
    require(condition, f"oracle.{name}", value, valid)


def _reads_oracle(method: str) -> bool:
    scorer = METHODS[method].scorer
    return scorer is not None and scorer.reads_oracle
