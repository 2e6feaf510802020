"""The paper's Actor: the prompts of a step, and the responses sampled to them (Alg. 2, lines 3 and 4)."""

import time
from collections import deque
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sea_jax.actors import given, proposals
from sea_jax.actors.sampler import PendingResponses, Sampler, VersionedParams, new_version, sample_now
from sea_jax.labels.imports import Duel
from sea_jax.methods.method import Method, Prompts, Samples
from sea_jax.models import Responses
from sea_jax.runtime import mesh as mesh_lib
from sea_jax.runtime.mesh import to_host
from sea_jax.state import sample_keys, step_keys
from sea_jax.tasks.protocol import Task
from sea_jax.tasks.stream import pool_rows, prompt_rows
from sea_jax.types import Array, Config, Params, PromptBatch


class PendingProposal(NamedTuple):
    """The prompts of a step, and its responses, perhaps not computed yet."""

    prompts: Prompts
    responses: PendingResponses
    extra: PendingResponses | None  # responses of π_ref for a method's loss term
    metrics: dict[str, float]
    seconds: dict[str, float]  # spent on choosing the prompts, per stage


class Proposal(NamedTuple):
    """The prompts of a step and their proposal sets S_t."""

    prompts: Prompts
    responses: Responses  # [B, M, T]
    extra: Responses | None  # [B, X, T], responses of π_ref for a method's loss term
    metrics: dict[str, float]
    seconds: dict[str, float]  # waited per stage


