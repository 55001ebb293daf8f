from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from certify import L1, DeterministicSplittingNoise, Smoothed, SplittingNoise
from certify.draws import ESTIMATION, Draws
from certify.images import to_levels
from certify.splitting import cell_centres, lam_of_sigma, splitting_period


def equation_3_28(x: Fraction, s: Fraction, lam: Fraction) -> Fraction:
    upper = min(2 * lam * math.ceil((x - s) / (2 * lam)) + s, Fraction(1))
    lower = max(2 * lam * math.ceil((x - s) / (2 * lam) - 1) + s, Fraction(0))
    return (upper + lower) / 2


@given(q=st.integers(1, 30), data=st.data())
def test_cell_centres_are_equation_3_28(q, data):
    period = data.draw(st.integers(1, 4 * q))
    level, split = data.draw(st.integers(0, q)), data.draw(st.integers(0, period - 1))
    got = cell_centres(torch.tensor([level]), torch.tensor([split]), period, q).item()
    exact = equation_3_28(Fraction(level, q), Fraction(2 * split + 1, 2 * q), Fraction(period, 2 * q))
    assert got == np.float32(exact.numerator / exact.denominator)


@given(q=st.integers(1, 20), data=st.data())
def test_an_l1_step_moves_one_split(q, data):
    """Corollary 3.1: between two levels exactly min(|difference|, period) splits tell them apart."""
    period = data.draw(st.integers(1, 3 * q))
    a, b = data.draw(st.integers(0, q)), data.draw(st.integers(0, q))
    splits = torch.arange(period)
    different = cell_centres(torch.tensor(a), splits, period, q) != cell_centres(torch.tensor(b), splits, period, q)
    assert int(different.sum()) == min(abs(a - b), period)


def test_large_lambda_matches_equation_3_14():
    scheme = DeterministicSplittingNoise(1.5, q=255)
    x = torch.randint(0, 256, (2, 1, 5, 5), dtype=torch.uint8)
    copies = scheme.copies(x, torch.arange(scheme.period)[None])
    offsets = torch.from_numpy(np.random.RandomState(0).randint(0, 765, size=(1, 5, 5)))
    s = ((torch.arange(765)[:, None, None, None] + offsets) % 765 + 0.5).double() / 255
    expected = (s.clamp(max=1) + ((x.double() / 255)[:, None] > s)) / 2
    assert torch.allclose(copies.double(), expected, atol=1e-7)


@pytest.mark.parametrize(("q", "d"), [(1, 2), (2, 2), (3, 2), (2, 3), (5, 2)])
def test_proposition_b_1_only_independent_noises_are_equivalent(q, d):
    """lambda = 1/2: if the copies of every image have the same distribution under additive noise e and under splits s,
    up to (x + e) / 2 + 1/4, then both noises are uniform on all vectors: the equations P(e) = P(s) link all of them."""
    split_of = {}
    for level in range(q + 1):
        centres = cell_centres(torch.tensor(level), torch.arange(q), q, q).double()
        for step in range(q):
            added = (level / q + (2 * step + 1) / (2 * q) - 0.5) / 2 + 0.25
            (split_of[level, step],) = ((centres - added).abs() < 1e-6).nonzero()[:, 0].tolist()
    linked: dict[tuple[str, tuple[int, ...]], set[tuple[str, tuple[int, ...]]]] = {}
    for x in itertools.product(range(q + 1), repeat=d):
        for e in itertools.product(range(q), repeat=d):
            noise, splits = ("noise", e), ("splits", tuple(split_of[pair] for pair in zip(x, e, strict=True)))
            linked.setdefault(noise, set()).add(splits)
            linked.setdefault(splits, set()).add(noise)
    reached, waiting = set(), [("noise", (0,) * d)]
    while waiting:
        vector = waiting.pop()
        if vector not in reached:
            reached.add(vector)
            waiting.extend(linked[vector])
    assert len(reached) == 2 * q**d


def test_every_split_occurs_once_for_every_feature():
    scheme = DeterministicSplittingNoise(0.75, q=4, seed=7)
    x = torch.zeros(1, 1, 3, 3)
    copies = scheme.copies(x, torch.arange(6)[None])[0].flatten(1)
    alone = cell_centres(torch.tensor(0), torch.arange(6), 6, 4).sort().values
    assert torch.equal(copies.sort(0).values, alone[:, None].expand(6, 9))


