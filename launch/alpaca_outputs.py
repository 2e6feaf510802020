"""Generates a policy's outputs for AlpacaEval's prompts, and goes on where a file of them ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from launch import alpaca_files
from launch.alpaca_files import Row
from sea_jax import models
from sea_jax.actors.jax_sampler import JaxSampler
from sea_jax.actors.sampler import new_version, sample_now
from sea_jax.errors import InputError
from sea_jax.models.generate import BatchSlice
from sea_jax.oracles.reward_model import bucket
from sea_jax.pretraining import content
from sea_jax.runtime.mesh import make_mesh, to_host
from sea_jax.runtime.sharding import shard_params
from sea_jax.tasks.protocol import Task
from sea_jax.tasks.tokenizer import load_tokenizer


class Sampling(NamedTuple):
    """What outputs depend on besides the prompt; each row of the file has these fields too."""

    policy: str  # of its content
    temperature: float  # 0 is greedy
    max_new_tokens: int  # EOS included
    seed: int
    dtype: str  # of activations
    chat: str  # as `load_tokenizer`


def sampling(
    policy: str, temperature: float, max_new_tokens: int, seed: int, dtype: str, chat: str
) -> Sampling:
    """Returns the settings of a policy's outputs; reads all its files.

    Args:
        policy: folder or hub name in Hugging Face's layout.
        temperature, max_new_tokens, seed, dtype, chat: as in `Sampling`.

    Raises:
        InputError: there is no such policy, or a file cannot be read.
    """
    return Sampling(content.of_model(policy), temperature, max_new_tokens, seed, dtype, chat)


def read_done(file: Path, prompts: Sequence[Row], name: str, settings: Sampling) -> dict[str, Row]:
    """Reads the outputs that exist, by instruction; none where there is no file.

    Raises:
        InputError: a row is of another model, other settings or other prompts.
    """
    if not file.exists():
        return {}
    known, wanted = {row["instruction"] for row in prompts}, settings._asdict() | {"generator": name}
    rows, other = alpaca_files.read_outputs(file), "or another --output"
    for at, row in enumerate(rows):
        for field, value in wanted.items():
            if row.get(field) != value:
                raise InputError(f"{file}, row {at}: {field}={row.get(field)!r}; valid is {value!r}, {other}")
        if row["instruction"] not in known:
            valid = f"one of --prompts, {other}"
            raise InputError(f"{file}, row {at}: instruction={row['instruction']!r:.60}; valid is {valid}")
    return {row["instruction"]: row for row in rows}


def generate(
    policy: str, prompts: Sequence[Row], limit: int, file: Path, name: str, settings: Sampling,
    batch_size: int,
) -> list[Row]:  # fmt: skip
    """Generates the outputs that a file lacks, and writes it after each batch.

    An output depends on the seed and on the prompt's place among all prompts. But for rounding it depends
    neither on the limit, nor on where an earlier call was stopped, nor on the batch size.

    Args:
        policy: as `sampling`.
        prompts: all N of them.
        limit: the first so many get an output.
        file: of the outputs.
        name: of the model, for the rows.
        settings: see `Sampling`.
        batch_size: prompts at once.

    Returns:
        The outputs of the first `limit` prompts, in their order.

    Raises:
        InputError: as `read_done`; the policy is no language model, or a prompt is too long for it.
        StorageError: the disk did not take the file.
    """
    done = read_done(file, prompts, name, settings)
    wanted = [row["instruction"] for row in prompts[:limit]]
    size = min(batch_size, limit)
    writer = None
    for start in range(0, limit, size):
        first = min(start, limit - size)  # the last batch overlaps the one before
        lacking = [at for at in range(first, first + size) if wanted[at] not in done]
        if lacking:
            writer = writer or _Writer(policy, wanted, len(prompts), settings, size)
            texts = writer.write(first)
            done |= {wanted[at]: _row(prompts[at], texts[at - first], name, settings) for at in lacking}
            alpaca_files.write_list(file, [done[text] for text in map(_instruction, prompts) if text in done])
            print(f"{sum(text in done for text in wanted)} of {limit} outputs", flush=True)
    return [done[text] for text in wanted]


def _instruction(row: Row) -> str:
    return row["instruction"]


def _row(prompt: Row, output: str, name: str, settings: Sampling) -> Row:
    dataset = {"dataset": prompt["dataset"]} if "dataset" in prompt else {}
    row = {"instruction": prompt["instruction"], **dataset, "output": output, "generator": name}
    return row | settings._asdict()


class _Writer:
    """A policy in memory that writes outputs.

    Args:
        policy: folder or hub name.
        prompts: the first texts of N, at least `batch_size`.
        total: N, which the draws depend on.
        settings: see `Sampling`.
        batch_size: prompts at once.
    """

    def __init__(self, policy: str, prompts: Sequence[str], total: int, settings: Sampling, batch_size: int):
        self._total, self._settings, self._batch_size = total, settings, batch_size
        config = models.read_config(models.find(policy), dtype=jax.numpy.dtype(settings.dtype).type)
        if not isinstance(config.build(), models.Decoder):
            valid = "a language model, as encoders and reward models write no outputs"
            raise InputError(f"policy {policy!r}: {type(config.build()).__name__}; valid is {valid}")
        self._task = _task(policy, config, settings)
        self._prompts, self._lengths = prompts, _lengths(self._task, prompts, config.max_length)
        mesh = make_mesh(fsdp=len(jax.devices()))
        model, params = models.load(policy, dtype=jax.numpy.dtype(settings.dtype).type)
        self._policy = new_version(shard_params(mesh, model, params))
        ids = self._task.eos_id, self._task.pad_id
        self._sampler = JaxSampler(model, settings.max_new_tokens, *ids, mesh, batch_size)

    def write(self, first: int) -> list[str]:
        """Returns the outputs of a batch that begins with prompt `first`, one text per prompt."""
        rows = slice(first, first + self._batch_size)
        width = bucket(max(self._lengths[rows]), self._task.prompt_length)  # few widths, so few programs
        task = dataclasses.replace(self._task, prompt_length=width)
        responses = sample_now(
            self._sampler, self._policy, *task.encode_prompts(self._prompts[rows]),
            jax.random.key(self._settings.seed), num_responses=1, temperature=self._settings.temperature,
            batch_slice=BatchSlice(first, self._total),
        )  # fmt: skip
        tokens, mask = to_host((responses.tokens, responses.mask))
        return self._task.decode(tokens[:, 0], mask[:, 0])


def _task(policy: str, config: Any, settings: Sampling) -> Task:
    """Returns a task without prompts, which encodes and decodes with the policy's tokenizer and template."""
    tokenizer = load_tokenizer(policy, chat=settings.chat, vocab_size=config.vocab_size)
    template = tokenizer.chat if tokenizer.template is not None else None
    return Task(
        name="alpaca_eval", tokenizer=tokenizer.backend, pad_id=tokenizer.pad_id, eos_id=tokenizer.eos_id,
        prompt_length=config.max_length - settings.max_new_tokens, response_length=settings.max_new_tokens,
        prompts={}, references={}, prefix_ids=tokenizer.prefix_ids, template=template,
    )  # fmt: skip


def _lengths(task: Task, prompts: Sequence[str], context: int) -> list[int]:
    """Returns the lengths of prompts in tokens; raises InputError where one does not fit."""
    lengths = [len(ids) for ids in task.prompt_ids(prompts)]
    for at, length in enumerate(lengths):
        if length > task.prompt_length:
            room = f"the policy's {context} less --max_new_tokens={task.response_length}"
            valid = f"at most {task.prompt_length} tokens, {room}"
            raise InputError(f"--prompts, row {at}: instruction of {length} tokens; valid is {valid}")
    return lengths
