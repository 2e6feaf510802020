"""`method=rm`: a reward model trained on preferences, and kept as a folder that an oracle can be made of."""

import json
from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from sea_jax import models, tasks
from sea_jax.config import validate as config_lib
from sea_jax.config.checks import at_least, get, one_of, read_model, require
from sea_jax.config.validate import is_text, validate_sampler
from sea_jax.experiment import pairs
from sea_jax.experiment.reward_scorer import make_oracle
from sea_jax.models import Decoder, RewardConfig, RewardModel
from sea_jax.oracles.reward_model import Encode, make_encode
from sea_jax.pretraining import policy, rm
from sea_jax.runtime.mesh import is_main, make_mesh, to_host
from sea_jax.runtime.sharding import shard_params
from sea_jax.tasks import preferences
from sea_jax.tasks.preferences import Pair
from sea_jax.tasks.protocol import SPLITS, Task
from sea_jax.tasks.tokenizer import CHAT, Tokenizer, load_tokenizer
from sea_jax.types import Array, Config, Params


class Source(NamedTuple):
    """Where training begins, and what it is made on."""

    start: str  # folder of a language model or of a reward model
    tokenizer: Tokenizer
    longest: int  # tokens of a text
    train: list[Pair]
    heldout: list[Pair]
    bought: int  # labels that the oracle was asked for, of both


def run(config: Config, cache: Path, folder: Path) -> str:
    """Trains a reward model (Eq. 5) and keeps it in `folder`/reward_model.

    Its trunk is that of config.policy.folder, a language model, under a new head; a sequence classifier keeps
    its own. Where that is empty it is the embedded task's SFT policy. Texts are read as an oracle made of the
    result reads them: config.oracle.chat says how.

    Args:
        config: the experiment's. Of real text config.task names a preference set; on the embedded task the
            pairs are samples of the starting policy, which config.oracle labels.
        cache: folder of what is made once.
        folder: the work directory; also gets rm.json, the numbers that are returned in words.

    Returns:
        Accuracy and loss on held-out pairs before and after, and the number of labels, in words.

    Raises:
        InputError: on a config, a model or data that cannot work.
    """
    check(config)
    mesh, key = make_mesh(**config.mesh), jax.random.key(config.rm.seed)
    head_key, sample_key, order_key = jax.random.split(key, 3)
    text = is_text(config)
    source = _preference_set(config, folder) if text else _samples(config, cache, folder, sample_key, mesh)
    encode = make_encode(source.tokenizer)
    padding = rm.padding_token(source.tokenizer, encode)
    model, params = policy.load_policy(config, source.start)
    model, params = rm.with_head(model, params, head_key, padding, source.longest)
    params = shard_params(mesh, model, params)
    before = _heldout(config, model, params, encode, source, mesh)
    tokens = rm.tokenize_pairs(encode, source.train)
    params = rm.train(config.rm, tokens, model, params, order_key, mesh, config.progress)
    after = _heldout(config, model, params, encode, source, mesh)
    params = to_host(params)
    if is_main():
        save(folder / "reward_model", model, params, source.tokenizer, source.start if text else "")
    return _report(config, folder, source, before, after)


def check(config: Config) -> None:
    """Raises InputError at the first field that cannot work; of models only config.json is read."""
    config_lib.validate_task(config)
    at_least(
        config, 1, "rm.steps", "rm.batch_size", "oracle.batch_size", "mesh.data", "mesh.fsdp", "mesh.tensor"
    )
    at_least(config, 0, "rm.seed", "rm.length")
    require(config.rm.learning_rate > 0, "rm.learning_rate", config.rm.learning_rate, "above 0")
    one_of(config, "oracle.chat", CHAT)
    # The data set says what is held out; the embedded task has two such splits.
    one_of(config, "eval.split", ("heldout",) if is_text(config) else SPLITS[1:])
    B, micro = config.rm.batch_size, config.rm.micro_batch
    require(
        micro >= 0 and B % (micro or B) == 0, "rm.micro_batch", micro,
        f"0, or a divisor of rm.batch_size={B}",
    )  # fmt: skip
    shards = config.mesh.data * config.mesh.fsdp
    valid = f"such that data · fsdp divides rm.batch_size={B}, rm.micro_batch={micro}"
    require(B % shards == micro % shards == 0, "mesh", config.mesh.to_dict(), valid)
    if folder := config.policy.folder:
        model = read_model("policy.folder", folder)
        require(
            isinstance(model.build(), Decoder) or is_classifier(model), "policy.folder", folder,
            "a language model, or a sequence classifier of one number",
        )  # fmt: skip
        require(
            config.rm.length <= model.max_length, "rm.length", config.rm.length,
            f"0 to {model.max_length}, the context of policy.folder={folder!r}",
        )  # fmt: skip