def test_table_and_arithmetic_agree(monkeypatch):
    scheme = DeterministicSplittingNoise(0.3, q=255)
    x = torch.randint(0, 256, (1, 3, 4, 4), dtype=torch.uint8)
    index = torch.arange(scheme.period)[None]
    looked_up = scheme.copies(x, index)
    monkeypatch.setattr("certify.splitting._TABLE_LIMIT", 0)
    assert torch.equal(scheme.copies(x, index), looked_up)


def test_float_and_byte_images_give_the_same_votes():
    x = torch.randint(0, 256, (3, 1, 4, 4), dtype=torch.uint8)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    smoothed = Smoothed(model, DeterministicSplittingNoise(0.5), 3)
    expected = smoothed.votes(x).counts
    assert torch.equal(smoothed.votes(x.float() / 255).counts, expected)
    assert torch.equal(smoothed.votes(x.double() / 255).counts, expected)


def test_radius_of_votes():
    counts = torch.tensor([[300, 210, 0], [255, 255, 0], [100, 200, 210], [510, 0, 0]])
    result = DeterministicSplittingNoise(1.0).certify_counts(counts)
    # gap with ties to the lower class: 90, 0, 10 - 1, 510
    assert result.prediction.tolist() == [0, 0, 2, 0]
    assert result.radius.tolist() == [45 / 255, 0, 4 / 255, 1.0]


def test_proposition_3_1_additive_noise_must_be_independent():
    """The counterexample: with coupled additive noise p falls from 1 to 0 within l1 distance 0.4; with coupled
    splitting noise and the same base classifier it moves by no more than that distance."""
    base = lambda z: z[..., 0] > 0.4 + z[..., 1]  # noqa: E731
    x, y = torch.tensor([0.8, 0.2], dtype=torch.float64), torch.tensor([0.6, 0.4], dtype=torch.float64)
    distance = (x - y).abs().sum().item()
    noise = torch.linspace(-0.5, 0.5, 10_001, dtype=torch.float64)[:, None]
    additive = [base(z + noise).double().mean().item() for z in (x, y)]
    assert additive == [1, 0]
    assert abs(additive[0] - additive[1]) > distance
    q = 10
    splits = torch.arange(q)[:, None]  # lam = 1/2, the same split in both coordinates
    levels = [(z * q).round().long() for z in (x, y)]
    splitting = [base(cell_centres(level, splits, q, q)).double().mean().item() for level in levels]
    assert abs(splitting[0] - splitting[1]) <= distance


@pytest.mark.parametrize("lam", [0.05, 0.2, 0.5, 1.7])
def test_continuous_splitting_is_lipschitz(lam):
    """The share of random splits that tell two inputs apart is the l1 distance over 2 lambda (one feature)."""
    x, y = 0.3, 0.3 + min(0.04, lam)
    draws = Draws.of(0, ESTIMATION, torch.arange(1), range(40_000))
    scheme = SplittingNoise(lam)
    a, b = (scheme.sample(torch.full((1, 1, 1, 1), v, dtype=torch.float64), draws) for v in (x, y))
    share, expected = (a != b).double().mean().item(), (y - x) / (2 * lam)
    assert abs(share - expected) < 5 * math.sqrt(expected / 40_000)


def test_continuous_copies_are_equation_3_28():
    scheme, x = SplittingNoise(0.2), torch.rand(1, 1, 3, 3, dtype=torch.float64)
    draws = Draws.of(5, ESTIMATION, torch.arange(1), range(20))
    copies = scheme.sample(x, draws)
    splits = draws.uniforms(9).view(20, 3, 3) * 0.4
    for t, i, j in itertools.product(range(20), range(3), range(3)):
        exact = equation_3_28(Fraction(x[0, 0, i, j].item()), Fraction(splits[t, i, j].item()), Fraction(0.2))
        assert float(copies[0, t, 0, i, j]) == pytest.approx(float(exact), abs=1e-6)


