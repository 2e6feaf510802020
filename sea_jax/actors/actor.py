"""Lines 3 and 4 of Algorithm 2: the prompts of a step, and who writes responses to them."""

import time
from typing import Any, NamedTuple

import jax
import numpy as np

from sea_jax import algorithm
from sea_jax.actors.sampler import PendingResponses, VersionedParams, new_version, sample_now
from sea_jax.experiment.assets import Assets
from sea_jax.methods import Method
from sea_jax.models import Responses
from sea_jax.runtime import mesh as mesh_lib
from sea_jax.state import sample_keys
from sea_jax.tasks.stream import pool_rows, prompt_rows
from sea_jax.types import Array, Config, PromptBatch


class Proposal(NamedTuple):
    """A step's prompts, and its responses as far as they are written."""

    prompts: PromptBatch
    texts: list[str]
    responses: PendingResponses
    y_ref: PendingResponses | None  # π_ref's response to each, of an optimistic method
    metrics: dict[str, float]
    seconds: dict[str, float]  # that choosing the prompts took, by the stages of a step


class Proposer:
    """What a run's steps begin with.

    Args:
        config: the method's.
        assets: task, sampler and π_ref.
        method: a row of `METHODS`.
        seed: of the run; the order of the prompts is its.
    """

    def __init__(self, config: Config, assets: Assets, method: Method, seed: int):
        self.config, self.assets, self.method = config, assets, method
        size, stream = config.train.batch_size, prompt_rows
        if method.pooled:
            size, stream = size * config.apl.pool_factor, pool_rows
        self.rows: Any = stream(len(assets.task.prompts["train"]), size, seed)
        self.fixed = new_version(assets.ref_params)  # who writes for an offline method, and y_ref

    def begin(self, policy: VersionedParams, step: int, key: Array) -> Proposal:
        """Receives the prompts of step t and has the policy, or π_ref, begin its M responses to each.

        Args:
            policy: the latest.
            step: t.
            key: [] key of the step's samples.
        """
        keys, y_ref, metrics, seconds = sample_keys(key), None, {}, {}
        if self.method.pooled:
            rows, metrics, seconds = self._most_uncertain(policy, self.rows[step], keys.pool)
            prompts, texts = self.encode(rows)
        else:
            prompts, texts = self.receive(step)
        if self.method.optimistic:  # first, as what a sampler begins last is what it may still be at later
            y_ref = self._write(self.fixed, prompts, keys.y_ref, 1)
        writer = self.fixed if self.method.offline else policy
        responses = self._write(writer, prompts, keys.responses, self.method.num_responses(self.config))
        return Proposal(prompts, texts, responses, y_ref, metrics, seconds)

    def read(self, proposal: Proposal) -> tuple[Responses, Responses | None, dict[str, float]]:
        """Waits for what was begun.

        Returns:
            Responses [B, M, T]; y_ref, Responses [B, 1, T] or None; seconds that were waited for: by the
            sampler's own stages, where it has some.
        """
        responses, waited = self._wait(proposal.responses)
        waited, y_ref = add(proposal.seconds, waited), None
        if proposal.y_ref is not None:
            y_ref, more = self._wait(proposal.y_ref)
            waited = add(waited, more)
        return responses, y_ref, waited

    def _wait(self, pending: PendingResponses) -> tuple[Responses, dict[str, float]]:
        """Responses that are there, and the seconds until they were, by stage."""
        start = time.perf_counter()
        responses = jax.block_until_ready(pending())
        return responses, self.assets.sampler.seconds or {"generate": time.perf_counter() - start}

    def _most_uncertain(
        self, policy: VersionedParams, rows: np.ndarray, key: Array
    ) -> tuple[np.ndarray, dict[str, float], dict[str, float]]:
        """Of a pool's rows the B of highest predictive entropy, in the pool's order; metrics and seconds.

        The samples are drawn at temperature 1 and not as a duel's, so that their log-probs are π_θ's own.
        """
        start = time.perf_counter()
        jax.block_until_ready(policy.params)
        learned = time.perf_counter()
        pool, _ = self.encode(rows)
        samples = sample_now(
            self.assets.sampler, policy, pool.tokens, pool.mask, key,
            num_responses=self.config.apl.entropy_samples, temperature=1.0,
        )  # fmt: skip
        entropy = mesh_lib.to_host(predictive_entropy(samples.logprobs))
        kept = highest(entropy, self.config.train.batch_size)
        metrics = {"prompt/entropy": entropy[kept].mean(), "prompt/entropy_pool": entropy.mean()}
        seconds = {"generate": time.perf_counter() - learned} | self.assets.sampler.seconds
        return rows[kept], metrics, seconds | {"learn": learned - start}

    def _write(
        self, writer: VersionedParams, prompts: PromptBatch, key: Array, num_responses: int
    ) -> PendingResponses:
        return self.assets.sampler.begin(
            writer, prompts.tokens, prompts.mask, key,
            num_responses=num_responses, temperature=self.config.train.temperature,
        )  # fmt: skip

    def receive(self, step: int) -> tuple[PromptBatch, list[str]]:
        """What the stream has for step t: [B, L], or the pool of a pooled method (line 3)."""
        return self.encode(self.rows[step])

    def encode(self, rows: np.ndarray) -> tuple[PromptBatch, list[str]]:
        """Train prompts by row, on the devices and as text."""
        rows = np.asarray(rows, np.int32)
        texts = [self.assets.task.prompts["train"][row] for row in rows]
        tokens, mask = self.assets.task.encode_prompts(texts)
        return PromptBatch(*mesh_lib.shard_batch(self.assets.mesh, (tokens, mask, rows))), texts


def highest(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` highest values, ascending; of equal values the lowest index is kept.

    Ascending, so that a batch cut off by the budget loses prompts by chance and not by their value.
    """
    return np.sort(np.argsort(-values, kind="stable")[:count])


predictive_entropy = jax.jit(algorithm.predictive_entropy)


def add(seconds: dict[str, float], more: dict[str, float]) -> dict[str, float]:
    """Seconds by stage, of both."""
    return {stage: seconds.get(stage, 0) + more.get(stage, 0) for stage in seconds | more}
