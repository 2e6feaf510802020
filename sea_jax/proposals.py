"""Lines 3 and 4 of Algorithm 2: the prompts of a step, and who writes responses to them."""

from typing import NamedTuple

import jax
import numpy as np

from sea_jax.assets import Assets
from sea_jax.methods import Method
from sea_jax.models import Responses
from sea_jax.runtime import mesh as mesh_lib
from sea_jax.runtime import samplers
from sea_jax.state import sample_keys
from sea_jax.tasks.stream import prompt_rows
from sea_jax.types import Array, PromptBatch


class Proposal(NamedTuple):
    """A step's prompts, and its responses as far as they are written."""

    prompts: PromptBatch
    texts: list[str]
    responses: samplers.Pending
    y_ref: samplers.Pending | None  # π_ref's response to each, of an optimistic method


class Proposer:
    """What a run's steps begin with.

    Args:
        config: the method's.
        assets: task, sampler and π_ref.
        method: a row of `METHODS`.
        seed: of the run; the order of the prompts is its.
    """

    def __init__(self, config, assets: Assets, method: Method, seed: int):
        self.config, self.assets, self.method = config, assets, method
        self.rows = prompt_rows(len(assets.task.prompts["train"]), config.train.batch_size, seed)
        self.fixed = samplers.versioned(assets.ref_params)  # who writes for an offline method, and y_ref

    def begin(self, policy: samplers.Versioned, step: int, key: Array) -> Proposal:
        """Receives the prompts of step t and has the policy, or π_ref, begin its M responses to each.

        Args:
            policy: the latest.
            step: t.
            key: [] key of the step's samples.
        """
        prompts, texts = self.receive(step)
        keys, y_ref = sample_keys(key), None
        if self.method.optimistic:  # first, as what a sampler begins last is what it may still be at later
            y_ref = self._write(self.fixed, prompts, keys.y_ref, 1)
        writer = self.fixed if self.method.offline else policy
        responses = self._write(writer, prompts, keys.responses, self.method.num_responses(self.config))
        return Proposal(prompts, texts, responses, y_ref)

    def read(self, proposal: Proposal) -> tuple[Responses, Responses | None, dict[str, float]]:
        """Waits for what was begun.

        Returns:
            Responses [B, M, T]; y_ref, Responses [B, 1, T] or None; seconds that were waited for, by the
            sampler's own stages.
        """
        written, waited = [], {}
        for pending in (proposal.responses, proposal.y_ref):
            written.append(None if pending is None else jax.block_until_ready(pending()))
            if pending is not None:
                waited = add(waited, self.assets.sampler.seconds)
        return *written, waited

    def _write(
        self, writer: samplers.Versioned, prompts: PromptBatch, key: Array, num_responses: int
    ) -> samplers.Pending:
        return self.assets.sampler.begin(
            writer, prompts.tokens, prompts.mask, key,
            num_responses=num_responses, temperature=self.config.train.temperature,
        )  # fmt: skip

    def receive(self, step: int) -> tuple[PromptBatch, list[str]]:
        """The prompts of step t, [B, L] on the devices, and as text (line 3)."""
        rows = np.asarray(self.rows[step], np.int32)
        texts = [self.assets.task.prompts["train"][row] for row in rows]
        tokens, mask = self.assets.task.encode_prompts(texts)
        return PromptBatch(*mesh_lib.split(self.assets.mesh, (tokens, mask, rows))), texts


def add(seconds: dict[str, float], more: dict[str, float]) -> dict[str, float]:
    """Seconds by stage, of both."""
    return {stage: seconds.get(stage, 0) + more.get(stage, 0) for stage in seconds | more}
