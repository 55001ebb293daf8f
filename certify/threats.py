"""Threat models: what an adversary may do to an input, or to a training set, as small value objects.

A threat model names the unit of a radius and measures the distance between two inputs (8-bit images, or floats in
[0, 1]) or between two training sets. Certificates are stated in it, and the soundness tests measure perturbations with
it.

Inputs on a grid ``i / q`` are compared in whole grid steps: a float stands for the grid point nearest to it. The
difference of two floats can fall short of that of their grid points by more than the error a radius may have.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from certify.checks import check_integer
from certify.images import Shape, to_levels
from certify.transport import GroundMetric, check_metric, flow_distance, transport_distance

Unit = Literal["pixel", "feature"]
Part = Literal["channel", "row", "column", "feature"]
FLOAT_BITS = 24  # floats that represent masses are rounded to multiples of 2^-24, so that their sums are exact


def _difference(x: Tensor, y: Tensor, q: int | None = None) -> Tensor:
    """|x - y| as float64 ``[B, C, H, W]`` in units of the full range; exact up to one rounding for 8-bit images and
    for inputs on the grid ``i / q``."""
    if x.dtype != y.dtype or x.shape != y.shape:
        raise ValueError(
            f"inputs to compare: got {x.dtype} {tuple(x.shape)} and {y.dtype} {tuple(y.shape)}, "
            "expected the same dtype and shape"
        )
    if q is not None:
        return (to_levels(x, q) - to_levels(y, q)).abs().to(torch.float64) / q
    if x.dtype == torch.uint8:
        return (x.to(torch.int64) - y.to(torch.int64)).abs().to(torch.float64) / 255
    return (x.to(torch.float64) - y.to(torch.float64)).abs()


@dataclass(frozen=True)
class L0:
    """At most ``radius`` pixels (all channels of each) or features (single channel values) change, arbitrarily."""

    unit: Unit = "pixel"

    def __post_init__(self) -> None:
        if self.unit not in ("pixel", "feature"):
            raise ValueError(f"unit: got {self.unit!r}, expected 'pixel' or 'feature'")

    def __str__(self) -> str:
        return f"l0 ({self.unit}s)"

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Number of changed units between two batches ``[B, C, H, W]``: int64 ``[B]``."""
        changed = _difference(x, y) > 0
        if self.unit == "pixel":
            changed = changed.any(1)
        return changed.flatten(1).sum(1)


@dataclass(frozen=True)
class L1:
    """The absolute changes of all features sum to at most ``radius`` (features in [0, 1]).

    Attributes:
        q: inputs lie on the grid ``i / q``; None if they may lie anywhere.
    """

    q: int | None = field(default=None, compare=False, kw_only=True)

    def __str__(self) -> str:
        return "l1"

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """l1 distance between two batches ``[B, C, H, W]``: float64 ``[B]``."""
        q = 255 if self.q is None and x.dtype == torch.uint8 else self.q
        if q is None:
            return _difference(x, y).flatten(1).sum(1)
        steps = (_difference(x, y, q) * q).round()  # whole numbers, whose sum is exact
        return steps.flatten(1).sum(1) / q


@dataclass(frozen=True)
class L2:
    """The Euclidean norm of the change, over all features, is at most ``radius`` (features in [0, 1]).

    Attributes:
        q: inputs lie on the grid ``i / q``; None if they may lie anywhere.
    """

    q: int | None = field(default=None, compare=False, kw_only=True)

    def __str__(self) -> str:
        return "l2"

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """l2 distance between two batches ``[B, C, H, W]``: float64 ``[B]``."""
        return _difference(x, y, self.q).flatten(1).square().sum(1).sqrt()


@dataclass(frozen=True)
class LInf:
    """Every feature changes by at most ``radius`` (features in [0, 1])."""

    def __str__(self) -> str:
        return "l-inf"

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """l-inf distance between two batches ``[B, C, H, W]``: float64 ``[B]``."""
        return _difference(x, y).flatten(1).amax(1)


@dataclass(frozen=True)
class Lp:
    """``(sum |x_i - y_i|^p)^(1/p)`` is at most ``radius``, for 0 < p <= 1 (features in [0, 1]).

    Attributes:
        q: inputs lie on the grid ``i / q``; None if they may lie anywhere.
    """

    p: float
    q: int | None = field(default=None, compare=False, kw_only=True)

    def __str__(self) -> str:
        return f"lp (p={self.p:g})"

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """lp distance between two batches ``[B, C, H, W]``: float64 ``[B]``."""
        return (_difference(x, y, self.q) ** self.p).flatten(1).sum(1) ** (1 / self.p)


def number_of_parts(part: Part, shape: Shape) -> int:
    """How many channels, rows, columns or features images ``[C, H, W]`` have."""
    return math.prod(shape) if part == "feature" else shape[("channel", "row", "column").index(part)]


