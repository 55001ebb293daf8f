"""The table that drives the soundness tests: one row per scheme.

A row gives a toy domain small enough to enumerate, and for a sampled scheme every copy of an input with its exact
probability. Adding a scheme to the project means adding a row here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from certify import (
    L0,
    L1,
    BandAblation,
    BernoulliAblation,
    BlockAblation,
    ConcaveSmoothing,
    DeterministicAblation,
    DeterministicSplittingNoise,
    DiscreteNoise,
    DoubleMasking,
    EnumeratedScheme,
    GaussianNoise,
    MultiBandAblation,
    MultiBlockAblation,
    RandomizedAblation,
    RandomizedBandAblation,
    RandomizedBlockAblation,
    RandomizedVariableLambda,
    SampledScheme,
    Scheme,
    SmoothReduce,
    SplittingNoise,
    UniformNoise,
    VariableLambda,
)
from certify.lambda_design import power_limits
from certify.randomized_windows import RandomizedWindowAblation
from certify.splitting import cell_centres, splitting_period
from certify.variable_lambda import CellSmoothing, encode_cells

Outcomes = Iterator[tuple[Fraction, Tensor]]  # probability, copy [C', H, W]


@dataclass(frozen=True)
class Toy:
    """A scheme on a toy domain: images of ``shape`` with values ``levels / steps``.

    Attributes:
        outcomes: all copies of one image ``[1, C, H, W]`` of a sampled scheme, with exact probabilities.
        tight: whether the theorem claims that no larger radius holds for every base classifier.
    """

    name: str
    scheme: Scheme
    shape: tuple[int, int, int]
    levels: int
    steps: int
    outcomes: Callable[[Tensor], Outcomes] | None = None
    tight: bool = True

    def images(self) -> Tensor:
        """Every image of the domain, float32 ``[levels^d, C, H, W]``."""
        features = self.shape[0] * self.shape[1] * self.shape[2]
        values = torch.tensor(list(itertools.product(range(self.levels), repeat=features)), dtype=torch.float64)
        return (values / self.steps).float().view(-1, *self.shape)

    @property
    def step(self) -> float:
        """The smallest distance between two images, in the unit of the radius."""
        return 1.0 if isinstance(self.scheme.threat, L0) else 1 / self.steps

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance in the unit of the radius; of schemes without a grid, rounded to the toy's, so that comparisons are
        exact: float32 differences would fall on the wrong side of a radius."""
        threat = self.scheme.threat
        if getattr(threat, "q", None) is not None:
            return threat.distance(x, y).to(torch.float64)
        x, y = ((image.double() * self.steps).round() / self.steps for image in (x, y))
        distance = threat.distance(x, y).to(torch.float64)
        return (distance * self.steps).round() / self.steps if isinstance(threat, L1) else distance


def ablation_outcomes(scheme: RandomizedAblation) -> Callable[[Tensor], Outcomes]:
    """Every subset of units, through the scheme's own encoder."""

    def outcomes(x: Tensor) -> Outcomes:
        shape = tuple(x.shape[1:])
        subsets = list(itertools.combinations(range(scheme.units(shape)), scheme.keep))
        channels = shape[0] if scheme.unit == "feature" else 1
        for subset in subsets:
            mask = torch.zeros(scheme.units(shape), dtype=torch.bool)
            mask[list(subset)] = True
            yield Fraction(1, len(subsets)), scheme.encode(x, mask.view(1, 1, channels, *shape[1:]))[0, 0]

    return outcomes


def bernoulli_outcomes(scheme: BernoulliAblation) -> Callable[[Tensor], Outcomes]:
    """Every subset of units of any size, through the scheme's own encoder."""

    def outcomes(x: Tensor) -> Outcomes:
        shape = tuple(x.shape[1:])
        d, p = scheme.units(shape), scheme.retention(shape)
        for kept in itertools.product((False, True), repeat=d):
            mask = torch.tensor(kept).view(1, 1, *scheme.unit_shape(shape))
            yield p ** sum(kept) * (1 - p) ** (d - sum(kept)), scheme.encode(x, mask)[0, 0]

    return outcomes


