"""Scorers that several methods share: the ensemble, and the oracle's own reward."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from sea_jax.ensemble import heads
from sea_jax.methods.method import Prompts, ScoringContext
from sea_jax.models.generate import Responses
from sea_jax.types import Array, PromptBatch

member_rewards = jax.jit(heads.rewards)


@dataclasses.dataclass(frozen=True)
class EnsembleScorer:
    """r_φ of every head φ, on the features of the frozen backbone."""

    reads_oracle: bool = False

    def score(
        self, context: ScoringContext, prompts: Prompts, responses: Responses
    ) -> tuple[Array | None, Array]:
        """Returns features [B, M, E] f32 and the heads' rewards [K, B, M] f32."""
        features = context.backbone(prompts.texts, *prompts.batch, responses)
        assert context.state.ensemble is not None
        return features, member_rewards(context.state.ensemble.params, features)

    def trace(self, context: Any, prompts: PromptBatch, tokens: Any, mask: Any) -> None:
        """Returns None: its one costly program is the backbone's, which the plan traces by itself."""


@dataclasses.dataclass(frozen=True)
class OracleScorer:
    """The oracle's own reward in place of the ensemble's: an upper bound, not a method."""

    reads_oracle: bool = True

    def score(self, context: ScoringContext, prompts: Prompts, responses: Responses) -> tuple[None, Array]:
        """Returns no features and rewards [1, B, M] f32; buys no label."""
        B, M, _ = responses.tokens.shape
        texts = context.decode(responses.tokens, responses.mask)
        repeated = [x for x in prompts.texts for _ in range(M)]
        rewards = context.oracle.rewards(repeated, [y for row in texts for y in row])
        return None, jnp.asarray(rewards).reshape(1, B, M)

    def trace(self, context: Any, prompts: PromptBatch, tokens: Any, mask: Any) -> None:
        """Returns None: the oracle is a program that the plan traces by itself."""
