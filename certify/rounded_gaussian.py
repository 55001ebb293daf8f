"""Gaussian noise rounded to whole steps, drawn with integers only.

Probabilities are differences of thresholds ``2^64 Phi((j + 1/2) / s)``, rounded to integers: exact to 2^-64, on every
device. Numbers are drawn by the alias method (Walker, 1977; Vose, 1991) from 64 random bits each: the first bits choose
a column, the rest one of the two values that share it. The first 32 bits are nearly always enough; the other 32 are
generated only when needed, so that one 64-bit word yields two numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from certify.draws import Draws
from certify.generators import splitmix64, splitmix64_at

_REACH = Fraction(92, 10)  # in standard deviations; less than 2^-64 of the Gaussian mass lies beyond
_MOST_VALUES = 1 << 18
_TOTAL = 1 << 64
_WORD = 0xFFFFFFFF
_CHUNK = 1 << 15  # numbers drawn at once on a CPU: they stay in a core's L2 cache, even between passes of a model


@dataclass(frozen=True)
class RoundedGaussian:
    """``round(s Z)`` for a standard Gaussian Z and a standard deviation of s steps.

    The total variation distance between a number drawn here and an exact one is at most :attr:`slip`.

    Attributes:
        deviation: s, as an exact fraction.
    """

    deviation: Fraction

    def __post_init__(self) -> None:
        if not self.deviation > 0 or 2 * self.reach + 1 > _MOST_VALUES:
            most = float(_MOST_VALUES / 2 / _REACH)
            raise ValueError(
                f"sigma: got {float(self.deviation):g} grid steps, expected more than 0 and at most {most:.0f}; use a "
                "coarser grid (q) or a smaller sigma"
            )

    @property
    def reach(self) -> int:
        """The largest number that can be drawn."""
        return -(-self.deviation * _REACH // 1)

    @property
    def slip(self) -> Fraction:
        """A bound on the total variation distance: half of 2^-64 for the rounding of each of the ``2 reach``
        thresholds, and less than 2^-64 for the mass beyond the reach."""
        return Fraction(self.reach + 2, _TOTAL)

    def weights(self) -> list[int]:
        """Probabilities of ``-reach .. reach`` in units of 2^-64; their sum is exactly 2^64."""
        return _weights(self)

    def draw(self, draws: Draws, count: int) -> Tensor:
        """Integers, exactly represented as float32 ``[B, n, count]``."""
        table = _alias_table(self, draws.item.device)
        columns = len(table.cuts)
        rest = 32 - table.bits  # number of the first 32 bits that do not choose the column

        def look_up(words: Tensor, keys: Tensor, numbers: Tensor) -> None:
            # the mask drops the copies of the sign bit
            entry = torch.bitwise_right_shift(words, rest).bitwise_and_(columns - 1)
            past = table.tops.index_select(0, entry.view(-1)).view_as(entry)
            torch.sub(words, past, out=past)  # the position inside the column, relative to its border
            row, place = _zeros(past)  # on the border, as far as the first 32 bits show
            if len(row):
                more = splitmix64_at(keys[row, 0], -1 - place) >> 32 & _WORD
                past[row, place] -= (more < table.cuts[entry[row, place]] & _WORD).int()
            past.bitwise_right_shift_(31)  # -1 where the number is below the border
            entry.sub_(past, alpha=columns)
            torch.index_select(table.values, 0, entry.view(-1), out=numbers.view(-1))

        return noise_of_words(draws, count, look_up)


def _zeros(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the zeros; computed by NumPy on a CPU, where tensors take ten times as long."""
    if numbers.device.type != "cpu":
        row, place = numbers.logical_not().nonzero(as_tuple=True)
        return row, place
    row, place = np.divmod(np.flatnonzero(numbers.numpy() == 0), numbers.shape[1])
    return torch.from_numpy(row), torch.from_numpy(place)


