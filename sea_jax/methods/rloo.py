"""Policy learning from the posterior: RLOO on its rewards, on fresh prompts, between labels (Eq. 7).

References:
    Eq. 7 and Fig. 2a; Efficient Exploration at Scale (2026), arXiv:2603.17378; RLOO: Ahmadian et al. (2024),
    arXiv:2402.14740.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sea_jax.algorithm import UpdateSettings
from sea_jax.ensemble import heads
from sea_jax.losses import sequence_logprobs
from sea_jax.losses.micro_batches import merge_passes, split_passes
from sea_jax.losses.policy_gradient import rloo_loss
from sea_jax.methods.between_labels import BetweenLabels, kl_weight, share_distinct
from sea_jax.methods.method import Prompts
from sea_jax.methods.scorers import OracleScorer
from sea_jax.models.generate import Responses
from sea_jax.types import Array, Params, PolicyState, PromptBatch


def posterior_reward(members: Params, features: Array, kind: str, pessimism: float) -> Array:
    """Computes the mean reward over members, less a multiple of its uncertainty.

    A reward is known up to a constant of the prompt, so its uncertainty is that of the difference from the
    mean response.

    Args:
        members: heads, leaves [K, ...].
        features: [B, G, E] f32.
        kind: 'mean' of r_φ, or 'win_probability': the mean of σ(r_φ(y_g) − r_φ(y_h)) over h ≠ g.
        pessimism: standard deviations that are taken off.

    Returns:
        [B, G] f32.
    """
    rewards = heads.rewards(members, features)
    if kind == "win_probability":
        G = rewards.shape[-1]
        won = jax.nn.sigmoid(rewards[..., :, None] - rewards[..., None, :])
        rewards = (won.sum(-1) - 0.5) / (G - 1)  # a response meets itself with 1/2
        return rewards.mean(0) - pessimism * rewards.std(0)
    spread = (rewards - rewards.mean(-1, keepdims=True)).std(0)
    return rewards.mean(0) - pessimism * spread


def policy_gradient_step(
    settings: UpdateSettings, kl_weight: Array | float, max_kl: Array | float, policy: PolicyState,
    ref_params: Params, prompts: PromptBatch, responses: Responses, rewards: Array,
) -> tuple[PolicyState, dict[str, Array]]:  # fmt: skip
    """Takes one optimizer step of RLOO; jit it with the settings static.

    Args:
        settings: its policy_optimizer.
        kl_weight: [] f32, β.
        max_kl: [] f32, limit of `rloo_loss`.
        policy: π_θ and its optimizer.
        ref_params: π_ref.
        prompts: B prompts.
        responses: [B, G, T], drawn from π_θ at temperature 1.
        rewards: [B, G] f32.

    Returns:
        The new policy; metrics [] f32.
    """
    B = rewards.shape[0]

    def share(params: Params, part: Any) -> tuple[Array, Array]:
        *batch, reward = part
        score = lambda p: sequence_logprobs(settings.model, p, *batch, chunk=settings.token_chunk)  # noqa: E731
        logps, ref_logps = score(params), score(ref_params)
        return rloo_loss(logps, ref_logps, reward, kl_weight, max_kl).sum() / B, logps - ref_logps

    def add(grads: Params, part: Any) -> tuple[Params, Array]:
        more, ratio = jax.grad(share, has_aux=True)(policy.params, part)
        return jax.tree.map(jnp.add, grads, more), ratio

    batch = (prompts.tokens, prompts.mask, responses.tokens, responses.mask, rewards)
    zeros = jax.tree.map(jnp.zeros_like, policy.params)
    grads, ratio = jax.lax.scan(add, zeros, split_passes(batch, min(settings.micro_batch or B, B)))
    updates, opt_state = settings.policy_optimizer.update(grads, policy.opt_state, policy.params)
    metrics = {
        "rloo/reward": rewards.mean(),
        "rloo/kl": merge_passes(ratio).mean(),  # a sample of KL(π_θ ‖ π_ref), in nats
        "rloo/grad_norm": optax.tree.norm(grads),
        "rloo/length": responses.mask.sum(-1).mean(dtype=jnp.float32),
        "rloo/distinct": share_distinct(responses),
    }
    # An update that is not finite changes nothing, and the run ends (`experiment/logbook.py`).
    finite = jnp.isfinite(metrics["rloo/grad_norm"])
    new = PolicyState(optax.apply_updates(policy.params, updates), opt_state)
    new = jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, policy)
    return new, metrics | {"improve/finite": finite.astype(jnp.float32)}


_step = jax.jit(policy_gradient_step, static_argnums=0, donate_argnums=3)
_reward = jax.jit(posterior_reward, static_argnames="kind")


@dataclasses.dataclass(frozen=True)
class PosteriorReward:
    """The posterior's reward on the frozen features."""

    reads_oracle: bool = False

    def __call__(self, run: Any, prompts: Prompts, responses: Responses) -> Array:
        """Returns rewards [B, G] f32."""
        config = run.config.rloo
        features = run.backbone(prompts.texts, *prompts.batch, responses)
        return _reward(run.state.ensemble.params, features, config.reward, config.pessimism)


@dataclasses.dataclass(frozen=True)
class OracleReward:
    """The oracle's own reward, which no user has: what the same updates reach with a perfect posterior."""

    reads_oracle: bool = True

    def __call__(self, run: Any, prompts: Prompts, responses: Responses) -> Array:
        """Returns rewards [B, G] f32; buys no label."""
        _, rewards = OracleScorer().score(run, prompts, responses)
        return rewards[0]


@dataclasses.dataclass(frozen=True)
class RlooBetweenLabels(BetweenLabels):
    """RLOO on a reward.

    Attributes:
        reward: (run, prompts, responses) -> [B, G] f32.
    """

    reward: PosteriorReward | OracleReward = PosteriorReward()

    @property
    def reads_oracle(self) -> bool:
        """True with the oracle's own reward."""
        return self.reward.reads_oracle

    def trace(self, context: Any, prompts: PromptBatch, responses: Responses, rewards: Array) -> Any:
        """Traces `policy_gradient_step`; the context is an `Experiment` of launch/steps.py."""
        scalar = jax.ShapeDtypeStruct((), jnp.float32)
        policy, ref_params = context.state.policy, context.ref_params
        return _step.trace(context.settings, scalar, scalar, policy, ref_params, prompts, responses, rewards)

    def update(self, run: Any, prompts: Prompts, responses: Responses) -> dict[str, Array]:
        """Scores the samples and takes one step of RLOO."""
        batch = prompts.batch, responses, self.reward(run, prompts, responses)
        limits = kl_weight(run.config.rloo, run.labeller.num_queries), run.config.rloo.max_kl
        policy, metrics = _step(run.settings, *limits, run.state.policy, run.ref_params, *batch)
        run.set_state(run.state._replace(policy=policy))
        return metrics