def discrete_outcomes(scheme: DiscreteNoise) -> Callable[[Tensor], Outcomes]:
    """Every image on the grid: ``keep_probability`` for each equal feature, an equal share of the rest otherwise."""
    keep = scheme.keep_probability
    other = (1 - keep) / scheme.q

    def outcomes(x: Tensor) -> Outcomes:
        levels = (x[0].double() * scheme.q).round().long().flatten().tolist()
        for copy in itertools.product(range(scheme.q + 1), repeat=len(levels)):
            same = sum(a == b for a, b in zip(copy, levels, strict=True))
            values = torch.tensor(copy, dtype=torch.float64).view(x[0].shape) / scheme.q
            yield keep**same * other ** (len(levels) - same), values.float()

    return outcomes


def splitting_outcomes(scheme: SplittingNoise) -> Callable[[Tensor], Outcomes]:
    """Every combination of independent splits."""
    assert scheme.q is not None
    q, period = scheme.q, splitting_period(scheme.lam, scheme.q)

    def outcomes(x: Tensor) -> Outcomes:
        levels = (x[0].double() * q).round().long()
        for splits in itertools.product(range(period), repeat=levels.numel()):
            s = torch.tensor(splits).view(levels.shape)
            yield Fraction(1, period ** levels.numel()), cell_centres(levels, s, period, q)

    return outcomes


def uniform_outcomes(scheme: UniformNoise) -> Callable[[Tensor], Outcomes]:
    """Every combination of independent noise values, from the definition."""
    values = splitting_period(scheme.lam, scheme.q)
    noise = [(j + 0.5) / scheme.q - scheme.lam for j in range(values)]

    def outcomes(x: Tensor) -> Outcomes:
        for combination in itertools.product(noise, repeat=x[0].numel()):
            copy = x[0].double() + torch.tensor(combination, dtype=torch.float64).view(x[0].shape)
            halves = (copy * 2 * scheme.q).round()
            yield Fraction(1, values ** x[0].numel()), (halves / (2 * scheme.q)).float()

    return outcomes


def _ablation(name: str, scheme: RandomizedAblation, shape: tuple[int, int, int], levels: int) -> Toy:
    return Toy(name, scheme, shape, levels, levels - 1, ablation_outcomes(scheme))


def _bernoulli(name: str, scheme: BernoulliAblation, shape: tuple[int, int, int], levels: int) -> Toy:
    return Toy(f"Bernoulli ablation, {name}", scheme, shape, levels, levels - 1, bernoulli_outcomes(scheme))


def _discrete(name: str, scheme: DiscreteNoise, shape: tuple[int, int, int]) -> Toy:
    # tight, but every copy of an input is one of all others: the generic test has no copy to tell them apart by, and
    # tests/test_discrete.py has the worst case
    return Toy(f"discrete noise, {name}", scheme, shape, scheme.q + 1, scheme.q, discrete_outcomes(scheme), tight=False)


def _fixed_ablation(name: str, scheme: DeterministicAblation, shape: tuple[int, int, int], levels: int) -> Toy:
    return Toy(name, scheme, shape, levels, levels - 1)


def _splitting(name: str, scheme: SplittingNoise, shape: tuple[int, int, int]) -> Toy:
    assert scheme.q is not None
    return Toy(name, scheme, shape, scheme.q + 1, scheme.q, splitting_outcomes(scheme))


def _uniform(name: str, scheme: UniformNoise, shape: tuple[int, int, int]) -> Toy:
    return Toy(name, scheme, shape, scheme.q + 1, scheme.q, uniform_outcomes(scheme))


def _variable(name: str, scheme: CellSmoothing, shape: tuple[int, int, int]) -> Toy:
    # the union bound over features is not attained, so the certificate is not claimed to be tight
    return Toy(f"Variable-Lambda, {name}", scheme, shape, scheme.q + 1, scheme.q, tight=False)


