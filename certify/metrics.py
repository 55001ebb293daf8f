"""Summary metrics of the certificates on a data set.

All functions take plain arrays with one entry per image: ``correct`` (predicted, not abstained, and right) and
``radius``. A wrong or abstaining prediction has no radius (the papers' N/A): it is not certified at any radius and
counts as minus infinity in medians.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc


def _effective(correct: ArrayLike, radius: ArrayLike) -> NDArray[Any]:
    right, radii = np.asarray(correct), np.asarray(radius, np.float64)
    if not np.isin(right, (0, 1)).all():
        raise ValueError("correct: got values other than 0 and 1, expected prediction == label, not the predictions")
    right = right.astype(bool)
    if right.shape != radii.shape or right.ndim != 1 or right.size == 0:
        raise ValueError(f"correct, radius: got shapes {right.shape} and {radii.shape}, expected the same, [N], N >= 1")
    if np.isnan(radii).any():
        raise ValueError("radius: got NaN, expected numbers (-1 where nothing is certified)")
    return np.where(right & (radii >= 0), radii, -np.inf)


def _magnitudes(magnitude: ArrayLike) -> NDArray[Any]:
    magnitudes = np.asarray(magnitude, np.float64)
    if magnitudes.ndim != 1 or magnitudes.size == 0:
        raise ValueError(f"magnitude: got shape {magnitudes.shape}, expected [N], N >= 1")
    if not (magnitudes >= 0).all():  # also rejects NaN
        raise ValueError("magnitude: got NaN or a negative number, expected 0 or more (infinity: no success)")
    return magnitudes


def certified_accuracy(correct: ArrayLike, radius: ArrayLike, at: Sequence[float] | NDArray[Any]) -> NDArray[Any]:
    """Share of images that are classified correctly and certified, at each radius in ``at`` (inclusive)."""
    effective = np.sort(_effective(correct, radius))
    return 1 - np.searchsorted(effective, np.asarray(at, np.float64), side="left") / effective.size


def median_certified_robustness(correct: ArrayLike, radius: ArrayLike) -> float:
    """Largest radius at which certified accuracy is at least one half; minus infinity (N/A) if there is none.

    The median of {N/A, N/A, 1, 2, 3} is 1.
    """
    descending = np.sort(_effective(correct, radius))[::-1]
    return float(descending[math.ceil(descending.size / 2) - 1])


def median_attack_magnitude(magnitude: ArrayLike) -> float:
    """Smallest magnitude at which an attack breaks at least half of the images: an upper bound on robustness.

    ``magnitude`` has one entry per image: 0 where the classifier is wrong or abstains without an attack, infinity where
    the attack never succeeded. For an even number of images, this is the lower of the two middle values, so that
    robustness is never overstated (published tables take their mean: 16.5 where this is 16). The median certified
    robustness takes the upper one; compare the two on an odd number of images.
    """
    magnitudes = _magnitudes(magnitude)
    return float(np.sort(magnitudes)[(magnitudes.size - 1) // 2])


def attacked_accuracy(magnitude: ArrayLike, at: Sequence[float] | NDArray[Any]) -> NDArray[Any]:
    """Share of images that an attack did not break, up to each radius in ``at`` (inclusive): an upper bound on the
    robust accuracy at that radius. ``magnitude`` is as in :func:`median_attack_magnitude`."""
    magnitudes = np.sort(_magnitudes(magnitude))
    return 1 - np.searchsorted(magnitudes, np.asarray(at, np.float64), side="right") / magnitudes.size


def average_certified_radius(correct: ArrayLike, radius: ArrayLike) -> float:
    """ACR: the mean of ``[correct] * radius`` (Zhai et al., 2020)."""
    effective = _effective(correct, radius)
    return float(np.where(effective >= 0, effective, 0).mean())


def clean_accuracy(prediction: ArrayLike, label: ArrayLike) -> float:
    """Share of images classified correctly; abstentions (-1) count as wrong."""
    predictions, labels = np.asarray(prediction), np.asarray(label)
    if predictions.shape != labels.shape:
        raise ValueError(f"label: got shape {labels.shape}, expected that of prediction, {predictions.shape}")
    return float(((predictions == labels) & (predictions >= 0)).mean())


def abstention_rate(prediction: ArrayLike) -> float:
    """Share of images on which the prediction is -1."""
    return float((np.asarray(prediction) == -1).mean())


def certified_accuracy_lower_bound(
    correct: ArrayLike, radius: ArrayLike, at: Sequence[float] | NDArray[Any], *, alpha: float, rho: float = 0.001
) -> NDArray[Any]:
    """Certified accuracy on this data set that holds for *all* its images at once with probability 1 - rho.

    Each image's certificate fails with probability at most alpha, independently of the others. This needs independent
    samples, so batches that are certified one by one need ``index`` (:meth:`certify.Smoothed.certify`). Cohen et al.
    (2019, Appendix) bound the number of failures by Bernstein's inequality; this uses the exact binomial quantile,
    which is never worse: with probability at least 1 - rho, at most j of the m images fail, for the smallest j with
    P(Binomial(m, alpha) > j) <= rho.

    Args:
        at: radii.
        alpha: failure probability of each certificate.
        rho: failure probability of the statement about the whole set.
    """
    for name, value in (("alpha", alpha), ("rho", rho)):
        if not 0 < value < 1:
            raise ValueError(f"{name}: got {value}, expected a probability strictly between 0 and 1")
    accuracy = certified_accuracy(correct, radius, at)
    m = np.asarray(correct).size
    j = np.arange(m)  # P(Binomial(m, alpha) > j) = I_alpha(j + 1, m - j)
    failures = int(np.searchsorted(-betainc(j + 1, m - j, alpha) * (1 + 1e-11), -rho))
    return np.maximum(0, accuracy - failures / m)


def bernstein_lower_bound(accuracy: ArrayLike, m: int, *, alpha: float, rho: float = 0.001) -> NDArray[Any]:
    """The bound as published by Cohen et al. (2019), ``accuracy - alpha - sqrt(2 alpha (1 - alpha) L / m) - L / (3 m)``
    with ``L = ln(1 / rho)``, for comparison with published figures."""
    log = math.log(1 / rho)
    slack = alpha + math.sqrt(2 * alpha * (1 - alpha) * log / m) + log / (3 * m)
    return np.maximum(0, np.asarray(accuracy, np.float64) - slack)
