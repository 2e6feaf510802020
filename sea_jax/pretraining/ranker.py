"""Trains the embedded task's frozen backbone and the heads of its prior on the starting policy's samples."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from sea_jax import tasks
from sea_jax.ensemble import features
from sea_jax.models import Decoder
from sea_jax.models.generate import make_sampler
from sea_jax.pretraining import backbone as backbone_lib
from sea_jax.pretraining import cache
from sea_jax.runtime.mesh import replicate, to_host
from sea_jax.tasks.batching import padded_batches
from sea_jax.tasks.protocol import Task
from sea_jax.types import Config, Params

_PROMPTS = 100  # sampled at once


@dataclasses.dataclass(frozen=True, eq=False)
class Ranker:
    """Trains the parts that its folder lacks, and reads the others.

    Attributes:
        config: the experiment's config; its task has a reward family.
        folder: of trained parts.
        task, model, params: the task and π_ref.
        mesh: its devices share each batch.
    """

    config: Config
    folder: Path
    task: Task
    model: Decoder
    params: Params
    mesh: Mesh

    @functools.cached_property
    def backbone(self) -> features.Backbone:
        """The decoder with gated pooling."""
        cfg = self.config.backbone
        pooling = features.GatedPooling(cfg.pooled_width, self.model.config.vocab_size, cfg.gate_hidden)
        folder = self.folder / f"backbone-{cache.fingerprint(self._fields)}"
        if not folder.exists():
            key = jax.random.key(cfg.seed)
            trained = backbone_lib.train(
                cfg, self.model, self.params, *self._data, key, self.mesh, self.config.progress
            )
            cache.write_params(folder, trained.params)
        return features.Backbone(self.model, pooling, replicate(self.mesh, cache.read_params(folder)))

    def prior(self, kind: str) -> Params:
        """Returns the prior of a kind of posterior: heads to draw from, or a Gaussian over linear rewards."""
        return {"mlp": self._prior_heads, "linear": self._linear_prior}[kind]()

    def _linear_prior(self) -> Params:
        """Returns the mean [E] and precision [E, E] of the linear rewards that fit the family's."""
        folder = self.folder / f"linear-{cache.fingerprint(self._fields)}"
        if not folder.exists():
            cache.write_params(folder, backbone_lib.fit_linear_prior(self.backbone, *self._data))
        return cache.read_params(folder)

    def _prior_heads(self) -> Params:
        """Returns heads trained on one reward of the family each; leaves [P, ...]."""
        cfg, hidden = self.config, tuple(self.config.ensemble.hidden)
        fields = self._fields | {"prior_heads": cfg.prior_heads.to_dict(), "hidden": list(hidden)}
        folder = self.folder / f"heads-{cache.fingerprint(fields)}"
        if not folder.exists():
            key = jax.random.fold_in(jax.random.key(cfg.backbone.seed), 1)  # the backbone has the key itself
            trained = backbone_lib.train_prior_heads(cfg.prior_heads, hidden, self.backbone, *self._data, key)
            cache.write_params(folder, trained)
        return cache.read_params(folder)

    @functools.cached_property
    def _rewards(self) -> tasks.RewardFamily:
        family = tasks.find(self.config.task.name).reward_family
        assert family is not None, self.config.task.name  # the checks of the config see to it
        return family

    @property
    def _fields(self) -> dict[str, Any]:
        """The fields that the backbone depends on."""
        cfg = self.config
        rewards = self._rewards.draw(backbone_lib.SEED_OFFSET).tolist()
        parts = {name: cfg[name].to_dict() for name in ("policy", "sft", "backbone")}
        return parts | {"task": self.task.fingerprint, "rewards": rewards}

    @functools.cached_property
    def _data(self) -> tuple[Any, np.ndarray]:
        """Samples of π_sft on train prompts, and their rewards [N, M, S] under S draws, never an oracle's."""
        cfg, task = self.config.backbone, self.task
        texts = task.prompts["train"][: cfg.num_prompts]
        prompts, mask = task.encode_prompts(texts)
        tokens, token_mask = self._samples(prompts, mask)
        repeated = [text for text in texts for _ in range(cfg.num_responses)]
        responses = [text for row in task.decode(tokens, token_mask) for text in row]
        seeds = range(backbone_lib.SEED_OFFSET, backbone_lib.SEED_OFFSET + cfg.num_rewards)
        rewards = self._rewards.rewards(repeated, responses, seeds)
        return (prompts, mask, tokens, token_mask), rewards.reshape(*tokens.shape[:2], -1).astype(np.float32)

    def _samples(self, prompts: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Samples M responses to each of N prompts [N, L]: tokens [N, M, T] and their mask."""
        cfg, task = self.config.backbone, self.task
        sample = make_sampler(
            self.model, cfg.num_responses, task.response_length, cfg.temperature,
            task.eos_id, task.pad_id, self.mesh,
        )  # fmt: skip
        key, parts = jax.random.key(cfg.seed), []
        for start, rows, size in padded_batches(len(prompts), _PROMPTS):
            out = sample(self.params, prompts[rows], mask[rows], jax.random.fold_in(key, start))
            tokens, token_mask = to_host((out.tokens, out.mask))
            parts.append((tokens[:size], token_mask[:size]))
        return np.concatenate([t for t, _ in parts]), np.concatenate([m for _, m in parts])
