"""Prepares hidden states as features: fits their mean, scale and projection on the policy's samples."""

import functools
from typing import Any

import numpy as np

from sea_jax.ensemble import hidden_states
from sea_jax.ensemble.hidden_states import HiddenStates
from sea_jax.errors import InputError
from sea_jax.pretraining import backbone as backbone_lib
from sea_jax.pretraining import cache
from sea_jax.pretraining.prepared import Prepared, samples_recipe
from sea_jax.runtime.mesh import replicate
from sea_jax.tasks.protocol import Task
from sea_jax.types import Config, Params

# Of cached scalings. Raise it when the same fields and samples would give another one, beyond rounding: a
# change of the layer that -1 stands for, of the pooled states or of the fit.
VERSION = 1
_CONSTANT = 1e-10  # share of variance below which a direction is constant up to rounding
_READ = (
    "layer",
    "pool",
    "read_eos",
    "scaling",
    "width",
)  # fields of section backbone, besides those of samples


def fit_scaling(states: np.ndarray, scaling: str, width: int) -> dict[str, np.ndarray]:
    """Fits the affine map from states to features.

    Rewards matter up to a constant of the prompt (Eq. 3), so the scale and the principal components are those
    of the differences between responses to one prompt.

    Args:
        states: [N, M, E'] f32, of M ≥ 2 responses to each of N prompts, some of which differ.
        scaling: 'standard' gives every coordinate variance 1, 'pca' then takes the principal components.
        width: E, at most, where states are projected.

    Returns:
        "mean", "scale" [E'] f32 and, if states are projected, "projection" [E', E] f32, of
        `hidden_states.HiddenStates`. The features have mean 0 over all samples, and the variance among the
        responses to one prompt is 1 on average over coordinates: an isotropic prior of variance 1 / E then
        gives two responses rewards that differ by about 1.
    """
    M, E = states.shape[1:]
    centred = (states - states.mean(1, keepdims=True, dtype=np.float64)).reshape(-1, E)
    centred *= np.sqrt(M / (M - 1))  # the mean of M took a share of 1 / M of the variance
    variance = np.mean(centred**2, 0)
    varies = variance > _CONSTANT * np.mean(np.square(states, dtype=np.float64), (0, 1))
    scale = np.where(varies, 1 / np.sqrt(np.where(varies, variance, 1.0)), 0.0)
    fitted = {"mean": states.mean((0, 1), dtype=np.float64), "scale": scale / np.sqrt(varies.mean())}
    if scaling == "pca":
        fitted |= {"scale": scale, "projection": _principal(centred * scale, width)}
    return {name: x.astype(np.float32) for name, x in fitted.items()}


def _principal(centred: np.ndarray, width: int) -> np.ndarray:
    """Returns the leading principal components of [n, E'] as [E', E] f64, scaled as in `fit_scaling`."""
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    values, vectors = values[::-1][:width], vectors[:, ::-1][:, :width]
    return vectors / np.sqrt(values.mean())


class PolicyStates(Prepared):
    """Hidden states of the starting policy, standardised on its own samples."""

    @functools.cached_property
    def backbone(self) -> HiddenStates:
        """The policy's lower blocks with pooling."""
        cfg = self.config.backbone
        make = lambda: fit_scaling(self._states(), cfg.scaling, cfg.width)  # noqa: E731
        return self._reader(cache.obtain_params(self.folder, self.recipe, make))

    @staticmethod
    def recipe_of(config: Config, task: Task, policy: str) -> cache.Recipe:
        """Describes what the states' scaling depends on, the policy and its samples included."""
        fields = {f"backbone.{name}": config.backbone[name] for name in _READ}
        fields["policy.dtype"] = config.policy.dtype
        samples = samples_recipe(config, task, policy).name
        read = {"policy": policy, "task": task.fingerprint, "samples": samples}
        return cache.Recipe("states", VERSION, fields, read)

    @functools.cached_property
    def _lower_blocks(self) -> tuple[Any, Params]:
        """The decoder that ends at the states, and its parameters."""
        layer = hidden_states.middle(self.model.config.num_layers, self.config.backbone.layer)
        return hidden_states.truncate(self.mesh, self.model, self.params, layer)

    def _reader(self, scaling: Params) -> HiddenStates:
        """Returns the states with this scaling."""
        cfg, (model, decoder) = self.config.backbone, self._lower_blocks
        params = replicate(self.mesh, scaling) | {"decoder": decoder}
        eos_id = -1 if cfg.read_eos else self.task.eos_id
        return HiddenStates(model, cfg.pool, params, eos_id, self.config.sampler.micro_batch)

    def _states(self) -> np.ndarray:
        """Computes the pooled states [N, M, E'] f32 of the samples."""
        cfg, shape = self.config.backbone, self.model.config
        width, _ = hidden_states.feature_widths(shape.width, cfg.pool, cfg.scaling, cfg.width)
        plain = {"mean": np.zeros(width, np.float32), "scale": np.ones(width, np.float32)}
        states = backbone_lib.features_of(self._reader(plain), self.samples, self.mesh)
        if not np.isfinite(states).all():
            raise FloatingPointError("hidden states of the policy: not finite, must be")
        if (np.ptp(states, 1) == 0).all():
            raise InputError(
                f"config.backbone.layer={cfg.layer}: the {states.shape[1]} samples of every prompt have the "
                f"same state; valid is a layer that tells them apart with backbone.pool={cfg.pool!r} and "
                f"backbone.temperature={cfg.temperature}"
            )
        return states
