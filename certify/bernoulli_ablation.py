"""Bernoulli ablation: randomized ablation that retains each pixel independently.

Source: the threat model, encodings and Theorem 1 of randomized ablation (Levine and Feizi, AAAI 2020; dissertation,
Theorem 2.1), with independent retention instead of a subset of fixed size.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor

from certify import coverage
from certify.ablation import Ablation
from certify.checks import check_integer
from certify.draws import Draws
from certify.images import Shape
from certify.scheme import SampledScheme, needed

_CHANCES = 1 << 16
_DIGITS = 128  # binary digits of a share, which is rounded up


def retention_chances(d: int, keep: int) -> int:
    """K such that a unit is retained with probability ``K / 2^16``, which is ``keep / d`` rounded down."""
    if not 1 <= keep <= d:
        raise ValueError(f"keep: got {keep}, expected between 1 and the number of units of the image, d = {d}")
    chances = keep * _CHANCES // d
    if chances == 0:
        raise ValueError(
            f"keep: got {keep} of d = {d} units, less than one in 2^16, expected at least {-(-d // _CHANCES)}; "
            "increase keep, or use RandomizedAblation"
        )
    return chances


@lru_cache(maxsize=64)
def touched_shares(chances: int) -> tuple[Fraction, ...]:
    """``Delta(rho) = 1 - (1 - chances / 2^16)^rho`` for rho = 0, 1, ... up to the first that reaches 1/2.

    The probability that at least one of rho given units is retained, rounded up by less than ``rho / 2^128``, since the
    exact fraction has 16 rho binary digits and rho goes up to 45,426 for small ``chances``.
    """
    whole = 1 << _DIGITS
    untouched, shares = whole, [Fraction(0)]
    while shares[-1] < Fraction(1, 2):
        untouched = untouched * (_CHANCES - chances) // _CHANCES
        shares.append(Fraction(whole - untouched, whole))
    return tuple(shares)


@dataclass(frozen=True)
class BernoulliAblation(Ablation, SampledScheme):
    """Each copy retains each pixel (or feature) independently with probability ``keep / d``; the others become NULL.

    Guarantee: if x and x' differ in at most rho units, every class probability differs by at most
    ``Delta(rho) = 1 - (1 - p)^rho``, which is tight. The radius is the number of pixels (features) that may change
    arbitrarily. For the same ``keep`` this Delta never exceeds that of :class:`~certify.ablation.RandomizedAblation`,
    but the number of retained units varies from copy to copy.

    Attributes:
        keep: expected number of retained units. The probability p is ``keep / d`` rounded down to a multiple of
            ``2^-16``; the copies follow it exactly, and the certificate uses it.
        unit, null, mean, std: see :class:`~certify.ablation.Ablation`.
    """

    keep: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("keep", self.keep, 1)

    def retention(self, shape: Shape) -> Fraction:
        """The exact probability p that a unit of an image of ``shape`` (C, H, W) is retained."""
        return Fraction(retention_chances(self.units(shape), self.keep), _CHANCES)

    def check(self, x: Tensor) -> None:
        super().check(x)
        self.retention(tuple(x.shape[1:]))  # 1 <= keep <= d

    def masks(self, shape: Shape, draws: Draws) -> Tensor:
        """Which units each copy retains: bool ``[B, n, 1 or C, H, W]``."""
        d = self.units(shape)
        return draws.bernoulli(retention_chances(d, self.keep), d).view(*draws.shape, *self.unit_shape(shape))

    def sample(self, x: Tensor, draws: Draws) -> Tensor:
        return self.encode(x, self.masks(tuple(x.shape[1:]), draws))

    def radius(self, p_lower: Tensor, p_upper: Tensor, *, shape: Shape | None = None) -> Tensor:
        units = self.units(needed(shape, self))
        shares = touched_shares(retention_chances(units, self.keep))
        radius = coverage.steps_within(coverage.margin(p_lower, p_upper), shares)
        return radius.clamp(max=units).to(torch.float64)
