"""Responses and rewards from Ray's workers on any machine: the paper's actors and oracle (Fig. 5).

Workers are stateless. The policy comes with every call, as a reference to the object store, so a worker that
replaces a lost one samples with the right weights. Draws depend on the step's key alone and a reward on its
text alone, so a repeated call has the same result.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sea_jax.actors import ray_pool
from sea_jax.actors.sampler import Lengths, PendingResponses, Sampler, VersionedParams, cast
from sea_jax.errors import ServiceError
from sea_jax.models.decoder import Decoder
from sea_jax.models.generate import BatchSlice, Responses
from sea_jax.oracles.bradley_terry import preference
from sea_jax.runtime import mesh as mesh_lib
from sea_jax.runtime.allocator import keep_freed_memory
from sea_jax.types import Array, Config, Params


class Worker:
    """A process that computes with the devices Ray gives it.

    Args:
        fields: of the experiment's config.
        compilation_cache: folder of compiled programs; empty: none.
    """

    def __init__(self, fields: dict[str, Any], compilation_cache: str):
        keep_freed_memory()
        if compilation_cache:
            jax.config.update("jax_compilation_cache_dir", compilation_cache)
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
        self.config: Config = ConfigDict(fields)
        self.config.ray.actors = self.config.ray.oracles = 0  # a worker starts no workers

    def pid(self) -> int:
        """Returns the process id."""
        return os.getpid()


class SamplingWorker(Worker):
    """Samples responses to a part of the prompts, with the sampler of config.sampler.kind."""

    def __init__(
        self, fields: dict, compilation_cache: str, lengths: Lengths, model: Decoder,
        make_sampler: Callable[..., Sampler],
    ):  # fmt: skip
        super().__init__(fields, compilation_cache)
        mesh = mesh_lib.make_mesh(data=jax.device_count())
        self._sampler = make_sampler(self.config, lengths, model, mesh)
        self._policy = VersionedParams({}, 0)

    def sample(
        self, params: Params, version: int, tokens: np.ndarray, mask: np.ndarray, key: np.ndarray,
        batch_slice: BatchSlice, num_responses: int, temperature: float,
    ) -> tuple[int, tuple[np.ndarray, ...]]:  # fmt: skip
        """Samples responses to b rows of a batch; see `Sampler.begin`.

        Returns:
            The version of the policy that sampled; tokens, mask and log-probs, [b, M, T] each.
        """
        if version != self._policy.version:
            self._policy = VersionedParams(jax.device_put(params), version)
        pending = self._sampler.begin(
            self._policy, tokens, mask, jax.random.wrap_key_data(jnp.asarray(key)),
            num_responses=num_responses, temperature=temperature, batch_slice=batch_slice,
        )  # fmt: skip
        return self._policy.version, tuple(mesh_lib.to_host(pending()))


class RewardWorker(Worker):
    """Computes the oracle's rewards."""

    def __init__(
        self,
        fields: dict[str, Any],
        compilation_cache: str,
        make_oracles: Callable[..., Callable[[int], Any]],
    ):
        super().__init__(fields, compilation_cache)
        self._oracle = make_oracles(self.config, mesh_lib.make_mesh(fsdp=jax.device_count()))

    def rewards(self, seed: int, prompts: list[str], responses: list[str]) -> np.ndarray:
        """Returns r(x, y) of the oracle with this seed: [B] float32."""
        return self._oracle(seed).rewards(prompts, responses)


