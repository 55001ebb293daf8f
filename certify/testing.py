"""Checks for the tests of your own scheme: its contract, and its certificates under exhaustive attack.

:func:`check_scheme` checks the contract that every scheme has to meet; :func:`attack` certifies all images of a small
domain with maximally erratic base classifiers and tries every perturbation. Both raise ``AssertionError`` with a
description of the fault. Passing proves nothing; a failure proves an error.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable
from fractions import Fraction

import torch
from torch import Tensor

from certify.coverage import doubles_above
from certify.draws import ESTIMATION, Draws
from certify.scheme import EnumeratedScheme, SampledScheme, Scheme
from certify.smooth import Smoothed

# maps an image [1, C, H, W] to pairs of the probability of a copy and the copy [C', H, W]
Outcomes = Callable[[Tensor], Iterable[tuple[Fraction, Tensor]]]
_TABLES = ((2, 0.0), (3, 0.0), (3, 0.5), (2, 0.7), (3, 0.8))  # number of classes, and bias towards class 0
_COPIES = 12


class RandomTable:
    """A base classifier that assigns a fixed pseudorandom class to every distinct copy.

    Args:
        num_classes: number of classes.
        seed: seed of the pseudorandom classes.
        bias: probability that a copy gets class 0 outright; otherwise, its class is uniform over all classes. Biased
            tables have certificates worth attacking.
    """

    def __init__(self, num_classes: int, seed: int, bias: float = 0.0) -> None:
        self.num_classes, self.seed, self.bias = num_classes, seed, bias
        self.table: dict[bytes, int] = {}

    def classify(self, copy: Tensor) -> int:
        """The class of one copy ``[C', H, W]``."""
        key = copy_key(copy)
        if key not in self.table:
            generator = random.Random(key + self.seed.to_bytes(4, "big"))
            biased = generator.random() < self.bias
            self.table[key] = 0 if biased else generator.randrange(self.num_classes)
        return self.table[key]

    def __call__(self, copies: Tensor) -> Tensor:
        classes = torch.tensor([self.classify(copy) for copy in copies])
        return torch.nn.functional.one_hot(classes, self.num_classes).float()


def copy_key(copy: Tensor) -> bytes:
    """The bits of a copy."""
    return copy.contiguous().numpy().tobytes()


def all_images(shape: tuple[int, ...], levels: int) -> Tensor:
    """All images of ``shape`` (C, H, W) with values ``i / (levels - 1)``: float32 ``[levels^d, C, H, W]``."""
    size = torch.Size(shape).numel()
    values = torch.tensor(list(itertools.product(range(levels), repeat=size)), dtype=torch.float64)
    return (values / (levels - 1)).float().view(-1, *shape)


def attack(
    scheme: Scheme,
    images: Tensor,
    *,
    outcomes: Outcomes | None = None,
    distance: Callable[[Tensor, Tensor], Tensor] | None = None,
    tables: int = 5,
) -> int:
    """Certify all images with random base classifiers, and compare each image with every other one inside its radius.

    Args:
        images: all images ``[N, C, H, W]`` of a small domain, such as :func:`all_images` (64 binary images of 2 x 3
            pixels).
        outcomes: for a sampled scheme, every copy of an image with its exact probability; certificates are computed
            from these, as from infinitely many samples.
        distance: between two batches, in the unit of the radius; by default that of the threat model. For a scheme
            without a grid, rounding may put a float on the wrong side of a radius: pass a distance that rounds.
        tables: number of base classifiers.

    Returns:
        number of pairs of distinct images that were inside a radius; if 0, nothing was tested.

    Raises:
        AssertionError: an image inside the radius of another one has a different prediction.
    """
    measure = scheme.threat.distance if distance is None else distance
    found = 0
    for seed, (num_classes, bias) in zip(range(tables), itertools.cycle(_TABLES), strict=False):
        base = RandomTable(num_classes, seed, bias)
        if isinstance(scheme, EnumeratedScheme):
            result = Smoothed(base, scheme, num_classes).certify(images)
            prediction, radius = result.prediction, result.radius
        else:
            prediction, radius = _certified_exactly(scheme, base, images, outcomes)
        found += _attacked(scheme, images, prediction, radius, measure)
    return found


def _attacked(
    scheme: Scheme, images: Tensor, prediction: Tensor, radius: Tensor, measure: Callable[[Tensor, Tensor], Tensor]
) -> int:
    found = 0
    for i, image in enumerate(images):
        if radius[i] < 0:
            continue
        distance = measure(image.expand_as(images), images)
        inside = distance <= radius[i]
        found += int(inside.sum()) - 1
        broken = (inside & (prediction != prediction[i])).nonzero()[:, 0].tolist()
        if broken:
            raise AssertionError(
                f"{scheme}: image {i} is certified to {radius[i]:g}, but image {broken[0]} at distance "
                f"{distance[broken[0]]:g} is class {prediction[broken[0]]}, not {prediction[i]}"
            )
    return found


def _certified_exactly(
    scheme: Scheme, base: RandomTable, images: Tensor, outcomes: Outcomes | None
) -> tuple[Tensor, Tensor]:
    """Predictions and radii from exact probabilities, with both kinds of bounds; returns the larger radii."""
    if outcomes is None or not isinstance(scheme, SampledScheme):
        raise TypeError(
            f"outcomes: got none for {scheme}, whose copies are random; expected a function that returns all copies "
            "of an image with their probabilities"
        )
    leaders, lowers, uppers = [], [], []
    for image in images:
        shares = [Fraction(0)] * base.num_classes
        for probability, copy in outcomes(image[None]):
            shares[base.classify(copy)] += probability
        if sum(shares) != 1:
            raise AssertionError(f"outcomes: got probabilities that sum to {sum(shares)}, expected 1")
        leader = shares.index(max(shares))
        leaders.append(leader)
        lowers.append(_at_most(shares[leader]))
        uppers.append(_at_least(max(share for c, share in enumerate(shares) if c != leader)))
    p_lower, p_upper = torch.tensor(lowers, dtype=torch.float64), torch.tensor(uppers, dtype=torch.float64)
    shape = tuple(images.shape[1:])
    one_sided = scheme.radius(p_lower, 1 - p_lower, shape=shape)
    simultaneous = scheme.radius(p_lower, p_upper, shape=shape)
    if not (simultaneous >= one_sided).all():
        raise AssertionError(f"{scheme}: a tighter bound on the other classes gave a smaller radius")
    return torch.tensor(leaders), simultaneous


def _at_most(share: Fraction) -> float:
    """The largest double not above an exact probability."""
    return -doubles_above([-share])[0] if float(share) > share else float(share)


def _at_least(share: Fraction) -> float:
    """The smallest double not below an exact probability."""
    return float(share) if float(share) >= share else doubles_above([share])[0]


def check_scheme(scheme: Scheme, images: Tensor) -> None:
    """Check the contract that every scheme has to meet, on some images that it accepts.

    Copies are float32, of the shape that the scheme declares. The copies of an image are the same bits next to any
    other images, when made in parts, and for zeros of either sign. The threat model assigns distance 0 to equal images.
    Radii are float64, no smaller for tighter bounds, and negative where the bounds are no better than one half.

    Args:
        images: ``[B, C, H, W]``, at least two distinct ones.

    Raises:
        AssertionError: what is wrong.
    """
    if not isinstance(scheme, Scheme):
        raise TypeError(f"scheme: got {scheme!r}, expected a scheme, as an instance such as YourScheme(3)")
    scheme.check(images)
    shape = tuple(images.shape[1:])
    _expect(bool((scheme.threat.distance(images, images) == 0).all()), "its threat model tells equal images apart")
    _check_copies(scheme, images, shape)
    if isinstance(scheme, EnumeratedScheme) and not scheme.positional:
        flips = torch.arange(scheme.num_copies(shape) // 2 + 1)
        radius = scheme.radius_of_flips(flips, shape=shape)
        _check_radii(radius, len(flips), "radius_of_flips")
        _expect(bool((radius >= 0).all()), "radius_of_flips is negative for some number of votes")
    elif isinstance(scheme, SampledScheme):
        p = torch.linspace(0.5, 1, 101, dtype=torch.float64)
        radius = scheme.radius(p, 1 - p, shape=shape)
        _check_radii(radius, len(p), "radius")
        _expect(float(radius[0]) < 0, "radius is not negative where both classes may have probability one half")
        rivals = scheme.radius(p, torch.minimum(1 - p, p / 4), shape=shape)
        _expect(bool((rivals >= radius).all()), "radius is smaller for a tighter bound on the other classes")


def _check_copies(scheme: Scheme, images: Tensor, shape: tuple[int, ...]) -> None:
    made = _copies(scheme, images, range(_COPIES))
    single = scheme.inputs_per_copy(shape) == 1
    _expect(made.dtype == torch.float32 and len(made) == len(images), f"its copies are {made.dtype} {made.shape}")
    _expect(not single or tuple(made.shape[2:]) == scheme.input_shape(shape), "its copies are not of input_shape")
    count = made.shape[1]
    alone = torch.cat([_copies(scheme, images[i : i + 1], range(count), first=i) for i in range(len(images))])
    _expect(copy_key(alone) == copy_key(made), "copies of an image depend on the other images of a batch")
    parts = [_copies(scheme, images, range(start, min(start + 5, count))) for start in range(0, count, 5)]
    _expect(copy_key(torch.cat(parts, 1)) == copy_key(made), "copies depend on which others are made with them")
    if images.is_floating_point():
        negative = torch.where(images == 0, -images, images)
        _expect(copy_key(_copies(scheme, negative, range(count))) == copy_key(made), "copies differ for -0.0 and 0.0")


def _copies(scheme: Scheme, images: Tensor, numbers: range, *, first: int = 0) -> Tensor:
    """Copies of images whose indices in the data set are ``first``, ``first + 1``, ..."""
    if isinstance(scheme, EnumeratedScheme):
        total = scheme.num_copies(tuple(images.shape[1:]))
        return scheme.copies(images, torch.arange(numbers.start, min(numbers.stop, total))[None])
    return scheme.sample(images, Draws.of(0, ESTIMATION, torch.arange(first, first + len(images)), numbers))


def _check_radii(radius: Tensor, count: int, name: str) -> None:
    got = f"{radius.dtype} {tuple(radius.shape)}"
    _expect(radius.dtype == torch.float64 and radius.shape == (count,), f"{name} returns {got}, not float64 ({count},)")
    _expect(not bool(radius.isnan().any()), f"{name} returns NaN")
    _expect(bool((radius[1:] >= radius[:-1]).all()), f"{name} is not monotone")


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
