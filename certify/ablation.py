"""Ablation: l0 certificates from a classifier that sees only a few pixels.

Sources: randomized, Levine and Feizi, "Robustness Certificates for Sparse Adversarial Attacks by Randomized Ablation"
(AAAI 2020), Theorem 1, Corollaries 1 and 2 (dissertation, Theorem 2.1, Corollaries 2.1 and 2.2). Deterministic, Levine
and Feizi, "Provable Adversarial Robustness for Fractional lp Threat Models" (AISTATS 2022), l0 section (dissertation,
Section 4.5, Option 1: Eq. 4.29).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from certify import coverage, topk
from certify.checks import check_integer
from certify.draws import Draws
from certify.images import Shape, check_images, to_float
from certify.offsets import fixed_offsets
from certify.scheme import EnumeratedScheme, SampledScheme, Scheme, TopKCertified, needed
from certify.threats import L0, Unit

PerChannel = tuple[float, ...]


@lru_cache(maxsize=64)
def touched_shares(d: int, keep: int) -> tuple[Fraction, ...]:
    """``Delta(rho) = 1 - C(d - rho, keep) / C(d, keep)`` for rho = 0, 1, ... up to the first that reaches 1/2.

    The exact probability that ``keep`` units, chosen uniformly out of ``d``, include at least one of ``rho`` given
    units (AAAI 2020, Theorem 1).
    """
    if not 1 <= keep <= d:
        raise ValueError(f"keep: got {keep}, expected between 1 and the number of units of the image, d = {d}")
    untouched, shares = Fraction(1), [Fraction(0)]
    while shares[-1] < Fraction(1, 2):
        rho = len(shares) - 1
        untouched *= Fraction(d - keep - rho, d - rho)
        shares.append(1 - untouched)
    return tuple(shares)


@dataclass(frozen=True, kw_only=True)
class NullEncoding(Scheme):
    """Base of all ablation schemes: how an ablated pixel or feature (NULL) is encoded.

    Attributes:
        null: ``"multichannel"`` shows (x, 1 - x) and NULL = (0, 0), doubling the channels; ``"mean"`` shows NULL as
            the colour ``mean``.
        mean: one value per channel: the NULL colour for ``null="mean"``, or the mean of the normalization below.
        std: if given, channels are normalized to ``(x - mean) / std`` *before* the multichannel encoding (ImageNet).
    """

    null: Literal["multichannel", "mean"] = "multichannel"
    mean: PerChannel | None = None
    std: PerChannel | None = None

    def __post_init__(self) -> None:
        if self.null not in ("multichannel", "mean"):
            raise ValueError(f"null: got {self.null!r}, expected 'multichannel' or 'mean'")
        if self.null == "mean" and (self.mean is None or self.std is not None):
            raise ValueError(
                f"null='mean': got mean={self.mean} and std={self.std}, expected mean=(one value per channel), the "
                "training set's mean pixel, and no std"
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and not isinstance(values, tuple):
                raise TypeError(f"{name}: got {values!r}, expected a tuple with one number per channel")
            if values is not None and not all(map(math.isfinite, values)):
                raise ValueError(f"{name}: got {values}, expected finite numbers")
        if any(value <= 0 for value in self.std or ()):
            raise ValueError(f"std: got {self.std}, expected numbers above 0")
        if self.std is not None and self.mean is None:
            raise ValueError("std: got no mean with it; normalization needs mean= as well")

    def check(self, x: Tensor) -> None:
        check_images(x)
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != x.shape[1]:
                raise ValueError(f"{name}: got {len(values)} values, expected one per channel, {x.shape[1]}")

    def channels(self, channels: int) -> int:
        return 2 * channels if self.null == "multichannel" else channels

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        """Copies of images ``[B, C, H, W]`` as the base classifier sees them; masks ``[B, n, 1 or C, H, W]`` are True
        where a unit is kept."""
        image = to_float(x)[:, None]
        if self.null == "mean":
            return torch.where(mask, image, self._per_channel(self.mean, image))
        if self.std is not None:
            image = (image - self._per_channel(self.mean, image)) / self._per_channel(self.std, image)
        if mask.shape[2] > 1:  # one mask for (x, 1 - x)
            mask = torch.cat((mask, mask), dim=2)
        both = torch.cat((image, 1 - image), dim=2)
        if self.std is None:
            return both * mask.to(both.dtype)
        # a product with 0 would turn negative values into -0.0, whose sign would leak hidden pixels
        return torch.where(mask, both, both.new_zeros(()))

    @staticmethod
    def _per_channel(values: PerChannel | None, like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]


@dataclass(frozen=True, kw_only=True)
class Ablation(NullEncoding):
    """Base of randomized and deterministic ablation: the unit that is kept or dropped.

    Attributes:
        unit: ``"pixel"`` keeps or drops all channels of a pixel together; ``"feature"`` treats channels separately.
        null, mean, std: see :class:`NullEncoding`.
    """

    unit: Unit = "pixel"

    def __post_init__(self) -> None:
        _ = self.threat  # checks the unit
        super().__post_init__()

    @property
    def threat(self) -> L0:
        return L0(self.unit)

    def units(self, shape: Shape) -> int:
        """Number of pixels or features, d."""
        channels, height, width = shape
        return height * width * (channels if self.unit == "feature" else 1)

    def unit_shape(self, shape: Shape) -> Shape:
        """Shape of a mask, (1 or C, H, W)."""
        return (shape[0] if self.unit == "feature" else 1, *shape[1:])


@dataclass(frozen=True)
class RandomizedAblation(Ablation, SampledScheme):
    """Each copy retains ``keep`` uniformly chosen pixels (or features) and replaces the others by NULL.

    Guarantee: if x and x' differ in at most rho units, every class probability differs by at most ``Delta(rho)``. The
    radius is the number of pixels (features) that may change arbitrarily, an integer.

    Attributes:
        keep: number of units retained, the paper's k.
        unit, null, mean, std: see :class:`Ablation`.
    """

    keep: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("keep", self.keep, 1)

    def check(self, x: Tensor) -> None:
        super().check(x)
        touched_shares(self.units(tuple(x.shape[1:])), self.keep)  # keep <= d

    def masks(self, shape: Shape, draws: Draws) -> Tensor:
        """Which units each copy retains: bool ``[B, n, 1 or C, H, W]``."""
        return draws.subsets(self.keep, self.units(shape)).view(*draws.shape, *self.unit_shape(shape))

    def sample(self, x: Tensor, draws: Draws) -> Tensor:
        return self.encode(x, self.masks(tuple(x.shape[1:]), draws))

    def radius(self, p_lower: Tensor, p_upper: Tensor, *, shape: Shape | None = None) -> Tensor:
        shares = touched_shares(self.units(needed(shape, self)), self.keep)
        return coverage.steps_within(coverage.margin(p_lower, p_upper), shares).to(torch.float64)

    def certify_top_k(
        self, counts: Tensor, k: int, alpha: float, *, n: int | None = None, shape: Shape | None = None
    ) -> TopKCertified:
        """Radii are numbers of pixels (features); see :mod:`certify.topk`."""
        return topk.certify_counts(counts, k, self.units(needed(shape, self)), self.keep, alpha, n=n, unit=self.unit)


@dataclass(frozen=True)
class DeterministicAblation(Ablation, EnumeratedScheme):
    """``alpha`` copies; every pixel (or feature) is retained in exactly one of them, the same one for every image.

    Guarantee: the prediction is the same for every input that differs in at most ``radius`` units, inclusive. Each unit
    can change only the vote of the copy that retains it, so ``radius = floor(gap / 2)``. This holds for arbitrary
    values, not only on a grid.

    Attributes:
        alpha: number of copies, an integer; each retains about ``d / alpha`` units.
        seed: determines the assignment of units to copies. It is part of the model: train and certify with the same.
        unit, null, mean, std: see :class:`Ablation`. The multichannel encoding, (x, 1 - x) or (0, 0), is the paper's
            (lower, upper) end of a pixel's range, with the upper end measured from 1.
    """

    alpha: int
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("alpha (number of copies)", self.alpha, 1)
        check_integer("seed", self.seed, 0, (1 << 32) - 1)

    def num_copies(self, shape: Shape) -> int:
        return self.alpha

    def copies(self, x: Tensor, index: Tensor) -> Tensor:
        kept_in = fixed_offsets(self.seed, self.alpha, self.unit_shape(tuple(x.shape[1:])), x.device)
        return self.encode(x, kept_in == index[..., None, None, None])

    def radius_of_flips(self, flips: Tensor, *, shape: Shape | None = None) -> Tensor:
        radius = flips if shape is None else flips.clamp(max=self.units(shape))
        return radius.to(torch.float64)
