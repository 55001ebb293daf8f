"""Variable-Lambda smoothing with independent random cells: Monte-Carlo lp certificates for 0 < p <= 1.

Source: Levine and Feizi, "Provable Adversarial Robustness for Fractional lp Threat Models" (AISTATS 2022);
dissertation, Theorem 4.2 and Corollary 4.1 (continuous inputs; alpha < 1 is in its Appendix C.1.3.1), Theorem 4.3
(inputs on a grid). The paper's experiments use the exact form, :class:`~certify.variable_lambda.VariableLambda`.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import get_args

import torch
from torch import Tensor

from certify import coverage
from certify.draws import Draws
from certify.images import Shape, check_images, to_levels
from certify.lambda_design import exact_power, greedy_design, power_limits
from certify.scheme import SampledScheme, check_integer
from certify.threats import Lp
from certify.variable_lambda import Encoding, check_scale, encode_cells, encoded_channels, root_below

# Continuous inputs are multiples of 2^-36, or 8-bit. Two values that differ then differ by at least 2^-36, against
# which the errors of computing in doubles are small: x - s, its division by Lambda and s = u Lambda shift the ends of
# cells by at most 2^-50 together, whatever Lambda; the 52-bit uniforms behind s and Lambda add at most 2^-51 to a
# probability of at least 2^-36, both in units of 1 / alpha, and that behind the choice of the case changes it by a
# share below 1e-6. Two values are so told apart with probability at most (1 + 2^-12) |x - y|^p / alpha.
_GRID_BITS = 36
_EXCESS = 1 + 2.0**-12
# Cells below the grid tell all values apart anyway.
_SMALLEST_CELL = 2.0**-40


@lru_cache(maxsize=16)
def _blocks(p: Fraction, alpha: Fraction, q: int) -> tuple[Tensor, Tensor]:
    """The 2^32 values of a random word, divided among widths: ends of the blocks and their starts, int64 ``[q]``.

    Width j has ``j n_j`` words, ``n_j`` for each split, with ``m_k = sum of n_j over j >= k`` nonincreasing and
    partial sums of at most ``2^32 (k / q)^p / alpha``: exact. Words behind the last block show nothing.
    """
    increments = greedy_design(power_limits(p, alpha, q, 1 << 32))
    sizes = [
        j * (m - after) for j, (m, after) in enumerate(zip(increments, [*increments[1:], 0], strict=True), start=1)
    ]
    ends = torch.tensor(sizes).cumsum(0)
    return ends, ends - torch.tensor(sizes)


@dataclass(frozen=True)
class RandomizedVariableLambda(SampledScheme):
    """Every feature gets a cell of random width and position, independently.

    Guarantee: class probabilities are ``1 / alpha``-Lipschitz in ``sum |x_i - y_i|^p``, so the lp radius is
    ``(alpha (p_lower - 1/2))^(1/p)``, rounded down; with ``q`` given, for inputs on the grid ``i / q``.

    Attributes:
        p: in (0, 1], a simple fraction such as 0.5 or 1/3.
        alpha: above 0; above 1, a feature shows nothing with probability ``1 - 1 / alpha``.
        q: quantization steps of the input; None for continuous inputs: multiples of 2^-36, or 8-bit (the radius is
            then smaller by a rounding allowance, about 0.02 % of it for p = 1).
        encoding: see :class:`~certify.variable_lambda.CellSmoothing`.
    """

    p: float
    alpha: float = 1
    q: int | None = None
    encoding: Encoding = "lower-upper"

    def __post_init__(self) -> None:
        check_scale(self.alpha)
        object.__setattr__(self, "p", float(exact_power(self.p)))  # the one that is certified, to the last bit
        object.__setattr__(self, "alpha", float(self.alpha))
        if self.q is not None:
            check_integer("q (quantization steps, 255 for 8-bit images)", self.q, 1, 1 << 12)
        if self.encoding not in get_args(Encoding):
            raise ValueError(f"encoding: got {self.encoding!r}, expected one of {', '.join(get_args(Encoding))}")

    @property
    def threat(self) -> Lp:
        return Lp(self.p, q=self.q)

    def check(self, x: Tensor) -> None:
        check_images(x)
        if self.q is not None:
            to_levels(x, self.q)
        elif x.dtype != torch.uint8:
            scaled = x.to(torch.float64) * 2.0**_GRID_BITS
            if (scaled != scaled.round()).any():
                raise ValueError(
                    f"images: got values that are no multiples of 2^-{_GRID_BITS}, to which this certificate is "
                    f"limited; round them: (x.double() * 2.0**{_GRID_BITS}).round() / 2.0**{_GRID_BITS}"
                )

    def channels(self, channels: int) -> int:
        return encoded_channels(self.encoding) * channels

    def sample(self, x: Tensor, draws: Draws) -> Tensor:
        if self.q is not None:
            return self._quantized(x, draws, self.q)
        return torch.cat([part.float() for part in encode_cells(*self._continuous(x, draws), self.encoding)], dim=2)

    def _quantized(self, x: Tensor, draws: Draws, q: int) -> Tensor:
        ends, starts = (part.to(x.device) for part in _blocks(exact_power(self.p), Fraction(self.alpha), q))
        features = x[0].numel()
        words = draws.words(features).expand(len(x), -1, -1)
        # most words show nothing when alpha is large: only the others are looked at
        shown = (words < ends[-1]).flatten().nonzero()[:, 0]
        word = words.flatten()[shown]
        width = torch.searchsorted(ends, word, right=True) + 1
        split = 2 * ((word - starts[width - 1]) % width) + 1
        # in units of 1 / (2q): levels are even, splits are odd
        image = torch.div(shown, words[0].numel(), rounding_mode="floor")
        level = 2 * to_levels(x, q).flatten(1)[image, shown % features]
        below = split + torch.div(level - split, 2 * width, rounding_mode="floor") * 2 * width
        lower = below.clamp(min=0).to(torch.float64) / (2 * q)
        upper = (below + 2 * width).clamp(max=2 * q).to(torch.float64) / (2 * q)
        whole = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
        constants = encode_cells(*whole, self.encoding)
        copies = torch.empty((words.numel() // features, len(constants), features), device=x.device)
        for channel, (values, nothing) in enumerate(
            zip(encode_cells(lower, upper, self.encoding), constants, strict=True)
        ):
            copies[:, channel] = float(nothing)
            place = torch.div(shown, features, rounding_mode="floor") * len(constants) + channel
            copies.view(-1)[place * features + shown % features] = values.float()
        return copies.view(len(x), words.shape[1], -1, *x.shape[2:])

    def _continuous(self, x: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        p, features = float(exact_power(self.p)), x[0].numel()
        choice, beta, place = draws.uniforms(3 * features).view(*draws.shape, 3, *x.shape[1:]).unbind(-4)
        shown = 1 / max(1.0, self.alpha)  # probability of showing anything
        largest = min(1.0, self.alpha) ** (1 / p)
        width = torch.where(choice < (1 - p) * shown, beta ** (1 / p), 1.0) * largest
        width = width.clamp(min=_SMALLEST_CELL)
        split = place * width
        image = x.to(torch.float64) / (255 if x.dtype == torch.uint8 else 1)
        upper = torch.ceil((image[:, None] - split) / width) * width + split
        nothing = choice >= shown
        lower = (upper - width).clamp(min=0).masked_fill(nothing, 0)
        return lower, upper.clamp(max=1).masked_fill(nothing, 1)

    def radius(self, p_lower: Tensor, p_upper: Tensor, *, shape: Shape | None = None) -> Tensor:
        margins = coverage.margin(p_lower, p_upper)
        power = margins.clamp(min=0) * self.alpha / (1 if self.q is not None else _EXCESS)
        return torch.where(margins > 0, root_below(power, self.p), -1.0)
