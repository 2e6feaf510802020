"""The miniature's frozen backbone and the heads of its prior, trained on the starting policy's samples."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from sea_jax.ensemble import features
from sea_jax.models import Decoder
from sea_jax.models.generate import make_sampler
from sea_jax.pretraining import backbone as pretrain
from sea_jax.pretraining import cache
from sea_jax.runtime.mesh import replicate, to_host
from sea_jax.tasks import mini_tldr
from sea_jax.tasks.protocol import Task
from sea_jax.types import Config, Params

_SAMPLED = 100  # prompts at once


@dataclasses.dataclass(frozen=True, eq=False)
class Ranker:
    """Trains what its folder lacks, and only that.

    Attributes:
        config: the experiment's config.
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
            trained = pretrain.pretrain(
                cfg, self.model, self.params, *self._data, key, self.mesh, self.config.progress
            )
            cache.write_params(folder, trained.params)
        return features.Backbone(self.model, pooling, replicate(self.mesh, cache.read_params(folder)))

    @functools.cached_property
    def prior_heads(self) -> Params:
        """Heads that know one reward of the family each; leaves [P, ...]."""
        cfg, hidden = self.config, tuple(self.config.ensemble.hidden)
        fields = self._fields | {"prior_heads": cfg.prior_heads.to_dict(), "hidden": list(hidden)}
        folder = self.folder / f"heads-{cache.fingerprint(fields)}"
        if not folder.exists():
            key = jax.random.fold_in(jax.random.key(cfg.backbone.seed), 1)  # the backbone has the key itself
            trained = pretrain.train_prior_heads(cfg.prior_heads, hidden, self.backbone, *self._data, key)
            cache.write_params(folder, trained)
        return cache.read_params(folder)

    @property
    def _fields(self) -> dict[str, Any]:
        """What the backbone depends on."""
        cfg = self.config
        rewards = mini_tldr.draw_reward(pretrain.SEED_OFFSET).tolist()
        parts = {name: cfg[name].to_dict() for name in ("policy", "sft", "backbone")}
        return parts | {"task": self.task.fingerprint, "rewards": rewards}

    @functools.cached_property
    def _data(self) -> tuple[Any, np.ndarray]:
        """Samples of π_sft on train prompts, rewarded by S draws of the family, none an oracle's."""
        cfg, task = self.config.backbone, self.task
        texts = task.prompts["train"][: cfg.num_prompts]
        prompts, mask = task.encode_prompts(texts)
        sample = make_sampler(
            self.model, cfg.num_responses, task.response_length, cfg.temperature,
            task.eos_id, task.pad_id, self.mesh,
        )  # fmt: skip
        key, parts = jax.random.key(cfg.seed), []
        for start in range(0, len(texts), _SAMPLED):
            rows = np.arange(start, start + _SAMPLED) % len(texts)
            out = sample(self.params, prompts[rows], mask[rows], jax.random.fold_in(key, start))
            parts.append(to_host((out.tokens, out.mask)))
        tokens = np.concatenate([t for t, _ in parts])[: len(texts)]
        token_mask = np.concatenate([m for _, m in parts])[: len(texts)]
        repeated = [text for text in texts for _ in range(cfg.num_responses)]
        flat = [text for row in task.decode(tokens, token_mask) for text in row]
        basis = mini_tldr.reward_basis_batch(repeated, flat)
        weights = np.stack(
            [mini_tldr.draw_reward(pretrain.SEED_OFFSET + s) for s in range(cfg.num_rewards)], axis=1
        )
        rewards = (basis @ weights).reshape(*tokens.shape[:2], -1).astype(np.float32)
        return (prompts, mask, tokens, token_mask), rewards
