"""Initial states, optimizers and random keys of a run."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sea_jax.types import (
    Array,
    Config,
    EnsembleState,
    Experience,
    Params,
    PolicyState,
    SampleKeys,
    SeaState,
    StepKeys,
)

_FIRST_SHARE = 0.2  # share of the rate at which a warm-up begins


def policy_optimizer(config: Config) -> optax.GradientTransformationExtraArgs:
    """Makes Adam with gradients clipped by their global norm; its `update` also takes num_queries=[] int32.

    The same fields give the same object, so that all runs of a process share one compiled update.

    Args:
        config: max_grad_norm (of the gradient of the mean loss), learning_rate, warmup_queries, schedule and
            query_budget; see `learning_rate`.
    """
    # A constant rate is the same for all budgets.
    budget = config.query_budget if config.schedule == "cosine" else 0
    return _policy_optimizer(
        config.max_grad_norm, config.learning_rate, config.warmup_queries, config.schedule, budget
    )


@functools.cache
def _policy_optimizer(max_grad_norm: float, *fields: Any) -> optax.GradientTransformationExtraArgs:
    schedule = learning_rate(*fields)

    def scale(updates, state, params=None, **extra_args):
        del params
        rate = jnp.asarray(schedule(extra_args["num_queries"]))
        return jax.tree.map(lambda u: -rate * u, updates), state

    return optax.chain(
        optax.clip_by_global_norm(max_grad_norm),
        optax.scale_by_adam(),
        optax.GradientTransformationExtraArgs(optax.init_empty_state, scale),
    )


def learning_rate(rate: float, warmup: int, schedule: str, budget: int) -> optax.Schedule:
    """Makes the learning rate by oracle queries: a linear warm-up, then constant, or half a cosine down to 0.

    It counts queries and not steps: void duels and synthetic pairs make the number of steps unpredictable,
    and so the schedule of every method ends where its budget does.

    Args:
        rate: after the warm-up.
        warmup: queries.
        schedule: 'constant' or 'cosine'.
        budget: queries at which the cosine ends.
    """
    rest = {
        "constant": lambda: optax.constant_schedule(rate),
        "cosine": lambda: optax.cosine_decay_schedule(rate, max(budget - warmup, 1)),
    }[schedule]()
    if not warmup:
        return rest
    ramp = optax.linear_schedule(rate * _FIRST_SHARE, rate, warmup)
    return optax.join_schedules([ramp, rest], [warmup])


@jax.jit  # one dispatch per step instead of one per key
def step_keys(key: Array, step: Array | int) -> StepKeys:
    """Derives the keys of step t from the run's key, in one place, so that no two draws share a key.

    Args:
        key: [] key of the run.
        step: t, on the host or traced.
    """
    sample, choose, label, ensemble, evaluate = jax.random.split(jax.random.fold_in(key, step), 5)
    select, route = jax.random.split(choose)
    return StepKeys(sample, select, route, label, ensemble, evaluate)


@jax.jit
def sample_keys(key: Array) -> SampleKeys:
    """Derives the keys of a step's samples from its `StepKeys.sample`, which is the responses' own key."""
    return SampleKeys(key, jax.random.fold_in(key, 1), jax.random.fold_in(key, 2))


def init_state(
    key: Array,
    policy_params: Params,
    policy_tx: optax.GradientTransformation,
    draw_ensemble: Callable[[Array], tuple[EnsembleState, Experience]] | None = None,
) -> SeaState:
    """Initialises a run (line 1 of Alg. 2): D_0 = ∅, θ⁰ = π_ref, Φ⁰ from the prior.

    Args:
        key: [] key of the run, from which every later draw descends.
        policy_params: π_ref's; copied, since `update` donates the state.
        policy_tx: the policy's optimizer.
        draw_ensemble: ([] key) -> Φ⁰ and an empty D_0; None for a method without an ensemble.
    """
    ensemble_key, run_key = jax.random.split(key)
    params = jax.tree.map(jnp.array, policy_params)
    ensemble, experience = draw_ensemble(ensemble_key) if draw_ensemble else (None, None)
    policy = PolicyState(params, policy_tx.init(params))
    return SeaState(policy, ensemble, experience, run_key, jnp.int32(0), jnp.int32(0))
