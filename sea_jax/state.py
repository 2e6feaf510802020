"""How the states of a run begin."""

import jax
import jax.numpy as jnp
import optax

from sea_jax.ensemble import experience as buffer
from sea_jax.ensemble import heads
from sea_jax.types import Array, Config, Params, PolicyState, SampleKeys, SeaState, StepKeys

_FIRST_SHARE = 0.2  # of the rate, where a warm-up begins


def policy_optimizer(config: Config) -> optax.GradientTransformationExtraArgs:
    """Adam, gradients clipped by their global norm; its `update` also takes num_queries=[] int32.

    Args:
        config: max_grad_norm (of the gradient of the mean loss), and what `learning_rate` reads.
    """
    schedule = learning_rate(config)

    def scale(updates, state, params=None, **extra_args):
        del params
        rate = jnp.asarray(schedule(extra_args["num_queries"]))
        return jax.tree.map(lambda u: -rate * u, updates), state

    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.scale_by_adam(),
        optax.GradientTransformationExtraArgs(optax.init_empty_state, scale),
    )


def learning_rate(config: Config) -> optax.Schedule:
    """The rate by oracle queries: a linear warm-up, then constant, or half a cosine down to 0.

    Queries and not steps, since clashes and synthetic pairs make the number of steps unforeseeable:
    every method's rate ends where its budget does.

    Args:
        config: learning_rate, warmup_queries, schedule ('constant' or 'cosine'), query_budget.
    """
    rate, warmup = config.learning_rate, config.warmup_queries
    rest = {
        "constant": lambda: optax.constant_schedule(rate),
        "cosine": lambda: optax.cosine_decay_schedule(rate, max(config.query_budget - warmup, 1)),
    }[config.schedule]()
    if not warmup:
        return rest
    ramp = optax.linear_schedule(rate * _FIRST_SHARE, rate, warmup)
    return optax.join_schedules([ramp, rest], [warmup])


@jax.jit  # called at every step: one dispatch, in place of one for each key
def step_keys(key: Array, step: Array | int) -> StepKeys:
    """The keys of step t, from the run's key: the host's and the device's, in one place to be distinct."""
    return StepKeys(*jax.random.split(jax.random.fold_in(key, step), len(StepKeys._fields)))


@jax.jit
def sample_keys(key: Array) -> SampleKeys:
    """The draws of a step's samplers, from its `StepKeys.sample`, which is that of the responses itself."""
    return SampleKeys(key, jax.random.fold_in(key, 1), jax.random.fold_in(key, 2))


def init_state(
    key: Array,
    policy_params: Params,
    policy_tx: optax.GradientTransformation,
    head: heads.Head,
    ensemble_tx: optax.GradientTransformation,
    *,
    num_members: int,
    feature_width: int,
    capacity: int,
    prior_heads: Params | None = None,
) -> SeaState:
    """Line 1 of Alg. 2: D_0 empty, θ⁰ = π_ref, Φ⁰ from the prior.

    Args:
        key: [] key of the run; every later draw descends from it.
        policy_params: of π_ref; copied, since the state is donated and π_ref is not.
        policy_tx, ensemble_tx: optimizers.
        head: one member's module.
        num_members: K.
        feature_width: E.
        capacity: C, pairs.
        prior_heads: pretrained heads that Φ⁰ is drawn from, as `heads.init` takes them; None: random ones.
    """
    ensemble_key, run_key = jax.random.split(key)
    params = jax.tree.map(jnp.array, policy_params)
    return SeaState(
        PolicyState(params, policy_tx.init(params)),
        heads.init(ensemble_key, head, num_members, feature_width, ensemble_tx, prior_heads),
        buffer.init(capacity, feature_width),
        run_key,
        jnp.int32(0),
        jnp.int32(0),
    )
