"""APL: prompts of high predictive entropy, duels of the widest implicit margin, labels from the oracle.

References:
    App. E, APL; Muldrew et al. (2024), arXiv:2402.08114.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from sea_jax.algorithm import UpdateSettings
from sea_jax.config.checks import Checks
from sea_jax.config.fields import Section, field
from sea_jax.losses import implicit_reward, sequence_logprobs
from sea_jax.losses.micro_batches import merge_passes, split_passes
from sea_jax.methods.method import Choice, Method, Prompts, Samples, ScoringContext
from sea_jax.models.generate import Responses
from sea_jax.runtime.mesh import to_host
from sea_jax.types import Array, Config, Params, PromptBatch


@jax.jit
def predictive_entropy(logprobs: Array) -> Array:
    """Estimates H(y|x) ≈ −Σ_n log π_θ(y_n|x) / N, y_n ~ π_θ(·|x), by which APL chooses prompts (line 3).

    References:
        App. E, APL; Muldrew et al. (2024), arXiv:2402.08114.

    Args:
        logprobs: [B, N, T] f32 nats, 0 on padding: the tokens of N samples, under the distribution that they
            were drawn from. At temperature 1 that is π_θ, and the estimate is unbiased.

    Returns:
        [B] f32 nats.
    """
    return -logprobs.sum(-1).mean(-1)


def implicit_rewards(
    settings: UpdateSettings,
    params: Params,
    ref_params: Params,
    prompts: PromptBatch,
    tokens: Array,
    mask: Array,
) -> Array:
    """Computes DPO's implicit reward of every response, in place of a head's rewards (line 5).

    Args:
        settings: scores its micro_batch of prompts at once, with the β of its loss.
        params, ref_params: π_θ, π_ref.
        prompts: B prompts.
        tokens: [B, M, T] int32.
        mask: [B, M, T] bool.

    Returns:
        [1, B, M] f32.
    """
    model, chunk, beta = settings.model, settings.token_chunk, dict(settings.dap_options)["beta"]

    def score(part: tuple[Array, Array, Array, Array]) -> Array:
        logps, ref_logps = (sequence_logprobs(model, p, *part, chunk) for p in (params, ref_params))
        return implicit_reward(logps, ref_logps, beta)

    batch = prompts.tokens, prompts.mask, tokens, mask
    passes = split_passes(batch, settings.micro_batch or tokens.shape[0])
    return merge_passes(jax.lax.map(score, passes))[None]


jitted_implicit_rewards = jax.jit(implicit_rewards, static_argnums=0)


@dataclasses.dataclass(frozen=True)
class ImplicitScorer:
    """DPO's implicit reward of the latest policy, as the only head (K = 1)."""

    reads_oracle: bool = False

    def score(self, context: ScoringContext, prompts: Prompts, responses: Responses) -> tuple[None, Array]:
        """Returns no features and rewards [1, B, M] f32."""
        both = context.state.policy.params, context.ref_params
        return None, jitted_implicit_rewards(
            context.settings, *both, prompts.batch, responses.tokens, responses.mask
        )

    def trace(self, context: Any, prompts: PromptBatch, tokens: Any, mask: Any) -> Any:
        """Traces `implicit_rewards` with the context's settings, parameters and π_ref."""
        params = context.state.policy.params
        return jitted_implicit_rewards.trace(
            context.settings, params, context.ref_params, prompts, tokens, mask
        )


@dataclasses.dataclass(frozen=True)
class HighestEntropy:
    """Keeps the B prompts of a pool about which the policy is least certain."""

    def pool_size(self, config: Config) -> int:
        """Returns config.apl.pool_factor · B prompts."""
        return config.apl.pool_factor * config.train.batch_size

    def samples(self, config: Config) -> Samples:
        """Returns the samples that estimate the entropy: N to each prompt of the pool, at temperature 1.

        At the temperature of the duels the log-probs would not be those of π_θ.
        """
        return Samples(self.pool_size(config), config.apl.entropy_samples, 1.0)

    def choose(self, config: Config, rows: np.ndarray, sample: Callable[..., Any]) -> Choice:
        """Keeps the B rows of highest predictive entropy, in the pool's order."""
        samples, seconds = sample(rows, self.samples(config))
        entropy = to_host(predictive_entropy(samples.logprobs))
        kept = highest(entropy, config.train.batch_size)
        metrics = {"prompt/entropy": entropy[kept].mean(), "prompt/entropy_pool": entropy.mean()}
        return Choice(rows[kept], metrics, seconds)


def highest(values: np.ndarray, count: int) -> np.ndarray:
    """Returns the indices of the `count` highest values, ascending; of equal values the lower index is kept.

    They ascend so that a batch that the budget cuts off loses prompts by chance and not by their value.
    """
    return np.sort(np.argsort(-values, kind="stable")[:count])


@dataclasses.dataclass(frozen=True)
class Apl(Section):
    """The config fields of APL."""

    section_name = "apl"
    pool_factor: int = field(8, "prompts of the pool, as a multiple of train.batch_size", at_least=1)
    entropy_samples: int = field(8, "responses per prompt of the pool that estimate the entropy", at_least=1)
    num_responses: int = field(
        8, "responses per chosen prompt, of which the two with the largest implicit margin meet", at_least=2
    )

    @classmethod
    def check_on_task(cls, checks: Checks, num_prompts: int) -> None:
        """Requires as many train prompts as a pool has, since its prompts are distinct."""
        if checks.sound("apl.pool_factor", "train.batch_size"):
            B = checks.config.train.batch_size
            valid = f"at most {num_prompts // B} with train.batch_size={B}: {num_prompts} train prompts"
            checks.require(checks.config.apl.pool_factor * B <= num_prompts, "apl.pool_factor", valid)


METHOD = Method(
    "APL",
    "compares the pair of the largest implicit margin, on prompts of high entropy",
    strategy="max_margin",
    scorer=ImplicitScorer(),
    prompts=HighestEntropy(),
    num_responses=lambda config: config.apl.num_responses,
    losses=("dpo",),
    section=Apl,
)