class RaySampler:
    """A `Sampler` whose workers share each batch's prompts evenly.

    Args:
        config: the experiment's.
        lengths: of the task.
        model: the policy's module.
        home: the mesh of the learner; responses are moved there.
        make_sampler: (config, lengths, model, mesh) -> the sampler that a worker uses.

    Raises:
        ServiceError: by `begin` and its result, if workers do not answer within the limits of config.ray.
    """

    def __init__(
        self, config: Config, lengths: Lengths, model: Decoder, home: Mesh,
        make_sampler: Callable[..., Sampler],
    ):  # fmt: skip
        self.seconds: dict[str, float] = {}
        self._home, self._max_tokens = home, lengths.response_length
        # The JAX sampler would cast to this dtype anyway; vLLM is given f32.
        self._dtype = model.config.dtype if config.sampler.kind == "jax" else jnp.float32
        self._version, self._policy_reference = 0, None
        arguments = lengths, model, make_sampler
        self.pool = _start_pool(config, SamplingWorker, config.ray.actors, "actors", 0, arguments)

    def begin(
        self, policy: VersionedParams, prompts: Array | np.ndarray, prompt_mask: Array | np.ndarray,
        key: Array, *, num_responses: int, temperature: float, batch_slice: BatchSlice | None = None,
    ) -> PendingResponses:  # fmt: skip
        """Starts to sample; see `Sampler.begin`."""
        start = time.perf_counter()
        jax.block_until_ready(policy.params)
        learned = time.perf_counter()
        self._put(policy)
        tokens, mask, key_data = mesh_lib.to_host((prompts, prompt_mask, jax.random.key_data(key)))
        options = num_responses, temperature
        wait = self._submit(tokens, mask, key_data, batch_slice or BatchSlice(0, len(tokens)), options)
        seconds = {"learn": learned - start, "sync": time.perf_counter() - learned}
        shape = len(tokens), num_responses, self._max_tokens
        like = tuple(jax.ShapeDtypeStruct(shape, dtype) for dtype in ("int32", "bool", "float32"))

        def pending() -> Responses:
            began = time.perf_counter()
            responses = mesh_lib.broadcast_from_main(wait, like)
            self.seconds = seconds | {"generate": time.perf_counter() - began}
            return Responses(*mesh_lib.shard_batch(self._home, responses))

        return pending

    def _put(self, policy: VersionedParams) -> None:
        """Puts the weights into the object store, once per version."""
        if self._version == policy.version:
            return
        # `to_host` gathers from all processes of a run, so the others call it too.
        params = mesh_lib.to_host(cast(policy.params, self._dtype))
        self._version, self._policy_reference = policy.version, ray_pool.put(params) if self.pool else None

    def _submit(
        self, tokens: np.ndarray, mask: np.ndarray, key_data: np.ndarray, batch_slice: BatchSlice,
        options: tuple[int, float],
    ) -> Callable[[], tuple[np.ndarray, ...]]:  # fmt: skip
        """Starts the actors; returns a function that waits for tokens, mask and log-probs, [B, M, T] each."""
        pool, version, (first, total) = self.pool, self._version, batch_slice
        if pool is None:
            return tuple  # `broadcast_from_main` does not call it on this process
        calls = [
            (
                self._policy_reference, version, tokens[rows], mask[rows], key_data,
                BatchSlice(first + rows.start, total), *options,
            )
            for rows in even_slices(len(tokens), len(pool))
        ]  # fmt: skip
        references = pool.submit("sample", calls)

        def wait() -> tuple[np.ndarray, ...]:
            awaited = f"{options[0]} responses to each of {len(tokens)} prompts"
            results = pool.wait_for(references, awaited)
            if wrong := {sampled for sampled, _ in results} - {version}:
                raise ServiceError(f"Ray's actors: weights of version {wrong}, the policy's is {version}")
            parts = zip(*(arrays for _, arrays in results), strict=True)
            return tuple(np.concatenate(arrays) for arrays in parts)

        return wait

    def close(self) -> None:
        """Ends the actors."""
        if self.pool is not None:
            self.pool.close()