def random_cells_outcomes(scheme: RandomizedVariableLambda) -> Callable[[Tensor], Outcomes]:
    """Every combination of independent cells, with the shares of a width and a split from Theorem 4.3 (c)."""
    assert scheme.q is not None
    q, total = scheme.q, 1 << 32
    limits = power_limits(Fraction(scheme.p).limit_denominator(100), Fraction(scheme.alpha), q, total)
    steps = [after - before for before, after in itertools.pairwise(limits)]
    assert steps == sorted(steps, reverse=True)
    choices = [(Fraction(total - limits[-1], total), None)]
    for j, (step, after) in enumerate(zip(steps, [*steps[1:], 0], strict=True), start=1):
        choices += [(Fraction(step - after, total), (j, split)) for split in range(j)]

    def cell(level: int, choice: tuple[int, int] | None) -> tuple[float, float]:
        if choice is None:
            return 0.0, 1.0
        width, split = choice
        below = max((s for s in range(split - 2 * q * width, level, width) if s < level), default=-1)
        return max(0.0, (2 * below + 1) / (2 * q)), min(1.0, (2 * (below + width) + 1) / (2 * q))

    def outcomes(x: Tensor) -> Outcomes:
        levels = (x[0].double() * q).round().long().flatten().tolist()
        for combination in itertools.product(choices, repeat=len(levels)):
            ends = [cell(level, choice) for level, (_, choice) in zip(levels, combination, strict=True)]
            lower, upper = torch.tensor(ends, dtype=torch.float64).T.reshape(2, *x.shape[1:])
            shown = torch.cat(encode_cells(lower, upper, scheme.encoding)).float()
            yield math.prod((share for share, _ in combination), start=Fraction(1)), shown

    return outcomes


def _random_cells(name: str, scheme: RandomizedVariableLambda, shape: tuple[int, int, int]) -> Toy:
    assert scheme.q is not None
    outcomes = random_cells_outcomes(scheme)
    return Toy(f"random cells, {name}", scheme, shape, scheme.q + 1, scheme.q, outcomes, tight=False)


def _dssn(name: str, lam: float, q: int, shape: tuple[int, int, int], seed: int = 0) -> Toy:
    return Toy(name, DeterministicSplittingNoise(lam, q=q, seed=seed), shape, q + 1, q)


def _patch(name: str, scheme: EnumeratedScheme, shape: tuple[int, int, int], levels: int) -> Toy:
    # tight in another sense than that one step touches one vote; tests/test_patch.py has the worst cases
    return Toy(f"patches, {name}", scheme, shape, levels, levels - 1, tight=False)


def window_outcomes(scheme: RandomizedWindowAblation) -> Callable[[Tensor], Outcomes]:
    """Every position, in numbers that are powers of two: equally likely to the last bit."""

    def outcomes(x: Tensor) -> Outcomes:
        count = scheme.windows.num_copies(tuple(x.shape[1:]))
        assert count & (count - 1) == 0
        for copy in scheme.windows.copies(x, torch.arange(count)[None])[0]:
            yield Fraction(1, count), copy

    return outcomes


def _random_window(name: str, scheme: RandomizedWindowAblation, shape: tuple[int, int, int]) -> Toy:
    return Toy(f"patches, {name} at random", scheme, shape, 2, 1, window_outcomes(scheme))


def gaussian_outcomes(scheme: GaussianNoise) -> Callable[[Tensor], Outcomes]:
    """Every combination of rounded Gaussian noise, with the probabilities that are drawn."""
    reach, total = scheme.rounded.reach, 1 << 64

    def outcomes(x: Tensor) -> Outcomes:
        levels = (x[0].double() * scheme.q).round()
        for noise in itertools.product(enumerate(scheme.rounded.weights()), repeat=levels.numel()):
            steps = torch.tensor([step - reach for step, _ in noise], dtype=torch.float64).view(levels.shape)
            share = math.prod(weight for _, weight in noise)
            yield Fraction(share, total ** levels.numel()), ((levels + steps) / scheme.q).float()

    return outcomes


def patch_noise_outcomes(scheme: SmoothReduce, places: list[list[int]]) -> Callable[[Tensor], Outcomes]:
    """Stacks of patches of one pixel with independent noise.

    Args:
        places: the pixels of a stack, for every stack that is drawn, all as likely.
    """
    reach, total = scheme.rounded.reach, 1 << 64

    def outcomes(x: Tensor) -> Outcomes:
        levels = (x[0].double() * scheme.q).round().flatten()
        for pixels in places:
            for noise in itertools.product(enumerate(scheme.rounded.weights()), repeat=len(pixels)):
                steps = torch.tensor([step - reach for step, _ in noise], dtype=torch.float64)
                share = Fraction(math.prod(weight for _, weight in noise), total ** len(pixels))
                yield share / len(places), ((levels[pixels] + steps) / scheme.q).float().view(-1, 1, 1, 1)

    return outcomes


def _gaussian(name: str, scheme: GaussianNoise, shape: tuple[int, int, int]) -> Toy:
    # tight for half-spaces, which do not tell all copies apart; tests/test_gaussian.py has them
    outcomes = gaussian_outcomes(scheme)
    return Toy(f"Gaussian noise, {name}", scheme, shape, scheme.q + 1, scheme.q, outcomes, tight=False)


