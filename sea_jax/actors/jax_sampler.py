"""A sampler that runs `models.generate` in this process."""

import numpy as np
from jax.sharding import Mesh

from sea_jax.actors.sampler import PendingResponses, VersionedParams, cast
from sea_jax.models.decoder import Decoder
from sea_jax.models.generate import BatchSlice, make_sampler
from sea_jax.runtime import mesh as mesh_lib
from sea_jax.types import Array, Params


class JaxSampler:
    """Samples on the devices of the run, or on a mesh of its own.

    Args:
        model: the policy's module.
        max_tokens: T, EOS included.
        eos_id, pad_id: token ids.
        home: the mesh of the learner; responses are moved there.
        micro_batch: prompts sampled at once, see `models.generate.make_sampler`.
        sampling_mesh: the mesh that samples, if it is another one. Each version of the policy is copied to it
            once.
    """

    def __init__(
        self, model: Decoder, max_tokens: int, eos_id: int, pad_id: int, home: Mesh, micro_batch: int,
        sampling_mesh: Mesh | None = None,
    ):  # fmt: skip
        self.seconds = {}
        self._home, self._sampling_mesh = home, sampling_mesh
        self._fixed = model, max_tokens, eos_id, pad_id, sampling_mesh or home, micro_batch
        self._copy: VersionedParams | None = None

    def begin(
        self, policy: VersionedParams, prompts: Array | np.ndarray, prompt_mask: Array | np.ndarray,
        key: Array, *, num_responses: int, temperature: float, batch_slice: BatchSlice | None = None,
    ) -> PendingResponses:  # fmt: skip
        """Starts to sample; see `Sampler.begin`."""
        model, max_tokens, *rest = self._fixed
        first, total = batch_slice or (0, 0)
        sample = make_sampler(model, num_responses, max_tokens, temperature, *rest, total=total)
        if self._sampling_mesh is None:
            responses = sample(policy.params, prompts, prompt_mask, key, first)
        else:
            tokens, mask = mesh_lib.shard_batch(self._sampling_mesh, (prompts, prompt_mask))
            key = mesh_lib.replicate(self._sampling_mesh, key)
            responses = mesh_lib.shard_batch(
                self._home, sample(self._copied(policy), tokens, mask, key, first)
            )
        return lambda: responses

    def _copied(self, policy: VersionedParams) -> Params:
        """Returns the parameters on the sampling mesh, in the precision that it computes in."""
        assert self._sampling_mesh is not None
        if self._copy is None or self._copy.version != policy.version:
            self._copy = None  # frees the old copy's memory before the new one needs it
            params = cast(policy.params, self._fixed[0].config.dtype)
            self._copy = VersionedParams(mesh_lib.replicate(self._sampling_mesh, params), policy.version)
        return self._copy.params

    def close(self) -> None:
        """Does nothing: no process was started."""
