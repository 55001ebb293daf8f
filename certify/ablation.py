"""Randomized ablation: l0 certificates from a classifier that sees only a few pixels.

Source: Levine and Feizi, "Robustness Certificates for Sparse Adversarial Attacks by Randomized Ablation" (AAAI 2020),
Theorem 1, Corollaries 1 and 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from certify import coverage
from certify.draws import Draws
from certify.images import Shape, check_images, to_float
from certify.scheme import SampledScheme, check_integer
from certify.threats import L0, Unit

PerChannel = tuple[float, ...]


@lru_cache(maxsize=64)
def touched_shares(d: int, keep: int) -> tuple[Fraction, ...]:
    """``Delta(rho) = 1 - C(d - rho, keep) / C(d, keep)`` for rho = 0, 1, ... up to the first that reaches 1/2.

    The probability that ``keep`` uniformly chosen units out of ``d`` contain at least one of ``rho`` given ones
    (Theorem 1), exactly.
    """
    if not 1 <= keep <= d:
        raise ValueError(f"keep: got {keep}, expected between 1 and the number of units of the image, d = {d}")
    untouched, shares = Fraction(1), [Fraction(0)]
    while shares[-1] < Fraction(1, 2):
        rho = len(shares) - 1
        untouched *= Fraction(d - keep - rho, d - rho)
        shares.append(1 - untouched)
    return tuple(shares)


@dataclass(frozen=True)
class RandomizedAblation(SampledScheme):
    """Copies keep ``keep`` uniformly chosen pixels (or features) and replace the others by NULL.

    Guarantee: if x and x' differ in at most rho units, every class probability differs by at most ``Delta(rho)``; the
    radius is the number of pixels (features) that may be changed arbitrarily, an integer.

    Attributes:
        keep: number of units retained, the paper's k.
        unit: ``"pixel"`` keeps or drops all channels of a pixel together; ``"feature"`` treats channels separately.
        null: ``"multichannel"`` shows (x, 1 - x) and NULL = (0, 0), doubling the channels; ``"mean"`` shows NULL as
            the colour ``mean``.
        mean: one value per channel: the NULL colour of ``null="mean"``, or the normalization below.
        std: if given, channels are normalized to ``(x - mean) / std`` *before* the multichannel encoding (ImageNet).
    """

    keep: int
    unit: Unit = "pixel"
    null: Literal["multichannel", "mean"] = "multichannel"
    mean: PerChannel | None = None
    std: PerChannel | None = None

    def __post_init__(self) -> None:
        check_integer("keep", self.keep, 1)
        _ = self.threat  # checks the unit
        if self.null not in ("multichannel", "mean"):
            raise ValueError(f"null: got {self.null!r}, expected 'multichannel' or 'mean'")
        if self.null == "mean" and (self.mean is None or self.std is not None):
            raise ValueError(
                "null='mean' needs mean=(one value per channel), the training set's mean pixel, and no std"
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and not isinstance(values, tuple):
                raise TypeError(f"{name}: got {values!r}, expected a tuple with one number per channel")
        if self.std is not None and self.mean is None:
            raise ValueError("std: normalization needs mean= as well")

    @property
    def threat(self) -> L0:  # pyright: ignore[reportIncompatibleVariableOverride]
        return L0(self.unit)

    def units(self, shape: Shape) -> int:
        """Number of pixels or features, d."""
        channels, height, width = shape
        return height * width * (channels if self.unit == "feature" else 1)

    def check(self, x: Tensor) -> None:
        check_images(x)
        touched_shares(self.units(tuple(x.shape[1:])), self.keep)  # keep <= d
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != x.shape[1]:
                raise ValueError(f"{name}: got {len(values)} values, expected one per channel, {x.shape[1]}")

    def channels(self, channels: int) -> int:
        return 2 * channels if self.null == "multichannel" else channels

    def masks(self, shape: Shape, draws: Draws) -> Tensor:
        """Which units each copy retains: bool ``[B, n, 1 or C, H, W]``."""
        retained = draws.subsets(self.keep, self.units(shape))
        return retained.view(*draws.shape, shape[0] if self.unit == "feature" else 1, *shape[1:])

    def sample(self, x: Tensor, draws: Draws) -> Tensor:
        return self.encode(to_float(x)[:, None], self.masks(tuple(x.shape[1:]), draws))

    def encode(self, image: Tensor, mask: Tensor) -> Tensor:
        """What the base classifier sees of float images ``[B, 1, C, H, W]`` under masks ``[B, n, 1 or C, H, W]``."""
        if self.null == "mean":
            return torch.where(mask, image, self._per_channel(self.mean, image))
        if self.std is not None:
            image = (image - self._per_channel(self.mean, image)) / self._per_channel(self.std, image)
        return torch.cat((image, 1 - image), dim=2) * self._repeated(mask.to(image.dtype))

    @staticmethod
    def _repeated(mask: Tensor) -> Tensor:
        """The mask for (x, 1 - x): broadcast over channels if they share it, else once for each half."""
        return mask if mask.shape[2] == 1 else torch.cat((mask, mask), dim=2)

    @staticmethod
    def _per_channel(values: PerChannel | None, like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]

    def radius(self, p_lower: Tensor, p_upper: Tensor, *, shape: Shape | None = None) -> Tensor:
        if shape is None:
            raise ValueError("shape: randomized ablation needs the image shape (C, H, W), its radius depends on d")
        shares = touched_shares(self.units(shape), self.keep)
        return coverage.steps_within(coverage.margin(p_lower, p_upper), shares).to(torch.float64)
