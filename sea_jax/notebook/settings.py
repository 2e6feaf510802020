"""Settings of a run that fit a small machine, its method and the prompts that were given."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sea_jax import models
from sea_jax.config.checks import get
from sea_jax.config.fields import to_config
from sea_jax.config.overrides import for_method, with_fields
from sea_jax.config.task import TextTask
from sea_jax.errors import InputError
from sea_jax.experiment.base_config import base_config, text_config
from sea_jax.experiment.workdir import require_writable
from sea_jax.tasks.tokenizer import Tokenizer, load_tokenizer
from sea_jax.types import Config

_FILE = "prompts.jsonl"
_LEAST_PROMPTS = 5  # of which one is held out, and one measures the posterior
_MOST_HELD = 64  # prompts of an evaluation
_RESPONSE = 32  # tokens, where no references show how long responses are
_LONGEST_REFERENCE = 128  # tokens that references alone may ask for
_MULTIPLE = 16  # prompt lengths are rounded up to it
_TRAINED_LAYERS = 8  # the last ones, of a policy that has more
_EVERY = 24  # labels between two evaluations


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Prompts that a user gave as a list.

    Attributes:
        texts: N texts.
        references: a good response to each; empty: there are none.
    """

    texts: tuple[str, ...]
    references: tuple[str, ...] = ()

    @classmethod
    def of(cls, prompts: Iterable[str] | None, references: Iterable[str] | None) -> "Prompts | None":
        """Checks texts of any kind of list; returns None where there are none.

        Raises:
            InputError: too few different prompts, one that is no text, or another number of references.
        """
        if prompts is None:
            if references is not None:
                raise InputError("references: given without prompts; valid is None, or both")
            return None
        found = cls(as_texts(prompts, "prompts"), as_texts(references or (), "references"))
        if found.number < _LEAST_PROMPTS:
            valid = f"at least {_LEAST_PROMPTS}"
            raise InputError(f"prompts: {found.number} different texts; valid is {valid}")
        if references is not None and len(found.references) != len(found.texts):
            valid = f"{len(found.texts)}, one per prompt"
            raise InputError(f"references: {len(found.references)} texts; valid is {valid}")
        return found

    @property
    def number(self) -> int:
        """Prompts without repetitions."""
        return len({text.strip() for text in self.texts})

    def write(self, folder: Path) -> str:
        """Writes the rows of a file in the work directory.

        Returns:
            The file's path, the same wherever the process runs.

        Raises:
            InputError: runs of the folder have other prompts, or it cannot be written.
        """
        rows = [dict(prompt=prompt) for prompt in self.texts]
        if self.references:
            pairs = zip(rows, self.references, strict=True)
            rows = [row | dict(reference=text) for row, text in pairs]
        content = "".join(json.dumps(row) + "\n" for row in rows)
        file = folder.absolute() / _FILE
        if not file.exists() or file.read_text() != content:
            if (folder / "runs").exists():
                valid = "valid: these, or another workdir"
                raise InputError(f"prompts: not those of the runs in {folder}; {valid}")
            require_writable("workdir", folder)
            part = file.with_suffix(".part")
            part.write_text(content)
            part.replace(file)
        return str(file)


def on_miniature() -> Config:
    """Returns a config of the embedded task that takes a minute or two on two cores."""
    config = base_config()
    config.sft.steps = 300
    # The function's taste is none of the family that a ranker and a pretrained prior know.
    config.backbone.update(kind="policy", num_prompts=64, num_responses=8)
    config.ensemble.update(kind="linear", prior="random")
    config.sea.num_responses = 8
    config.eval.update(num_prompts=64, batch_size=64, num_pairs=64, every_queries=_EVERY, reward_levels=())
    return config


def of_method(config: Config, method: str) -> Config:
    """Returns a config in which the overrides of a method are its own values, and there are no others.

    So a field that a user sets is the one that is read.
    """
    own = for_method(config, method)
    own.overrides = ConfigDict()
    return own


def on_prompts(config: Config | None, policy: str, prompts: Prompts) -> Config:
    """Returns a config whose sizes fit given prompts; the file of the prompts is yet to be named.

    Args:
        config: to begin from; None: `text_config`, in which the last layers alone learn.
        policy: folder or hub name, whose tokenizer counts tokens; '': that of the config.
        prompts: a fifth of them, at most 64, is held out, and as many measure the posterior.

    Raises:
        InputError: a prompt is too long, or the policy cannot be read.
    """
    made = text_config(TextTask()) if config is None else config
    policy = policy or made.policy.folder
    model = models.read_config(models.find(policy))
    if config is None:
        layers = _TRAINED_LAYERS if model.num_layers > _TRAINED_LAYERS else 0
        made = with_fields(made, {"policy.trained_layers": layers, "eval.every_queries": _EVERY})
    held = min(_MOST_HELD, prompts.number // _LEAST_PROMPTS)
    longest, response = _lengths(load_tokenizer(policy), prompts, model.max_length)
    task = TextTask(
        reference_column="reference" if prompts.references else "none",
        prompt_length=longest, response_length=response, num_tuning=held, num_heldout=held,
    )  # fmt: skip
    most = {f"eval.{name}": held for name in ("num_prompts", "num_pairs", "batch_size")}
    most |= {"backbone.num_prompts": prompts.number - 2 * held}
    sizes = {name: min(get(made, name), size) for name, size in most.items()}
    return with_fields(made, {"task": to_config(task).to_dict()} | sizes)


def _lengths(tokenizer: Tokenizer, prompts: Prompts, context: int) -> tuple[int, int]:
    """Returns the tokens of the longest prompt and of a response, which fit the policy's context together."""
    response = _RESPONSE
    if prompts.references:
        tokenised = tokenizer.backend.encode_batch(list(prompts.references), add_special_tokens=False)
        response = min(max(len(tokens.ids) for tokens in tokenised) + 1, _LONGEST_REFERENCE)
    sizes = [len(ids) for ids in tokenizer.encode([tokenizer.chat(text) for text in prompts.texts])]
    longest, most = max(sizes), context - response
    if longest > most:
        at = f"prompts[{sizes.index(longest)}]: {longest} tokens"
        valid = f"at most {most}, the policy's context less the {response} of a response"
        raise InputError(f"{at}; valid is {valid}")
    return min(-(-longest // _MULTIPLE) * _MULTIPLE, most), response


def as_texts(given: Iterable[str], name: str) -> tuple[str, ...]:
    """Returns texts of any kind of list.

    Raises:
        InputError: it is no list, or one is no text or empty.
    """
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise InputError(f"{name}={shown(given)}: valid is a list of texts")
    texts = tuple(given)
    for i, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{name}[{i}]={shown(text)}: valid is a text that is not empty")
    return texts


def shown(value: Any) -> str:
    """Returns a value as Python writes it, cut to a short line."""
    return " ".join(repr(value).split())[:60]
