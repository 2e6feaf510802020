"""How the states of a run begin."""

import jax
import jax.numpy as jnp
import optax

from sea_jax.ensemble import experience as buffer
from sea_jax.ensemble import heads
from sea_jax.types import Array, Params, PolicyState, SeaState


def policy_optimizer(config, total_steps: int) -> optax.GradientTransformation:
    """Adam with warm-up, then a constant or cosine rate; gradients clipped by their global norm.

    Args:
        config: learning_rate, warmup_steps, schedule ('constant' or 'cosine'), max_grad_norm (of the
            gradient of the mean loss).
        total_steps: where a cosine ends.
    """
    warmup = max(config.warmup_steps, 1)
    ramp = optax.linear_schedule(config.learning_rate / warmup, config.learning_rate, warmup)
    rest = {
        "constant": lambda: optax.constant_schedule(config.learning_rate),
        "cosine": lambda: optax.cosine_decay_schedule(config.learning_rate, max(total_steps - warmup, 1)),
    }[config.schedule]()
    schedule = optax.join_schedules([ramp, rest], [warmup])
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.adam(schedule))


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
) -> SeaState:
    """Line 1 of Alg. 2: D_0 empty, θ⁰ = π_ref, Φ⁰ random.

    Args:
        key: [] key of the run; every later draw descends from it.
        policy_params: of π_ref; copied, since the state is donated and π_ref is not.
        policy_tx, ensemble_tx: optimizers.
        head: one member's module.
        num_members: K.
        feature_width: E.
        capacity: C, pairs.
    """
    ensemble_key, run_key = jax.random.split(key)
    params = jax.tree.map(jnp.array, policy_params)
    return SeaState(
        PolicyState(params, policy_tx.init(params)),
        heads.init(ensemble_key, head, num_members, feature_width, ensemble_tx),
        buffer.init(capacity, feature_width),
        run_key,
        jnp.int32(0),
        jnp.int32(0),
    )
