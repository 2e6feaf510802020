"""Trains the embedded task's frozen backbone on the starting policy's samples."""

import dataclasses
import functools
from typing import Any

import jax

from sea_jax.ensemble import features
from sea_jax.pretraining import backbone as backbone_lib
from sea_jax.pretraining import cache
from sea_jax.pretraining.policy import policy_fields
from sea_jax.pretraining.prepared import Prepared
from sea_jax.runtime.mesh import replicate


class Ranker(Prepared):
    """A backbone that is trained on the task's family of rewards."""

    @functools.cached_property
    def backbone(self) -> features.Backbone:
        """The decoder with gated pooling."""
        cfg = self.config.backbone
        pooling = features.GatedPooling(cfg.pooled_width, self.model.config.vocab_size, cfg.gate_hidden)
        folder = self.folder / f"backbone-{cache.fingerprint(self._prior_fields)}"
        # It learns in all layers, whatever the policy does.
        model = self.model.clone(config=dataclasses.replace(self.model.config, trained_layers=0))
        if not folder.exists():
            key, data = jax.random.key(cfg.seed), (self.samples, self.rewards)
            trained = backbone_lib.train(cfg, model, self.params, *data, key, self.mesh, self.config.progress)
            cache.write_params(folder, trained.params)
        return features.Backbone(model, pooling, replicate(self.mesh, cache.read_params(folder)))

    @property
    def fields(self) -> dict[str, Any]:
        """The fields that samples and backbone depend on, besides the rewards."""
        parts = policy_fields(self.config) | {"backbone": self.config.backbone.to_dict()}
        for name in ("layer", "pool", "read_eos", "scaling"):  # of hidden states only
            parts["backbone"].pop(name)
        parts["backbone"].pop("family")  # the rewards are among the prior's fields
        return parts | {"task": self.task.fingerprint}
