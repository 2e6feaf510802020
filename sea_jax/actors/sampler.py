"""The interface of samplers: whatever samples responses from the policy (Alg. 2, line 4)."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from sea_jax.models.generate import BatchSlice, Responses
from sea_jax.models.params import cast_matrices
from sea_jax.types import Array, Params

_versions = itertools.count(1)

PendingResponses = Callable[[], Responses]


class VersionedParams(NamedTuple):
    """A policy's parameters and a version that is unique in this process."""

    params: Params
    version: int


def new_version(params: Params) -> VersionedParams:
    """Gives parameters a new version, by which a sampler tells whether its copy is stale."""
    return VersionedParams(params, next(_versions))


class Lengths(NamedTuple):
    """The lengths and token ids of a task that a sampler needs."""

    prompt_length: int  # L, tokens
    response_length: int  # T, tokens
    eos_id: int
    pad_id: int


class Sampler(Protocol):
    """Samples responses from the policy; the interface that a run depends on.

    Attributes:
        seconds: seconds waited per stage ('learn', 'sync', 'generate') for the responses read last; empty
            where responses are returned before they are computed.
    """

    seconds: dict[str, float]

    def begin(
        self, policy: VersionedParams, prompts: Array | np.ndarray, prompt_mask: Array | np.ndarray,
        key: Array, *, num_responses: int, temperature: float, batch_slice: BatchSlice | None = None,
    ) -> PendingResponses:  # fmt: skip
        """Starts to sample M responses to each of B left-padded prompts.

        The sampler has read the parameters, or dispatched the read, when this returns: the caller may
        donate them.

        Args:
            policy: the parameters to sample from; a sampler that keeps a copy compares the version.
            prompts: [B, L] int32, left-padded.
            prompt_mask: [B, L] bool.
            key: [] key; the same key gives the same responses.
            num_responses: M.
            temperature: 0 is greedy, with log-probs at temperature 1.
            batch_slice: the place of these prompts in a larger batch that shares the key.

        Returns:
            A function that returns Responses [B, M, T], perhaps not computed yet; call it once.
        """
        ...

    def close(self) -> None:
        """Ends the processes that the sampler started."""
        ...


def sample_now(sampler: Sampler, policy: VersionedParams, *prompts_and_key: Any, **options: Any) -> Responses:
    """Calls `Sampler.begin` and its result; returns Responses [B, M, T], perhaps not computed yet."""
    return sampler.begin(policy, *prompts_and_key, **options)()


cast = jax.jit(cast_matrices, static_argnums=1)  # (params, dtype): the precision that a sampler computes in
