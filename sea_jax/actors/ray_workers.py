"""Responses and rewards from Ray's workers, wherever they are: the paper's actors and oracle (Fig. 5).

A worker keeps nothing that it cannot be given again. The policy comes with every question, by a reference to
the object store, so one that replaces a lost one samples with the right weights; what it draws depends on
the step's key alone, and a reward on its text alone. So a question that is asked twice has one answer.
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
    """A process with a config's devices: all that Ray gives it.

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
        self.config.ray.actors = self.config.ray.oracles = 0  # what it does, it does itself

    def pid(self) -> int:
        """Of the process."""
        return os.getpid()


class SamplingWorker(Worker):
    """Samples its share of the prompts, with whatever config.sampler.kind says."""

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
        """The version that wrote, and tokens, mask and log-probs [b, M, T] for b rows of a batch."""
        if version != self._policy.version:
            self._policy = VersionedParams(jax.device_put(params), version)
        pending = self._sampler.begin(
            self._policy, tokens, mask, jax.random.wrap_key_data(jnp.asarray(key)),
            num_responses=num_responses, temperature=temperature, batch_slice=batch_slice,
        )  # fmt: skip
        return self._policy.version, tuple(mesh_lib.to_host(pending()))


class RewardWorker(Worker):
    """Gives texts the oracle's reward."""

    def __init__(
        self,
        fields: dict[str, Any],
        compilation_cache: str,
        make_oracles: Callable[..., Callable[[int], Any]],
    ):
        super().__init__(fields, compilation_cache)
        self._oracle = make_oracles(self.config, mesh_lib.make_mesh(fsdp=jax.device_count()))

    def rewards(self, seed: int, prompts: list[str], responses: list[str]) -> np.ndarray:
        """r(x, y) under the hidden reward of that seed, if there are several: [B] float32."""
        return self._oracle(seed).rewards(prompts, responses)


class RaySampler:
    """See `Sampler`. A batch's prompts are shared evenly by the workers.

    Args:
        config: the experiment's.
        lengths: of the task.
        model: the policy's module.
        home: the mesh that learns; responses are brought there.
        make_sampler: (config, lengths, model, mesh) -> the sampler that a worker uses.

    Raises:
        ServiceError: `begin` and what it returns, where workers do not answer within config.ray's bounds.
    """

    def __init__(
        self, config: Config, lengths: Lengths, model: Decoder, home: Mesh,
        make_sampler: Callable[..., Sampler],
    ):  # fmt: skip
        self.seconds: dict[str, float] = {}
        self._home, self._length = home, lengths.response_length
        # vLLM takes f32 as it always does; our own sampler would cast to this anyway.
        self._dtype = model.config.dtype if config.sampler.kind == "jax" else jnp.float32
        self._version, self._shared = 0, None
        self.pool = _pool(
            config, SamplingWorker, config.ray.actors, "actors", 0, (lengths, model, make_sampler)
        )

    def begin(
        self, policy: VersionedParams, prompts: Array | np.ndarray, prompt_mask: Array | np.ndarray,
        key: Array, *, num_responses: int, temperature: float, batch_slice: BatchSlice | None = None,
    ) -> PendingResponses:  # fmt: skip
        """See `Sampler.begin`."""
        start = time.perf_counter()
        jax.block_until_ready(policy.params)
        learned = time.perf_counter()
        self._share(policy)
        tokens, mask, bits = mesh_lib.to_host((prompts, prompt_mask, jax.random.key_data(key)))
        options = num_responses, temperature
        hear = self._ask(tokens, mask, bits, batch_slice or BatchSlice(0, len(tokens)), options)
        seconds = {"learn": learned - start, "sync": time.perf_counter() - learned}
        shape = len(tokens), num_responses, self._length
        like = tuple(jax.ShapeDtypeStruct(shape, dtype) for dtype in ("int32", "bool", "float32"))

        def pending() -> Responses:
            began = time.perf_counter()
            responses = mesh_lib.broadcast_from_main(hear, like)
            self.seconds = seconds | {"generate": time.perf_counter() - began}
            return Responses(*mesh_lib.shard_batch(self._home, responses))

        return pending

    def _share(self, policy: VersionedParams) -> None:
        """The weights to the object store, once, from where an actor takes them when it needs them."""
        if self._version == policy.version:
            return
        # All processes of a run take part in this.
        params = mesh_lib.to_host(cast(policy.params, self._dtype))
        self._version, self._shared = policy.version, ray_pool.share(params) if self.pool else None

    def _ask(
        self,
        tokens: np.ndarray,
        mask: np.ndarray,
        key: np.ndarray,
        batch_slice: BatchSlice,
        options: tuple[int, float],
    ) -> Callable[[], tuple[np.ndarray, ...]]:
        """Asks the actors; what is returned waits for tokens, mask and log-probs [B, M, T]."""
        pool, version = self.pool, self._version
        if pool is None:
            return tuple  # never called
        questions = [
            (
                self._shared,
                version,
                tokens[rows],
                mask[rows],
                key,
                BatchSlice(batch_slice.first + rows.start, batch_slice.total),
            )
            for rows in shares(len(tokens), len(pool))
        ]
        asked = pool.ask("sample", [(*question, *options) for question in questions])

        def hear() -> tuple[np.ndarray, ...]:
            heard = pool.hear(asked, f"{options[0]} responses to each of {len(tokens)} prompts")
            if wrong := {by for by, _ in heard} - {version}:
                raise ServiceError(f"Ray's actors: weights of version {wrong}, the policy's is {version}")
            return tuple(
                np.concatenate(arrays) for arrays in zip(*(found for _, found in heard), strict=True)
            )

        return hear

    def close(self) -> None:
        """Ends the actors."""
        if self.pool is not None:
            self.pool.close()


