"""How much of an image a copy reveals: the mutual information between the image and its copy, in bits.

Source: Levine and Feizi (AAAI 2020), Equations 20 and 21, derived in its appendix (dissertation, Equations 2.20 and
2.21, Appendix A.4). All results assume images drawn uniformly from ``levels^d``, so the d units are independent and
their information adds up. This compares noise distributions; it says nothing about natural images.
"""

from __future__ import annotations

import math
from fractions import Fraction

_LOG_2 = math.log(2)


def _check(levels: int, name: str, count: float | Fraction) -> None:
    if isinstance(levels, bool) or not isinstance(levels, int) or levels < 2:
        raise ValueError(f"levels: got {levels!r}, expected an integer of at least 2, such as 256 for 8-bit values")
    if not 0 <= count < math.inf:
        raise ValueError(f"{name}: got {count}, expected a finite number of units, at least 0")


def ablation_information(kept: float | Fraction, *, levels: int = 256) -> float:
    """Bits of an image that an ablated copy reveals: ``kept log2(levels)`` (Eq. 20).

    NULL is distinct from every value of the image, so a copy shows which units are retained, and each retained unit
    reveals all its bits.

    Args:
        kept: number of retained units: ``keep`` for randomized ablation, the expected number ``p d`` for Bernoulli
            ablation, ``d / alpha`` (the average over the copies) for deterministic ablation.
        levels: number of values of a unit: 256 for an 8-bit feature, ``256**3`` for a pixel with three channels.
    """
    _check(levels, "kept", kept)
    return float(Fraction(kept) * Fraction(math.log2(levels)))


def discrete_noise_information(features: int, kappa: float | Fraction, *, levels: int = 256) -> float:
    """Bits of an image that a copy with discrete noise reveals (Eq. 21).

    ``features (log2(levels) + kappa log2(kappa) + (1 - kappa) log2((1 - kappa) / (levels - 1)))``: zero at
    ``kappa = 1 / levels``, where a copy is independent of its image, and all bits at ``kappa = 1``.

    Args:
        features: number of features of the image, C H W.
        kappa: probability that a feature is kept; a double is taken at its exact value.
        levels: number of values of a feature, ``q + 1``.
    """
    _check(levels, "features", features)
    if not 0 <= kappa <= 1:
        raise ValueError(f"kappa: got {kappa}, expected a probability in [0, 1]")
    keep = Fraction(kappa)
    # each outcome's probability relative to the uniform 1 / levels; ratios are exact, and log1p is accurate near 1
    outcomes = ((keep, keep * levels), (1 - keep, (1 - keep) * Fraction(levels, levels - 1)))
    bits = math.fsum(float(p) * math.log1p(ratio - 1) / _LOG_2 for p, ratio in outcomes if p)
    return features * max(0.0, bits)
