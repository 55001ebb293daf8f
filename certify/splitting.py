"""Splitting noise: l1 certificates from cells instead of additive noise, and their exact, deterministic form.

Source: Levine and Feizi, "Improved, Deterministic Smoothing for l1 Certified Robustness" (ICML 2021); dissertation,
Theorem 3.2 and Corollary 3.1, both in their general case (Eq. 3.28). The splits ``s_i + 2 lambda n`` cut [0, 1] into
cells, and a copy replaces each feature by the centre of its cell. Two inputs get different copies only if a split falls
between them.

On a grid ``i / q`` everything is integer arithmetic. There are ``period = 2 lambda q`` possible splits, at the
half-steps ``(S + 1/2) / q``; in units of ``1 / (2q)``, levels are even and splits odd integers, so they never coincide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor

from certify import coverage
from certify.checks import check_integer, is_finite
from certify.draws import Draws
from certify.images import Shape, check_images, to_levels
from certify.offsets import fixed_offsets
from certify.scheme import EnumeratedScheme, SampledScheme
from certify.threats import L1

_TABLE_LIMIT = 1 << 24  # entries; beyond this, centres are computed instead of looked up

# Continuous splitting in doubles. Each of the d features is put into the wrong cell with probability at most
# (1 + 1/(2 lambda)) 2^-48 (rounding of s_i and of (x_i - s_i) / (2 lambda), 52-bit splits; both inputs counted).
# For up to 2^24 features, this bounds the share of copies that a perturbation may touch beyond the theorem's.
_MAX_FEATURES = 1 << 24
_ROUNDING_SHARE = Fraction(_MAX_FEATURES, 1 << 48)


def _check_lam(lam: float) -> None:
    if not (is_finite(lam) and 1e-6 <= lam <= 1e6):
        raise ValueError(f"lam: got {lam}, expected a finite number above 0 (between 1e-6 and 1e6)")


def splitting_period(lam: float, q: int) -> int:
    """``2 lambda q``, the number of distinct splits on the grid ``i / q``; raises unless it is a positive integer."""
    check_integer("q (quantization steps, 255 for 8-bit images)", q, 1, 1 << 16)
    _check_lam(lam)
    exact = 2 * lam * q
    period = round(exact)
    if period > 1 << 24:
        raise ValueError(f"lam: got {lam}, which means {period} splits, expected at most 2^24")
    if period < 1 or abs(exact - period) > 1e-6:
        low = max(1, math.floor(exact))
        raise ValueError(
            f"lam: got {lam}, so 2 * lam * q = {exact:.6g}, expected an integer; the nearest valid values are "
            f"{low / (2 * q)} and {(low + 1) / (2 * q)} (= {low}/{2 * q} and {low + 1}/{2 * q})"
        )
    return period


def lam_of_sigma(sigma: float, q: int | None = None) -> float:
    """The papers' noise level: ``lambda = sigma sqrt(3)``, rounded down to the grid of valid values if q is given."""
    if not (is_finite(sigma) and sigma > 0):
        raise ValueError(f"sigma: got {sigma}, expected a finite number above 0")
    lam = sigma * math.sqrt(3)
    return lam if q is None else math.floor(2 * lam * q) / (2 * q)


def cell_centres(levels: Tensor, splits: Tensor, period: int, q: int) -> Tensor:
    """Centre of the cell that contains a level, for integer levels (0..q) and splits (0..period - 1): float32.

    In units of ``1 / (2q)``, the level is ``2 X`` and the splits are ``2 S + 1 + 2 period n``.
    """
    offset = 2 * levels - (2 * splits + 1)
    lower = 2 * splits + 1 + torch.div(offset, 2 * period, rounding_mode="floor") * 2 * period
    upper = lower + 2 * period
    return ((lower.clamp(min=0) + upper.clamp(max=2 * q)).to(torch.float64) / (4 * q)).float()


@lru_cache(maxsize=8)
def _centre_table(period: int, q: int, device: torch.device) -> Tensor:
    """``table[level * 2 period + split]`` for splits 0..2 period - 1 (two periods, so that no modulo is needed)."""
    levels = torch.arange(q + 1)[:, None]
    splits = torch.arange(2 * period)[None, :] % period
    return cell_centres(levels, splits, period, q).flatten().to(device)


def _look_up_centres(levels: Tensor, splits: Tensor, period: int, q: int) -> Tensor:
    """:func:`cell_centres` for splits in 0..2 period - 1 (taken modulo the period), from a table if it is small."""
    if 2 * period * (q + 1) > _TABLE_LIMIT:
        return cell_centres(levels, splits.long() % period, period, q)
    index = levels.int() * (2 * period) + splits.int()  # 32 bits: half the memory traffic of the usual 64
    return _centre_table(period, q, levels.device).index_select(0, index.flatten()).view(index.shape)


