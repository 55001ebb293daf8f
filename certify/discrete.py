"""Discrete noise: the randomized l0 baseline that replaces features by random values, without saying which.

Source: Lee, Yuan, Chang and Jaakkola, "Tight Certificates of Adversarial Robustness for Randomly Smoothed Classifiers"
(NeurIPS 2019), discrete distribution and Lemma 2; the comparison of Chapter 2 of the dissertation.

Let x and y differ in the r features R, and let z be a copy. Each feature of z is drawn on its own, so outside R it has
the same law under both inputs, and ``P(z | x) / P(z | y)`` depends on z in R alone: on m = #{i in R: z_i = x_i} and
n = #{i in R: z_i = y_i}, through ``(keep / other)^(m - n)``. By the lemma of Neyman and Pearson the worst base
classifier takes whole level sets of this ratio, and a share of one. Their masses are those of the walk m - n of r
independent steps (+1, -1, 0), whatever the number d of features; the paper's sums over all of d give the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor

from certify.checks import check_integer, is_finite
from certify.coverage import doubles_above
from certify.draws import Draws
from certify.images import Shape, check_images, to_levels
from certify.scheme import SampledScheme, needed
from certify.threats import L0

_NUM_WORDS = 1 << 32
_HALF = Fraction(1, 2)
MAX_RADIUS = 256  # features; exact integers for more changes are slow, and no published radius comes near


def noise_words(kappa: float, q: int) -> tuple[int, int]:
    """How many of the 2^32 words keep a feature, and how many change it to each of the ``q`` other values.

    The second number is rounded up, the first is the exact remainder: the probability of keeping a feature is below
    ``kappa``, by less than ``q / 2^32``.
    """
    check_integer("q (quantization steps, 255 for 8-bit images)", q, 1, 1 << 12)
    if not (is_finite(kappa) and 0 < kappa < 1):
        raise ValueError(f"kappa: got {kappa!r}, expected a probability strictly between 0 and 1")
    other = -((Fraction(kappa) - 1) * _NUM_WORDS // q)
    keep = _NUM_WORDS - q * int(other)
    if keep <= other:
        raise ValueError(
            f"kappa: got {kappa}, expected more than 1 / (q + 1) = {1 / (q + 1):.6g}: "
            "below it, a copy shows the true value less often than each wrong one, and at it, copies show nothing"
        )
    return keep, int(other)


@lru_cache(maxsize=512)
def _level_set_masses(keep: int, other: int, r: int) -> tuple[int, ...]:
    """Masses, in units of ``2^(-32 r)``, of m - n = r, r - 1, .., -r: the level sets, largest ratio first.

    Under x they are these, under y the same in reverse.
    """
    if r == 0:
        return (1,)
    before, rest = _level_set_masses(keep, other, r - 1), _NUM_WORDS - keep - other
    padded = (0, 0, *before, 0, 0)
    return tuple(keep * padded[i + 2] + rest * padded[i + 1] + other * padded[i] for i in range(2 * r + 1))


def _worst_case_mass(mass: Fraction, source: Sequence[int], target: Sequence[int]) -> Fraction:
    """Fill level sets in order up to ``mass`` under ``source``: their mass under ``target``. All in the same units."""
    filled = moved = 0
    for here, there in zip(source, target, strict=True):
        if filled + here >= mass:
            return moved + (mass - filled) * Fraction(there, here)
        filled, moved = filled + here, moved + there
    return Fraction(moved)


@dataclass(frozen=True)
class LikelihoodRatio:
    """Exact worst cases of discrete noise after r changed features; ``keep`` and ``other`` are numbers of words."""

    keep: int
    other: int

    def least(self, p: Fraction, r: int) -> Fraction:
        """The least probability at y of a class that has probability ``p`` at x. Increasing and continuous in p."""
        masses, unit = _level_set_masses(self.keep, self.other, r), _NUM_WORDS**r
        return _worst_case_mass(p * unit, masses, masses[::-1]) / unit

    def most(self, p: Fraction, r: int) -> Fraction:
        """The greatest such probability: level sets in the opposite order, so the inverse function of :meth:`least`."""
        masses, unit = _level_set_masses(self.keep, self.other, r), _NUM_WORDS**r
        return _worst_case_mass(p * unit, masses[::-1], masses) / unit

    def threshold(self, r: int) -> Fraction:
        """p*(r): a class keeps more than one half after any r changes iff its probability is above this."""
        return self.most(_HALF, r)

    def certified(self, p_lower: Fraction, p_upper: Fraction, r: int) -> bool:
        """Whether a class of at least ``p_lower`` stays above a rival of at most ``p_upper`` after r changes.

        Tight: where the two add up to at most 1, the level sets of both worst cases are disjoint.
        """
        return self.least(p_lower, r) > self.most(p_upper, r)


@lru_cache(maxsize=32)
def _thresholds(keep: int, other: int) -> tuple[float, ...]:
    """The smallest doubles above p*(0), p*(1), ..., up to the first that is 1 (so are all later ones), or the limit."""
    ratio, found = LikelihoodRatio(keep, other), doubles_above([_HALF])
    while found[-1] < 1 and len(found) <= MAX_RADIUS:
        found += doubles_above([ratio.threshold(len(found))])
    return tuple(found)


@dataclass(frozen=True)
class DiscreteNoise(SampledScheme):
    """Every feature is kept with probability ``kappa``, else replaced by one of the ``q`` other values ``i / q``.

    Guarantee: the prediction is the same for every input on the grid that differs in at most ``radius`` features
    (single channel values), by the exact worst case over all base classifiers; with one-sided bounds no larger radius
    holds for all of them (randomized ones included). A radius of r features is ``r // C`` whole pixels.

    The copies follow this distribution exactly, by one 32-bit word per feature: ``other`` of the words for each other
    value, the rest to keep it. The true probability, which the certificate uses, is therefore :attr:`keep_probability`,
    less than ``q / 2^32`` below ``kappa``. Radii end at 256 features.

    Attributes:
        kappa: above ``1 / (q + 1)``, below 1.
        q: quantization steps of the input: 255 for 8-bit images, 1 for binary ones (the paper's MNIST).
    """

    kappa: float
    q: int = 255

    def __post_init__(self) -> None:
        noise_words(self.kappa, self.q)
        object.__setattr__(self, "kappa", float(self.kappa))

    @property
    def threat(self) -> L0:
        return L0("feature")

    @property
    def keep_probability(self) -> Fraction:
        """The exact probability that a feature is kept."""
        return Fraction(noise_words(self.kappa, self.q)[0], _NUM_WORDS)

    def check(self, x: Tensor) -> None:
        check_images(x)
        to_levels(x, self.q)

    def sample(self, x: Tensor, draws: Draws) -> Tensor:
        _, other = noise_words(self.kappa, self.q)
        words = draws.words(x[0].numel()).view(*draws.shape, *x.shape[1:])
        # Word w moves the level by 1 + w // other, modulo q + 1; where that is more than q, not at all. The division of
        # doubles has the right floor: a quotient that is not an integer is at least 1 / other below the next one, and
        # rounding adds at most 2^-53 of it, less than 2^-20 / other.
        moves = words.to(torch.float64).div_(other).clamp_(max=self.q).to(torch.int32)
        index = moves + (to_levels(x, self.q)[:, None].to(torch.int32) + 1)
        return _levels_twice(self.q, x.device).index_select(0, index.flatten()).view(index.shape)

    def radius(self, p_lower: Tensor, p_upper: Tensor, *, shape: Shape | None = None) -> Tensor:
        features = math.prod(needed(shape, self))
        keep, other = noise_words(self.kappa, self.q)
        lower = p_lower.to(torch.float64).nan_to_num(0).contiguous()
        upper = p_upper.to(torch.float64).nan_to_num(1)
        thresholds = torch.tensor(_thresholds(keep, other), dtype=torch.float64, device=lower.device)
        radius = (torch.searchsorted(thresholds, lower, right=True) - 1).clamp(max=features)
        # a class of probability 1 gets every copy, and all inputs have the same possible copies
        radius = torch.where(lower >= 1, features, radius)
        # for one-sided bounds that is all; a rival known to be weaker allows larger radii
        weaker = (lower < 1) & (lower > upper) & (upper < 1 - lower)
        for i in torch.nonzero(weaker)[:, 0].tolist():
            bounds = Fraction(float(lower[i])), Fraction(float(upper[i]))
            radius[i] = _two_sided_radius(LikelihoodRatio(keep, other), *bounds, int(radius[i]), features)
        return radius.to(torch.float64)


def _two_sided_radius(ratio: LikelihoodRatio, p_lower: Fraction, p_upper: Fraction, known: int, features: int) -> int:
    """The largest certified number of changes, from ``known`` (-1: none is known) on."""
    radius = max(known, 0)  # p_lower > p_upper certifies zero
    while radius < min(features, MAX_RADIUS) and ratio.certified(p_lower, p_upper, radius + 1):
        radius += 1
    return radius


@lru_cache(maxsize=8)
def _levels_twice(q: int, device: torch.device) -> Tensor:
    """float32 ``i / q`` for i = 0..q, twice around."""
    values = (torch.arange(q + 1, dtype=torch.float64) / q).float()
    return torch.cat((values, values)).to(device)
