"""Policy updates between labels: their schedule, their limits and their fields.

Labels are scarce and computation is not. A method that updates its policy once per labelled batch leaves most
of what the posterior knows unused; here the policy takes many steps per label, none of which costs one. Duels
are chosen by information alone, from a pool of prompts. `RlooBetweenLabels` and `DpoBetweenLabels` are the
steps.
"""

import abc
import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sea_jax.config.checks import Checks
from sea_jax.config.fields import Section, field
from sea_jax.ensemble import design
from sea_jax.methods.method import Prompts, Samples
from sea_jax.models.generate import Responses
from sea_jax.runtime.mesh import ensure_on_mesh
from sea_jax.tasks.stream import prompt_rows
from sea_jax.types import Array, Candidates, Config, PolicyState, PreferenceBatch, PromptBatch

_RECENT = 8  # steps whose labels may contradict the posterior
_PROMPT_SEED = 1_000_003  # offset of the seed of these prompts, which are others than those of the duels


@dataclasses.dataclass(frozen=True)
class Rloo(Section):
    """Policy learning from the posterior, between labels."""

    section_name = "rloo"
    pool_factor: int = field(8, "prompts proposed to per duel that is kept", at_least=1)
    pool_choice: str = field(
        "i_optimal", "which duels of the pool are kept: 'variance': those whose outcome is least known; "
        "'d_optimal': those that together tell most of their margins; 'i_optimal': of all responses' rewards",
        one_of=tuple(design.POOL_CHOICES),
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
    lower_bound: float = field(
        1.0, "posterior_dpo: standard deviations over members by which a response must be the better one",
        at_least=0,
    )  # fmt: skip
    max_kl: float = field(
        float("inf"),
        "mean log(π_θ / π_ref) in nats over the samples to a prompt, beyond which they teach the way back to "
        "π_ref alone; posterior_dpo: over all, at which the updates of a step end",
        above=0,
        infinite=True,
    )
    min_distinct: float = field(
        0.0,
        "share of distinct responses to a prompt below which the updates of a step end",
        at_least=0,
        at_most=1,
    )
    max_surprise: float = field(
        float("inf"),
        "standard deviations by which the labels of the last 8 steps may contradict the posterior before a "
        "step makes no update",
        above=0,
        infinite=True,
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
            checks.require(same, "rloo.burst_updates", f"{len(labels)} numbers, one per rloo.burst_labels")
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


@functools.cache
def clipped_adam(max_grad_norm: float, rate: float) -> optax.GradientTransformation:
    """Makes Adam with clipped gradients: one object for all runs of a process, which share programs."""
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), optax.adam(rate))


@dataclasses.dataclass(frozen=True)
class BetweenLabels(abc.ABC):
    """Makes as many updates as the labels allow; a subclass says what an update is."""

    @property
    def reads_oracle(self) -> bool:
        """True if it reads the oracle's own rewards, which people and judges do not have."""
        return False

    def optimizer(self, config: Config) -> optax.GradientTransformation | None:
        """Returns Adam at a constant rate, with clipped gradients."""
        return clipped_adam(config.rloo.max_grad_norm, config.rloo.learning_rate)

    def samples(self, config: Config) -> Samples:
        """Returns G samples of the policy to each prompt of an update."""
        return Samples(config.rloo.num_prompts, config.rloo.num_responses, 1.0)

    def updates_per_step(self, config: Config) -> int:
        """Returns the updates for a batch of labels after the last burst."""
        return math.ceil(config.rloo.updates_per_label * config.train.batch_size)

    def updates(self, config: Config, labels: int) -> int:
        """Returns `updates_due`."""
        return updates_due(config.rloo, labels)

    @abc.abstractmethod
    def trace(self, context: Any, prompts: PromptBatch, responses: Responses, rewards: Any) -> Any:
        """Traces the program of `update` on abstract arrays, for `launch.plan`."""

    @abc.abstractmethod
    def update(self, run: Any, prompts: Prompts, responses: Responses) -> dict[str, Array]:
        """Takes one step on samples of the policy, which changes the run's state.

        Args:
            run: a `train.Run`.
            prompts: B prompts.
            responses: [B, G, T], samples of the policy at temperature 1.

        Returns:
            Metrics [] f32, among them "improve/finite", "rloo/kl" and "rloo/distinct".
        """

    def ends_early(self, config: Config, metrics: dict[str, Array]) -> bool:
        """Tells whether the update passed min_distinct; without a limit it waits for nothing."""
        return config.min_distinct > 0 and float(metrics["rloo/distinct"]) < config.min_distinct

    def improve(
        self, run: Any, before: int, batch: PreferenceBatch, learned: dict[str, Any]
    ) -> dict[str, Any]:
        """Makes the updates that are due, after a restart at π_ref where a burst begins.

        They end early where `ends_early` says so. There is none while the labels contradict the posterior
        more than the config allows.
        """
        del batch  # the posterior has learned from it
        config, after = run.config.rloo, run.labeller.num_queries
        first, last = (updates_due(config, labels) for labels in (before, after))
        if restarts(config, before, after):
            run.set_state(run.state._replace(policy=_begin_anew(run)))
        wrong = contradicted(run, learned)  # of every step, so that the last 8 are known when updates are due
        if last == first:
            return {}
        if wrong:
            return {"improve/updates": 0.0}
        rows = prompt_rows(len(run.actor.task.prompts["train"]), config.num_prompts, run.seed + _PROMPT_SEED)
        metrics, finite, made = {}, 1.0, 0
        for update in range(first, last):
            prompts = run.actor.encode(rows[update])
            metrics = self.update(run, prompts, _sample(run, prompts, update))
            wait_for_last(run, finite)
            finite, made = finite * metrics["improve/finite"], made + 1
            if self.ends_early(config, metrics):
                break
        return metrics | {"improve/finite": finite, "improve/updates": float(made)}


def wait_for_last(run: Any, finite: Any) -> None:
    """Waits for the update before the one that was dispatched, and ends the run where it must stop.

    The host stays one update ahead of the devices: enough to keep them busy, and a stop is seen in time.
    """
    jax.block_until_ready(finite)
    run.between_updates()


def share_distinct(responses: Responses | Candidates) -> Array:
    """Computes the number of distinct responses to a prompt as a share of all, mean over prompts, [] f32."""
    tokens = jnp.where(responses.mask, responses.tokens, -1)
    equal = (tokens[:, :, None] == tokens[:, None]).all(-1)
    return (1.0 / equal.sum(-1)).mean()


def _sample(run: Any, prompts: Prompts, update: int) -> Responses:
    """Samples G responses of the policy to each prompt, at temperature 1."""
    key = jax.random.fold_in(jax.random.fold_in(run.state.key, _PROMPT_SEED), update)
    options = dict(num_responses=run.config.rloo.num_responses, temperature=1.0)
    return run.actor.sampler.begin(run.policy, *prompts.batch, key, **options)()


def contradicted(run: Any, learned: dict[str, Any]) -> bool:
    """Tells whether the labels of the last steps contradict the posterior.

    Without a limit it waits for nothing. The surprises of n steps, each of variance 1, add up to one of
    variance n.
    """
    most = run.config.rloo.max_surprise
    if most == math.inf or "ensemble/surprise" not in learned:
        return False
    surprises = np.append(run.memory.get("surprise", []), float(learned["ensemble/surprise"]))
    surprises = surprises[~np.isnan(surprises)][-_RECENT:]
    run.memory["surprise"] = surprises
    return surprises.sum() > most * math.sqrt(len(surprises))


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
