"""Lines 3 and 4 of Algorithm 2: the prompts of a step, and who begins to write responses to them."""

from typing import NamedTuple

import numpy as np

from sea_jax.assets import Assets
from sea_jax.methods import Method
from sea_jax.runtime import mesh as mesh_lib
from sea_jax.runtime import samplers
from sea_jax.tasks.stream import prompt_rows
from sea_jax.types import Array, PromptBatch


class Proposal(NamedTuple):
    """A step's prompts, and its responses as far as they are written."""

    prompts: PromptBatch
    texts: list[str]
    responses: samplers.Pending


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
        self.num_responses = config.sea.num_responses if method.active else 2
        self.rows = prompt_rows(len(assets.task.prompts["train"]), config.train.batch_size, seed)
        self.fixed = samplers.versioned(assets.ref_params)  # who writes for an offline method

    def begin(self, policy: samplers.Versioned, step: int, key: Array) -> Proposal:
        """Receives the prompts of step t and has the policy, or π_ref, begin its M responses to each.

        Args:
            policy: the latest.
            step: t.
            key: [] key of the step's samples.
        """
        prompts, texts = self.receive(step)
        responses = self.assets.sampler.begin(
            self.fixed if self.method.offline else policy, prompts.tokens, prompts.mask, key,
            num_responses=self.num_responses, temperature=self.config.train.temperature,
        )  # fmt: skip
        return Proposal(prompts, texts, responses)

    def receive(self, step: int) -> tuple[PromptBatch, list[str]]:
        """The prompts of step t, [B, L] on the devices, and as text (line 3)."""
        rows = np.asarray(self.rows[step], np.int32)
        texts = [self.assets.task.prompts["train"][row] for row in rows]
        tokens, mask = self.assets.task.encode_prompts(texts)
        return PromptBatch(*mesh_lib.split(self.assets.mesh, (tokens, mask, rows))), texts