class RayOracle:
    """P(y ≻ y' | x) = σ(r(x, y) − r(x, y')), Eq. 3 of the paper, with r of `RewardWorker`s, in order.

    Args:
        pool: of `RewardWorker`s; None on processes other than the main one of a run.
        seed: of the hidden reward, where there are several.
    """

    def __init__(self, pool: ray_pool.Pool | None, seed: int):
        self._pool, self._seed = pool, seed

    def rewards(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Returns r(x, y): [B] float32, in nats of preference log-odds. It buys no label.

        Raises:
            ValueError: lengths differ.
            ServiceError: workers do not answer within the limits of config.ray, or with other than B finite
                numbers.
        """
        if len(prompts) != len(responses):
            raise ValueError(f"responses: {len(responses)} given, must be one per prompt, {len(prompts)}")
        like = jax.ShapeDtypeStruct((len(prompts),), "float32")
        return mesh_lib.broadcast_from_main(lambda: self._compute(list(prompts), list(responses)), like)

    def probability(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> np.ndarray:
        """Returns P(first ≻ second | x): [B] float64; raises the errors of `rewards`."""
        rewards = self.rewards([*prompts, *prompts], [*first, *second])
        return preference(*np.split(rewards, 2))

    def _compute(self, prompts: list[str], responses: list[str]) -> np.ndarray:
        """Asks the workers, each for an even part of the rewards."""
        if not prompts:
            return np.zeros(0, np.float32)
        assert self._pool is not None
        parts = even_slices(len(prompts), len(self._pool))
        calls = [(self._seed, prompts[part], responses[part]) for part in parts]
        references = self._pool.submit("rewards", calls)
        results = self._pool.wait_for(references, f"rewards of {len(prompts)} responses")
        for part, rewards in zip(parts, results, strict=True):
            size = part.stop - part.start
            if rewards.shape != (size,) or not np.isfinite(rewards).all():
                raise ServiceError(f"Ray's oracles: {rewards!r} in answer to {size} responses")
        return np.concatenate(results)


def start_oracles(config: Config, make_oracles: Callable[..., Any]) -> Callable[[int], RayOracle]:
    """Starts config.ray.oracles workers.

    Args:
        config: the experiment's.
        make_oracles: (config, mesh) -> a function from an oracle seed to its oracle, in a worker's process.

    Returns:
        A function from an oracle seed to its oracle.
    """
    count, previous = config.ray.oracles, config.ray.actors
    pool = _start_pool(config, RewardWorker, count, "oracles", previous, (make_oracles,))
    return lambda seed: RayOracle(pool, seed)


def even_slices(size: int, count: int) -> list[slice]:
    """Returns at most `count` slices of a batch, in order, none empty; lengths differ by at most one."""
    ends = [size * i // count for i in range(count + 1)]
    return [slice(start, end) for start, end in pairwise(ends) if start < end]


def _start_pool(
    config: Config, worker: type[Worker], count: int, name: str, previous: int, arguments: tuple
) -> ray_pool.Pool | None:
    """Starts workers on the main process; returns None on the others, which receive its answers.

    Args:
        config: the experiment's.
        worker: their class.
        count: number of workers.
        name: 'actors' or 'oracles'.
        previous: number of workers whose bundles come first.
        arguments: of the worker's constructor, after the config and the compilation cache.
    """
    if not mesh_lib.is_main():
        return None
    options, kind = config.ray, name.removesuffix("s")
    resources = ray_pool.Resources(options[f"{kind}_cpus"], options[f"{kind}_gpus"])
    limits = ray_pool.PoolLimits(options.timeout_s, options.retries)
    # A cluster that is started here has room for all pools of this process.
    ray_pool.connect(cpus=sum(bundle["CPU"] for bundle in bundles(config, resources, 0)))
    learners = jax.process_count() if jax.distributed.is_initialized() else 1
    cache = jax.config.jax_compilation_cache_dir or ""  # pyright: ignore[reportAttributeAccessIssue]
    arguments = config.to_dict(), cache, *arguments
    return ray_pool.Pool(name, worker, arguments, count, resources, limits, learners + previous)


def bundles(config: Config, learner: ray_pool.Resources, learners: int) -> list[dict[str, float]]:
    """Returns the resources of a run's processes, in the order of `Pool.first_bundle`.

    Args:
        config: the experiment's.
        learner: the resources of a learner.
        learners: number of learners.

    Returns:
        Bundles of the learners, then of the actors, then of the oracles.
    """
    groups = [(learners, learner)]
    for count, kind in ((config.ray.actors, "actor"), (config.ray.oracles, "oracle")):
        groups.append((count, ray_pool.Resources(config.ray[f"{kind}_cpus"], config.ray[f"{kind}_gpus"])))
    return [resources.bundle() for count, resources in groups for _ in range(count)]
