"""Policy learning from the posterior: RLOO on its rewards, on fresh prompts, between labels (Eq. 7).

Labels are scarce and computation is not. A method that updates its policy once per labelled batch leaves most
of what the posterior knows unused; here the policy takes many steps per label, none of which costs one. Duels
are chosen by information alone, from a pool of prompts.

References:
    Eq. 7 and Fig. 2a; Efficient Exploration at Scale (2026), arXiv:2603.17378; RLOO: Ahmadian et al. (2024),
    arXiv:2402.14740.
"""

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sea_jax.algorithm import UpdateSettings
from sea_jax.config.checks import Checks
from sea_jax.config.fields import Section, field
from sea_jax.ensemble import heads, selection
from sea_jax.losses import sequence_logprobs
from sea_jax.losses.micro_batches import merge_passes, split_passes
from sea_jax.losses.policy_gradient import rloo_loss
from sea_jax.methods.method import Prompts, Samples
from sea_jax.methods.scorers import OracleScorer
from sea_jax.models.generate import Responses
from sea_jax.runtime.mesh import ensure_on_mesh
from sea_jax.tasks.stream import prompt_rows
from sea_jax.types import Array, Config, Params, PolicyState, PreferenceBatch, PromptBatch

_PROMPT_SEED = 1_000_003  # offset of the seed of these prompts, which are others than those of the duels


@dataclasses.dataclass(frozen=True)
class Rloo(Section):
    """Policy learning from the posterior, between labels."""

    section_name = "rloo"
    pool_factor: int = field(8, "prompts proposed to per duel that is kept", at_least=1)
    pool_choice: str = field(
        "variance", "which duels of the pool are kept: 'variance': those whose outcome is least known; "
        "'d_optimal': those that together tell most",
        one_of=tuple(selection.POOL_CHOICES),
    )  # fmt: skip
    num_prompts: int = field(16, "prompts per update", at_least=1)
    num_responses: int = field(8, "responses per prompt of an update, G", at_least=2)
    learning_rate: float = field(6e-4, "learning rate of Adam", above=0)
    max_grad_norm: float = field(1.0, "global norm that gradients are clipped to", above=0, infinite=True)
    kl_weight: float = field(0.4, "weight of KL(π_θ ‖ π_ref), β, in rewards per nat", at_least=0)
    kl_half_labels: float = field(
        64.0,
        "labels after which β has halved, as β / (1 + labels / kl_half_labels)",
        above=0,
        infinite=True,
    )
    reward: str = field(
        "mean", "'mean': of the members' rewards; 'win_probability': the mean preference to the other "
        "responses of the prompt, in [0, 1]",
        one_of=("mean", "win_probability"),
    )  # fmt: skip
    pessimism: float = field(0.0, "standard deviations over members that are taken from a reward", at_least=0)
    max_kl: float = field(
        float("inf"),
        "mean log(π_θ / π_ref) in nats at which the updates of a step end",
        above=0,
        infinite=True,
    )
    min_distinct: float = field(
        0.0,
        "share of distinct responses to a prompt below which the updates of a step end",
        at_least=0,
        at_most=1,
    )
    burst_labels: tuple[int, ...] = field(
        (32, 64), "labels after which policy and Adam begin anew at π_ref, ascending", at_least=1
    )
    burst_updates: tuple[int, ...] = field((40, 80), "updates after each of burst_labels", at_least=0)
    updates_per_label: float = field(1.5, "updates per label after the last burst", at_least=0)

    @classmethod
    def check(cls, checks: Checks) -> None:
        """Requires updates for every burst, and bursts in order."""
        if checks.sound("rloo.burst_labels", "rloo.burst_updates"):
            labels, updates = (tuple(checks.get(f"rloo.burst_{name}")) for name in ("labels", "updates"))
            ascending = all(a < b for a, b in itertools.pairwise(labels))
            checks.require(ascending, "rloo.burst_labels", "ascending")
            same = len(labels) == len(updates)
            checks.require(same, "rloo.burst_updates", f"{len(labels)} numbers, one per burst_labels")
        if checks.sound("rloo.num_prompts", "train.micro_batch", "mesh"):
            config = checks.config
            prompts, shards = config.rloo.num_prompts, config.mesh.data * config.mesh.fsdp
            size = min(config.train.micro_batch or prompts, prompts)
            fits = prompts % size == 0 and size % shards == 0
            valid = f"a multiple of train.micro_batch={size}, and that of data · fsdp={shards} devices"
            checks.require(fits, "rloo.num_prompts", valid)


def updates_due(config: Config, labels: int) -> int:
    """Returns the number of updates since the start that so many labels allow."""
    begun = [n for at, n in zip(config.burst_labels, config.burst_updates, strict=True) if labels >= at]
    if len(begun) < len(config.burst_labels):
        return sum(begun)
    last = config.burst_labels[-1] if config.burst_labels else 0
    return sum(begun) + int(config.updates_per_label * (labels - last))


def kl_weight(config: Config, labels: int) -> float:
    """Returns β after so many labels: the more they are, the further the posterior may lead from π_ref."""
    return config.kl_weight / (1 + labels / config.kl_half_labels)


