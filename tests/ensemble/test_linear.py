"""The linear posterior against SciPy's optimizer, finite differences, plain inverses and quadrature."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import sigmoid
from scipy import integrate, optimize
from small_run import loop, small_run

from sea_jax.ensemble import experience, heads, linear

E, C = 4, 12
rng = np.random.default_rng(0)
ROOT = rng.normal(size=(E, E))
PRIOR = {
    "mean": rng.normal(size=E).astype(np.float32),
    "precision": (ROOT @ ROOT.T + np.eye(E)).astype(np.float32),
}
FEATURES = rng.normal(size=(9, 2, E)).astype(np.float32)
laplace = jax.jit(linear.laplace, static_argnums=4)


def stored(features, weight=None):
    """D_t of the given pairs, followed by rows that are no labels."""
    keep = np.ones(len(features), bool)
    data = experience.init(C, E)
    data = experience.add(
        data, jnp.asarray(features), jnp.ones(len(features)) if weight is None else weight, keep
    )
    # What lies beyond `size` must not be read.
    noise = jnp.where((jnp.arange(C) < len(features))[:, None, None], data.features, 7.0)
    return data._replace(features=noise, weight=jnp.where(jnp.arange(C) < len(features), data.weight, 1.0))


def negative_log_posterior(w, difference, weight):
    shift = w - PRIOR["mean"]
    return weight @ np.logaddexp(0, -difference @ w) + 0.5 * shift @ PRIOR["precision"] @ shift


@pytest.fixture(scope="module")
def fitted():
    """A posterior after nine labels, of which one has half the weight: s = 2."""
    posterior = linear.LinearPosterior(num_members=2000, sharpness=2.0)
    weight = np.array([1, 1, 1, 0.5, 1, 1, 1, 1, 1], np.float32)
    state = posterior.init(jax.random.key(0), E, PRIOR)
    state, metrics = jax.jit(posterior.update)(jax.random.key(1), state, stored(FEATURES, weight))
    return state, metrics, 2.0 * (FEATURES[:, 0] - FEATURES[:, 1]).astype(np.float64), weight


def test_the_mode_is_scipys_and_the_precision_the_hessian(fitted):
    state, metrics, difference, weight = fitted
    loss = functools.partial(negative_log_posterior, difference=difference, weight=weight)
    found = optimize.minimize(loss, np.zeros(E), method="BFGS", options=dict(gtol=1e-9))
    np.testing.assert_allclose(state.opt_state["mean"], found.x, atol=1e-4)
    step, hessian = 1e-3, np.zeros((E, E))
    for i, j in np.ndindex(E, E):
        a, b = step * np.eye(E)[i], step * np.eye(E)[j]
        both = loss(found.x + a + b) - loss(found.x + a - b) - loss(found.x - a + b) + loss(found.x - a - b)
        hessian[i, j] = both / (4 * step**2)
    np.testing.assert_allclose(state.opt_state["precision"], hessian, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(metrics["ensemble/loss"], found.fun / weight.sum(), rtol=1e-4)
    shift = found.x - PRIOR["mean"]
    np.testing.assert_allclose(metrics["ensemble/drift"], shift @ PRIOR["precision"] @ shift, rtol=1e-3)


def test_members_have_the_posteriors_mean_and_covariance(fitted):
    state = fitted[0]
    weights = np.asarray(state.params["out"]["kernel"])[..., 0]
    np.testing.assert_allclose(weights.mean(0), state.opt_state["mean"], atol=1e-4)  # centred
    covariance = np.linalg.inv(state.opt_state["precision"])
    np.testing.assert_allclose(np.cov(weights.T), covariance, atol=0.1 * covariance.max())
    features = rng.normal(size=(3, 5, E)).astype(np.float32)
    np.testing.assert_allclose(
        heads.rewards(state.params, features),
        np.einsum("ke,bme->kbm", weights, features),
        rtol=2e-5,
        atol=1e-5,
    )


def test_the_laplace_mean_is_near_the_exact_one():
    """One dimension, five labels: the true posterior by quadrature."""
    d = np.array([0.5, 1.0, -0.3, 0.8, 1.5])
    density = lambda w: np.exp(-0.5 * w**2) * np.prod(sigmoid(w * d))  # noqa: E731
    mass = integrate.quad(density, -10, 10)[0]
    mean = integrate.quad(lambda w: w * density(w), -10, 10)[0] / mass
    variance = integrate.quad(lambda w: (w - mean) ** 2 * density(w), -10, 10)[0] / mass
    prior = {"mean": jnp.zeros(1), "precision": jnp.eye(1)}
    mode, precision, _ = laplace(prior, jnp.zeros(1), jnp.asarray(d)[:, None], jnp.ones(5), 8)
    assert abs(mode[0] - mean) < 0.1 and abs(1 / precision[0, 0] - variance) < 0.1


def test_without_labels_it_is_the_prior():
    posterior = linear.LinearPosterior(num_members=500, prior_scale=3.0)
    state = posterior.init(jax.random.key(0), E, None)
    after, metrics = jax.jit(posterior.update)(jax.random.key(1), state, experience.init(C, E))
    np.testing.assert_allclose(after.opt_state["mean"], np.zeros(E), atol=1e-6)
    np.testing.assert_allclose(after.opt_state["precision"], np.eye(E) * E / 9)
    assert metrics["ensemble/loss"] == 0
    unit = rng.choice([-1.0, 1.0], size=(100, E)).astype(np.float32)  # features of variance 1
    assert abs(np.asarray(heads.rewards(state.params, unit)).std(0).mean() - 3) < 0.2


def test_the_prior_scale_widens_a_fitted_prior():
    fitted = {"mean": jnp.arange(E, dtype=jnp.float32), "precision": jnp.eye(E) * 8}
    state = linear.LinearPosterior(num_members=4000, prior_scale=2.0).init(jax.random.key(0), E, fitted)
    np.testing.assert_allclose(state.anchor["precision"], 2 * np.eye(E))
    weights = np.asarray(state.params["out"]["kernel"])[..., 0]
    np.testing.assert_allclose(weights.mean(0), np.arange(E), atol=1e-4)
    np.testing.assert_allclose(weights.std(0), 0.5**0.5, rtol=0.06)


def test_newtons_steps_are_shortened_where_they_overshoot():
    """From a start far away a whole step goes astray; the mode is found all the same."""
    prior = {"mean": jnp.zeros(E), "precision": 1e-3 * jnp.eye(E)}
    difference = jnp.asarray(5 * (FEATURES[:, 0] - FEATURES[:, 1]))
    modes = [laplace(prior, jnp.full(E, start), difference, jnp.ones(9), 30)[0] for start in (0.0, 20.0)]
    np.testing.assert_allclose(modes[0], modes[1], rtol=1e-2, atol=1e-2)


def test_sea_learns_it_in_a_whole_run(tmp_path):
    """After the run the posterior is that of D_t: the mode that a fresh fit finds."""
    run = small_run(tmp_path, "sea", **{"ensemble.kind": "linear", "sea.burn_in": 8})
    rows, _ = loop(run)
    state, data = run.state.ensemble, run.state.experience
    assert int(data.size) == int(run.state.num_queries) == 16
    difference = data.features[:, 0] - data.features[:, 1]
    weight = jnp.where(jnp.arange(len(data.weight)) < 16, 1.0, 0.0)
    mode, precision, _ = laplace(state.anchor, jnp.zeros(4), difference, weight, 20)
    np.testing.assert_allclose(state.opt_state["mean"], mode, atol=1e-4)
    np.testing.assert_allclose(state.opt_state["precision"], precision, rtol=1e-3)
    assert np.abs(mode).max() > 1e-3 and state.params["out"]["kernel"].shape == (256, 4, 1)
    assert any("ensemble/accuracy_heldout" in row for row in rows)