def is_classifier(model) -> bool:
    """Whether a config is that of a reward model with a linear head."""
    return type(model) is RewardConfig and model.num_labels == 1


def check_embedded(config: Config, task: Task) -> None:
    """Raises InputError at what the sampling and labelling of pairs cannot work with."""
    config_lib.validate_oracle(config)
    validate_sampler(config)
    at_least(config, 1, "rm.num_pairs", "eval.num_pairs", "eval.batch_size")
    at_least(config, 0, "task.oracle_seed", "sampler.micro_batch")
    temperature = config.train.temperature
    require(temperature > 0, "train.temperature", temperature, "above 0")
    one_of(config, "oracle.chat", ("auto", "no"))  # its tokenizer has no template
    for name, split in (("rm.num_pairs", "train"), ("eval.num_pairs", config.eval.split)):
        most = len(task.prompts[split])
        require(get(config, name) <= most, name, get(config, name), f"at most {most} ({split} split)")
    folder, words = config.policy.folder, task.tokenizer.get_vocab_size()
    if not folder:
        config_lib.validate_shape(config)
        config_lib.validate_sft(config)
    elif is_classifier(model := read_model("policy.folder", folder)):
        require(
            model.vocab_size >= words, "policy.folder", folder,
            f"a vocabulary of at least the task's {words} tokens, not {model.vocab_size}",
        )  # fmt: skip
    else:
        config_lib.validate_policy(config, task)


def _preference_set(config: Config, folder: Path) -> Source:
    """Pairs of a data set, for the tokenizer of config.policy.folder."""
    start = config.policy.folder
    model = read_model("policy.folder", start)
    tokenizer = load_tokenizer(start, chat=config.oracle.chat, vocab_size=model.vocab_size)
    longest = config.rm.length or model.max_length
    train, heldout = preferences.load(config.task, rm.pair_lengths(make_encode(tokenizer)), longest)
    config_lib.claim_workdir(config, folder)
    return Source(start, tokenizer, longest, train, heldout, 0)


def _samples(config: Config, cache: Path, folder: Path, key: Array, mesh: Mesh) -> Source:
    """Pairs of the embedded task, for its tokenizer."""
    task = tasks.load(config, cache / "task")
    check_embedded(config, task)
    config_lib.claim_workdir(config, folder)
    backend = task.tokenizer
    tokenizer = Tokenizer(
        task.name, cache / "task", backend, task.eos_id, task.pad_id, backend.get_vocab_size(), (), None, None
    )
    # A token that is no text decodes to a sign of three: what a policy may write has room, whatever it is.
    longest = config.rm.length or task.prompt_length + 4 * task.response_length
    found = pairs.load(config, cache, task, rm.pair_lengths(make_encode(tokenizer)), longest, key, mesh)
    start = config.policy.folder or policy.trained_policy(config, cache, task, mesh)
    return Source(start, tokenizer, longest, *found)


def _heldout(
    config: Config, model: RewardModel, params: Params, encode: Encode, source: Source, mesh: Mesh
) -> dict[str, float]:
    """As `rm.accuracy`, of the oracle that these parameters make."""
    oracle = make_oracle(model, params, encode, config.oracle.batch_size, mesh)
    return rm.accuracy(oracle, source.heldout)


def save(folder: Path, model: RewardModel, params: Params, tokenizer: Tokenizer, given: str) -> None:
    """A Hugging Face folder that transformers opens as a sequence classifier, and an oracle as its own.

    Args:
        folder: made if absent.
        model, params: on the host.
        tokenizer: what the texts were read with.
        given: a folder or hub name whose tokenizer's files are taken; empty: they are written.
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
    """Writes the numbers, and says them."""
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
