"""Gaussian noise: l2 certificates of randomized smoothing.

Source: Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized Smoothing" (ICML 2019), Theorem 1.

The theorem is about real numbers. In floating point, ``x + noise`` retains traces of x in its low-order bits, and there
are base classifiers and images for which the prediction changes within the certified radius (Voracek and Hein, "Sound
Randomized Smoothing in Floating-Point Arithmetic", ICLR 2023, arXiv 2207.07209). Here, noise is therefore drawn on the
grid of the images. Let x be on the grid, ``round`` the map to the nearest grid point, and Z real Gaussian noise. Then

    round(x + Z) = x + round(Z)

and ``f(x + round(Z)) = (f o round)(x + Z)``: to classify x under rounded noise by f is to classify x under real noise
by another base classifier, ``f o round``, to which the theorem applies as to any other. Copies are integers, divided
once; the base classifier sees nothing else.

The numbers drawn do not have exactly the distribution of ``round(Z)``: each is within a total variation distance of
about 2^-54 of it (:class:`~certify.rounded_gaussian.RoundedGaussian`). The certificate is for exact noise: bounds on
probabilities are widened by that distance times the number of features.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor

from certify import topk_l2
from certify.checks import check_integer, is_finite
from certify.draws import Draws
from certify.images import IMAGES, VIDEOS, Shape, check_images, to_float, to_levels
from certify.quantiles import ROUNDING, quantile_above
from certify.rounded_gaussian import RoundedGaussian, noise_of_words
from certify.scheme import SampledScheme, TopKCertified
from certify.threats import L2, Unproven

_MAX_FEATURES = 1 << 24


@dataclass(frozen=True)
class GaussianScheme(SampledScheme):
    """What schemes with Gaussian noise share: the noise, and the radius ``sigma (Phi^-1(p) - Phi^-1(q)) / 2``.

    In sound mode, arithmetic is in whole steps of ``1 / q``, held by floats: exact below 2^24.
    """

    sigma: float
    sound: bool = field(default=True, kw_only=True)
    q: int = field(default=255, kw_only=True)

    def __post_init__(self) -> None:
        if not (is_finite(self.sigma) and self.sigma > 0):
            raise ValueError(f"sigma: got {self.sigma!r}, expected a finite number above 0 (features are in [0, 1])")
        object.__setattr__(self, "sigma", float(self.sigma))
        check_integer("q (quantization steps, 255 for 8-bit images)", self.q, 1, 1 << 16)
        if self.sound:
            _ = self.rounded  # raises where there are too many steps

    @property
    def threat(self) -> L2 | Unproven:
        doubts, measure = self.doubts(), L2(q=self.q if self.sound else None)
        return Unproven(measure, ", ".join(doubts)) if doubts else measure

    def doubts(self) -> list[str]:
        """The reasons why radii are not certificates; empty if they are."""
        return [] if self.sound else ["floating-point noise"]

    @property
    def refinement(self) -> int:
        """Noise is drawn in steps of ``1 / (refinement q)``."""
        return 1

    @property
    def rounded(self) -> RoundedGaussian:
        """The noise in steps."""
        return RoundedGaussian(Fraction(self.sigma) * self.q * self.refinement)

    @abstractmethod
    def noisy_features(self, shape: Shape) -> int:
        """How many noise values are drawn for a copy of an image of ``shape``."""

    def stretch(self, shape: Shape | None) -> float:
        """By what factor a perturbation of an image may grow, in l2, before noise is added to it; rounded up."""
        return 1.0

    def check(self, x: Tensor, layouts: tuple[str, ...] = (IMAGES, VIDEOS)) -> None:
        check_images(x, layouts)
        if not self.sound:
            return
        try:
            to_levels(x, self.q)
        except ValueError as error:
            raise ValueError(f"{error}; sound=False takes any floats, but certifies nothing") from error
        if self.noisy_features(tuple(x.shape[1:])) > _MAX_FEATURES:
            got = self.noisy_features(tuple(x.shape[1:]))
            raise ValueError(f"images: got {got} features with noise, at most {_MAX_FEATURES} are supported")

    def numbers(self, x: Tensor) -> Tensor:
        """The image as float32: integers in units of ``1 / q`` in sound mode, else values."""
        return to_levels(x, self.q).float() if self.sound else to_float(x)

    def draw_noise(self, draws: Draws, shape: Shape) -> Tensor:
        """float32 ``[B, n, *shape]``: integers in units of ``1 / (refinement q)`` in sound mode, else values."""
        count = math.prod(shape)
        if self.sound:
            noise = self.rounded.draw(draws, count)
        else:
            noise = noise_of_words(draws, count, _float_normals).mul_(math.sqrt(2) * self.sigma)
        return noise.reshape(*draws.shape, *shape)

    def values(self, numbers: Tensor, scale: int = 1) -> Tensor:
        """The values that :meth:`numbers`, times ``scale``, stand for; computed in place."""
        divisor = scale * self.q if self.sound else scale
        # by a tensor: for a Python number, CUDA would multiply by its rounded inverse
        return numbers if divisor == 1 else numbers.div_(numbers.new_full((), float(divisor)))

    def deviation(self, shape: Shape | None) -> float:
        """The standard deviation of the noise in units of how far a perturbation may move its mean, rounded down."""
        return self.sigma / self.stretch(shape) * (1 - 2.0**-50)

    def slip(self, shape: Shape | None) -> float:
        """A bound on the total variation distance between the noise of a copy and exact noise."""
        if not self.sound:
            return 0.0
        features = _MAX_FEATURES if shape is None else self.noisy_features(shape)
        return float(features * self.rounded.slip) * (1 + 2.0**-50)

    def radius(self, p_lower: Tensor, p_upper: Tensor, *, shape: Shape | None = None) -> Tensor:
        slip = self.slip(shape)
        # 1 - p is exact for p >= 1/2, and its quantile is accurate near 0 where that of p near 1 is not
        own = -quantile_above(1 - p_lower.to(torch.float64) + slip)
        rivals = quantile_above(p_upper.to(torch.float64) + slip)
        gap = (own - rivals) / 2
        return torch.where(gap > 0, gap * (1 - ROUNDING) * self.deviation(shape), -1.0)

    def certify_top_k(
        self, counts: Tensor, k: int, alpha: float, *, n: int | None = None, shape: Shape | None = None
    ) -> TopKCertified:
        """Radii in l2, which are certificates if those of the scheme are; see :mod:`certify.topk_l2`."""
        return topk_l2.certify_counts(counts, k, self, alpha, n=n, shape=shape)


@dataclass(frozen=True)
class GaussianNoise(GaussianScheme):
    """Independent Gaussian noise of standard deviation ``sigma`` on every feature, of images or videos.

    Guarantee: for inputs on the grid ``i / q``, the prediction is the same for every input on the grid within l2
    distance ``radius = sigma / 2 (Phi^-1(p_lower) - Phi^-1(p_upper))``, which is ``sigma Phi^-1(p_lower)`` where
    ``p_upper = 1 - p_lower``; rounded down. The smoothed classifier is that of exact Gaussian noise, see the module.

    Attributes:
        sigma: standard deviation; features are in [0, 1].
        sound: noise is on the grid, and inputs off the grid are refused. With False, noise is added in floating point,
            to any input, as is common practice. That certifies nothing, and results are marked so, although the radii
            are the same for most classifiers.
        q: quantization steps of the input, 255 for 8-bit images.
    """

    def noisy_features(self, shape: Shape) -> int:
        return math.prod(shape)

    def sample(self, x: Tensor, draws: Draws) -> Tensor:
        return self.values(added(self.numbers(x)[:, None], self.draw_noise(draws, tuple(x.shape[1:]))))


def added(numbers: Tensor, noise: Tensor) -> Tensor:
    """``numbers + noise``, in the memory of the noise where it is large enough."""
    fits = torch.broadcast_shapes(numbers.shape, noise.shape) == noise.shape
    return noise.add_(numbers) if fits else numbers + noise


def _float_normals(words: Tensor, _keys: Tensor, numbers: Tensor) -> None:
    """Gaussian noise of deviation ``1 / sqrt(2)``, one number per word, with the usual flaws of floating point."""
    numbers.copy_(words).add_(0.5).mul_(2.0**-31).clamp_(-1 + 2.0**-24, 1 - 2.0**-24).erfinv_()
