"""The command `rm`: trains a reward model on preferences, in a folder that an oracle can be made of."""

import contextlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from sea_jax import models, tasks
from sea_jax.config.checks import Checks
from sea_jax.config.oracle import KINDS, Oracle
from sea_jax.config.people import PEOPLE_KINDS
from sea_jax.config.policy import Policy, RewardTraining, Sft, check_trained_layers
from sea_jax.config.task import Task as TaskSection
from sea_jax.config.task import is_text
from sea_jax.config.train import Sampler
from sea_jax.experiment import inputs, pairs
from sea_jax.experiment.oracles import labelled_by
from sea_jax.experiment.reward_scorer import make_oracle
from sea_jax.experiment.validate import check_fields, check_size
from sea_jax.experiment.validate_parts import (
    check_oracle,
    check_policy_on_task,
    check_sampler,
    check_vocabulary,
    read_model,
)
from sea_jax.experiment.workdir import claim_workdir
from sea_jax.labels.journal import Journal
from sea_jax.models import Decoder, RewardConfig, RewardModel
from sea_jax.oracles.reward_model import Encode, make_encode
from sea_jax.pretraining import cache as cache_lib
from sea_jax.pretraining import policy, rm
from sea_jax.runtime.checkpoint_folder import open_folder
from sea_jax.runtime.mesh import is_main, make_mesh, to_host
from sea_jax.runtime.sharding import shard_params
from sea_jax.tasks import preferences
from sea_jax.tasks.preferences import Pair
from sea_jax.tasks.protocol import SPLITS, Task
from sea_jax.tasks.tokenizer import Tokenizer, load_tokenizer
from sea_jax.types import Array, Config, Params


class Source(NamedTuple):
    """The model that training begins from, and the pairs that it learns from."""

    start: str  # folder of a language model or of a reward model
    tokenizer: Tokenizer
    longest: int  # tokens of a text
    train: list[Pair]
    heldout: list[Pair]
    bought: int  # labels bought for both lists


def run(config: Config, cache: Path, folder: Path) -> str:
    """Trains a reward model (Eq. 5) and keeps it in `folder`/reward_model.

    Training begins from the language model in config.policy.folder under a new head, from a sequence
    classifier there with its own head, or, if that is empty, from the embedded task's SFT policy.
    config.oracle.chat decides how texts are formatted, here as in an oracle made of the result.

    Args:
        config: the experiment's. Of real text config.task names a preference set; on the embedded task the
            pairs are samples of the starting policy, which config.oracle labels.
        cache: folder of trained parts.
        folder: the work directory; it also gets rm.json with the reported numbers.

    Returns:
        A report of accuracy and loss on held-out pairs before and after, and of the number of labels.

    Raises:
        InputError: on a config, a model or data that cannot work.
    """
    task = _checked_task(config, cache)
    mesh, key = make_mesh(**config.mesh), jax.random.key(config.rm.seed)
    head_key, sample_key, order_key = jax.random.split(key, 3)
    if task is None:
        source = _preference_set(config, folder)
    else:
        source = _samples(config, cache, folder, task, sample_key, mesh)
    encode = make_encode(source.tokenizer)
    padding = rm.padding_token(source.tokenizer, encode)
    model, params = policy.load_policy(config, source.start)
    model, params = rm.with_head(model, params, head_key, padding, source.longest)
    params = shard_params(mesh, model, params)
    before = _heldout(config, model, params, encode, source, mesh)
    tokens = rm.tokenize_pairs(encode, source.train)
    with open_folder(folder / "checkpoints", config.checkpoint) as saved:
        params = rm.train(config.rm, tokens, model, params, order_key, mesh, config.progress, saved)
    after = _heldout(config, model, params, encode, source, mesh)
    params = to_host(params)
    if is_main():
        save(folder / "reward_model", model, params, source.tokenizer, "" if task else source.start)
    cache_lib.remove(folder / "checkpoints")
    return _report(config, folder, source, before, after)


def _checked_task(config: Config, cache: Path) -> Task | None:
    """Checks the config; returns the embedded task, or None where the task is real text."""
    checks = check(config)
    if not checks.sound("task") or is_text(config):
        checks.raise_problems()
        return None
    task = tasks.load(config, cache / "task")
    check_embedded(checks, task)
    checks.raise_problems()
    return task


def check(config: Config) -> Checks:
    """Checks all that can be known before any data are read; of models only config.json is."""
    checks = check_fields(config)
    for section in (TaskSection, RewardTraining):
        section.check(checks)
    # The data set says what is held out; the embedded task has two such splits.
    if checks.sound("task.name"):
        checks.one_of("eval.split", ("heldout",) if is_text(config) else SPLITS[1:])
    if not checks.sound("policy.folder") or not config.policy.folder:
        return checks
    if (model := read_model(checks, "policy.folder")) is not None:
        writes = isinstance(model.build(), Decoder) or is_classifier(model)
        valid = "a language model, or a sequence classifier of one number"
        checks.require(writes, "policy.folder", valid)
        check_trained_layers(checks, model.num_layers)
        if checks.sound("rm.length"):
            valid = f"0 to {model.max_length}, the context of policy.folder={config.policy.folder!r}"
            checks.require(config.rm.length <= model.max_length, "rm.length", valid)
    return checks