def test_monte_carlo_radius():
    p = torch.tensor([0.5, 0.75, 1.0], dtype=torch.float64)
    continuous = SplittingNoise(2.0).radius(p, 1 - p)
    assert continuous[0] == -1
    assert 0.9999 < continuous[1] < 1
    assert 1.9999 < continuous[2] < 2
    grid = SplittingNoise(2.0, q=4).radius(p, 1 - p)
    # certified are the multiples of 1/4 strictly below 4 (p - 1/2)
    assert grid.tolist() == [-1, 0.75, 1.75]


@given(st.floats(0.5, 1), st.integers(1, 40), st.integers(1, 10))
def test_grid_radius_is_below_the_exact_one(p, period, q):
    lam = period / (2 * q)
    value = torch.tensor([p], dtype=torch.float64)
    radius = SplittingNoise(lam, q=q).radius(value, 1 - value).item()
    exact = 2 * Fraction(period, 2 * q) * (Fraction(p) - Fraction(1, 2))
    if radius >= 0:
        assert Fraction(round(radius * q), q) < exact
    else:
        assert exact <= Fraction(1, 10**12)


def test_noise_levels():
    assert lam_of_sigma(1.0) == math.sqrt(3)
    scheme = DeterministicSplittingNoise.from_sigma(0.75)
    assert scheme.period == math.floor(2 * 0.75 * math.sqrt(3) * 255)
    assert splitting_period(331 / 510, 255) == 331
    assert isinstance(scheme.threat, L1)


@pytest.mark.parametrize("lam", [0, -1, float("nan"), float("inf")])
def test_bad_lambda(lam):
    for scheme in (DeterministicSplittingNoise, SplittingNoise):
        with pytest.raises(ValueError, match="lam: got"):
            scheme(lam)


def test_lambda_off_the_grid_names_its_neighbours():
    with pytest.raises(ValueError, match=r"nearest valid values are .*\(= 331/510 and 332/510\)"):
        DeterministicSplittingNoise(331.4 / 510)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lam": 0.5, "q": 2.5}, "q .*: got 2.5, expected an integer"),
        ({"lam": 0.5, "q": 0}, "q .*: got 0"),
        ({"lam": 0.5, "q": 1 << 17}, "q .*: got 131072"),
        ({"lam": 0.5, "seed": -1}, "seed: got -1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        DeterministicSplittingNoise(**options)


@pytest.mark.parametrize("sigma", [0, -1, float("inf"), float("nan")])
def test_bad_sigma(sigma):
    with pytest.raises(ValueError, match="sigma: got"):
        DeterministicSplittingNoise.from_sigma(sigma)


def test_values_close_to_the_grid_are_refused():
    x = torch.full((1, 1, 2, 2), 100 / 255, dtype=torch.float64)
    DeterministicSplittingNoise(0.5).check(x)
    with pytest.raises(ValueError, match="away from the grid i/255"):
        DeterministicSplittingNoise(0.5).check(x + 1e-9)
    with pytest.raises(ValueError, match="expected multiples of 1/255"):
        DeterministicSplittingNoise(0.5).check(x.float() + 1e-6)


@pytest.mark.parametrize("scheme", [DeterministicSplittingNoise(0.5), SplittingNoise(0.5, q=255)])
def test_off_grid_values_are_refused(scheme):
    x = torch.full((1, 1, 2, 2), 0.5)
    with pytest.raises(ValueError, match="expected multiples of 1/255"):
        Smoothed(lambda c: c, scheme, 2).certify(x)


def test_float64_values_that_were_computed_in_float32_are_to_be_passed_as_such():
    levels = torch.arange(256).view(1, 1, 16, 16)
    computed = levels.float() / 255
    assert torch.equal(to_levels(computed, 255), levels)
    assert torch.equal(to_levels(levels.double() / 255, 255), levels)
    with pytest.raises(ValueError, match=r"as if they had been computed in float32; pass them as float32"):
        to_levels(computed.double(), 255)


def test_bytes_off_a_coarser_grid_are_refused():
    x = torch.full((1, 1, 2, 2), 100, dtype=torch.uint8)
    with pytest.raises(ValueError, match="not multiples of 1/15"):
        DeterministicSplittingNoise(0.5, q=15).check(x)
    DeterministicSplittingNoise(0.5, q=15).check(x // 17 * 17)