class RayOracle:
    """P(y ≻ y' | x) = σ(r(x, y) − r(x, y')), Eq. 3 of the paper, with r of `Scorer`s. Order is kept.

    Args:
        pool: of them; None on processes that are not the main one of a run.
        seed: of the hidden reward, where there is a family of them.
    """

    def __init__(self, pool: ray_pool.Pool | None, seed: int):
        self._pool, self._seed = pool, seed

    def rewards(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """r(x, y): [B] float32, in nats of preference log-odds. Asking it buys no label.

        Raises:
            ValueError: lengths differ.
            ServiceError: workers do not answer within config.ray's bounds, or with other than B numbers.
        """
        if len(prompts) != len(responses):
            raise ValueError(f"responses: {len(responses)} given, must be one per prompt, {len(prompts)}")
        like = jax.ShapeDtypeStruct((len(prompts),), "float32")
        return mesh_lib.broadcast_from_main(lambda: self._ask(list(prompts), list(responses)), like)

    def probability(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> np.ndarray:
        """P(first ≻ second | x): [B] float64; the arguments, errors are those of `rewards`."""
        rewards = self.rewards([*prompts, *prompts], [*first, *second])
        return preference(*np.split(rewards, 2))

    def _ask(self, prompts: list[str], responses: list[str]) -> np.ndarray:
        if not prompts:
            return np.zeros(0, np.float32)
        assert self._pool is not None
        rows = shares(len(prompts), len(self._pool))
        asked = self._pool.ask("rewards", [(self._seed, prompts[part], responses[part]) for part in rows])
        found = self._pool.hear(asked, f"rewards of {len(prompts)} responses")
        for part, answer in zip(rows, found, strict=True):
            size = part.stop - part.start
            if answer.shape != (size,) or not np.isfinite(answer).all():
                raise ServiceError(f"Ray's oracles: {answer!r} in answer to {size} responses")
        return np.concatenate(found)


def oracles(config: Config, make_oracles: Callable[..., Any]) -> Callable[[int], RayOracle]:
    """Starts config.ray.oracles workers and returns a function from an oracle seed to its oracle.

    Args:
        config: the experiment's.
        make_oracles: (config, mesh) -> the same function, in a worker's process.
    """
    pool = _pool(config, RewardWorker, config.ray.oracles, "oracles", config.ray.actors, (make_oracles,))
    return lambda seed: RayOracle(pool, seed)


def shares(size: int, count: int) -> list[slice]:
    """At most `count` slices of a batch, in order, none empty, none longer than another by more than one."""
    ends = [size * i // count for i in range(count + 1)]
    return [slice(start, end) for start, end in pairwise(ends) if start < end]


def _pool(
    config: Config, worker: type[Worker], count: int, what: str, after: int, arguments: tuple
) -> ray_pool.Pool | None:
    """Returns the workers; None where this is not the main process, whose answers are broadcast."""
    if not mesh_lib.is_main():
        return None
    options, kind = config.ray, what.removesuffix("s")
    resources = ray_pool.Resources(options[f"{kind}_cpus"], options[f"{kind}_gpus"])
    bounds = ray_pool.Bounds(options.timeout_s, options.retries)
    # A cluster of our own has room for all that this process will ask for.
    ray_pool.connect(cpus=sum(bundle["CPU"] for bundle in bundles(config, resources, 0)))
    learners = jax.process_count() if jax.distributed.is_initialized() else 1
    given = config.to_dict(), _compilation_cache(), *arguments
    return ray_pool.Pool(what, worker, given, count, resources, bounds, learners + after)


def _compilation_cache() -> str:
    return jax.config.jax_compilation_cache_dir or ""  # pyright: ignore[reportAttributeAccessIssue]


def bundles(config: Config, learner: ray_pool.Resources, learners: int) -> list[dict[str, float]]:
    """What a run takes of a cluster, in the order in which `Pool` looks for it: learners, actors, oracles."""
    groups = [(learners, learner)]
    for count, kind in ((config.ray.actors, "actor"), (config.ray.oracles, "oracle")):
        groups.append((count, ray_pool.Resources(config.ray[f"{kind}_cpus"], config.ray[f"{kind}_gpus"])))
    return [resources.bundle() for count, resources in groups for _ in range(count)]