def is_classifier(model: Any) -> bool:
    """Returns whether a config is that of a reward model with a linear head."""
    return type(model) is RewardConfig and model.num_labels == 1


def check_embedded(checks: Checks, task: Task) -> None:
    """Checks that pairs can be sampled and labelled on the embedded task."""
    config = checks.config
    Oracle.check(checks)
    Sampler.check(checks)
    check_sampler(checks)
    check_oracle(checks)
    if checks.sound("oracle.kind"):
        others = tuple(kind for kind in KINDS if kind not in PEOPLE_KINDS)  # no run asks them and waits
        checks.one_of("oracle.kind", others)
    checks.one_of("oracle.chat", ("auto", "no"))  # its tokenizer has no template
    check_size(checks, task, "rm.num_pairs", "train")
    if checks.sound("eval.split"):
        check_size(checks, task, "eval.num_pairs", config.eval.split)
    if not checks.sound("policy.folder"):
        return
    if not config.policy.folder:
        Policy.check(checks)
        Sft.check(checks)
    elif is_classifier(model := read_model(checks, "policy.folder")):
        check_vocabulary(checks, model, task)
    else:
        check_policy_on_task(checks, task)


def _preference_set(config: Config, folder: Path) -> Source:
    """Loads the pairs of a data set, with the tokenizer of config.policy.folder."""
    start = config.policy.folder
    model = models.read_config(models.find(start))
    tokenizer = load_tokenizer(start, chat=config.oracle.chat, vocab_size=model.vocab_size)
    longest = config.rm.length or model.max_length
    train, heldout = preferences.load(config.task, rm.pair_lengths(make_encode(tokenizer)), longest)
    claim_workdir(config, folder)
    inputs.claim(config, folder, inputs.of_rm(config, None))
    return Source(start, tokenizer, longest, train, heldout, 0)


def _samples(config: Config, cache: Path, folder: Path, task: Task, key: Array, mesh: Mesh) -> Source:
    """Samples pairs of the embedded task, for its tokenizer."""
    claim_workdir(config, folder)
    inputs.claim(config, folder, inputs.of_rm(config, task))
    backend = task.tokenizer
    tokenizer = Tokenizer(
        task.name, cache / "task", backend, task.eos_id, task.pad_id, backend.get_vocab_size(), (), None, None
    )
    # A token that is not valid text decodes to a character of up to three tokens.
    longest = config.rm.length or task.prompt_length + 4 * task.response_length
    length = rm.pair_lengths(make_encode(tokenizer))
    with Journal(folder, labelled_by(config, 0)) if is_main() else contextlib.nullcontext() as journal:
        found = pairs.load(config, cache, task, length, longest, key, mesh, journal)
    start = config.policy.folder or policy.trained_policy(config, cache, task, mesh)
    return Source(start, tokenizer, longest, *found)


def _heldout(
    config: Config, model: RewardModel, params: Params, encode: Encode, source: Source, mesh: Mesh
) -> dict[str, float]:
    """Measures the held-out pairs with an oracle made of the parameters, as the saved model will score."""
    oracle = make_oracle(model, params, encode, config.oracle.batch_size, mesh)
    return rm.accuracy(oracle, source.heldout)


def save(folder: Path, model: RewardModel, params: Params, tokenizer: Tokenizer, given: str) -> None:
    """Saves a Hugging Face folder that transformers and an oracle open as a sequence classifier.

    Args:
        folder: made if absent.
        model, params: on the host.
        tokenizer: the tokenizer of training.
        given: folder or hub name whose tokenizer files are copied; empty: they are written.
    """
    models.save(folder, model, params, None if given else tokenizer.backend)
    if given:
        policy.copy_tokenizer(given, folder)
    if (padding := model.config.padding_idx) is not None:
        file = folder / "tokenizer_config.json"
        described = json.loads(file.read_text()) if file.exists() else {}
        described["pad_token"] = tokenizer.backend.id_to_token(padding)
        file.write_text(json.dumps(described, indent=2) + "\n")


def _report(config: Config, folder: Path, source: Source, before: dict, after: dict) -> str:
    """Writes rm.json and returns the report."""
    sizes = {"train": len(source.train), "heldout": len(source.heldout)}
    if is_main():
        numbers = {"pairs": sizes, "labels_bought": source.bought, "before": before, "after": after}
        (folder / "rm.json").write_text(json.dumps(numbers, indent=2) + "\n")
    origin = f"{source.bought:,} bought from the oracle" if source.bought else "of the preference set"
    return (
        f"accuracy on {sizes['heldout']:,} {config.eval.split} pairs: {before['accuracy']:.4f} before, "
        f"{after['accuracy']:.4f} after {config.rm.steps} steps\n"
        f"nats a pair: {before['nll']:.4f} before, {after['nll']:.4f} after\n"
        f"labels: {sizes['train']:,} to train on, {sizes['heldout']:,} held out, {origin}\n"
        f"reward model: {folder / 'reward_model'}"
    )