def part_of_each_feature(part: Part, shape: Shape) -> Tensor:
    """The number of the channel, row, column or feature that each feature of images ``[C, H, W]`` lies in: int64
    ``[C, H, W]``. Features are counted channel by channel, row by row."""
    numbers = torch.arange(number_of_parts(part, shape))
    if part == "feature":
        return numbers.view(shape)
    return numbers.view({"channel": (-1, 1, 1), "row": (-1, 1), "column": (-1,)}[part]).expand(shape)


@dataclass(frozen=True)
class ElementwiseConcave:
    """``sum g_i(|x_i - y_i|)`` is at most ``radius``, for inputs on the grid ``i / q`` and concave g, ``g(0) = 0``.

    Attributes:
        g: ``g(1 / q), ..., g(1)``, the same for all features; or, if ``by`` is given, a tuple of several such.
        by: ``"channel"``, ``"row"``, ``"column"`` or ``"feature"``: what each of several g is for, in this order.
    """

    g: tuple[float, ...] | tuple[tuple[float, ...], ...]
    by: Part | None = None

    @property
    def functions(self) -> tuple[tuple[float, ...], ...]:
        """Each g, in order."""
        return (self.g,) if self.by is None else self.g  # type: ignore[return-value]

    def __str__(self) -> str:
        # the digest identifies g, so that radii in different metrics never share a table
        digest = hashlib.sha256(repr(self.g if self.by is None else (self.g, self.by)).encode()).hexdigest()[:8]
        q = len(self.functions[0])
        if self.by is None:
            return f"concave metric {digest} (q={q}, g(1)={self.functions[0][-1]:g})"
        return f"concave metric {digest} (q={q}, one g for each of {len(self.g)} {self.by}s)"

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance between two batches ``[B, C, H, W]`` on the grid: float64 ``[B]``."""
        q, shape = len(self.functions[0]), tuple(x.shape[1:])
        steps = _difference(x, y) * q
        whole = steps.round()
        if not ((steps - whole).abs() < 1e-3).all():
            raise ValueError(f"inputs to compare: got values off the grid i/{q} on which g is given")
        table = torch.tensor([(0.0, *each) for each in self.functions], dtype=torch.float64, device=x.device)
        which: Tensor | int = 0
        if self.by is not None:
            self.check_parts(shape)
            which = part_of_each_feature(self.by, shape).to(x.device)
        return table[which, whole.long()].flatten(1).sum(1)

    def check_parts(self, shape: Shape) -> None:
        """Raise unless there is one g for each part of images ``[C, H, W]``."""
        if self.by is not None and (parts := number_of_parts(self.by, shape)) != len(self.g):
            raise ValueError(
                f"g: got {len(self.g)} functions, expected {parts}, one for each {self.by} of images of shape {shape}"
            )


@dataclass(frozen=True)
class Patch:
    """One rectangle, anywhere in the image, changes arbitrarily: all channels of at most ``height * radius`` rows by
    ``width * radius`` columns of pixels.

    ``Patch()`` is the usual threat model: one square, whose side is the radius. A rectangle larger than the image in
    one direction covers the whole image in that direction.
    """

    height: int = 1
    width: int = 1

    def __post_init__(self) -> None:
        for name, value in (("height", self.height), ("width", self.width)):
            check_integer(name, value, 1)

    def __str__(self) -> str:
        return "patch (side in pixels)" if self.height == self.width == 1 else f"patch ({self.height}x{self.width})"

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Smallest radius whose rectangle covers all changed pixels, for batches ``[B, C, H, W]``: int64 ``[B]``."""
        changed = (_difference(x, y) > 0).any(1)
        rows, columns = _extent(changed.any(2)), _extent(changed.any(1))
        return torch.maximum(-(-rows // self.height), -(-columns // self.width))


def _extent(changed: Tensor) -> Tensor:
    """Length from the first to the last True in each row of ``[B, n]``, inclusive: int64 ``[B]``, 0 if none is True."""
    at = torch.arange(changed.shape[1], device=changed.device).expand_as(changed)
    first = at.masked_fill(~changed, changed.shape[1]).amin(1)
    last = at.masked_fill(~changed, -1).amax(1)
    return (last - first + 1).clamp(min=0)


@dataclass(frozen=True)
class Wasserstein:
    """Mass moves between pixels, at a total cost of at most ``radius``. Images are scaled to sum 1 (over all channels);
    moving a mass m by r pixels within its channel costs ``m r``, and no mass moves between channels.

    This is the 1-Wasserstein distance of the normalized images; it ignores the overall brightness of an image. Floats
    are first rounded to multiples of 2^-24, as in the scheme.

    Attributes:
        metric: distance between pixels: ``"l1"`` (rows plus columns) or ``"l2"`` (Euclidean).
    """

    metric: GroundMetric = "l2"

    def __post_init__(self) -> None:
        check_metric(self.metric)

    def __str__(self) -> str:
        return f"Wasserstein ({self.metric} between pixels)"

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Exact distance between two batches ``[B, C, H, W]``, by linear programs (seconds for large images): float64
        ``[B]``, infinite where the channels' shares of the mass differ at all."""
        _difference(x, y)  # raises unless the two can be compared
        first, second = whole_numbers(x), whole_numbers(y)
        shares = zip(first.sum((2, 3)).tolist(), second.sum((2, 3)).tolist(), strict=True)
        pairs = zip(normalized(first).cpu().numpy(), normalized(second).cpu().numpy(), strict=True)
        distances = []
        for (a, b), pair in zip(shares, pairs, strict=True):
            if any(int(one) * int(sum(b)) != int(other) * int(sum(a)) for one, other in zip(a, b, strict=True)):
                distances.append(math.inf)
            else:
                exact = flow_distance(*pair) if self.metric == "l1" else transport_distance(*pair, self.metric)
                distances.append(exact)
        return torch.tensor(distances, dtype=torch.float64, device=x.device)


def whole_numbers(x: Tensor) -> Tensor:
    """Images as integers in float64: 8-bit values, or floats in units of 2^-24. Their sums are exact."""
    return x.to(torch.float64) if x.dtype == torch.uint8 else (x.to(torch.float64) * 2.0**FLOAT_BITS).round_()


def mass_of(x: Tensor) -> Tensor:
    """Sums of images ``[B, C, H, W]``, float64 ``[B, 1, 1, 1]``; raises if any is zero."""
    mass = x.to(torch.float64).sum((1, 2, 3), keepdim=True)
    empty = (mass.flatten() == 0).nonzero()[:, 0].tolist()
    if empty:
        raise ValueError(
            f"images: got all zeros for image {empty[0]} of the batch, expected a positive sum, which Wasserstein "
            "distances need; leave such images out"
        )
    return mass


def normalized(x: Tensor) -> Tensor:
    """Images ``[B, C, H, W]`` scaled to sum 1, float64."""
    return x.to(torch.float64) / mass_of(x)


NOT_CERTIFIED = "NOT certified"


@dataclass(frozen=True)
class Unproven:
    """No guarantee: radii in the unit of ``threat`` that no theorem supports, for comparison with certified ones.

    Its text, which configurations, tables and plots show, says so.

    Attributes:
        threat: the threat model that measures distances.
        reason: where the radii come from, in a few words.
    """

    threat: L2
    reason: str

    def __str__(self) -> str:
        return f"{self.threat}, {NOT_CERTIFIED} ({self.reason})"

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance as measured by ``threat``."""
        return self.threat.distance(x, y)


Threat = L0 | L1 | L2 | LInf | Lp | ElementwiseConcave | Patch | Wasserstein | Unproven

TrainingSet = tuple[Tensor, Tensor]  # samples [N, ...] and their labels, int64 [N]; the order does not matter


@dataclass(frozen=True)
class TrainingSamples:
    """At most ``radius`` samples are inserted into the training set or deleted from it.

    Changing a sample or its label counts twice: as one deletion and one insertion.
    """

    def __str__(self) -> str:
        return "poisoning (training samples inserted or deleted)"

    def distance(self, x: TrainingSet, y: TrainingSet) -> int:
        """Size of the symmetric difference, with multiplicities."""
        first, second = (Counter((key, label) for key, label in _labelled(data)) for data in (x, y))
        return ((first - second) + (second - first)).total()


@dataclass(frozen=True)
class TrainingLabels:
    """The labels of at most ``radius`` training samples change arbitrarily; the samples themselves do not.

    Identical samples count as one: all of their labels may change together (dissertation, Appendix F.7).
    """

    def __str__(self) -> str:
        return "poisoning (training labels flipped)"

    def distance(self, x: TrainingSet, y: TrainingSet) -> float:
        """Number of distinct samples whose labels differ; infinity if the samples themselves differ."""
        labels: tuple[dict[bytes, list[int]], ...] = ({}, {})
        for data, by_sample in zip((x, y), labels, strict=True):
            for key, label in _labelled(data):
                by_sample.setdefault(key, []).append(label)
        first, second = labels
        if {key: len(own) for key, own in first.items()} != {key: len(own) for key, own in second.items()}:
            return math.inf
        return sum(sorted(own) != sorted(second[key]) for key, own in first.items())


PoisoningThreat = TrainingSamples | TrainingLabels


def _labelled(data: TrainingSet) -> list[tuple[bytes, int]]:
    samples, labels = data
    return [(sample.cpu().numpy().tobytes(), label) for sample, label in zip(samples, labels.tolist(), strict=True)]
