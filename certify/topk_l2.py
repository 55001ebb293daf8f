"""l2 certificates for top-k predictions under Gaussian noise.

Source: Jia, Cao, Wang and Gong, "Certified Robustness for Top-k Predictions against Adversarial Perturbations via
Randomized Smoothing" (ICLR 2020), Theorem 1. A perturbation of length r takes the probability p of a set of labels to
between ``Phi(Phi^-1(p) - r / sigma)`` and ``Phi(Phi^-1(p) + r / sigma)``. A label drops out of the top k only if k
others reach it; among those, the t with the smallest bounds then have at least t times its probability together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.special import ndtr
from torch import Tensor

from certify.images import Shape
from certify.quantiles import quantile_above
from certify.scheme import TopKCertified
from certify.topk import label_bounds

if TYPE_CHECKING:
    from certify.gaussian import GaussianScheme

_SLACK = 1e-11  # relative; the distribution function and its arguments are accurate to a few 1e-14
_MAX_DEVIATIONS = 64.0  # standard deviations


def certify_counts(
    counts: Tensor, k: int, scheme: GaussianScheme, alpha: float, *, n: int | None = None, shape: Shape | None = None
) -> TopKCertified:
    """Certified radii of all labels from the votes of Gaussian noise.

    Guarantee: for each image and each label (fixed before looking at the votes, as the true label is), with probability
    at least 1 - alpha the label stays among the ``k`` most probable for every input within l2 distance ``radius``, if
    the radii of ``scheme`` are certificates. The bounds are simultaneous over the classes (SimuEM).

    Args:
        counts: int64 ``[B, C]`` votes of independent copies.
        k: number of predicted labels, 1 <= k < C.
        scheme: the scheme that made the copies.
        alpha: failure probability, in (0, 1).
        n: number of copies behind ``counts``, including those that voted for no class; needed if there may be such.
        shape: shape of one image, for schemes whose radius depends on it.
    """
    lower, upper = label_bounds(counts, k, alpha, n)
    radius = certified_radius(lower, upper, k, scheme.slip(shape))
    return TopKCertified(torch.where(radius >= 0, radius * scheme.deviation(shape), -1.0), k, scheme.threat)


def certified_radius(lower: Tensor, upper: Tensor, k: int, slip: float = 0.0) -> Tensor:
    """Theorem 1 for every label, in standard deviations and rounded down: float64 ``[B, C]``, -1 where there is
    none.

    Args:
        lower, upper: float64 ``[B, C]``, bounds on the probability of each label.
        slip: how far each probability may be from its value under exact noise.
    """
    rivals = torch.minimum(_sums_of_smallest(upper, k), (1 - lower)[..., None])
    own = (-quantile_above(1 - lower + slip)).cpu().numpy()[..., None]
    others = quantile_above(rivals + slip).cpu().numpy()
    share = np.arange(1, k + 1)

    def certified(radius: np.ndarray) -> np.ndarray:
        moved = radius[..., None]
        with np.errstate(invalid="ignore"):
            ahead = ndtr(own - moved) * (1 - _SLACK) > ndtr(others + moved) / share * (1 + _SLACK)
        return ahead.any(-1)

    low = np.zeros(lower.shape)
    at_all, high = certified(low), np.full(lower.shape, _MAX_DEVIATIONS)
    for _ in range(64):
        middle = (low + high) / 2
        fine = certified(middle)
        low, high = np.where(fine, middle, low), np.where(fine, high, middle)
    return torch.from_numpy(np.where(at_all, low, -1.0)).to(lower.device)


def _sums_of_smallest(upper: Tensor, k: int) -> Tensor:
    """Of the k largest bounds of other labels, the sums of the t smallest, t = 1 .. k: ``[B, C, k]``."""
    largest, leaders = upper.topk(k + 1, dim=1)
    # one of the k + 1 bounds is left out: that of the label itself, or else the smallest
    left_out = leaders[:, None] == torch.arange(upper.shape[1], device=upper.device)[:, None]
    left_out[..., -1] |= ~left_out.any(-1)
    others = largest[:, None].masked_fill(left_out, torch.inf).sort(-1).values[..., :k]
    return others.cumsum(-1) * (1 + k * 2.0**-52)
