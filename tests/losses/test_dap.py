"""Preference losses against arithmetic done by hand.

Two duels, as (y+, y−):

    policy (−10, −12)  reference (−11, −11)  lengths (5, 4)   ratios (1, −1)   h = 2
    policy (−12,  −9)  reference (−10, −10)  lengths (4, 3)   ratios (−2, 1)   h = −3
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import sigmoid

from sea_jax.losses import DAP_LOSSES, dpo, ipo, optimism, simpo, slic

POLICY = jnp.array([[-10.0, -12.0], [-12.0, -9.0]])
REFERENCE = jnp.array([[-11.0, -11.0], [-10.0, -10.0]])
LENGTHS = jnp.array([[5, 4], [4, 3]])

GOLDEN = {
    # −log σ(0.1·2) = log(1 + e^−0.2) = log 1.818731; −log σ(−0.3) = log(1 + e^0.3) = log 2.349859
    "dpo": (dpo, dict(beta=0.1), [0.598139, 0.854355]),
    # log(1 + e^−1) = log 1.367879; log(1 + e^1.5) = log 5.481689
    "dpo, beta 0.5": (dpo, dict(beta=0.5), [0.313262, 1.701413]),
    # 1 / (2·0.2) = 2.5: (2 − 2.5)²; (−3 − 2.5)²
    "ipo": (ipo, dict(beta=0.2), [0.25, 30.25]),
    # 1 / (2·0.5) = 1: (2 − 1)²; (−3 − 1)²
    "ipo, beta 0.5": (ipo, dict(beta=0.5), [1.0, 16.0]),
    # 1/5 + 1/4 = 0.45: (0.45 − 2.5)²; −2/4 − 1/3 = −5/6: (−5/6 − 5/2)² = (10/3)²
    "ipo per token": (ipo, dict(beta=0.2, per_token=True), [4.2025, 11.111111]),
    # 1 − 0.2·2; 1 + 0.2·3
    "slic": (slic, dict(beta=0.2), [0.6, 1.6]),
    # 1 − 1·2 < 0; 1 + 3
    "slic, beta 1": (slic, dict(beta=1.0), [0.0, 4.0]),
    # −10/5 + 12/4 − 0.3 = 0.7: log(1 + e^−7); −12/4 + 9/3 − 0.3 = −0.3: log(1 + e^3)
    "simpo": (simpo, dict(beta=10.0, margin_ratio=0.3), [0.000911466, 3.048587]),
    # 1 − 0 = 1: log(1 + e^−2); 0: log 2
    "simpo, beta 2, no margin": (simpo, dict(beta=2.0, margin_ratio=0.0), [0.126928, 0.693147]),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_values(name):
    """Eagerly, under jit, under vmap, and with more leading axes."""
    loss, options, expected = GOLDEN[name]
    f = functools.partial(loss, **options)
    for values in (f(POLICY, REFERENCE, LENGTHS), jax.jit(f)(POLICY, REFERENCE, LENGTHS),
                   jax.vmap(f)(POLICY, REFERENCE, LENGTHS)):  # fmt: skip
        assert values.shape == (2,) and values.dtype == jnp.float32
        np.testing.assert_allclose(values, expected, rtol=2e-6, atol=1e-9)
    deep = [jnp.broadcast_to(x[:, None], (2, 3, 2)) for x in (POLICY, REFERENCE, LENGTHS)]
    np.testing.assert_allclose(f(*deep), np.repeat(np.array(expected)[:, None], 3, 1), rtol=2e-6, atol=1e-9)


def test_optimism_is_added_and_small():
    """+ α log π_θ(y_ref) of Eq. 19: minimising it makes y_ref less likely; α = 5e-6 by default (App. F.1)."""
    logps = jnp.array([-20.0, -3.0])
    np.testing.assert_allclose(optimism(logps, 0.5), [-10, -1.5])
    np.testing.assert_allclose(optimism(logps), [-1e-4, -1.5e-5])
    np.testing.assert_allclose(jax.grad(lambda x: optimism(x, 0.5).sum())(logps), [0.5, 0.5])


def test_defaults_are_the_papers():
    """App. F.2: β = 0.1 for DPO, 0.2 for IPO and SLiC, 10 with γ/β = 0.3 for SimPO, all on sums."""
    for name in ("dpo", "ipo", "slic", "simpo"):
        value = DAP_LOSSES[name](POLICY, REFERENCE, LENGTHS)
        np.testing.assert_allclose(value, GOLDEN[name][2], rtol=2e-6, atol=1e-9)


def test_gradients_by_hand():
    """dF/d log π(y+) and dF/d log π(y−) of both duels; the reference weighs the opposite way."""
    expected = {
        # ∓β σ(−β h)
        "dpo": [
            [-0.1 * sigmoid(-0.2), 0.1 * sigmoid(-0.2)],
            [-0.1 * sigmoid(0.3), 0.1 * sigmoid(0.3)],
        ],
        # ±2 (h − 2.5)
        "ipo": [[-1.0, 1.0], [-11.0, 11.0]],
        "slic": [[-0.2, 0.2], [-0.2, 0.2]],
        # ∓10 σ(−10 (… − 0.3)) / length
        "simpo": [
            [-10 * sigmoid(-7) / 5, 10 * sigmoid(-7) / 4],
            [-10 * sigmoid(3) / 4, 10 * sigmoid(3) / 3],
        ],
    }
    for name, gradient in expected.items():
        total = lambda p, r, f=DAP_LOSSES[name]: f(p, r, LENGTHS).sum()  # noqa: E731
        by_policy, by_reference = jax.jit(jax.grad(total, (0, 1)))(POLICY, REFERENCE)
        np.testing.assert_allclose(by_policy, gradient, rtol=1e-5)
        np.testing.assert_allclose(by_reference, -by_policy if name != "simpo" else 0 * by_policy)


@pytest.mark.parametrize("name", DAP_LOSSES)
def test_extremes_are_finite(name):
    """Huge log-ratios and a response of no tokens: neither losses nor gradients overflow."""
    policy = jnp.array([[1e4, -1e4], [-1e4, 1e4], [0.0, -5.0]])
    lengths = jnp.array([[5, 4], [4, 3], [0, 2]])
    f = lambda p: DAP_LOSSES[name](p, jnp.zeros_like(p), lengths).sum()  # noqa: E731
    value, gradient = jax.value_and_grad(f)(policy)
    assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["dpo", "ipo", "slic"])
def test_wrong_shapes_are_refused(name):
    with pytest.raises(AssertionError):
        DAP_LOSSES[name](POLICY, REFERENCE[:1], LENGTHS)
    with pytest.raises(AssertionError):
        DAP_LOSSES[name](POLICY[:, :1], REFERENCE[:, :1], LENGTHS)
