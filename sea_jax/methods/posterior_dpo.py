"""Preference updates on pairs that the posterior labels, on fresh prompts, between labels.

Of the samples to a prompt the pair is taken whose better response the posterior is surest of: by the largest
lower confidence bound of the difference in reward. A pair whose bound is not positive teaches nothing.

References:
    line 8 of Alg. 2 labels pairs by one sampled head; the lower bound is ours.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sea_jax import algorithm
from sea_jax.algorithm import UpdateSettings
from sea_jax.ensemble import heads
from sea_jax.methods.between_labels import BetweenLabels, share_distinct
from sea_jax.methods.method import Prompts
from sea_jax.models.generate import Responses
from sea_jax.types import Array, Candidates, Config, Params, PreferenceBatch, PromptBatch, SeaState


def surest_pairs(rewards: Array, lower_bound: float) -> tuple[Array, Array]:
    """Finds the pair of each prompt with the largest lower confidence bound of the difference in reward.

    Args:
        rewards: [K, B, G] f32.
        lower_bound: standard deviations over members that are taken from the mean difference.

    Returns:
        pairs [B, 2] int32, (y+, y−), and their bounds [B] f32, which are 0 where no pair has a positive one.
    """
    G = rewards.shape[-1]
    margin = rewards[..., :, None] - rewards[..., None, :]  # [K, B, G, G]
    bound = (margin.mean(0) - lower_bound * margin.std(0)).reshape(-1, G * G)
    best = jnp.argmax(bound, -1)
    return jnp.stack([best // G, best % G], -1), jnp.maximum(bound.max(-1), 0)


def preference_step(
    settings: UpdateSettings,
    lower_bound: float,
    state: SeaState,
    ref_params: Params,
    prompts: PromptBatch,
    candidates: Candidates,
) -> tuple[SeaState, dict[str, Array]]:
    """Takes one step of the preference loss F (Eq. 9); jit it with the settings and the bound static.

    Args:
        settings: those of `algorithm.update`, without a posterior.
        lower_bound: see `surest_pairs`.
        state: before the step; only the policy changes.
        ref_params: π_ref.
        prompts: B prompts.
        candidates: G samples of π_θ to each, with features.

    Returns:
        The new state; metrics [] f32. "rloo/kl" is the mean over the pairs, which are no fair draw from π_θ.
    """
    assert state.ensemble is not None and candidates.features is not None
    rewards = heads.rewards(state.ensemble.params, candidates.features)
    rewards = algorithm.merge_duplicates(rewards, candidates)
    pairs, bound = surest_pairs(rewards, lower_bound)
    rows = jnp.arange(len(pairs))[:, None]
    weight = (bound > 0).astype(jnp.float32)
    tokens, mask = candidates.tokens[rows, pairs], candidates.mask[rows, pairs]
    batch = PreferenceBatch(*prompts, tokens, mask, None, jnp.zeros(len(pairs), bool), weight)
    new, metrics = algorithm.update(settings, state, ref_params, batch)
    learned = {name: value for name, value in metrics.items() if name.startswith("policy/")}
    ratio = (learned["policy/log_ratio_chosen"] + learned["policy/log_ratio_rejected"]) / 2
    return new._replace(step=state.step), learned | {
        "rloo/reward": rewards.mean(),
        "rloo/kl": ratio,
        "rloo/sure": weight.mean(),
        "rloo/length": candidates.mask.sum(-1).mean(dtype=jnp.float32),
        "rloo/distinct": share_distinct(candidates),
        "improve/finite": metrics["step/finite"],
    }


_step = jax.jit(preference_step, static_argnums=(0, 1), donate_argnums=2)


@dataclasses.dataclass(frozen=True)
class DpoBetweenLabels(BetweenLabels):
    """Steps of the preference loss of section `train`, on pairs that the posterior is sure of."""

    def optimizer(self, config: Config) -> optax.GradientTransformation | None:
        """Returns None: it is that of section `train`."""
        return None

    def trace(self, context: Any, prompts: PromptBatch, responses: Responses, rewards: Any) -> Any:
        """Traces `preference_step`; the context is an `Experiment` of launch/steps.py."""
        features = rewards.update(shape=(*rewards.shape, context.feature_width))
        candidates = Candidates(responses.tokens, responses.mask, features)
        settings = _settings(context.settings)
        return _step.trace(settings, 0.0, context.state, context.ref_params, prompts, candidates)

    def ends_early(self, config: Config, metrics: dict[str, Array]) -> bool:
        """Tells whether the update passed min_distinct or max_kl; without limits it waits for nothing."""
        far = config.max_kl < float("inf") and float(metrics["rloo/kl"]) > config.max_kl
        return far or super().ends_early(config, metrics)

    def update(self, run: Any, prompts: Prompts, responses: Responses) -> dict[str, Array]:
        """Takes one step on the surest pair of each prompt, as the posterior labels it."""
        features = run.backbone(prompts.texts, *prompts.batch, responses)
        candidates = Candidates(responses.tokens, responses.mask, features)
        settings, bound = _settings(run.settings), run.config.rloo.lower_bound
        state, metrics = _step(settings, bound, run.state, run.ref_params, prompts.batch, candidates)
        run.set_state(state)
        return metrics


def _settings(settings: UpdateSettings) -> UpdateSettings:
    """Returns settings that train the policy and leave the posterior as it is."""
    return dataclasses.replace(settings, learn_policy=True, posterior=None)
