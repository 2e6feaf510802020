"""K reward heads on frozen features: a vmapped MLP (Sec. 4.2.1, App. F.1)."""

from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from sea_jax.ensemble import experience as buffer
from sea_jax.losses.reward import anchor_penalty, preference_nll, weighted_mean
from sea_jax.types import Array, EnsembleState, Experience, Params


class Head(nn.Module):
    """One reward function r_φ: features [..., E] -> [...] f32.

    The output layer is scaled so that a fresh head has rewards of standard deviation about
    `prior_scale` over features of unit variance: the prior's width, in logits of Eq. 3.
    """

    hidden: tuple[int, ...] = (128, 128)
    prior_scale: float = 1.0

    if TYPE_CHECKING:  # Flax's annotations leave these open

        def apply(self, *args: Any, **kwargs: Any) -> Any: ...
        def __hash__(self) -> int: ...

    @nn.compact
    def __call__(self, features: Array) -> Array:
        x = features
        for i, width in enumerate(self.hidden):
            x = nn.relu(nn.Dense(width, kernel_init=nn.initializers.he_normal(), name=f"hidden_{i}")(x))
        last = nn.initializers.variance_scaling(self.prior_scale**2, "fan_in", "normal")
        # Without bias: a constant cancels in every comparison.
        return nn.Dense(1, use_bias=False, kernel_init=last, name="out")(x)[..., 0]


def init(
    key: Array, head: Head, num_members: int, feature_width: int, optimizer: optax.GradientTransformation,
    prior_heads: Params | None = None,
) -> EnsembleState:  # fmt: skip
    """Initialises K independent heads, and keeps a copy of their parameters as the anchors φ⁰.

    Args:
        key: [] key.
        head: one member's module.
        num_members: K.
        feature_width: E.
        optimizer: of each member.
        prior_heads: leaves [P, ...] of P ≥ K pretrained heads: K of them are drawn, no two the same, their
            rewards times head.prior_scale. None: random weights.
    """
    if prior_heads is None:
        features = jnp.zeros((1, feature_width))
        params = jax.vmap(lambda k: head.init(k, features)["params"])(jax.random.split(key, num_members))
    else:
        size = jax.tree.leaves(prior_heads)[0].shape[0]
        drawn = jax.random.choice(key, size, (num_members,), replace=False)
        params = jax.tree.map(lambda leaf: leaf[drawn], prior_heads)
        params["out"] = {"kernel": params["out"]["kernel"] * head.prior_scale}
    anchor = jax.tree.map(jnp.copy, params)  # a copy: the state is donated leaf by leaf
    return EnsembleState(params, anchor, jax.vmap(optimizer.init)(params))


def rewards(params: Params, features: Array) -> Array:
    """Computes r_φk(x, y) for every member.

    Args:
        params: leaves [K, ...].
        features: [..., E] f32.

    Returns:
        [K, ...] f32.
    """
    num_hidden = sum(name.startswith("hidden_") for name in params)
    head = Head(hidden=tuple(params[f"hidden_{i}"]["bias"].shape[-1] for i in range(num_hidden)))
    return jax.vmap(lambda p: head.apply({"params": p}, features))(params)


def member_loss(
    params: Params, anchor: Params, features: Array, weight: Array, penalty_weight: Array
) -> Array:
    """Computes Eq. 8 for one member: the weighted mean NLL plus λ' · ‖φ − φ⁰‖².

    Args:
        params, anchor: φ and φ⁰ of one member (no K axis).
        features: [B, 2, E] f32, axis 1 is (y+, y−).
        weight: [B] f32.
        penalty_weight: [] f32, λ' (see `update`).

    Returns:
        [] f32 nats.
    """
    pair = rewards(jax.tree.map(lambda p: p[None], params), features)[0]
    return weighted_mean(preference_nll(pair), weight) + penalty_weight * anchor_penalty(params, anchor)


def update(
    key: Array, state: EnsembleState, data: Experience, optimizer: optax.GradientTransformation,
    *, num_steps: int, batch_size: int, regularization: float, scale_by_data: bool = True,
) -> tuple[EnsembleState, dict[str, Array]]:  # fmt: skip
    """Takes m optimizer steps of Eq. 8 on random batches of D_t (Alg. 2, line 9), in one scan.

    Each member draws its own batches. An empty D_t changes nothing.

    A batch's mean NLL estimates that of D_t. With λ' = λ / |D_t| the loss is, in expectation over batches,
    the negative log posterior of D_t under the prior N(φ⁰, 1 / (2λ)) divided by |D_t|: the prior's influence
    fades as labels arrive, and does not depend on the batch size or on the number of parameters.

    Args:
        key: [] key.
        state: the ensemble.
        data: D_t.
        optimizer: applied to each member by itself.
        num_steps: m.
        batch_size: pairs in a batch.
        regularization: λ, half the prior's precision.
        scale_by_data: True sets λ' = λ / |D_t|, the weight of a prior. False sets λ' = λ, which keeps the
            penalty constant as D_t grows.

    Returns:
        The new state; metrics, means over members: the last step's loss, and after it λ' · ‖φ − φ⁰‖² and
        ‖φ − φ⁰‖².
    """
    size = jnp.maximum(data.size, 1).astype(jnp.float32)
    penalty_weight = regularization / size if scale_by_data else jnp.float32(regularization)
    num_members = jax.tree.leaves(state.params)[0].shape[0]

    def member_step(params, anchor, opt_state, key):
        features, weight = buffer.sample(key, data, batch_size)
        loss, grads = jax.value_and_grad(member_loss)(params, anchor, features, weight, penalty_weight)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    def step(carry, key):
        params, opt_state = carry
        keys = jax.random.split(key, num_members)
        params, opt_state, loss = jax.vmap(member_step)(params, state.anchor, opt_state, keys)
        return (params, opt_state), loss

    keys = jax.random.split(key, num_steps)
    (params, opt_state), losses = jax.lax.scan(step, (state.params, state.opt_state), keys)
    keep: Any = data.size > 0
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(keep, new, old), (params, opt_state), (state.params, state.opt_state)
    )
    drift = jax.vmap(anchor_penalty)(params, state.anchor).mean()
    return EnsembleState(params, state.anchor, opt_state), {
        "ensemble/loss": jnp.where(keep, losses[-1].mean(), 0.0),
        "ensemble/penalty": penalty_weight * drift,
        "ensemble/drift": drift,
    }
