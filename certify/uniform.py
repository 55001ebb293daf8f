"""Uniform additive noise: the randomized l1 baseline of splitting noise.

Source: Lee, Yuan, Chang and Jaakkola (NeurIPS 2019), in the form of the dissertation's Theorem 3.1; Yang et al. (ICML
2020).

Noise is drawn on the grid of the images. In floating point, the last digits of ``x + noise`` keep traces of x, from
which a base classifier could tell apart inputs that the theorem says it cannot; on the grid there are no such traces.

``bound="box"`` exploits that a perturbed image still has features in [0, 1], the idea of Voracek and Hein, "Improving
l1-Certified Robustness via Randomized Smoothing by Leveraging Box Constraints" (ICML 2023). Since the noise is
independent across features, the copies of two images overlap in a share ``prod_i (1 - |delta_i| / (2 lam))``, whose
logarithm is concave in each ``|delta_i|``. Among all changes of a given l1 norm, the overlap is smallest when every
change but one is as large as possible, at most 1. Up to a norm of 1, the resulting bound on the difference of the
copies is the published one; beyond, it is smaller. That a feature of a given image may have less room than 1 is not
exploited.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from certify import coverage
from certify.draws import Draws
from certify.images import IMAGES, VIDEOS, Shape, check_images, to_levels
from certify.scheme import SampledScheme
from certify.splitting import lam_of_sigma, splitting_period
from certify.threats import L1

Bound = Literal["published", "box"]


@dataclass(frozen=True)
class UniformNoise(SampledScheme):
    """Independent uniform noise on [-lam, lam] for every feature, with a Monte-Carlo l1 certificate.

    The noise takes the ``2 lam q`` values ``(j + 1/2) / q - lam``. It must be independent: see the
    dissertation, Proposition 3.1.

    Guarantee: class probabilities are ``1 / (2 lam)``-Lipschitz in l1 for inputs on the grid ``i / q``, so the radius
    is the largest multiple of ``1 / q`` below ``2 lam (p_lower - 1/2)``, less what the 32 random bits of each value of
    the noise may add to a probability. With ``bound="box"`` it is at least that:
    the largest multiple ``k + r``, with k an integer and 0 <= r < 1, for which
    ``1 - (1 - 1 / (2 lam))^k (1 - r / (2 lam)) < p_lower - 1/2``.

    Attributes:
        lam: largest noise; ``2 lam q`` must be an integer. The papers report ``sigma = lam / sqrt(3)``.
        q: quantization steps of the input, 255 for 8-bit images.
        bound: ``"published"``, or ``"box"``, which certifies larger radii above 1 from the same votes.
    """

    lam: float
    q: int = 255
    bound: Bound = field(default="published", kw_only=True)

    def __post_init__(self) -> None:
        splitting_period(self.lam, self.q)
        if self.bound not in get_args(Bound):
            raise ValueError(f"bound: got {self.bound!r}, expected one of {', '.join(get_args(Bound))}")

    @classmethod
    def from_sigma(cls, sigma: float, q: int = 255) -> UniformNoise:
        """The scheme with ``lam = floor(2 sqrt(3) sigma q) / (2 q)``."""
        return cls(lam_of_sigma(sigma, q), q)

    @property
    def threat(self) -> L1:
        return L1(q=self.q)

    def certificates(self) -> dict[str, SampledScheme]:
        return {name: replace(self, bound=name) for name in get_args(Bound)}

    def check(self, x: Tensor) -> None:
        check_images(x, (IMAGES, VIDEOS))
        to_levels(x, self.q)

    def sample(self, x: Tensor, draws: Draws) -> Tensor:
        values = splitting_period(self.lam, self.q)
        noise = draws.integers(values, x[0].numel()).view(*draws.shape, *x.shape[1:])
        index = noise + to_levels(x, self.q)[:, None]
        return _noised(values, self.q, x.device).index_select(0, index.flatten()).view(index.shape)

    def radius(self, p_lower: Tensor, p_upper: Tensor, *, shape: Shape | None = None) -> Tensor:
        values = splitting_period(self.lam, self.q)
        shares = _grid_shares(values) if self.bound == "published" else _box_shares(values, self.q)
        steps = coverage.steps_within(coverage.margin(p_lower, p_upper), shares)
        return torch.where(steps >= 0, steps.to(torch.float64) / self.q, -1.0)


@lru_cache(maxsize=8)
def _noised(values: int, q: int, device: torch.device) -> Tensor:
    """Copies of a feature, float32, indexed by its level plus the index of its noise value."""
    sums = torch.arange(values + q)
    return ((2 * sums + (1 - values)).to(torch.float64) / (2 * q)).float().to(device)  # in units of 1 / (2q)


@lru_cache(maxsize=32)
def _grid_shares(values: int) -> tuple[Fraction, ...]:
    """Bounds on the total variation distance between the copies of two inputs ``j`` grid steps apart, j = 0, 1, ...

    A shift of a feature by m steps moves ``m / values`` of its noise. Multiply-and-shift from 32 bits gives any two
    values probabilities that differ by at most ``2^-32``; this adds at most half of that per value and changed feature,
    and at most j features change.
    """
    each = Fraction(1, values) + Fraction(1, 1 << 32) + Fraction(values, 1 << 33)
    return tuple(j * each for j in range(values // 2 + 2))


@lru_cache(maxsize=32)
def _box_shares(values: int, q: int) -> tuple[Fraction, ...]:
    """:func:`_grid_shares` for inputs in [0, 1], where no feature can change by more than q steps.

    In total variation, the noise distribution of each of the two inputs is within ``values / 2^33`` per feature of the
    uniform one.
    """
    linear, shares = _grid_shares(values), [Fraction(0)]
    each = Fraction(values, 1 << 32)
    together = Fraction(1)  # overlap of the copies over the features that have changed as far as they can
    while shares[-1] < Fraction(1, 2):
        rest = (j := len(shares)) % q
        if rest == 0:
            together *= max(Fraction(0), 1 - Fraction(q, values))
        share = 1 - together * max(Fraction(0), 1 - Fraction(rest, values)) + j * each
        shares.append(min(share, linear[j]) if j < len(linear) else share)
    return tuple(shares)
