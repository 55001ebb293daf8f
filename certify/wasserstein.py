"""Wasserstein smoothing: noise on the flow of mass between neighbouring pixels.

Source: Levine and Feizi, "Wasserstein Smoothing: Certified Robustness against Wasserstein Adversarial Attacks"
(AISTATS 2020; dissertation, Chapter 5 and Appendix D, whose numbering is used here). The tight Laplace certificate is
due to Teng, Lee and Yuan (2019) with q = 1 - p, the uniform one to Lee et al. (2019) and Yang et al. (2020).

Let u be an image scaled to sum 1, D the linear map from flows along the edges of the pixel grid to the resulting change
of the pixels, and Y independent noise on the edges. Copies are ``u + D Y``. If v is another image at Wasserstein
distance rho (l1 between pixels), then ``v = u + D delta`` for a flow delta of l1 norm rho (Lemma 5.1), and the copies
of v are ``u + D (Y + delta)``: to the smoothed classifier, v is u with the noise shifted by rho in l1. With l2 between
pixels, rho is at most sqrt(2) times the distance (Corollary D.3). For noise on the pixels themselves, a distance of rho
is an l1 shift of at most 2 rho (Corollary D.1).

The argument assumes additive noise and real numbers. Here, all quantities are integer multiples of a small step 1/Q:

* The image. Cumulative sums along a path that visits the pixels of a channel from neighbour to neighbour are rounded,
  which moves each image by at most half a step per pixel. Two images at a finite distance have the same channel totals,
  because both come from one correctly rounded division. A shortest flow between integer images is attained in
  integers. So rho grows by at most one step per feature.
* The noise. Uniform noise takes 2^32 values, exactly uniform. Laplace noise is rounded to whole steps, which commutes
  with shifts by whole steps and loses nothing. It is computed from 64 random bits and a logarithm; each number differs
  from the rounded exact noise with probability below 2^-30, see :func:`_laplace`.
* The copies are computed from integers without rounding; whatever follows depends on nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from certify import coverage
from certify.checks import is_finite
from certify.draws import Draws
from certify.generators import splitmix64
from certify.images import Shape, check_images
from certify.scheme import SampledScheme, needed
from certify.threats import GroundMetric, Wasserstein, mass_of, normalized, whole_numbers
from certify.transport import there_and_back

Noise = Literal["laplace", "uniform"]
Bound = Literal["tight", "published"]
Domain = Literal["flows", "pixels"]

# The mean over all features of a copy, about that of an MNIST digit: networks get values of the usual magnitude.
MEAN = 1 / 8

# Scale parameter of Laplace noise in steps: a smaller one would round images more, a larger one would round noise more.
_LAPLACE_SCALE = 2.0**19
_UNIFORM_REACH = 1 << 31  # largest uniform noise in steps
_SLIP = 0.8 * 2.0**-30  # probability that a Laplace number differs from the rounded exact one
_MAX_FEATURES = 1 << 24
_LARGEST = (1 << 63) - 1  # of int64: all bits but the sign
_CHUNK = 1 << 16  # features that a CPU processes at a time, to fit its caches
_BELOW = 2.0**-40  # relative and absolute allowance for rounding in doubles, where a few dozen 2^-53 accumulate


@dataclass(frozen=True)
class WassersteinNoise(SampledScheme):
    """Independent noise of standard deviation ``sigma`` on every edge between neighbouring pixels of a channel.

    Guarantee: the prediction is the same for every image whose normalized form is within Wasserstein distance
    ``radius`` of the normalized input (:class:`~certify.threats.Wasserstein`). The scheme normalizes images to sum 1
    over all channels together, so brighter and darker versions of an image have the same copies. Copies are scaled to a
    mean of 1/8 (:data:`MEAN`), whatever the image. Images of mass zero are rejected. Floats are first rounded to
    multiples of 2^-24, and distances are those of the rounded images.

    Certificates for l1 between pixels, with b = sigma / sqrt(2), lam = sqrt(3) sigma, and p and q the probability
    bounds of the class and its rivals; divided by sqrt(2) for l2, by 2 for noise on pixels:

    * Laplace, tight: ``-b / 2 ln(4 q (1 - p))`` where 1/2 <= p <= 1 - q, and the published one where p < 1/2; with
      q = 1 - p it is ``-b ln(2 (1 - p))``. Proof: a shift by dx changes a probability p by at most
      ``min(p, 1 - p) dx / b``. So q grows to at most ``q exp(x / b)``, and p >= 1/2 falls to at least
      ``1 - (1 - p) exp(x / b)`` while that is 1/2 or more, then to ``exp(-x / b) / (4 (1 - p))``. In one dimension, two
      half-lines attain this.
    * Laplace, published: ``b / 2 ln(p / q)``, Theorem 5.1; with l2 and q = 1 - p it is Eq. 5.20, on pixels Eq. 5.21
    * uniform: ``lam (p - q)``

    A rounding allowance (module docstring) is subtracted from all of them; on MNIST, 0.1 to 0.3 % of the published
    radii.

    Attributes:
        sigma: standard deviation, relative to a mass of 1; published values are 0.01 (MNIST) and 0.0002 (CIFAR-10).
        noise: ``"laplace"`` or ``"uniform"``.
        metric: distance between pixels: ``"l2"`` as in all published tables, or ``"l1"``.
        bound: ``"tight"``, or ``"published"`` for Laplace noise; both use the same samples.
        on: ``"flows"``, or ``"pixels"`` for the baseline with independent noise on every feature.
    """

    sigma: float
    noise: Noise = "laplace"
    metric: GroundMetric = "l2"
    bound: Bound = "tight"
    on: Domain = "flows"

    def __post_init__(self) -> None:
        if not (is_finite(self.sigma) and 1e-6 <= self.sigma <= 1e3):
            raise ValueError(f"sigma: got {self.sigma}, expected a number between 1e-6 and 1e3 (images have sum 1)")
        object.__setattr__(self, "sigma", float(self.sigma))
        for name, choices in (("noise", Noise), ("metric", GroundMetric), ("bound", Bound), ("on", Domain)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected one of {', '.join(get_args(choices))}")
        if self.noise == "uniform" and self.bound == "published":
            raise ValueError("bound: got 'published' with uniform noise, expected 'tight'; 'published' is for Laplace")

    @property
    def threat(self) -> Wasserstein:
        return Wasserstein(self.metric)

    def certificates(self) -> dict[str, SampledScheme]:
        names = get_args(Bound) if self.noise == "laplace" else ("tight",)
        return {name: replace(self, bound=name) for name in names}

    @property
    def steps(self) -> float:
        """Q, the number of steps in a mass of 1."""
        if self.noise == "laplace":
            return _LAPLACE_SCALE * math.sqrt(2) / self.sigma
        return _UNIFORM_REACH / (math.sqrt(3) * self.sigma)

    def check(self, x: Tensor) -> None:
        check_images(x)
        if x[0].numel() > _MAX_FEATURES:
            raise ValueError(f"images: got {x[0].numel()} features, expected at most {_MAX_FEATURES}")
        mass_of(whole_numbers(x))

    def sample(self, x: Tensor, draws: Draws) -> Tensor:
        shape, keys = tuple(x.shape[1:]), draws.keys()
        image = _on_grid(x, self.steps, path=self.on == "flows")[:, None]
        copies = torch.empty((len(x), keys.shape[1], *shape), dtype=torch.float32, device=x.device)
        at_once = max(1, _CHUNK // math.prod(shape)) if x.device.type == "cpu" else keys.shape[1]
        for own, part in zip(keys.split(at_once, 1), copies.split(at_once, 1), strict=True):
            torch.mul(self._noised(image, own), self.brightness(shape) / self.steps, out=part)
        return copies

    def _noised(self, image: Tensor, keys: Tensor) -> Tensor:
        """Copies ``[B, n, C, H, W]`` of images ``[B, 1, C, H, W]``, in whole steps."""
        make, shape = _laplace if self.noise == "laplace" else _uniform, tuple(image.shape[2:])
        if self.on == "pixels":
            return make(keys, math.prod(shape)).unflatten(2, shape) + image
        return _moved(image, make(keys, _edges(shape)))

    def brightness(self, shape: Shape) -> float:
        """The factor from normalized images to copies: the value, in a copy, of a feature that has all the mass."""
        return MEAN * math.prod(shape)

    def expected(self, x: Tensor) -> Tensor:
        """The copy before noise is added, up to rounding: float64, differentiable."""
        return normalized(x) * self.brightness(tuple(x.shape[1:]))

    def radius(self, p_lower: Tensor, p_upper: Tensor, *, shape: Shape | None = None) -> Tensor:
        shape = needed(shape, self)
        margins = coverage.margin(p_lower, p_upper)
        if self.noise == "uniform":
            moved = margins * (2 * _UNIFORM_REACH)
        else:
            moved = self._moved_laplace(p_lower.to(torch.float64), p_upper.to(torch.float64), shape) * _LAPLACE_SCALE
        # Rounding moves two images apart by up to a step per feature, plus Q 2^-51 of a step for doubles.
        moved = (moved - math.prod(shape) * (1 + self.steps * 2.0**-51)) / self.steps
        # l1 shift of the noise per unit of Wasserstein distance
        longest = 2 if self.on == "pixels" else math.sqrt(2) if self.metric == "l2" else 1
        radius = moved / longest * (1 - _BELOW)
        return torch.where(margins > 0, radius.clamp(min=0), -1.0)

    def _moved_laplace(self, p_lower: Tensor, p_upper: Tensor, shape: Shape) -> Tensor:
        """The certified l1 shift of Laplace noise in units of its scale parameter b, float64, rounded down."""
        numbers = math.prod(shape) if self.on == "pixels" else _edges(shape)
        # For the image and for a perturbed one, each probability is within t = numbers * _SLIP of that under exact
        # noise. With 4 t added to the rival's bound, certificates for exact noise imply those for this noise: a shift
        # by x multiplies what is added to q by exp(x), and what is taken from p by no more.
        p_upper = p_upper + 4 * numbers * _SLIP
        moved = (p_lower / p_upper).log() / 2
        if self.bound == "tight":
            rest = 1 - p_lower  # exact where p_lower >= 1/2
            # the class meets its rival below one half, except where 4 t has made the two bounds add up to more than 1
            tight = torch.where(p_upper > rest, -torch.log(rest + p_upper), (4 * rest * p_upper).log() / -2)
            moved = torch.where(p_lower >= 0.5, tight, moved)
        return moved * (1 - _BELOW) - _BELOW


def _on_grid(x: Tensor, steps: float, *, path: bool) -> Tensor:
    """Normalized images in whole steps, float64 ``[B, C, H, W]``.

    Args:
        path: round the sums along a path, so that rounding only moves mass between neighbours; otherwise, round each
            feature alone.
    """
    levels = whole_numbers(x) + 0.0  # turns -0.0 into 0.0
    if not path:
        return (normalized(levels) * steps).round_()
    sums = there_and_back(levels).flatten(1).cumsum(1)  # exact: integers below 2^48
    whole = (sums / mass_of(levels).flatten(1) * steps).round_()
    whole[:, 1:] -= whole[:, :-1].clone()
    return there_and_back(whole.view(x.shape))


def _laplace(keys: Tensor, count: int) -> Tensor:
    """Laplace noise in whole steps, float64 ``[B, n, count]``.

    With V uniform on (0, 1), ``-ln V`` times the scale and a random sign is exact Laplace noise; here V has 63 bits.
    Rounding V to 63 bits and to a double, and computing the logarithm (to two units in the last place), change
    ``-ln V`` by at most ``2^-52 (1 + 2 |ln V|)``. Summed over the density at the boundaries between integers, the
    result is a different integer with probability below ``2^19 * 6 * 2^-52 = 0.75 * 2^-30``.
    """
    longs = splitmix64(keys, count)  # a sign bit and 63 bits of V
    share = (longs & _LARGEST).to(torch.float64).add_(0.5).mul_(2.0**-63)
    noise = share.log_().mul_(-_LAPLACE_SCALE).round_()
    noise.view(torch.int64).bitwise_xor_(longs.bitwise_and_(~_LARGEST))  # the sign of a double is its first bit
    return noise


def _uniform(keys: Tensor, count: int) -> Tensor:
    """Uniform noise in whole steps, float64 ``[B, n, count]``: a shift by one step moves a share of 2^-32 of it."""
    return splitmix64(keys, -(-count // 2)).view(torch.int32)[..., :count].to(torch.float64)


def _edges(shape: Shape) -> int:
    """Number of edges between neighbouring pixels, summed over all channels."""
    channels, height, width = shape
    return channels * (2 * height * width - height - width)


def _moved(image: Tensor, flows: Tensor) -> Tensor:
    """Apply flows along the edges to images (Eq. 5.5): float64 ``[B, n, C, H, W]``.

    Args:
        image: ``[B, 1, C, H, W]``.
        flows: ``[B, n, edges]``: first the downward flows out of all pixels but those of the last row, then the flows
            to the right out of all pixels but those of the last column.
    """
    channels, height, width = image.shape[2:]
    down = flows[..., : channels * (height - 1) * width].unflatten(2, (channels, height - 1, width))
    right = flows[..., down[0, 0].numel() :].unflatten(2, (channels, height, width - 1))
    moved = image.expand(-1, flows.shape[1], -1, -1, -1).clone()
    moved[..., :-1, :] -= down
    moved[..., 1:, :] += down
    moved[..., :-1] -= right
    moved[..., 1:] += right
    return moved
