"""l0 certificates for top-k predictions of randomized ablation, almost tight.

Source: Jia, Wang, Cao, Liu and Gong, "Almost Tight L0-norm Certified Robustness of Top-k Predictions against
Adversarial Perturbations" (ICLR 2022), Theorem 1. It uses that all probabilities are multiples of ``1 / C(d, e)``, and
that the labels ahead of ``l`` share what ``l`` leaves them. All arithmetic is in integers, in units of ``1 / C(d, e)``.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from certify.checks import check_integer
from certify.confidence import check_alpha, lower_bound, upper_bound
from certify.scheme import TopKCertified, check_counts, sample_size
from certify.threats import L0, Unit


@lru_cache(maxsize=16)
def _touched_ablations(d: int, e: int, top_k: int) -> tuple[int, list[int]]:
    """``N = C(d, e)``, and ``T_r = N - C(d - r, e)``, the number of ablations that r pixels touch, for r = 0, 1, ... as
    far as a certificate can reach: ``T_r < k / (k + 1) N``."""
    check_integer("e (retained pixels)", e, 1, d)
    total = math.comb(d, e)
    untouched, touched = total, [0]
    while touched[-1] * (top_k + 1) < top_k * total:
        r = len(touched) - 1
        untouched = untouched * (d - r - e) // (d - r)  # C(d - r - 1, e) = C(d - r, e) (d - r - e) / (d - r), exactly
        touched.append(total - untouched)
    return total, touched


def _floor_times(p: float | Fraction, total: int) -> int:
    """``floor(p total)``, exactly; a float stands for the binary fraction it is."""
    numerator, denominator = p.as_integer_ratio()
    return numerator * total // denominator


def _radius_in_units(own: int, rivals: Sequence[int], total: int, touched: Sequence[int]) -> int:
    """Theorem 1 in units of ``1 / total``, with ``rivals`` the k largest upper bounds in ascending order."""
    # Certified at r iff for some t: own - T_r > (min(Y_t, total - own) + T_r) / t, that is
    # (t + 1) T_r < t own - min(Y_t, total - own), with Y_t the sum of the t smallest of the k largest rivals.
    reach, together, rest = 0, 0, total - own
    for t, rival in enumerate(rivals, start=1):
        together += rival
        lead = t * own - min(together, rest)
        if lead > 0:
            reach = max(reach, -(-lead // (t + 1)))  # T_r < lead / (t + 1)  <=>  T_r < ceil(lead / (t + 1))
    return bisect_left(touched, reach) - 1


def certified_radius(p_lower: Fraction, others: Sequence[Fraction], top_k: int, d: int, e: int) -> int:
    """Theorem 1 for one label.

    Guarantee: if the label's probability is at least ``p_lower`` and those of the other labels at most ``others``,
    it is among the ``top_k`` most probable labels for every input that differs in at most the returned number of
    pixels; -1 if that is not even certain for the input itself.

    Args:
        p_lower: lower bound of the label's probability.
        others: upper bounds of all other labels.
        top_k: number of predicted labels, 1 <= top_k <= len(others).
        d, e: number of pixels, and of those that an ablation retains.
    """
    check_integer("top_k", top_k, 1, len(others))
    total, touched = _touched_ablations(d, e, top_k)
    own = -_floor_times(-p_lower, total)  # both bounds are first rounded to possible probabilities
    return _radius_in_units(own, [_floor_times(p, total) for p in sorted(others)[-top_k:]], total, touched)


def label_bounds(counts: Tensor, k: int, alpha: float, n: int | None) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds of all labels (SimuEM), after checking the arguments: float64 ``[B, C]`` each.

    For each label, its lower bound and the upper bounds of all others hold at once with probability at least 1 - alpha;
    all lower and all upper bounds together need not.

    Args: as those of :func:`certify_counts`.
    """
    counts = check_counts(counts)
    check_alpha(alpha)
    check_integer("k (predicted labels)", k, 1, counts.shape[1] - 1)
    n = sample_size(counts, n)
    share = alpha / counts.shape[1]
    return lower_bound(counts, n, share), upper_bound(counts, n, share)


def certify_counts(
    counts: Tensor, k: int, d: int, e: int, alpha: float, *, n: int | None = None, unit: Unit = "pixel"
) -> TopKCertified:
    """Certified radii of all labels from the votes of randomized ablation.

    Guarantee: for each image and each label (fixed before looking at the votes, as the true label is), with probability
    at least 1 - alpha the label stays among the ``k`` most probable for every input that differs in at most ``radius``
    pixels. The bounds are simultaneous over the classes (SimuEM: Bonferroni, Clopper-Pearson).

    Args:
        counts: int64 ``[B, C]`` votes of independent ablations.
        k: number of predicted labels, 1 <= k < C.
        d: number of pixels, or of features.
        e: how many of them are retained.
        alpha: failure probability, in (0, 1).
        n: number of ablations behind ``counts``, including those that voted for no class; needed if there may be such.
        unit: what d, e and radii count.
    """
    check_integer("e (retained pixels)", e, 1, d)
    counts = check_counts(counts)
    lower, upper = label_bounds(counts, k, alpha, n)
    largest, leaders = upper.topk(k + 1, dim=1)  # the k largest of the other labels: these without the label itself
    total, touched = _touched_ablations(d, e, k)
    radius = [[-1] * counts.shape[1] for _ in counts]
    images = zip(counts.tolist(), lower.tolist(), largest.tolist(), leaders.tolist(), radius, strict=True)
    for votes, own_lower, leading, labels, own_radius in images:
        ahead = [_floor_times(p, total) for p in leading]
        place = {label: i for i, label in enumerate(labels)}
        found: dict[tuple[float, int], int] = {}  # by all that the radius depends on: many labels share it
        for c, (p_lower, voted) in enumerate(zip(own_lower, votes, strict=True)):
            if not voted:
                continue
            key = _, out = p_lower, place.get(c, k)
            if key not in found:
                own = -_floor_times(-p_lower, total)
                found[key] = _radius_in_units(own, (ahead[:out] + ahead[out + 1 :])[::-1], total, touched)
            own_radius[c] = found[key]
    found_radii = torch.tensor(radius, dtype=torch.int64, device=counts.device).view(counts.shape)
    return TopKCertified(found_radii, k, L0(unit))


def certified_top_k_accuracy(radius: ArrayLike, at: Sequence[float]) -> NDArray[np.float64]:
    """Share of images whose true label is certified to stay in the top-k, at each radius (inclusive).

    Args:
        radius: of the true labels ``[N]``, see :meth:`TopKCertified.radius_of`.
    """
    radii = np.asarray(radius)
    if not all(r >= 0 for r in at):
        raise ValueError(f"at: got {list(at)}, expected radii of at least 0")
    return np.array([(radii >= r).mean() for r in at])


def pixels_of_l2_radius(radius: float, channels: int) -> int:
    """Pixels that an l2 certificate covers, for values in [0, 1]: ``floor(R^2 / channels)``.

    Changing r pixels moves an image by at most ``sqrt(channels r)`` in l2, and by that much from 0 to 1. This is how an
    l2 method is compared with ablation. The paper's text has ``sqrt(3) r`` instead, which is larger and thus sound too,
    but its tables need ``sqrt(3 r)``: they certify 3 and 4 pixels by Gaussian noise with sigma up to 1, whose radius
    cannot exceed 3.82 at n = 100,000 and alpha = 0.001.
    """
    if not radius >= 0:
        raise ValueError(f"radius: got {radius}, expected at least 0")
    return math.floor(Fraction(radius) ** 2 / channels)
