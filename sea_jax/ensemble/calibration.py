"""Measures whether probabilities come true: the reliability diagram and the expected calibration error."""

import numpy as np

from sea_jax.errors import InputError


def reliability(
    probability: np.ndarray, outcome: np.ndarray, num_bins: int = 10
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compares probabilities with what happened, in bins of equal width on [0, 1].

    Bin i holds the probabilities p with i ≤ p · bins < i + 1, the last one 1 too. A calibrated posterior has
    the same confidence and accuracy in every bin, up to the noise of the outcomes in it.

    References:
        Guo et al. (2017), On Calibration of Modern Neural Networks, arXiv:1706.04599. Theirs is the
        probability of the predicted class, at least ½ with two; this one may be of either response.

    Args:
        probability: [N] in [0, 1], of the outcome 1, as E_φ[σ(r_φ(y) − r_φ(y'))].
        outcome: [N] bool or in [0, 1]: whether y was preferred, or how often.
        num_bins: number of bins.

    Returns:
        Mean confidence and accuracy [bins] f64, NaN in an empty bin, and the count [bins] int64.

    Raises:
        InputError: the shapes differ, or a value is not in [0, 1].
    """
    probability, outcome = (np.asarray(values, np.float64) for values in (probability, outcome))
    if probability.ndim != 1 or probability.shape != outcome.shape:
        raise InputError(f"shapes {probability.shape} and {outcome.shape}; valid: [N] twice")
    for name, values in (("probability", probability), ("outcome", outcome)):
        wrong = ~((values >= 0) & (values <= 1))  # NaN too
        if wrong.any():
            raise InputError(f"{name}={values[wrong][0]:g}; valid: 0 to 1")
    index = np.minimum((probability * num_bins).astype(np.int64), num_bins - 1)
    count = np.bincount(index, minlength=num_bins)
    total = np.where(count > 0, count, np.nan)
    confidence, accuracy = (np.bincount(index, values, num_bins) / total for values in (probability, outcome))
    return confidence, accuracy, count


def expected_calibration_error(probability: np.ndarray, outcome: np.ndarray, num_bins: int = 10) -> float:
    """Computes Σ_i n_i / N · |accuracy_i − confidence_i| over the bins of `reliability`.

    Noise in the outcomes adds to it: with n outcomes in a bin about √(p (1 − p) / n), also of a calibrated
    posterior.

    References:
        Guo et al. (2017), Eq. 3.

    Args:
        probability, outcome, num_bins: as for `reliability`.

    Returns:
        In [0, 1]; NaN without outcomes.

    Raises:
        InputError: as `reliability`.
    """
    confidence, accuracy, count = reliability(probability, outcome, num_bins)
    if not count.sum():
        return float("nan")
    return float(np.nansum(count * np.abs(accuracy - confidence)) / count.sum())
