"""Coverage certificates: a perturbation can only change the copies that it touches.

If at most a share ``touched(j)`` of the copies differs between ``x`` and any ``x'`` at ``j`` steps from it, no class
probability changes by more than ``touched(j)``. A class with probability at least ``p_lower``, while every other class
has at most ``p_upper``, then stays ahead as long as ``touched(j) < (p_lower - p_upper) / 2``.

Shares are exact fractions and probabilities are doubles; comparisons between them are exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor


def margin(p_lower: Tensor, p_upper: Tensor) -> Tensor:
    """``(p_lower - p_upper) / 2``, float64, rounded down."""
    half_gap = (p_lower.to(torch.float64) - p_upper.to(torch.float64)) / 2
    return torch.nextafter(half_gap, torch.full_like(half_gap, -math.inf))


def doubles_above(shares: Sequence[Fraction]) -> list[float]:
    """The smallest double strictly above each exact fraction."""
    nearest = [float(share) for share in shares]  # correctly rounded
    return [
        value if Fraction(value) > share else math.nextafter(value, math.inf)
        for value, share in zip(nearest, shares, strict=True)
    ]


class _Shares:
    """Shares as a cache key, compared by identity: comparing or hashing fractions is as slow as using them."""

    def __init__(self, shares: tuple[Fraction, ...]) -> None:
        self.shares = shares

    def __hash__(self) -> int:
        return id(self.shares)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Shares) and self.shares is other.shares


@lru_cache(maxsize=32)  # a key keeps its shares alive, so that no other object can have their id
def _thresholds(key: _Shares) -> Tensor:
    """:func:`doubles_above`, float64."""
    return torch.tensor(doubles_above(key.shares), dtype=torch.float64)


def steps_within(margins: Tensor, touched: Sequence[Fraction]) -> Tensor:
    """The largest ``j`` with ``touched[j] < margin``, or -1 if there is none.

    Args:
        margins: float64 of any shape.
        touched: nondecreasing exact shares for j = 0, 1, ...; they must reach 1/2, which no margin exceeds. Thresholds
            computed from a tuple are cached for later calls with the same object.

    Returns:
        int64 of the shape of ``margins``.
    """
    if isinstance(touched, tuple):
        thresholds = _thresholds(_Shares(touched)).to(margins.device)
    else:  # mutable: it may change before the next call
        thresholds = torch.tensor(doubles_above(touched), dtype=torch.float64, device=margins.device)
    # certified at j iff margin >= threshold[j]; the thresholds are sorted
    steps = torch.searchsorted(thresholds, margins.contiguous(), right=True) - 1
    return torch.where(margins.isnan(), -1, steps)