def noise_of_words(draws: Draws, count: int, make: Callable[[Tensor, Tensor, Tensor], object]) -> Tensor:
    """float32 ``[B, n, count]``, one number per 32 random bits, made for a few copies at a time, to fit a cache.

    Args:
        make: takes uniform int32 ``[copies, count]`` and the keys ``[copies, 1]`` of these copies, and writes the
            numbers into its third argument. It may use outputs of :func:`~certify.generators.splitmix64_at` at negative
            positions.
    """
    keys = draws.keys().reshape(-1, 1)
    noise = torch.empty((len(keys), count), dtype=torch.float32, device=keys.device)
    at_once = max(1, _CHUNK // count) if keys.device.type == "cpu" else max(1, len(keys))
    for own, part in zip(keys.split(at_once), noise.split(at_once), strict=True):
        make(splitmix64(own, -(-count // 2)).view(torch.int32)[:, :count], own, part)
    return noise.view(*draws.shape, count)


@lru_cache(maxsize=16)
def _weights(noise: RoundedGaussian) -> list[int]:
    reach = noise.reach
    with localcontext() as context:
        context.prec = 40
        root = (2 * _pi(context.prec)).sqrt()
        step = Decimal(noise.deviation.denominator) / Decimal(noise.deviation.numerator)
        # above[j] = round(2^64 P(s Z >= j + 1/2)), which is 0 far out, where the series would take forever
        borders = [(j + Decimal("0.5")) * step for j in range(reach)]
        above = [
            0 if z > 10 else int((_TOTAL * (Decimal("0.5") - _half_mass(z, root))).to_integral_value()) for z in borders
        ]
    above.append(0)  # the last value gets all mass beyond it
    upper = [a - b for a, b in itertools.pairwise(above)]
    return [*reversed(upper), _TOTAL - 2 * above[0], *upper]


def _half_mass(z: Decimal, root: Decimal) -> Decimal:
    """P(0 <= Z <= z): the density times ``z + z^3 / 3 + z^5 / (3 5) + ...``, a series without cancellation.

    At 40 digits and for z below 10, its error is below 2^-100, much less than the rounding of thresholds.
    """
    square = z * z
    term = total = z
    odd = 1
    while term > total * Decimal("1e-35"):
        odd += 2
        term = term * square / odd
        total += term
    return total * (-square / 2).exp() / root


def _pi(digits: int) -> Decimal:
    """Pi by Machin's formula, in integers."""
    unit = 10 ** (digits + 10)

    def arctan_of_inverse(n: int) -> int:
        power, total, odd, sign = unit // n, 0, 1, 1
        while power:
            total += sign * (power // odd)
            power, odd, sign = power // (n * n), odd + 2, -sign
        return total

    return Decimal(4 * (4 * arctan_of_inverse(5) - arctan_of_inverse(239))) / Decimal(unit)


class _AliasTable(NamedTuple):
    """Equally likely columns, each shared by at most two values.

    Attributes:
        bits: number of bits that choose a column.
        cuts: int64 ``[columns]``, the border inside each column, in units of 2^-64.
        tops: int32 ``[columns]``, the first 32 bits of the absolute position of each border: the index of its column,
            then the leading bits of the border. Modulo 2^32, since the border of a column with a single value is the
            start of the next column.
        values: float32 ``[2 columns]``, the value above the border of each column, then the values below.
    """

    bits: int
    cuts: Tensor
    tops: Tensor
    values: Tensor


@lru_cache(maxsize=16)
def _alias_table(noise: RoundedGaussian, device: torch.device) -> _AliasTable:
    weights, reach = noise.weights(), noise.reach
    bits = (len(weights) - 1).bit_length()
    columns, capacity = 1 << bits, 1 << (64 - bits)
    left = weights + [0] * (columns - len(weights))
    cut, other = [capacity] * columns, list(range(columns))
    small = [i for i in range(columns) if left[i] < capacity]
    large = [i for i in range(columns) if left[i] > capacity]
    while small:
        i, giver = small.pop(), large[-1]
        cut[i], other[i] = left[i], giver
        left[giver] -= capacity - left[i]
        if left[giver] <= capacity:
            large.pop()
        if left[giver] < capacity:
            small.append(giver)
    values = torch.tensor([value - reach for value in (*other, *range(columns))])
    # at least three values need at least two bits, so no border exceeds 2^62, and no first half of one 2^30
    cuts = torch.tensor(cut, device=device)
    numbers = torch.arange(columns, device=device) << (32 - bits)
    return _AliasTable(bits, cuts, ((cuts >> 32) + numbers).int(), values.float().to(device))
