"""Prepares hidden states as features: fits their mean, scale and projection on the policy's samples."""

import functools
import hashlib
from typing import Any

import jax
import numpy as np

from sea_jax.ensemble import hidden_states
from sea_jax.ensemble.hidden_states import HiddenStates
from sea_jax.errors import InputError
from sea_jax.pretraining import backbone as backbone_lib
from sea_jax.pretraining import cache
from sea_jax.pretraining.prepared import Prepared
from sea_jax.runtime.mesh import replicate, to_host
from sea_jax.types import Params

_CONSTANT = 1e-10  # share of variance below which a direction is constant up to rounding
_DIGITS = 64  # entries of each parameter that tell two policies apart


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
        folder = self.folder / f"states-{cache.fingerprint(self.fields)}"
        if not folder.exists():
            cache.write_params(folder, fit_scaling(self._states(), cfg.scaling, cfg.width))
        return self._reader(cache.read_params(folder))

    @property
    def fields(self) -> dict[str, Any]:
        """The fields that samples and features depend on, and a digest of the policy's parameters."""
        drawn = ("seed", "num_prompts", "num_responses", "temperature")
        fields = {
            name: self.config.backbone[name] for name in (*drawn, "pool", "read_eos", "scaling", "width")
        }
        layer, dtype = self._lower_blocks[0].config.num_layers, self.config.policy.dtype
        return fields | {
            "layer": layer, "dtype": dtype, "policy": self._digest, "task": self.task.fingerprint,
            "response_length": self.task.response_length,
        }  # fmt: skip

    @functools.cached_property
    def _lower_blocks(self) -> tuple[Any, Params]:
        """The decoder that ends at the states, and its parameters."""
        layer = hidden_states.middle(self.model.config.num_layers, self.config.backbone.layer)
        return hidden_states.truncate(self.mesh, self.model, self.params, layer)

    @functools.cached_property
    def _digest(self) -> str:
        """A hash of the policy's shape and some entries of each parameter: a folder can be trained anew."""
        digest = hashlib.sha256(repr(self.model.config.to_hf()).encode())
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.params):
            # As the model computes: the parameters may come in f32 or cast already.
            some = to_host(leaf[(-1,) * (leaf.ndim - 1)][:_DIGITS].astype(self.model.config.dtype))
            digest.update(jax.tree_util.keystr(path).encode() + some.astype(np.float32).tobytes())
        return digest.hexdigest()

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
