"""Pairs for the command `rm` on an embedded task: samples of the starting policy that the oracle labels.

Eq. 5 is over pairs of a behaviour policy, "typically the supervised fine-tuned policy π_sft".
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sea_jax import models
from sea_jax.actors.make import sampler_for
from sea_jax.actors.sampler import new_version, sample_now
from sea_jax.errors import InputError
from sea_jax.experiment.oracles import make_oracles
from sea_jax.labels.journal import Journal
from sea_jax.models import RewardConfig
from sea_jax.oracles.labeller import Labeller, Origin
from sea_jax.pretraining import policy
from sea_jax.runtime.mesh import broadcast_from_main, to_host
from sea_jax.tasks.batching import padded_batches
from sea_jax.tasks.preferences import Length, Pair
from sea_jax.tasks.protocol import Task
from sea_jax.types import Array, Config


def load(
    config: Config, cache: Path, task: Task, length: Length, longest: int, key: Array, mesh: Mesh,
    journal: Journal | None = None,
) -> tuple[list[Pair], list[Pair], int]:  # fmt: skip
    """Samples and labels pairs of train prompts and of held-out prompts.

    Args:
        config: rm.num_pairs and eval.num_pairs prompts; train.temperature; oracle and task.oracle_seed.
        cache: folder of trained parts.
        task: its prompts.
        length, longest: see `preferences.load`.
        key: [] key of the samples.
        mesh: its devices share each batch.
        journal: gets the labels, and has those that were bought before; None: they are in memory only.

    Returns:
        Train pairs, held-out pairs, and the number of labels bought for both.

    Raises:
        InputError: the policy has only one response to each prompt, or the oracle answers nothing.
    """
    model, params = policy.load_policy(config, policy_folder(config, cache, task, mesh), mesh)
    sampler = sampler_for(config, task, model, mesh)
    sample = functools.partial(
        sample_now, sampler, new_version(params),
        num_responses=2, temperature=config.train.temperature,
    )  # fmt: skip
    folder = None if journal is None else journal.file.parent
    oracle = make_oracles(config, mesh, task, folder)(config.task.oracle_seed)
    labels, flips = config.oracle.labels, config.oracle.flip_probability
    labeller = Labeller(oracle, labels, flips, journal=journal, broadcast=broadcast_from_main)
    found = []
    sizes = {"train": config.rm.num_pairs, config.eval.split: config.eval.num_pairs}
    with contextlib.closing(sampler):
        for i, (split, size) in enumerate(sizes.items()):
            prompts, own = task.prompts[split][:size], jax.random.fold_in(key, i)
            drawn = sample_pairs(task, sample, prompts, config.eval.batch_size, own)
            duels = distinct(drawn, length, longest)
            if not duels:
                raise InputError(
                    f"config.train.temperature={config.train.temperature}: all {size} pairs of samples are "
                    "equal; valid is a higher temperature"
                )
            found.append(label(labeller, duels, 2 * config.rm.seed + i, step=i))
            if not found[-1]:
                raise InputError(
                    f"config.oracle.kind={config.oracle.kind!r}: none of {len(duels)} pairs got an answer"
                )
    return found[0], found[1], labeller.num_queries


def policy_folder(config: Config, cache: Path, task: Task, mesh: Mesh) -> str:
    """Returns the folder of the policy to sample: the user's language model if one is given, else π_sft."""
    folder = config.policy.folder
    if folder and not isinstance(models.read_config(models.find(folder)), RewardConfig):
        return folder
    alone: Config = ConfigDict(config.to_dict())
    alone.policy.folder = ""
    return policy.trained_policy(alone, cache, task, mesh)


def sample_pairs(task: Task, sample: Callable, prompts: Sequence[str], batch: int, key: Array) -> list[Pair]:
    """Samples two responses to each prompt; returns pairs without labels.

    Args:
        task: encodes and decodes.
        sample: (tokens [batch, L], mask, key) -> Responses [batch, 2, T].
        prompts: N texts.
        batch: prompts at once; the last batch is filled up, for one shape.
        key: [] key.
    """
    tokens, mask = task.encode_prompts(prompts)
    texts: list[list[str]] = []
    for start, rows, _ in padded_batches(len(tokens), batch):
        out = sample(tokens[rows], mask[rows], jax.random.fold_in(key, start))
        texts += task.decode(*to_host((out.tokens, out.mask)))
    return [Pair(x, *two) for x, two in zip(prompts, texts, strict=False)]


def distinct(drawn: Sequence[Pair], length: Length, longest: int) -> list[Pair]:
    """Keeps pairs of different responses that are short enough; logs how many are dropped."""
    differ = [pair for pair in drawn if pair.chosen != pair.rejected]
    kept = [pair for pair, n in zip(differ, length(differ), strict=True) if n <= longest]
    logging.info(
        "of %d pairs of samples dropped: %d of equal responses, %d over %d tokens",
        len(drawn), len(drawn) - len(differ), len(differ) - len(kept), longest,
    )  # fmt: skip
    return kept


def label(labeller: Labeller, duels: Sequence[Pair], seed: int, step: int = 0) -> list[Pair]:
    """Buys a label for each pair and puts the preferred response first.

    Pairs that the oracle does not answer are dropped.

    Args:
        labeller: asks the oracle.
        duels: pairs without labels.
        seed: of the labels' draws.
        step: under which the journal keeps them.
    """
    origin = Origin(step, 0, np.arange(len(duels)))
    prefers_first, answered = labeller.label(*zip(*duels, strict=True), rng_seed=seed, origin=origin)
    return [
        pair if first else Pair(pair.prompt, pair.rejected, pair.chosen)
        for pair, first, has_label in zip(duels, prefers_first, answered, strict=True)
        if has_label
    ]