class Actor:
    """Receives prompts and has responses sampled, at most config.train.staleness steps ahead of learning.

    Args:
        config: the method's.
        task: prompts and their tokenizer.
        sampler: samples the responses.
        mesh: the devices that share a batch.
        method: a row of `METHODS`.
        ref_params: π_ref.
        seed: the run's; it decides the order of the prompts.
    """

    def __init__(
        self, config: Config, task: Task, sampler: Sampler, mesh: Mesh, method: Method, ref_params: Params,
        seed: int,
    ):  # fmt: skip
        self.config, self.task, self.sampler, self.mesh, self.method = config, task, sampler, mesh, method
        num_prompts, pool = len(task.prompts["train"]), method.prompts.pool_size(config)
        self.rows: Any = (
            pool_rows(num_prompts, pool, seed)
            if pool
            else prompt_rows(num_prompts, config.train.batch_size * method.pool_factor(config), seed)
        )
        self.reference = new_version(ref_params)
        self.num_extra = method.term(config).num_extra if method.term else 0
        self.ahead: deque[PendingProposal] = deque()  # sampled ahead of learning, at most `staleness` steps
        self.stored: dict[int, bytes] = {}  # of a restored run: what its steps proposed before, by step
        self.given: dict[int, list[Duel]] = {}  # duels whose labels exist already, by step
        self.last: Proposal | None = None  # read last

    def begin(self, policy: VersionedParams, step: int, key: Array) -> None:
        """Starts to sample up to step t + staleness, or to the end of t's round, where not yet started.

        Args:
            policy: the latest.
            step: t.
            key: [] key of the run.
        """
        steps = self.method.steps_per_round(self.config)
        while len(self.ahead) < (self.config.train.staleness + 1 if steps == 1 else steps - step % steps):
            later = step + len(self.ahead)
            stored, sample_key = self.stored.pop(later, None), step_keys(key, later).sample
            known = self._unpacked(stored) if stored else self._given(later, sample_key)
            self.ahead.append(known or self.start(policy, later, sample_key))

    def policy_step(self, step: int) -> int:
        """Returns the step before which the policy stood that wrote the responses of step t."""
        steps = self.method.steps_per_round(self.config)
        if steps > 1:
            return step - step % steps
        return max(step - self.config.train.staleness - self.config.train.ask_ahead, 0)

    def read(self) -> Proposal:
        """Waits for the oldest proposal that was begun, and hands it out."""
        prompts, responses, extra, metrics, seconds = self.ahead.popleft()
        found, waited = self._wait(responses)
        seconds, further = add(seconds, waited), None
        if extra is not None:
            further, waited = self._wait(extra)
            seconds = add(seconds, waited)
        self.last = Proposal(prompts, found, further, metrics, seconds)
        return self.last

    def packed(self) -> bytes:
        """Returns the prompts and responses that were read last; a restored run reads them again.

        Empty for given duels, which the journal holds.
        """
        assert self.last is not None
        return _packed(self.last)

    def pack_ahead(self) -> list[bytes]:
        """Waits for what was sampled ahead; returns it from the next step on."""
        found = [self.read() for _ in range(len(self.ahead))]
        self.ahead.extend(map(_ready, found))
        return [_packed(proposal) for proposal in found]

    def _given(self, step: int, key: Array) -> PendingProposal | None:
        """Returns the duels of step t whose labels exist already, None without one.

        A batch of fewer than B is filled up with duels of two equal responses, which are void.
        """
        duels = self.given.pop(step, None)
        if duels is None:
            return None
        texts, tokens, mask = given.encode(self.task, duels)
        missing = self.config.train.batch_size - len(duels)
        fill = lambda x: np.concatenate([x, np.repeat(x[:1, :1], 2, 1).repeat(missing, 0)])  # noqa: E731
        prompts = self._prompts(texts + texts[:1] * missing, np.full(len(texts) + missing, -1))
        extra = None
        if self.num_extra:
            extra = self._sample(self.reference, prompts, sample_keys(key).extra, self.num_extra)
        return PendingProposal(prompts, self._known(fill(tokens), fill(mask)), extra, {}, {})

    def _known(self, tokens: np.ndarray, mask: np.ndarray) -> PendingResponses:
        """Returns responses that exist already; log-probs, which nobody reads, are 0."""
        logprobs = np.zeros(tokens.shape, np.float32)
        found = Responses(*mesh_lib.shard_batch(self.mesh, (tokens, mask, logprobs)))
        return lambda: found

    def _unpacked(self, content: bytes) -> PendingProposal:
        """Returns the stored prompts and responses of a step."""
        stored, extra = proposals.unpack(content), None
        if stored.extra_tokens is not None and stored.extra_mask is not None:
            extra = self._known(stored.extra_tokens, stored.extra_mask)
        own = self._known(stored.tokens, stored.mask)
        return PendingProposal(self.encode(stored.rows), own, extra, stored.metrics, {})

    def start(self, policy: VersionedParams, step: int, key: Array) -> PendingProposal:
        """Receives the prompts of step t and starts to sample M responses to each.

        Args:
            policy: the latest.
            step: t.
            key: [] key of the step's samples.
        """
        keys, extra = sample_keys(key), None

        def sample(rows: np.ndarray, samples: Samples) -> tuple[Responses, dict[str, float]]:
            return self._sample_pool(policy, rows, samples, keys.pool)

        choice = self.method.prompts.choose(self.config, self.rows[step], sample)
        prompts = self.encode(choice.rows)
        if self.num_extra:  # first: a sampler may still be busy with its last task when the step goes on
            extra = self._sample(self.reference, prompts, keys.extra, self.num_extra)
        responses = self._propose(policy, prompts, keys.responses)
        return PendingProposal(prompts, responses, extra, choice.metrics, choice.seconds)

    def _propose(self, policy: VersionedParams, prompts: Prompts, key: Array) -> PendingResponses:
        """Starts to sample S_t: from the policy, from π_ref, or from both, the policy's responses first."""
        num_responses = self.method.num_responses(self.config)
        of_reference = round(self.method.reference_share(self.config) * num_responses)
        if of_reference == 0:
            return self._sample(policy, prompts, key, num_responses)
        if of_reference == num_responses:
            return self._sample(self.reference, prompts, key, num_responses)
        parts = [
            self._sample(policy, prompts, key, num_responses - of_reference),
            self._sample(self.reference, prompts, jax.random.fold_in(key, 1), of_reference),
        ]
        return lambda: jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *(part() for part in parts))

    def _sample(
        self, policy: VersionedParams, prompts: Prompts, key: Array, num_responses: int
    ) -> PendingResponses:
        return self.sampler.begin(
            policy, *prompts.batch, key,
            num_responses=num_responses, temperature=self.config.train.temperature,
        )  # fmt: skip

    def _sample_pool(
        self, policy: VersionedParams, rows: np.ndarray, samples: Samples, key: Array
    ) -> tuple[Responses, dict[str, float]]:
        """Samples to a pool of prompts; returns the responses and the seconds waited per stage."""
        start = time.perf_counter()
        jax.block_until_ready(policy.params)
        learned = time.perf_counter()
        responses = sample_now(
            self.sampler, policy, *self.encode(rows).batch, key,
            num_responses=samples.num_responses, temperature=samples.temperature,
        )  # fmt: skip
        jax.block_until_ready(responses)
        seconds = {"generate": time.perf_counter() - learned} | self.sampler.seconds
        return responses, seconds | {"learn": learned - start}

    def _wait(self, pending: PendingResponses) -> tuple[Responses, dict[str, float]]:
        """Waits for responses; returns them and the seconds waited per stage."""
        start = time.perf_counter()
        responses = jax.block_until_ready(pending())
        return responses, self.sampler.seconds or {"generate": time.perf_counter() - start}

    def encode(self, rows: np.ndarray) -> Prompts:
        """Encodes train prompts by their rows, and puts them on the devices."""
        return self._prompts([self.task.prompts["train"][row] for row in rows], rows)

    def _prompts(self, texts: list[str], rows: np.ndarray) -> Prompts:
        batch = PromptBatch(*mesh_lib.shard_batch(self.mesh, self.task.encode_prompts(texts)))
        return Prompts(batch, texts, np.asarray(rows))


def add(seconds: dict[str, float], more: dict[str, float]) -> dict[str, float]:
    """Adds seconds per stage."""
    return {stage: seconds.get(stage, 0) + more.get(stage, 0) for stage in seconds | more}


def _packed(proposal: Proposal) -> bytes:
    if proposal.prompts.given:
        return b""
    own, extra = proposal.responses, proposal.extra
    further = (None, None) if extra is None else (extra.tokens, extra.mask)
    arrays = to_host((proposal.prompts.rows, own.tokens, own.mask, *further))
    return proposals.pack(proposals.Packed(*arrays, metrics=proposal.metrics))


def _ready(proposal: Proposal) -> PendingProposal:
    """Returns a proposal that was waited for as one that is read later."""
    prompts, responses, extra, metrics, seconds = proposal
    further = None if extra is None else (lambda: extra)
    return PendingProposal(prompts, lambda: responses, further, metrics, seconds)
