"""Prepares a frozen backbone on samples of the starting policy, and priors on its features."""

import abc
import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from sea_jax import tasks
from sea_jax.ensemble.features import Extractor
from sea_jax.models import Decoder
from sea_jax.models.generate import make_sampler
from sea_jax.pretraining import backbone as backbone_lib
from sea_jax.pretraining import cache
from sea_jax.runtime.mesh import to_host
from sea_jax.tasks.batching import padded_batches
from sea_jax.tasks.protocol import Task
from sea_jax.types import Config, Params

_PROMPTS = 100  # sampled at once


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared(abc.ABC):
    """Makes the parts that its folder lacks, and reads the others; a subclass knows the backbone.

    Attributes:
        config: the experiment's config.
        folder: of prepared parts.
        task, model, params: the task and π_ref.
        mesh: its devices share each batch.
    """

    config: Config
    folder: Path
    task: Task
    model: Decoder
    params: Params
    mesh: Mesh

    @property
    @abc.abstractmethod
    def backbone(self) -> Extractor:
        """The frozen backbone."""

    @property
    @abc.abstractmethod
    def fields(self) -> dict[str, Any]:
        """All that the backbone and the samples depend on."""

    def prior(self, kind: str) -> Params:
        """Returns the prior of a kind of posterior: heads to draw from, or a Gaussian over linear rewards.

        The task must have a family of rewards.
        """
        return {"mlp": self._prior_heads, "linear": self._linear_prior}[kind]()

    def _linear_prior(self) -> Params:
        """Returns the mean [E] and precision [E, E] of the linear rewards that fit the family's."""
        folder = self.folder / f"linear-{cache.fingerprint(self._prior_fields)}"
        if not folder.exists():
            prior = backbone_lib.fit_linear_prior(self.backbone, self.samples, self.rewards)
            cache.write_params(folder, prior)
        return cache.read_params(folder)

    def _prior_heads(self) -> Params:
        """Returns heads trained on one reward of the family each; leaves [P, ...]."""
        cfg, hidden = self.config, tuple(self.config.ensemble.hidden)
        fields = self._prior_fields | {"prior_heads": cfg.prior_heads.to_dict(), "hidden": list(hidden)}
        folder = self.folder / f"heads-{cache.fingerprint(fields)}"
        if not folder.exists():
            key = jax.random.fold_in(jax.random.key(cfg.backbone.seed), 1)  # the backbone has the key itself
            data = self.samples, self.rewards
            trained = backbone_lib.train_prior_heads(cfg.prior_heads, hidden, self.backbone, *data, key)
            cache.write_params(folder, trained)
        return cache.read_params(folder)

    @property
    def _prior_fields(self) -> dict[str, Any]:
        rewards = self._family.draw(backbone_lib.SEED_OFFSET).tolist()
        return self.fields | {"rewards": rewards}

    @functools.cached_property
    def _family(self) -> tasks.RewardFamily:
        name = self.config.backbone.family or self.config.task.name
        family = tasks.find(name).reward_family
        assert family is not None, name  # the checks of the config see to it
        return family

    @functools.cached_property
    def samples(self) -> tuple[np.ndarray, ...]:
        """Train prompts and responses of π_ref: prompts [N, L], mask, tokens [N, M, T], mask."""
        prompts, mask = self.task.encode_prompts(self._texts)
        return prompts, mask, *self._sample(prompts, mask)

    @functools.cached_property
    def rewards(self) -> np.ndarray:
        """Rewards [N, M, S] f32 of the samples under S draws of the family, never an oracle's."""
        cfg, (tokens, mask) = self.config.backbone, self.samples[2:]
        repeated = [text for text in self._texts for _ in range(cfg.num_responses)]
        responses = [text for row in self.task.decode(tokens, mask) for text in row]
        seeds = range(backbone_lib.SEED_OFFSET, backbone_lib.SEED_OFFSET + cfg.num_rewards)
        rewards = self._family.rewards(repeated, responses, seeds)
        return rewards.reshape(*tokens.shape[:2], -1).astype(np.float32)

    @property
    def _texts(self) -> tuple[str, ...]:
        return self.task.prompts["train"][: self.config.backbone.num_prompts]

    def _sample(self, prompts: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Samples M responses to each of N prompts [N, L]: tokens [N, M, T] and their mask."""
        cfg, task = self.config.backbone, self.task
        sample = make_sampler(
            self.model, cfg.num_responses, task.response_length, cfg.temperature,
            task.eos_id, task.pad_id, self.mesh, self.config.sampler.micro_batch,
        )  # fmt: skip
        key, parts = jax.random.key(cfg.seed), []
        for start, rows, size in padded_batches(len(prompts), _PROMPTS):
            out = sample(self.params, prompts[rows], mask[rows], jax.random.fold_in(key, start))
            tokens, token_mask = to_host((out.tokens, out.mask))
            parts.append((tokens[:size], token_mask[:size]))
        return np.concatenate([t for t, _ in parts]), np.concatenate([m for _, m in parts])