def _patch_noise(name: str, scheme: SmoothReduce, pixels: int, levels: int, places: list[list[int]]) -> Toy:
    outcomes = patch_noise_outcomes(scheme, places)
    return Toy(f"Smooth-Reduce, {name}", scheme, (1, 1, pixels), levels, scheme.q, outcomes, tight=False)


TOYS: tuple[Toy, ...] = (
    _ablation("ablation, pixels", RandomizedAblation(2), (1, 2, 3), 2),
    _ablation("ablation, 1 of 6", RandomizedAblation(1), (1, 2, 3), 2),
    _ablation("ablation, pixels of 2 channels", RandomizedAblation(1), (2, 2, 2), 2),
    _ablation("ablation, features", RandomizedAblation(2, unit="feature"), (2, 1, 3), 2),
    _ablation("ablation, 3 levels", RandomizedAblation(1), (1, 2, 2), 3),
    _ablation("ablation, mean", RandomizedAblation(1, null="mean", mean=(0.3,)), (1, 1, 5), 2),
    _ablation("ablation, normalized", RandomizedAblation(2, mean=(0.5,), std=(0.25,)), (1, 2, 3), 2),
    _bernoulli("pixels", BernoulliAblation(1), (1, 2, 3), 2),
    _bernoulli("normalized", BernoulliAblation(1, mean=(0.5,), std=(0.25,)), (1, 1, 4), 3),
    _bernoulli("pixels of 2 channels", BernoulliAblation(1), (2, 1, 4), 2),
    _bernoulli("features", BernoulliAblation(2, unit="feature"), (2, 1, 3), 2),
    _bernoulli("mean", BernoulliAblation(1, null="mean", mean=(0.3,)), (1, 1, 5), 2),
    _discrete("binary", DiscreteNoise(0.6, q=1), (1, 2, 3)),
    _discrete("3 values", DiscreteNoise(0.4, q=2), (1, 1, 4)),
    _discrete("4 values, 2 channels", DiscreteNoise(0.35, q=3), (2, 1, 1)),
    _fixed_ablation("deterministic ablation, pixels", DeterministicAblation(4, seed=1), (1, 2, 3), 3),
    _fixed_ablation("deterministic ablation, pixels of 2 channels", DeterministicAblation(3), (2, 1, 4), 2),
    _fixed_ablation("deterministic ablation, features", DeterministicAblation(5, unit="feature"), (2, 2, 2), 2),
    _fixed_ablation("deterministic ablation, mean", DeterministicAblation(3, null="mean", mean=(0.3,)), (1, 1, 5), 3),
    _fixed_ablation(
        "deterministic ablation, normalized", DeterministicAblation(4, mean=(0.5,), std=(0.25,)), (1, 2, 3), 3
    ),
    _dssn("DSSN, lam = 2", 2.0, 3, (1, 2, 2)),
    _dssn("DSSN, lam = 5/4", 1.25, 2, (1, 1, 4), seed=3),
    _dssn("DSSN, lam = 1/2", 0.5, 4, (1, 1, 3)),
    _dssn("DSSN, lam = 3/10, several cells", 0.3, 5, (1, 1, 3), seed=1),
    _dssn("DSSN, 3 channels", 1.5, 2, (3, 1, 1)),
    _variable("p = 1/2", VariableLambda(0.5, alpha=3, q=3, budget=9), (1, 1, 3)),
    _variable("p = 1/2, alpha = 2", VariableLambda(0.5, alpha=2, q=4, budget=12, seed=2), (1, 1, 3)),
    _variable("p = 1/3, 2 channels", VariableLambda(1 / 3, alpha=1.5, q=2, budget=10), (2, 1, 2)),
    _variable("p = 1", VariableLambda(1, q=3, budget=6), (1, 1, 3)),
    _variable("alpha < 1", VariableLambda(0.75, alpha=0.9, q=8, budget=40), (1, 1, 2)),
    _variable("centre", VariableLambda(0.5, alpha=2, q=3, budget=9, encoding="centre"), (1, 1, 3)),
    _variable("centre twice", VariableLambda(0.5, alpha=2, q=3, budget=9, encoding="centre-centre"), (1, 1, 3)),
    _variable("centre and error", VariableLambda(0.5, alpha=2, q=3, budget=9, encoding="centre-error"), (1, 1, 3)),
    _variable("permuted", VariableLambda(0.5, alpha=2, q=4, budget=12, coupling="permuted"), (1, 1, 3)),
    _variable("global", VariableLambda(0.5, alpha=2, q=4, budget=12, coupling="global"), (1, 1, 3)),
    _variable(
        "logarithm", ConcaveSmoothing(tuple(math.log1p(k) / math.log(16) for k in (1, 2, 3)), budget=30), (1, 1, 3)
    ),
    _variable(
        "one g for each column",
        ConcaveSmoothing(((0.5, 0.5, 0.5), (0.2, 0.4, 0.6), (0.4, 0.7, 0.9)), by="column", budget=10),
        (1, 1, 3),
    ),
    _variable(
        "changes in one channel, l1 in the other",
        ConcaveSmoothing(((1, 1), (0.5, 1)), by="channel", budget=8, coupling="permuted"),
        (2, 1, 2),
    ),
    _random_cells("p = 1/2", RandomizedVariableLambda(0.5, alpha=2, q=2), (1, 1, 3)),
    _random_cells("alpha < 1", RandomizedVariableLambda(0.75, alpha=0.9, q=5), (1, 1, 2)),
    _random_cells("centre", RandomizedVariableLambda(0.5, alpha=2, q=3, encoding="centre"), (1, 1, 2)),
    _uniform("uniform noise, lam = 1", UniformNoise(1.0, q=2), (1, 1, 3)),
    _uniform("uniform noise, lam = 1/2", UniformNoise(0.5, q=5), (1, 2, 1)),
    _uniform("uniform noise in a box, lam = 2", UniformNoise(2.0, q=1, bound="box"), (1, 1, 3)),
    _uniform("uniform noise in a box, lam = 1.5", UniformNoise(1.5, q=2, bound="box"), (1, 2, 1)),
    _splitting("SSN, lam = 1", SplittingNoise(1.0, q=2), (1, 1, 3)),
    _splitting("SSN, lam = 3/8, several cells", SplittingNoise(3 / 8, q=4), (1, 1, 3)),
    _gaussian("one pixel", GaussianNoise(0.3, q=6), (1, 1, 1)),
    _gaussian("two pixels", GaussianNoise(0.45, q=2), (1, 1, 2)),
    _patch_noise("one pixel twice", SmoothReduce(0.4, 1, count=2, noise="patch", q=4), 1, 5, [[0, 0]]),
    _patch_noise("two patches", SmoothReduce(0.45, 1, stride=1, noise="patch", q=2), 2, 3, [[0, 1]]),
    _patch_noise(
        "at random",
        SmoothReduce(0.5, 1, count=2, noise="patch", q=3),
        2,
        2,
        [[0, 0], [0, 1], [1, 0], [1, 1]],
    ),
    _random_window("columns", RandomizedBandAblation(1), (1, 1, 8)),
    _random_window("rows of 2 channels", RandomizedBandAblation(1, axis="row"), (2, 4, 1)),
    _random_window("blocks", RandomizedBlockAblation(1), (1, 2, 4)),
    _patch("columns", BandAblation(1), (1, 1, 6), 3),
    _patch("wide columns", BandAblation(2), (1, 1, 8), 2),
    _patch("normalized columns", BandAblation(1, mean=(0.5,), std=(0.5,)), (1, 1, 6), 3),
    _patch("several normalized columns", MultiBandAblation(1, 2, mean=(0.5,), std=(0.5,)), (1, 1, 7), 2),
    _patch("rows of 2 channels", BandAblation(1, axis="row"), (2, 4, 1), 2),
    _patch("columns with a stride", BandAblation(2, stride=2, null="mean", mean=(0.3,)), (1, 1, 9), 2),
    _patch("blocks", BlockAblation(1), (1, 3, 3), 2),
    _patch("several columns", MultiBandAblation(1, 2), (1, 1, 7), 2),
    _patch("double masking", DoubleMasking(1, masks=2), (1, 1, 6), 3),
    _patch("double masking of 2x2", DoubleMasking(2, masks=2), (1, 3, 3), 2),
    _patch("several blocks", MultiBlockAblation(1, 2), (1, 2, 4), 2),
)


def enumerated() -> list[Toy]:
    return [toy for toy in TOYS if isinstance(toy.scheme, EnumeratedScheme)]


def sampled() -> list[Toy]:
    return [toy for toy in TOYS if isinstance(toy.scheme, SampledScheme)]
