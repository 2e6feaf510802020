"""The coordinates of the features, and the loss that trains them."""

import numpy as np

from sea_jax.ensemble import pretrain


def test_a_standard_normal_head_has_the_familys_covariance():
    """P Pᵀ is the covariance of the family's heads, plus the scaled outer product of their mean."""
    heads = np.random.default_rng(0).normal(size=(6, 40)) + np.arange(6)[:, None]
    projection = pretrain.prior_projection(heads, 7, mean_scale=0.5)
    mean = heads.mean(1)
    expected = np.cov(heads, ddof=0) + 0.25 * np.outer(mean, mean)
    np.testing.assert_allclose(projection @ projection.T, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(projection[:, -1], 0.5 * mean, rtol=1e-6)


def test_fewer_columns_keep_the_leading_directions():
    heads = np.diag([3.0, 2.0, 1.0]) @ np.random.default_rng(1).normal(size=(3, 4000))
    projection = pretrain.prior_projection(heads, 3, mean_scale=0.0)
    np.testing.assert_allclose(np.sort((projection**2).sum(0)), [0, 4, 9], rtol=0.1, atol=1e-6)
