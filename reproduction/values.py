"""A measured number with its 95 % interval.

Intervals treat the test images as a sample of all such images, or the seeds as a sample of all seeds: Clopper-Pearson
for shares of images, order statistics for medians, Student for means. Whether a certificate itself holds is a separate
question, covered by its own ``alpha``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.stats import binom

from certify.confidence import lower_bound, upper_bound
from rl.evaluation import student_interval

LEVEL = 0.95


@dataclass(frozen=True)
class Value:
    """A measured number.

    Attributes:
        value: the number; minus infinity for the median of a classifier that certifies less than half of the images,
            infinity for a score that was never reached.
        low, high: ends of the 95 % interval; None where there is none, such as for too few images or seeds.
        n: number of images, seeds or fitted points.
        guaranteed: False for radii that no theorem supports.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    guaranteed: bool = True

    def scaled(self, factor: float) -> Value:
        ends = (None if end is None else end * factor for end in (self.low, self.high))
        return replace(self, value=self.value * factor, **dict(zip(("low", "high"), ends, strict=True)))


def share(hits: float, n: int, *, guaranteed: bool = True) -> Value:
    """A share of n images with its Clopper-Pearson interval, each end with half the failure probability."""
    count, alpha = torch.tensor([round(hits * n)]), (1 - LEVEL) / 2
    low, high = (float(bound(count, n, alpha)) for bound in (lower_bound, upper_bound))
    return Value(hits, low, high, n, guaranteed)


def mean(values: ArrayLike) -> Value:
    """A mean with Student's interval; a single number has none."""
    numbers = np.asarray(values, np.float64)
    if len(numbers) < 2:
        return Value(float(numbers.mean()), None, None, len(numbers))
    found = student_interval(numbers, level=LEVEL)
    return Value(found.value, found.low, found.high, len(numbers))


def median(value: float, numbers: ArrayLike, *, guaranteed: bool = True) -> Value:
    """A median of ``numbers`` with the distribution-free interval between two of their order statistics."""
    ordered = np.sort(np.asarray(numbers, np.float64))
    n = len(ordered)
    # X ~ Binomial(n, 1/2) of the numbers are below the true median, so the rank-th one is above it if X < rank
    rank = int(binom.ppf((1 - LEVEL) / 2, n, 0.5))
    if rank == 0:
        return Value(value, None, None, n, guaranteed)
    return Value(value, float(ordered[rank - 1]), float(ordered[n - rank]), n, guaranteed)
