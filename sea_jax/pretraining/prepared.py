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
from sea_jax.pretraining import cache, content
from sea_jax.runtime.mesh import to_host
from sea_jax.tasks.batching import padded_batches
from sea_jax.tasks.protocol import Task
from sea_jax.types import Config, Params

_PROMPTS = 100  # sampled at once
# Of cached samples. Raise it when the same fields and policy would give other responses: a change of the
# prompts that are chosen, of their keys, of `_PROMPTS` or of the sampler.
SAMPLES_VERSION = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared(abc.ABC):
    """Makes the parts that its folder lacks, and reads the others; a subclass knows the backbone.

    Attributes:
        config: the experiment's config.
        folder: of prepared parts.
        task, model, params: the task and π_ref.
        mesh: its devices share each batch.
        policy: what tells π_ref from other policies, see `policy.policy_content`.
    """

    config: Config
    folder: Path
    task: Task
    model: Decoder
    params: Params
    mesh: Mesh
    policy: str

    @property
    @abc.abstractmethod
    def backbone(self) -> Extractor:
        """The frozen backbone."""

    @staticmethod
    @abc.abstractmethod
    def recipe_of(config: Config, task: Task, policy: str) -> cache.Recipe:
        """Describes what the backbone depends on; no model is read."""

    @property
    def recipe(self) -> cache.Recipe:
        """The recipe of this backbone."""
        return self.recipe_of(self.config, self.task, self.policy)

    def prior(self, kind: str) -> Params:
        """Returns the prior of a kind of posterior: heads to draw from, or a Gaussian over linear rewards.

        The task must have a family of rewards.
        """
        return {"mlp": self._prior_heads, "linear": self._linear_prior}[kind]()

    def _linear_prior(self) -> Params:
        """Returns the mean [E] and precision [E, E] of the linear rewards that fit the family's."""
        make = lambda: backbone_lib.fit_linear_prior(self.backbone, self.samples, self.rewards)  # noqa: E731
        return cache.obtain_params(self.folder, prior_recipe(self.config, "linear", self.recipe), make)

    def _prior_heads(self) -> Params:
        """Returns heads trained on one reward of the family each; leaves [P, ...]."""
        cfg = self.config

        def make() -> Params:
            key = jax.random.fold_in(jax.random.key(cfg.backbone.seed), 1)  # the backbone has the key itself
            hidden, data = tuple(cfg.ensemble.hidden), (self.samples, self.rewards)
            return backbone_lib.train_prior_heads(cfg.prior_heads, hidden, self.backbone, *data, key)

        return cache.obtain_params(self.folder, prior_recipe(cfg, "mlp", self.recipe), make)

    @functools.cached_property
    def samples(self) -> tuple[np.ndarray, ...]:
        """Train prompts and responses of π_ref: prompts [N, L], mask, tokens [N, M, T], mask."""
        prompts, mask = self.task.encode_prompts(self._texts)
        recipe = samples_recipe(self.config, self.task, self.policy)
        found = cache.obtain_arrays(self.folder, recipe, lambda: self._sample(prompts, mask))
        return prompts, mask, found["tokens"], found["mask"]

    @functools.cached_property
    def rewards(self) -> np.ndarray:
        """Rewards [N, M, S] f32 of the samples under S draws of the family, never an oracle's."""
        cfg, (tokens, mask) = self.config.backbone, self.samples[2:]
        repeated = [text for text in self._texts for _ in range(cfg.num_responses)]
        responses = [text for row in self.task.decode(tokens, mask) for text in row]
        seeds = range(backbone_lib.SEED_OFFSET, backbone_lib.SEED_OFFSET + cfg.num_rewards)
        rewards = reward_family(self.config).rewards(repeated, responses, seeds)
        return rewards.reshape(*tokens.shape[:2], -1).astype(np.float32)

    @property
    def _texts(self) -> tuple[str, ...]:
        return self.task.prompts["train"][: self.config.backbone.num_prompts]

    def _sample(self, prompts: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
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
        tokens, token_mask = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return {"tokens": tokens, "mask": token_mask}


def samples_recipe(config: Config, task: Task, policy: str) -> cache.Recipe:
    """Describes what the samples of π_ref depend on."""
    read = ("seed", "num_prompts", "num_responses", "temperature")
    fields = {f"backbone.{name}": config.backbone[name] for name in read}
    fields["policy.dtype"] = config.policy.dtype
    return cache.Recipe("samples", SAMPLES_VERSION, fields, {"policy": policy, "task": task.fingerprint})


def prior_recipe(config: Config, kind: str, backbone: cache.Recipe) -> cache.Recipe:
    """Describes what the prior of a kind of posterior depends on, on a backbone."""
    read = {"backbone": backbone.name, "rewards": rewards_content(config)}
    fields: dict[str, Any] = {"backbone.num_rewards": config.backbone.num_rewards}
    if kind == "linear":
        return cache.Recipe("linear", backbone_lib.LINEAR_VERSION, fields, read)
    fields |= {f"prior_heads.{name}": value for name, value in config.prior_heads.to_dict().items()}
    fields["ensemble.hidden"] = config.ensemble.hidden
    return cache.Recipe("heads", backbone_lib.HEADS_VERSION, fields, read)


def rewards_content(config: Config) -> str:
    """Returns what tells the rewards that ranker and priors are fitted to from others."""
    family = reward_family(config)
    return content.of_value([family.version, family.draw(backbone_lib.SEED_OFFSET).tolist()])


def reward_family(config: Config) -> tasks.RewardFamily:
    """Returns the family of rewards that ranker and priors are fitted to."""
    name = config.backbone.family or config.task.name
    family = tasks.find(name).reward_family
    assert family is not None, name  # the checks of the config see to it
    return family