@dataclass(frozen=True)
class DeterministicSplittingNoise(EnumeratedScheme):
    """DSSN: ``2 lam q`` copies and the exact l1 certificate for inputs on the grid ``i / q``.

    Copy t splits feature i at ``(t + v_i) mod period`` half-steps, where v is a fixed pseudorandom vector.

    Guarantee: the prediction is the same for every input on the grid within l1 distance ``radius``, inclusive. Each
    l1 step of ``1 / q`` changes at most one vote, so ``radius = floor(gap / 2) / q``.

    Attributes:
        lam: half the distance between splits, any value above 0 with ``2 lam q`` an integer; the papers report
            ``sigma = lam / sqrt(3)``, see :meth:`from_sigma`.
        q: quantization steps of the input, 255 for 8-bit images.
        seed: determines the offsets v. It is part of the model: train and certify with the same one.
    """

    lam: float
    q: int = 255
    seed: int = 0

    def __post_init__(self) -> None:
        splitting_period(self.lam, self.q)
        check_integer("seed", self.seed, 0, (1 << 32) - 1)

    @classmethod
    def from_sigma(cls, sigma: float, q: int = 255, seed: int = 0) -> DeterministicSplittingNoise:
        """The scheme with ``lam = floor(2 sqrt(3) sigma q) / (2 q)``, as in the paper's experiments."""
        return cls(lam_of_sigma(sigma, q), q, seed)

    @property
    def period(self) -> int:
        """``2 lam q``: the number of values a split can take, and the number of copies."""
        return splitting_period(self.lam, self.q)

    @property
    def threat(self) -> L1:
        return L1(q=self.q)

    def check(self, x: Tensor) -> None:
        check_images(x)
        to_levels(x, self.q)

    def num_copies(self, shape: Shape) -> int:
        return self.period

    def copies(self, x: Tensor, index: Tensor) -> Tensor:
        period, device = self.period, x.device
        levels = to_levels(x, self.q)[:, None]
        splits = fixed_offsets(self.seed, period, tuple(x.shape[1:]), device) + index.int()[..., None, None, None]
        return _look_up_centres(levels, splits, period, self.q)

    def radius_of_flips(self, flips: Tensor, *, shape: Shape | None = None) -> Tensor:
        # The nearest double to flips / q: no other multiple of 1 / q lies between it and the exact value.
        return flips.to(torch.float64) / self.q


@dataclass(frozen=True)
class SplittingNoise(SampledScheme):
    """SSN: independent random splits, with a Monte-Carlo l1 certificate.

    Guarantee: class probabilities are ``1 / (2 lam)``-Lipschitz in l1, so the radius is ``2 lam (p_lower - 1/2)``. If
    ``q`` is given, for inputs on the grid ``i / q``, it is a multiple of ``1 / q``.

    Attributes:
        lam: half the distance between splits, above 0.
        q: quantization steps of the input; None for continuous inputs (splits are then 52-bit numbers, and a rounding
            allowance of about 1e-7 is subtracted from the radius).
    """

    lam: float
    q: int | None = None

    def __post_init__(self) -> None:
        if self.q is not None:
            splitting_period(self.lam, self.q)
        _check_lam(self.lam)

    @classmethod
    def from_sigma(cls, sigma: float, q: int | None = None) -> SplittingNoise:
        """The scheme with ``lam = sqrt(3) sigma``, rounded down to the grid if there is one: uniform noise on
        [-lam, lam] has standard deviation sigma."""
        return cls(lam_of_sigma(sigma, q), q)

    @property
    def threat(self) -> L1:
        return L1(q=self.q)

    def check(self, x: Tensor) -> None:
        check_images(x)
        if self.q is not None:
            to_levels(x, self.q)
        if x[0].numel() > _MAX_FEATURES:
            raise ValueError(f"images: got {x[0].numel()} features, expected at most {_MAX_FEATURES}")

    def sample(self, x: Tensor, draws: Draws) -> Tensor:
        shape, features = x.shape[1:], x[0].numel()
        if self.q is not None:
            period = splitting_period(self.lam, self.q)
            splits = draws.integers(period, features).view(*draws.shape, *shape)
            return _look_up_centres(to_levels(x, self.q)[:, None], splits, period, self.q)
        width = 2 * self.lam
        splits = draws.uniforms(features).view(*draws.shape, *shape) * width
        image = x.to(torch.float64) / (255 if x.dtype == torch.uint8 else 1)
        upper = torch.ceil((image[:, None] - splits) / width) * width + splits
        return ((upper.clamp(max=1) + (upper - width).clamp(min=0)) / 2).float()

    def radius(self, p_lower: Tensor, p_upper: Tensor, *, shape: Shape | None = None) -> Tensor:
        margins = coverage.margin(p_lower, p_upper)
        if self.q is not None:
            period = splitting_period(self.lam, self.q)
            steps = coverage.steps_within(margins, _grid_shares(period))
            return torch.where(steps >= 0, steps.to(torch.float64) / self.q, -1.0)
        width = 2 * Fraction(self.lam)
        allowance = float(_ROUNDING_SHARE * (1 + 1 / width)) * (1 + 2.0**-50)
        below = float(width) * (1 - 2.0**-50)
        radius = ((margins - allowance) * below).clamp(min=0)
        return torch.where(margins > 0, radius, -1.0)


@lru_cache(maxsize=32)
def _grid_shares(period: int) -> tuple[Fraction, ...]:
    """Share of copies that ``j`` grid steps can touch, for j = 0, 1, ... up to the first share that reaches 1/2.

    Splits are drawn from 32 bits by multiply-and-shift, so each of the ``period`` values has probability at most
    ``(1 + period / 2^32) / period``.
    """
    each = Fraction(1, period) * (1 + Fraction(period, 1 << 32))
    return tuple(j * each for j in range(period // 2 + 2))
