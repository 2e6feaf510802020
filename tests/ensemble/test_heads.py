"""The ensemble against one head trained by hand, and the independence of its members."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import sigmoid

from configs import quickstart
from sea_jax.ensemble import experience, heads
from sea_jax.losses import reward
from sea_jax.types import Experience

E, HIDDEN, LR = 3, (5, 4), 0.03
HEAD = heads.Head(hidden=HIDDEN)
OPTIMIZER = optax.adam(LR)
init = jax.jit(heads.init, static_argnums=(1, 2, 3, 4))
update = jax.jit(heads.update, static_argnums=3, static_argnames=("num_steps", "batch_size", "scale_by_data"))


def ensemble(num_members, seed=0):
    return init(jax.random.key(seed), HEAD, num_members, E, OPTIMIZER)


def data(rows=6, capacity=8, seed=0):
    """A buffer whose first rows are filled."""
    rng = np.random.default_rng(seed)
    features, weight = np.zeros((capacity, 2, E), np.float32), np.zeros(capacity, np.float32)
    features[:rows], weight[:rows] = rng.normal(size=(rows, 2, E)), rng.uniform(0.5, 1.5, rows)
    return Experience(features, weight, np.int32(rows % capacity), np.int32(rows))


def train(state, d, key=1, optimizer=OPTIMIZER, **options):
    options = dict(num_steps=4, batch_size=3, regularization=0.5) | options
    return update(jax.random.key(key), state, d, optimizer, **options)


def numpy(tree):
    return jax.tree.map(np.asarray, tree)


def member(params, k):
    return jax.tree.map(lambda leaf: np.asarray(leaf[k], np.float64), params)


def mlp(p, x):
    """One head in NumPy: activations and rewards."""
    h0 = np.maximum(x @ p["hidden_0"]["kernel"] + p["hidden_0"]["bias"], 0)
    h1 = np.maximum(h0 @ p["hidden_1"]["kernel"] + p["hidden_1"]["bias"], 0)
    return h0, h1, (h1 @ p["out"]["kernel"])[..., 0]


def loss_and_gradient(p, anchor, x, w, strength):
    """Eq. 8 and its gradient by hand: backward through the two-layer head, then the penalty."""
    h0, h1, r = mlp(p, x)
    margin = r[:, 0] - r[:, 1]
    w = w / w.sum()
    drift = jax.tree.map(lambda a, b: a - b, p, anchor)
    loss = -(w * np.log(sigmoid(margin))).sum()
    loss += strength * sum((d**2).sum() for d in jax.tree.leaves(drift))
    d_r = (-w * sigmoid(-margin))[:, None] * np.array([1.0, -1.0])  # [B, 2]
    d_1 = d_r[..., None] * p["out"]["kernel"][:, 0] * (h1 > 0)
    d_0 = d_1 @ p["hidden_1"]["kernel"].T * (h0 > 0)
    outer = lambda a, b: np.einsum("bpi,bpj->ij", a, b)  # noqa: E731
    grads = {
        "hidden_0": {"kernel": outer(x, d_0), "bias": d_0.sum((0, 1))},
        "hidden_1": {"kernel": outer(h0, d_1), "bias": d_1.sum((0, 1))},
        "out": {"kernel": outer(h1, d_r[..., None])},
    }
    return loss, jax.tree.map(lambda g, d: g + 2 * strength * d, grads, drift)


def adam(p, grads, m, v, t):
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, grads)
    v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, v, grads)
    step = lambda p, m, v: p - LR * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)  # noqa: E731
    return jax.tree.map(step, p, m, v), m, v


@pytest.mark.parametrize("scale_by_data", [True, False])
def test_one_member_is_one_mlp_trained_by_hand(scale_by_data):
    """m steps in NumPy, gradients and Adam included; the batches reproduced by the same draws."""
    state, d = ensemble(1), data()
    trained, metrics = train(state, d, scale_by_data=scale_by_data, regularization=3.0)
    strength = 3.0 / (6 if scale_by_data else 1)  # λ / |D|, |D| = 6
    p = anchor = member(state.params, 0)
    m = v = jax.tree.map(np.zeros_like, p)
    for t, key in enumerate(jax.random.split(jax.random.key(1), 4), start=1):
        x, w = experience.sample(jax.random.split(key, 1)[0], d, 3)
        x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
        loss, grads = loss_and_gradient(p, anchor, x, w, strength)
        p, m, v = adam(p, grads, m, v, t)
    np.testing.assert_allclose(metrics["ensemble/loss"], loss, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, atol=2e-6), trained.params, p)
    drift = jax.tree.leaves(jax.tree.map(lambda a, b: a - b, p, anchor))
    assert min(np.abs(d).max() for d in drift) > 1e-3
    squares = sum((d**2).sum() for d in drift)
    np.testing.assert_allclose(metrics["ensemble/drift"], squares, rtol=1e-4)
    np.testing.assert_allclose(metrics["ensemble/penalty"], strength * squares, rtol=1e-4)


def test_rewards_are_each_members_mlp():
    state, x = ensemble(3), np.random.default_rng(1).normal(size=(2, 4, E)).astype(np.float32)
    rewards = heads.rewards(state.params, jnp.array(x))
    assert rewards.shape == (3, 2, 4)
    for k in range(3):
        np.testing.assert_allclose(rewards[k], mlp(member(state.params, k), x)[2], atol=1e-5)


def test_equation_8_by_hand():
    """Two parameters and one pair: every number below can be checked on paper.

    φ = (2, 1), φ⁰ = (1, −1): ‖φ − φ⁰‖² = 1² + 2² = 5. A head without hidden layers is
    r = φ·f. Pair 1: r = 2·1 + 1·0 = 2 against 1: margin 1, −log σ(1) = 0.313262. Pair 2: margin −2,
    −log σ(−2) = 2.126928. Weights 3 and 1: (3·0.313262 + 2.126928) / 4 = 0.766679.
    With λ' = 0.2: 0.766679 + 0.2·5 = 1.766679.
    """
    params = {"out": {"kernel": jnp.array([[2.0], [1.0]])}}
    anchor = {"out": {"kernel": jnp.array([[1.0], [-1.0]])}}
    features = jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.5, 1.0]]])
    loss = heads.member_loss(params, anchor, features, jnp.array([3.0, 1.0]), jnp.float32(0.2))
    np.testing.assert_allclose(loss, 1.766679, rtol=1e-6)
    np.testing.assert_allclose(reward.anchor_penalty(params, anchor), 5.0)
    # All weights 0: the penalty alone, not 0 / 0.
    alone = heads.member_loss(params, anchor, features, jnp.zeros(2), jnp.float32(0.2))
    np.testing.assert_allclose(alone, 1.0, rtol=1e-6)


def test_gradient_of_the_penalty_is_twice_the_drift():
    """∇ λ'‖φ − φ⁰‖² = 2 λ' (φ − φ⁰) in every parameter, however many there are."""
    params, anchor = (jax.tree.map(lambda p: p[0], ensemble(1, seed).params) for seed in (0, 1))
    grads = jax.grad(lambda p: 0.7 * reward.anchor_penalty(p, anchor))(params)
    by_hand = jax.tree.map(lambda p, a: 2 * 0.7 * (np.asarray(p) - np.asarray(a)), params, anchor)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), grads, by_hand)
    shifted = jax.tree.map(lambda a: a + 0.5, anchor)
    size = sum(leaf.size for leaf in jax.tree.leaves(anchor))
    np.testing.assert_allclose(reward.anchor_penalty(shifted, anchor), 0.25 * size, rtol=1e-5)


def test_expected_batch_loss_is_equation_8_over_the_data():
    """Over all |D|^B batches, equally likely, the mean of loss and gradient is Eq. 8 of D_t over |D_t|.

    Eq. 8 of D_t in NumPy: Σ_D −log σ(r(y+) − r(y−)) + λ‖φ − φ⁰‖², here λ = 0.7, |D| = 3, B = 2.
    """
    x, total = data(rows=3).features[:3], 0.0
    params, anchor = (jax.tree.map(lambda p: p[0], ensemble(1, seed).params) for seed in (0, 1))
    loss_of = jax.jit(jax.value_and_grad(heads.member_loss))
    grads = jax.tree.map(lambda p: np.zeros(p.shape), params)
    for rows in itertools.product(range(3), repeat=2):
        loss, grad = loss_of(params, anchor, x[list(rows)], jnp.ones(2), jnp.float32(0.7 / 3))
        total, grads = total + float(loss) / 9, jax.tree.map(lambda a, b: a + np.asarray(b) / 9, grads, grad)
    p, a = (jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree) for tree in (params, anchor))
    r = mlp(p, x)[2]
    squares = sum(((u - v) ** 2).sum() for u, v in zip(*map(jax.tree.leaves, (p, a)), strict=True))
    equation_8 = -np.log(sigmoid(r[:, 0] - r[:, 1])).sum() + 0.7 * squares
    np.testing.assert_allclose(total, equation_8 / 3, rtol=1e-5)
    by_hand = loss_and_gradient(p, a, x.astype(np.float64), np.ones(3), 0.7 / 3)[1]
    jax.tree.map(lambda g, h: np.testing.assert_allclose(g, h, atol=1e-5), grads, by_hand)


def test_penalty_shrinks_as_data_grows():
    """λ / |D| under SGD: from the same drift, the pull on |D| = 2 is 4 times that on |D| = 8."""
    sgd = optax.sgd(1.0)
    state = numpy(init(jax.random.key(0), HEAD, 2, E, sgd))
    state = state._replace(anchor=jax.tree.map(lambda p: p + 1, state.params))
    expected = {(2, True): 0.5 / 2, (8, True): 0.5 / 8, (2, False): 0.5, (8, False): 0.5}
    for (rows, scaled), strength in expected.items():
        d = data(rows)._replace(features=np.zeros((8, 2, E), np.float32))  # no gradient of the NLL
        options = dict(num_steps=1, batch_size=4, regularization=0.5, scale_by_data=scaled)
        trained, _ = train(state, d, optimizer=sgd, **options)
        for new, old in zip(*map(jax.tree.leaves, (trained.params, state.params)), strict=True):
            expected_step = np.full(new.shape, 2 * strength)
            np.testing.assert_allclose(np.asarray(new) - old, expected_step, rtol=1e-3)


def test_regularization_keeps_members_apart():
    """After training, the spread grows and the drift from φ⁰ shrinks with λ, the default included."""
    width, default = 16, quickstart.get_config().ensemble.regularization
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 2, width)).astype(np.float32)
    first = (x @ rng.normal(size=width) @ [1, -1] > 0)[:, None, None]
    pairs, unseen = np.split(np.where(first, x, x[:, ::-1]), 2)
    d = Experience(pairs, np.ones(32, np.float32), np.int32(0), np.int32(32))
    optimizer = optax.adam(1e-2)
    state = init(jax.random.key(0), heads.Head(hidden=(32, 32)), 8, width, optimizer)
    spread, drift = [], []
    for regularization in (0.0, default, 16 * default):
        options = dict(num_steps=200, batch_size=32, regularization=regularization)
        trained, metrics = train(state, d, optimizer=optimizer, **options)
        rewards = np.asarray(heads.rewards(trained.params, unseen))
        spread.append(sigmoid(rewards[..., 0] - rewards[..., 1]).std(0).mean())
        drift.append(metrics["ensemble/drift"])
    assert spread[2] > spread[1] > 1.2 * spread[0]
    assert drift[0] > 2 * drift[1] > 4 * drift[2]


def test_members_do_not_touch_each_other():
    """Another start or anchor of member 1 changes member 1, and no bit of members 0 and 2."""
    state, d = numpy(ensemble(3)), data()
    second = lambda leaf: np.arange(3).reshape(-1, *[1] * (leaf.ndim - 1)) == 1  # noqa: E731
    nudge = lambda tree: jax.tree.map(lambda x: x + np.float32(0.3) * second(x), tree)  # noqa: E731
    plain, _ = numpy(train(state, d))
    for field in ("params", "anchor"):
        other = state._replace(**{field: nudge(getattr(state, field))})
        nudged, _ = numpy(train(other, d))
        for a, b in zip(*map(jax.tree.leaves, (plain, nudged)), strict=True):
            np.testing.assert_array_equal(a[[0, 2]], b[[0, 2]])
        kernels = plain.params["out"]["kernel"], nudged.params["out"]["kernel"]
        assert (kernels[0][1] != kernels[1][1]).any()


def test_members_see_batches_of_their_own():
    """Three equal members part: each draws its own rows."""
    state = jax.tree.map(lambda leaf: np.repeat(leaf[:1], 3, axis=0), numpy(ensemble(3)))
    trained, _ = train(state, data())
    kernel = np.asarray(trained.params["hidden_0"]["kernel"])
    assert all((kernel[i] != kernel[j]).any() for i, j in [(0, 1), (0, 2), (1, 2)])


def test_members_begin_apart_and_anchors_stay():
    state = ensemble(3)
    kernel = np.asarray(state.params["hidden_0"]["kernel"])
    assert all((kernel[i] != kernel[j]).all() for i, j in [(0, 1), (0, 2), (1, 2)])
    jax.tree.map(np.testing.assert_array_equal, state.params, state.anchor)
    trained, _ = train(state, data())
    jax.tree.map(np.testing.assert_array_equal, trained.anchor, state.anchor)


def test_empty_experience_changes_nothing():
    """Not even where the anchor pulls: parameters and Adam's state are bit-equal."""
    state = numpy(ensemble(3))
    state = state._replace(anchor=jax.tree.map(lambda p: p + 1, state.params))
    trained, metrics = train(state, data(rows=0))
    jax.tree.map(np.testing.assert_array_equal, trained, state)
    assert not np.isnan(metrics["ensemble/loss"])


def test_prior_scale_is_the_spread_of_fresh_rewards():
    """Standard deviation over members and unit features: prior_scale itself, within 10 %."""
    x = jax.random.normal(jax.random.key(3), (200, 16))
    spread = {}
    for scale in (0.5, 3.0):
        head = heads.Head(hidden=(64, 64), prior_scale=scale)
        params = init(jax.random.key(4), head, 200, 16, optax.identity()).params
        spread[scale] = np.asarray(jax.jit(heads.rewards)(params, x)).std()
    np.testing.assert_allclose(list(spread.values()), list(spread), rtol=0.1)
