"""Trains the embedded task's frozen backbone on the starting policy's samples."""

import dataclasses
import functools

import jax
from flax.traverse_util import flatten_dict

from sea_jax.ensemble import features
from sea_jax.pretraining import backbone as backbone_lib
from sea_jax.pretraining import cache
from sea_jax.pretraining.prepared import Prepared, rewards_content, samples_recipe
from sea_jax.runtime.checkpoint_folder import CheckpointFolder
from sea_jax.runtime.mesh import replicate
from sea_jax.tasks.protocol import Task
from sea_jax.types import Config

# Fields of section backbone that no ranker reads; the family's rewards are among the contents.
_UNREAD = ("kind", "family", "layer", "pool", "read_eos", "scaling")


class Ranker(Prepared):
    """A backbone that is trained on the task's family of rewards."""

    @functools.cached_property
    def backbone(self) -> features.Backbone:
        """The decoder with gated pooling."""
        cfg = self.config.backbone
        pooling = features.GatedPooling(cfg.pooled_width, self.model.config.vocab_size, cfg.gate_hidden)
        # It learns in all layers, whatever the policy does.
        model = self.model.clone(config=dataclasses.replace(self.model.config, trained_layers=0))

        def make(saved: CheckpointFolder | None) -> cache.Write:
            key, data = jax.random.key(cfg.seed), (self.samples, self.rewards)
            trained = backbone_lib.train(
                cfg, model, self.params, *data, key, self.mesh, self.config.progress,
                saved=saved, title=f"BACKBONE {self.recipe.name}",
            )  # fmt: skip
            return cache.writer(flatten_dict(trained.params, sep="/"))

        folder = cache.obtain(self.folder, self.recipe, make, self.config.checkpoint)
        return features.Backbone(model, pooling, replicate(self.mesh, cache.read_params(folder)))

    @staticmethod
    def recipe_of(config: Config, task: Task, policy: str) -> cache.Recipe:
        """Describes what the backbone depends on, the policy, its samples and the rewards included."""
        read = {name: value for name, value in config.backbone.to_dict().items() if name not in _UNREAD}
        fields = {f"backbone.{name}": value for name, value in read.items()}
        fields["policy.dtype"] = config.policy.dtype
        samples = samples_recipe(config, task, policy).name
        read = {
            "policy": policy,
            "task": task.fingerprint,
            "samples": samples,
            "rewards": rewards_content(config),
        }
        return cache.Recipe("backbone", backbone_lib.VERSION, fields, read)
