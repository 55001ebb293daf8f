"""Variable-Lambda smoothing with independent random cells: Monte-Carlo lp certificates for 0 < p <= 1.

Source: Levine and Feizi, "Provable Adversarial Robustness for Fractional lp Threat Models" (AISTATS 2022);
dissertation, Theorem 4.2 (a), (b) and Corollary 4.1 (continuous inputs; Appendix C.1.3.1 for alpha < 1),
Theorem 4.3 (inputs on a grid). The paper's experiments use the exact form,
:class:`~certify.variable_lambda.VariableLambda`.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import get_args

import torch
from torch import Tensor

from certify import coverage
from certify.checks import check_integer
from certify.draws import Draws
from certify.images import Shape, check_images, to_levels
from certify.lambda_design import exact_power, greedy_design, power_limits
from certify.scheme import SampledScheme
from certify.threats import Lp
from certify.variable_lambda import Encoding, check_scale, encode_cells, encoded_channels, root_below

# Continuous inputs are multiples of 2^-36, or 8-bit, so two distinct values differ by at least 2^-36. Against this,
# rounding errors of doubles are small: x - s, its division by Lambda and s = u Lambda together shift cell ends by at
# most 2^-50, whatever Lambda. The 52-bit uniforms behind s and Lambda add at most 2^-51 to a probability of at least
# 2^-36, both in units of 1 / alpha, and the uniform that chooses the case changes it by a relative error below 1e-6.
# Hence two values are separated with probability at most (1 + 2^-12) |x - y|^p / alpha.
_GRID_BITS = 36
_EXCESS = 1 + 2.0**-12
# Cells below the grid resolution separate all values anyway.
_SMALLEST_CELL = 2.0**-40


@lru_cache(maxsize=16)
def _blocks(p: Fraction, alpha: Fraction, q: int) -> tuple[Tensor, Tensor]:
    """The 2^32 values of a random word, partitioned by cell width: ends and starts of the blocks, int64 ``[q]`` each.

    Width j gets ``j n_j`` words, ``n_j`` for each split, where ``m_k = sum of n_j over j >= k`` is nonincreasing and
    its partial sums are at most ``2^32 (k / q)^p / alpha``, exactly. Words after the last block show nothing.
    """
    increments = greedy_design(power_limits(p, alpha, q, 1 << 32))
    sizes = [
        j * (m - after) for j, (m, after) in enumerate(zip(increments, [*increments[1:], 0], strict=True), start=1)
    ]
    ends = torch.tensor(sizes).cumsum(0)
    return ends, ends - torch.tensor(sizes)


@dataclass(frozen=True)
class RandomizedVariableLambda(SampledScheme):
    """Every feature independently gets a cell of random width and position.

    Guarantee: class probabilities are ``1 / alpha``-Lipschitz in ``sum |x_i - y_i|^p``, so the lp radius is
    ``(alpha (p_lower - 1/2))^(1/p)``, rounded down; if ``q`` is given, for inputs on the grid ``i / q``.

    Attributes:
        p: in (0, 1], a simple fraction such as 0.5 or 1/3.
        alpha: above 0; above 1, a feature shows nothing with probability ``1 - 1 / alpha``.
        q: quantization steps of the input; None for continuous inputs, which must be 8-bit or multiples of 2^-36 (a
            rounding allowance, about 0.02 % of the radius for p = 1, is then subtracted).
        encoding: see :class:`~certify.variable_lambda.CellSmoothing`.
    """

    p: float
    alpha: float = 1
    q: int | None = None
    encoding: Encoding = "lower-upper"

    def __post_init__(self) -> None:
        check_scale(self.alpha)
        object.__setattr__(self, "p", float(exact_power(self.p)))  # bit for bit the p that is certified
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
                    f"images: got other values, expected multiples of 2^-{_GRID_BITS}, to which this certificate is "
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
        # if alpha is large, most words show nothing: process only the others
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
        size = (words.numel() // features, len(constants), features)
        copies = torch.empty(size, dtype=torch.float32, device=x.device)
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
