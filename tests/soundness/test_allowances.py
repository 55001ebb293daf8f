"""Allowances for rounding are small enough to be lost without a sound: each is held against exact numbers here."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch

from certify import (
    ConcaveSmoothing,
    GaussianNoise,
    SplittingNoise,
    VariableLambda,
    WassersteinNoise,
    splitting,
    uniform,
)
from certify.confidence import lower_bound, simultaneous_bounds, upper_bound
from certify.draws import Draws
from certify.smooth_reduce_patches import eigenvalue_bound
from certify.topk import label_bounds
from certify.wasserstein import _SLIP, _UNIFORM_REACH

VALUES = [2, 3, 7, 10, 255, 510, 1000]
WORDS = 1 << 32


def exactly(x: torch.Tensor) -> Fraction:
    return Fraction(float(x))


def words_of(values: int) -> list[int]:
    """How many of all 32-bit words multiply and shift takes to each value."""
    edges = [-(-v * WORDS // values) for v in range(values + 1)]
    return [high - low for low, high in itertools.pairwise(edges)]


def test_confidence_is_shared_among_all_classes():
    counts, n, alpha = torch.tensor([[70, 20, 6, 4]]), 100, 0.05
    low, high = simultaneous_bounds(counts, torch.tensor([0]), n, alpha)
    assert torch.equal(low, lower_bound(counts[:, 0], n, alpha / 4))
    assert torch.equal(high, upper_bound(counts[:, 1], n, alpha / 4))
    lower, upper = label_bounds(counts, 1, alpha, n)
    assert torch.equal(lower, lower_bound(counts, n, alpha / 4))
    assert torch.equal(upper, upper_bound(counts, n, alpha / 4))


@pytest.mark.parametrize("values", VALUES)
def test_no_split_is_likelier_than_splitting_noise_says(values):
    """A change of one grid step is seen by the copies with one split."""
    shares = splitting._grid_shares(values)
    assert Fraction(max(words_of(values)), WORDS) <= shares[1]
    assert all(each == j * shares[1] for j, each in enumerate(shares))


@pytest.mark.parametrize("values", VALUES)
def test_shifted_uniform_noise_is_not_farther_away_than_it_says(values):
    count, shares = words_of(values), uniform._grid_shares(values)
    for steps in {1, 2, values // 2}:
        before, after = [*count, *[0] * steps], [*[0] * steps, *count]
        distance = Fraction(sum(abs(a - b) for a, b in zip(before, after, strict=True)), 2 * WORDS)
        assert Fraction(steps, values) <= distance <= shares[steps]


@pytest.mark.parametrize("lam", [0.25, 0.5, 2.0])
@pytest.mark.parametrize("p", [0.5 + 2.0**-20, 0.75, 1.0])
def test_splits_in_doubles_may_be_misjudged(lam, p):
    """A share 2^-24 (1 + 1 / (2 lam)) of the copies may be touched beyond those of the theorem."""
    low = torch.tensor([p], dtype=torch.float64)
    radius = exactly(SplittingNoise(lam).radius(low, 1 - low))
    width = 2 * Fraction(lam)
    assert radius <= width * (Fraction(p) - Fraction(1, 2) - Fraction(1, 1 << 24) * (1 + 1 / width))
    assert radius >= width * (Fraction(p) - Fraction(1, 2)) - 2 * width * Fraction(1, 1 << 22)


@pytest.mark.parametrize("flips", [0, 4, 9])
def test_distances_at_which_one_more_vote_moves_are_not_certified(flips):
    """With whole budget * g, a distance of (flips + 1) / budget may move flips + 1 votes."""
    scheme = ConcaveSmoothing((0.5, 0.8, 1.0), budget=10)
    assert exactly(scheme.radius_of_flips(torch.tensor([flips]))) < Fraction(flips + 1, 10)
    power = VariableLambda(0.5, alpha=1, q=4, budget=8)
    assert exactly(power.radius_of_flips(torch.tensor([flips % 8]))) < Fraction(flips % 8 + 1, 8) ** 2


@pytest.mark.parametrize("chances", [0, 1, 1000, (1 << 15) - 1, 1 << 15, (1 << 16) - 1, 1 << 16])
def test_bernoulli_events_have_their_probability_exactly(chances, monkeypatch):
    """Of all 2^16 halves of words, each once."""
    halves = torch.arange(1 << 16)
    every = (halves[::2] << 16 | halves[1::2])[None, None]
    monkeypatch.setattr(Draws, "words", lambda self, count: every[..., :count])
    draws = Draws.of(0, 0, torch.zeros(1, dtype=torch.int64), range(1))
    assert int(draws.bernoulli(chances, 1 << 16).sum()) == chances


def test_words_beyond_the_last_multiple_draw_nothing(monkeypatch):
    """Of three elements, the last of all words would make one likelier than the others."""
    words = torch.tensor([WORDS - 1, WORDS // 2, *range(100, 200)])
    monkeypatch.setattr(Draws, "words", lambda self, count: words[:count][None, None])
    draws = Draws.of(0, 0, torch.zeros(1, dtype=torch.int64), range(1))
    assert draws.subsets(1, 3).tolist() == [[[False, False, True]]]


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 32, 32), (3, 224, 224)])
@pytest.mark.parametrize("p", [0.5 + 1e-9, 0.75, 0.999, 1 - 2.0**-40])
def test_noise_in_steps_is_not_taken_for_gaussian(shape, p):
    """Both probabilities may be off by the total variation between the two."""
    scheme, low = GaussianNoise(0.5), torch.tensor([p], dtype=torch.float64)
    radius = exactly(scheme.radius(low, 1 - low, shape=shape))
    slip = Fraction(scheme.rounded.slip) * math.prod(shape)
    with mpmath.workdps(50):
        argument = mpmath.mpf(p) - mpmath.mpf(slip.numerator) / slip.denominator
        bound = mpmath.sqrt(2) * mpmath.erfinv(2 * argument - 1) / 2  # sigma is 1/2
        got = mpmath.mpf(radius.numerator) / radius.denominator
        assert got <= bound if bound > 0 else radius == -1
        assert got >= bound * (1 - mpmath.mpf(10) ** -9) - mpmath.mpf(10) ** -11


@pytest.mark.parametrize("on", ["flows", "pixels"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_rounding_of_normalized_images_is_taken_off(on, shape):
    """Uniform noise: margin * 2 reach steps, less one for each feature."""
    scheme, low = WassersteinNoise(0.01, noise="uniform", on=on), torch.tensor([0.9], dtype=torch.float64)
    radius = exactly(scheme.radius(low, 1 - low, shape=shape))
    margin = Fraction(0.9) - Fraction(1, 2)
    longest = 2 if on == "pixels" else 1
    steps = margin * 2 * Fraction(_UNIFORM_REACH) - math.prod(shape)
    assert 0 < radius <= steps / Fraction(scheme.steps) / longest


@pytest.mark.parametrize("on", ["pixels", "flows"])
@pytest.mark.parametrize("p", [0.501, 0.6, 0.7, 0.9, 0.999])
def test_laplace_noise_in_steps_is_not_taken_for_exact(p, on):
    """The noise is within t of exact noise, in total variation, at an image and at the one that it is moved to. There,
    moving it by s makes of a probability of 1 - r, r < 1/2, one of ``1 - r e^s`` or, beyond 1/2, ``e^-s / (4 r)``, and
    of its rival's q at most ``q e^s``."""
    shape = (3, 128, 128)
    numbers = math.prod(shape) if on == "pixels" else 3 * 2 * 128 * 127  # edges down and to the right
    scheme, low = WassersteinNoise(0.01, on=on), torch.tensor([p], dtype=torch.float64)
    for share in (1, 1 - 2.0**-20, 0.9, 0.1, 1e-4, 1e-9, 0):
        high = (1 - low) * share
        moved = scheme._moved_laplace(low, high, shape)
        with mpmath.workdps(50):
            t, grown = mpmath.mpf(numbers * _SLIP), mpmath.e ** mpmath.mpf(moved.item())
            rest = 1 - mpmath.mpf(p) + t
            left = 1 - rest * grown if rest * grown <= 0.5 else 1 / (4 * rest * grown)
            rival = (mpmath.mpf(high.item()) + t) * grown
            assert left - t >= min(0.5, rival + t)
            assert left - t >= 0.5 or share < 1


@pytest.mark.parametrize("size", [2, 3, 5])
def test_bounds_on_eigenvalues_pay_for_their_rounding(size):
    """The rows of a circulant matrix have one sum, its largest eigenvalue, which doubles may round down."""
    rounded_down = 0
    for seed in range(100):
        half = np.random.default_rng(seed).random(size // 2)
        row = np.concatenate(([0.1], half, half[::-1][: (size - 1) // 2]))  # symmetric
        matrix = np.stack([np.roll(row, i) for i in range(size)])
        exact = sum(Fraction(float(value)) for value in row)
        found = eigenvalue_bound(matrix)
        assert exact <= Fraction(found) <= exact * (1 + Fraction(1, 10**9))
        rounded_down += Fraction(found / (1 + size * 2.0**-50)) < exact
    assert rounded_down > 5, "no rounding to pay for"