def restarts(config: Config, before: int, after: int) -> bool:
    """Tells whether the labels passed the beginning of a burst."""
    return any(before < at <= after for at in config.burst_labels)


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
    settings: UpdateSettings, kl_weight: Array | float, policy: PolicyState, ref_params: Params,
    prompts: PromptBatch, responses: Responses, rewards: Array,
) -> tuple[PolicyState, dict[str, Array]]:  # fmt: skip
    """Takes one optimizer step of RLOO; jit it with the settings static.

    Args:
        settings: its policy_optimizer.
        kl_weight: [] f32, β.
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
        return rloo_loss(logps, ref_logps, reward, kl_weight).sum() / B, logps - ref_logps

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


def share_distinct(responses: Responses) -> Array:
    """Computes the number of distinct responses to a prompt as a share of all, mean over prompts, [] f32."""
    tokens = jnp.where(responses.mask, responses.tokens, -1)
    equal = (tokens[:, :, None] == tokens[:, None]).all(-1)
    return (1.0 / equal.sum(-1)).mean()


_step = jax.jit(policy_gradient_step, static_argnums=0, donate_argnums=2)
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
class RlooBetweenLabels:
    """RLOO on a reward, as many updates as the labels allow.

    Attributes:
        reward: (run, prompts, responses) -> [B, G] f32.
    """

    reward: PosteriorReward | OracleReward = PosteriorReward()

    @property
    def reads_oracle(self) -> bool:
        """True with the oracle's own reward."""
        return self.reward.reads_oracle

    def optimizer(self, config: Config) -> optax.GradientTransformation:
        """Returns Adam at a constant rate, with clipped gradients."""
        rloo = config.rloo
        return optax.chain(optax.clip_by_global_norm(rloo.max_grad_norm), optax.adam(rloo.learning_rate))

    def samples(self, config: Config) -> Samples:
        """Returns G samples of the policy to each prompt of an update."""
        return Samples(config.rloo.num_prompts, config.rloo.num_responses, 1.0)

    def updates_per_step(self, config: Config) -> int:
        """Returns the updates for a batch of labels after the last burst."""
        return math.ceil(config.rloo.updates_per_label * config.train.batch_size)

    def trace(self, context: Any, prompts: PromptBatch, responses: Responses, rewards: Array) -> Any:
        """Traces `policy_gradient_step`; the context is an `Experiment` of launch/steps.py."""
        weight = jax.ShapeDtypeStruct((), jnp.float32)
        policy, ref_params = context.state.policy, context.ref_params
        return _step.trace(context.settings, weight, policy, ref_params, prompts, responses, rewards)

    def improve(self, run: Any, before: int, batch: PreferenceBatch) -> dict[str, Any]:
        """Makes the updates that are due, after a restart at π_ref where a burst begins.

        They end early where the policy is as far from π_ref, or its responses as alike, as the config allows.
        """
        del batch  # the posterior has learned from it
        config, after = run.config.rloo, run.labeller.num_queries
        first, last = (updates_due(config, labels) for labels in (before, after))
        if restarts(config, before, after):
            run.set_state(run.state._replace(policy=_begin_anew(run)))
        if last == first:
            return {}
        rows = prompt_rows(len(run.actor.task.prompts["train"]), config.num_prompts, run.seed + _PROMPT_SEED)
        metrics, finite, made = {}, 1.0, 0
        for update in range(first, last):
            metrics = self.update(run, run.actor.encode(rows[update]), update)
            finite, made = finite * metrics["improve/finite"], made + 1
            if too_far(config, metrics):
                break
        return metrics | {"improve/finite": finite, "improve/updates": float(made)}

    def update(self, run: Any, prompts: Prompts, index: int) -> dict[str, Array]:
        """Samples from the policy, scores by the posterior and takes one step; returns metrics."""
        config = run.config.rloo
        key = jax.random.fold_in(jax.random.fold_in(run.state.key, _PROMPT_SEED), index)
        sample = run.actor.sampler.begin
        responses = sample(
            run.policy, *prompts.batch, key, num_responses=config.num_responses, temperature=1.0
        )()
        batch = prompts.batch, responses, self.reward(run, prompts, responses)
        weight = kl_weight(config, run.labeller.num_queries)
        policy, metrics = _step(run.settings, weight, run.state.policy, run.ref_params, *batch)
        run.set_state(run.state._replace(policy=policy))
        return metrics


def too_far(config: Config, metrics: dict[str, Array]) -> bool:
    """Tells whether the update passed max_kl or min_distinct; without limits it waits for nothing."""
    far = math.isfinite(config.max_kl) and float(metrics["rloo/kl"]) > config.max_kl
    return far or (config.min_distinct > 0 and float(metrics["rloo/distinct"]) < config.min_distinct)


def _begin_anew(run: Any) -> PolicyState:
    """Returns π_ref's parameters in f32 and an optimizer without moments."""
    params = jax.tree.map(jnp.array, run.initial_params())
    return ensure_on_mesh(run.mesh, PolicyState(params, run.settings.policy_optimizer.init(params)))


def pool_factor(config: Config) -> int:
    """Returns config.rloo.pool_factor."""
    return config.rloo.pool_factor


def pool_choice(config: Config) -> str:
    """Returns config.rloo.pool_choice."""
    return config.rloo.pool_choice
