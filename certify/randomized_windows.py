"""Randomized structured ablation: bands and blocks at random positions, the baseline for the exact schemes.

Source: Levine and Feizi, "(De)Randomized Smoothing for Certifiable Defense against Patch Attacks" (NeurIPS 2020),
appendix, Section E; dissertation, Appendix E.5. It shows the benefit of classifying every position.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from certify import coverage
from certify.ablation import NullEncoding
from certify.draws import Draws
from certify.images import Shape
from certify.scheme import SampledScheme, needed
from certify.threats import Patch
from certify.windows import BandAblation, BlockAblation, WindowAblation

_WORDS = 1 << 32


@lru_cache(maxsize=32)
def _shares(copies: int, touched: tuple[int, ...]) -> tuple[Fraction, ...]:
    """Upper bounds on the probability that a copy drawn at random is one of n given ones, for n in ``touched``."""
    likeliest = -(-_WORDS // copies)  # the most 32-bit words that can map to one position
    return tuple(Fraction(n * likeliest, _WORDS) for n in touched)


@dataclass(frozen=True)
class RandomizedWindowAblation(NullEncoding, SampledScheme):
    """Each copy retains one band or block at a random position, where positions are equally likely up to 2^-32.

    Guarantee: a square patch with side m changes a class probability by at most the probability that a copy meets it.
    The radius is the largest m for which this is below ``p_lower - 1/2`` (or half the gap between the two bounds).
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.windows  # checks the parameters

    @property
    @abstractmethod
    def windows(self) -> WindowAblation:
        """The scheme that enumerates the copies sampled here."""

    @property
    def threat(self) -> Patch:
        return Patch()

    def check(self, x: Tensor) -> None:
        self.windows.check(x)

    def sample(self, x: Tensor, draws: Draws) -> Tensor:
        return self.windows.sample(x, draws)

    def touched_shares(self, shape: Shape) -> tuple[Fraction, ...]:
        """Upper bounds on the probability that a copy meets a square with side 0, 1, ..., up to the whole image."""
        windows = self.windows
        sides = range(1, max(shape[1:]) + 1)
        touched = [windows.most_touched(shape, (min(m, shape[1]), min(m, shape[2]))) for m in sides]
        return _shares(windows.num_copies(shape), (0, *touched))

    def radius(self, p_lower: Tensor, p_upper: Tensor, *, shape: Shape | None = None) -> Tensor:
        shape = needed(shape, self)
        self.windows.check_shape(shape)
        return coverage.steps_within(coverage.margin(p_lower, p_upper), self.touched_shares(shape)).to(torch.float64)


@dataclass(frozen=True)
class RandomizedBandAblation(RandomizedWindowAblation):
    """Each copy retains one band of columns (or rows) at a random position.

    Attributes:
        width, axis: see :class:`~certify.windows.BandAblation`.
        null, mean, std: see :class:`~certify.ablation.NullEncoding`.
    """

    width: int
    axis: Literal["column", "row"] = "column"

    @property
    def windows(self) -> BandAblation:
        return BandAblation(self.width, self.axis, null=self.null, mean=self.mean, std=self.std)


@dataclass(frozen=True)
class RandomizedBlockAblation(RandomizedWindowAblation):
    """Each copy retains one square block at a random position.

    Attributes:
        size: see :class:`~certify.windows.BlockAblation`.
        null, mean, std: see :class:`~certify.ablation.NullEncoding`.
    """

    size: int

    @property
    def windows(self) -> BlockAblation:
        return BlockAblation(self.size, null=self.null, mean=self.mean, std=self.std)
