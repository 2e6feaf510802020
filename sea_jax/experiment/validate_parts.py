"""Checks of the parts of an experiment: who samples, who is the oracle, and the models that they are."""

import shutil
from importlib.util import find_spec
from typing import Any

import jax

from sea_jax import models
from sea_jax.actors.make import KINDS as SAMPLERS
from sea_jax.config.checks import Checks
from sea_jax.config.people import PEOPLE_KINDS
from sea_jax.config.policy import check_trained_layers
from sea_jax.config.posterior import check_layer
from sea_jax.errors import InputError
from sea_jax.models.convert import CLASSES
from sea_jax.oracles import function
from sea_jax.oracles.labeller import MODES
from sea_jax.pretraining.backbone import SEED_OFFSET
from sea_jax.tasks.protocol import Task

REWARD_CLASSES = [name for heads in CLASSES.values() for name, head in heads.items() if head]


def read_model(checks: Checks, field: str) -> Any:
    """Returns the shape of the model that a field names; None, with a problem added, if it cannot be read.

    Only config.json is read.
    """
    folder = checks.get(field)
    try:
        return models.read_config(models.find(folder))
    except InputError as error:
        checks.add(f"config.{field}={folder!r}: {error}", field)
        return None


def check_ray(checks: Checks) -> None:
    """Requires Ray where there are workers elsewhere."""
    for name in ("ray.actors", "ray.oracles"):
        if checks.sound(name):
            there = not checks.get(name) or find_spec("ray") is not None
            checks.require(there, name, "0 without Ray: pip install 'sea_jax[ray]'")


def check_sampler(checks: Checks) -> None:
    """Requires a kind of sampler that there is here, on one host unless it is of this process."""
    checks.one_of("sampler.kind", SAMPLERS)
    if not checks.sound("sampler.kind", "ray.actors"):
        return
    sampler, actors = checks.config.sampler, checks.config.ray.actors
    hosts = jax.distributed.is_initialized() and jax.process_count() > 1 and not actors
    if sampler.kind == "jax":
        if checks.sound("sampler.devices"):
            alone = not (sampler.devices and hosts)
            checks.require(alone, "sampler.devices", "0 in a run on several hosts")
        return
    checks.require(not hosts, "sampler.kind", "'jax' on several hosts")
    if checks.sound("sampler.python"):
        # A path is looked for where the command runs, a bare name on the PATH.
        found = shutil.which(sampler.python) is not None
        checks.require(found, "sampler.python", "the Python of an environment with vLLM: make sidecar")


def check_oracle(checks: Checks) -> None:
    """Requires labels of a known kind, of a reward model one number per text, of a function its form."""
    checks.one_of("oracle.labels", MODES)
    if checks.sound("oracle.kind", "oracle.function") and checks.config.oracle.kind == "function":
        with checks.collecting("oracle.function"):
            function.load(checks.config.oracle.function)
    if checks.sound("oracle.kind") and checks.config.oracle.kind in PEOPLE_KINDS:
        hosts = jax.distributed.is_initialized() and jax.process_count() > 1
        checks.require(not hosts, "oracle.kind", "another on several hosts")
    if not checks.sound("oracle.kind", "oracle.folder") or checks.config.oracle.kind != "reward_model":
        return
    if (model := read_model(checks, "oracle.folder")) is not None:
        rates = isinstance(model, models.RewardConfig) and model.num_labels == 1
        valid = f"a reward model of one number, one of {sorted(REWARD_CLASSES)}"
        checks.require(rates, "oracle.folder", valid)


def check_oracle_seeds(checks: Checks) -> None:
    """Requires hidden rewards that the backbone was not pretrained on: those have the seeds above."""
    if checks.sound("task.oracle_seed", "num_seeds"):
        most = SEED_OFFSET - checks.config.num_seeds
        checks.require(checks.config.task.oracle_seed <= most, "task.oracle_seed", f"in [0, {most}]")


def check_policy_on_task(checks: Checks, task: Task) -> None:
    """Requires of a given policy a vocabulary and a context that hold the task, and the states' layer."""
    if not checks.sound("policy.folder") or not checks.config.policy.folder:
        return
    if (model := read_model(checks, "policy.folder")) is None:
        return
    writes = isinstance(model.build(), models.Decoder)
    valid = "a language model, as encoders and reward models write no responses"
    checks.require(writes, "policy.folder", valid)
    if not writes:
        return
    check_vocabulary(checks, model, task)
    check_layer(checks, model.num_layers)
    check_trained_layers(checks, model.num_layers)
    need = task.prompt_length + task.response_length
    checks.require(
        model.max_length >= need, "policy.folder",
        f"a context of at least {need} tokens (prompt {task.prompt_length} + response "
        f"{task.response_length}), not {model.max_length}",
    )  # fmt: skip


def check_vocabulary(checks: Checks, model: Any, task: Task) -> None:
    """Requires a token for each of the task's."""
    words = task.tokenizer.get_vocab_size()
    valid = f"a vocabulary of at least the task's {words} tokens, not {model.vocab_size}"
    checks.require(model.vocab_size >= words, "policy.folder", valid)
