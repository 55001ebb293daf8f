from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from certify import L0, BernoulliAblation, RandomizedAblation, Smoothed
from certify.ablation import touched_shares as fixed_shares
from certify.bernoulli_ablation import retention_chances, touched_shares
from certify.draws import ESTIMATION, Draws


@given(chances=st.integers(40, 1 << 16))
def test_touched_shares_against_the_exact_power(chances):
    shares, untouched = touched_shares(chances), 1 - Fraction(chances, 1 << 16)
    assert shares[-1] >= Fraction(1, 2)
    assert len(shares) == 2 or shares[-2] < Fraction(1, 2)
    for rho in {0, 1, 2, 7, 8, 9, len(shares) // 2, len(shares) - 1}:
        if rho < len(shares):
            exact = 1 - untouched**rho
            assert 0 <= shares[rho] - exact < Fraction(rho + 1, 1 << 128)
            assert rho > 8 or shares[rho] == exact


def test_longest_table():
    assert len(touched_shares(1)) == 45_427  # rho log(1 - 2^-16) = log(1/2)


@given(d=st.integers(1, 4000), data=st.data())
def test_never_above_the_fixed_number(d, data):
    keep = data.draw(st.integers(1, d))
    ours, fixed = touched_shares(retention_chances(d, keep)), fixed_shares(d, keep)
    assert all(a <= b for a, b in zip(ours, fixed, strict=False))
    assert len(ours) >= len(fixed)


@pytest.mark.parametrize(("d", "keep"), [(784, 45), (1024, 75), (50176, 1000), (16, 16)])
def test_retention_is_below_what_was_asked_for(d, keep):
    exact = BernoulliAblation(keep).retention((1, 1, d))
    assert 0 <= Fraction(keep, d) - exact < Fraction(1, 1 << 16)


def test_radius_is_the_largest_certified_count():
    scheme, shape = BernoulliAblation(45), (1, 28, 28)
    p = torch.linspace(0.4, 1, 997, dtype=torch.float64)
    radius = scheme.radius(p, 1 - p, shape=shape)
    untouched = 1 - scheme.retention(shape)
    for value, got in zip(p.tolist(), radius.tolist(), strict=True):
        certified = [rho for rho in range(14) if Fraction(value) - (1 - untouched**rho) > Fraction(1, 2)]
        assert got == max(certified, default=-1)
    assert (radius >= RandomizedAblation(45).radius(p, 1 - p, shape=shape)).all()


@pytest.mark.parametrize("unit", ["pixel", "feature"])
def test_masks_retain_units_independently(unit):
    scheme, shape, n = BernoulliAblation(12, unit=unit), (3, 4, 5), 4000
    masks = scheme.masks(shape, Draws.of(0, ESTIMATION, torch.arange(2), range(n)))
    d, p = scheme.units(shape), float(scheme.retention(shape))
    assert masks.shape == (2, n, 3 if unit == "feature" else 1, 4, 5)
    kept = masks.flatten(2).double()
    deviation = math.sqrt(p * (1 - p) / (2 * n))
    assert (kept.mean((0, 1)) - p).abs().max() < 5 * deviation
    number = kept.sum(-1)
    assert number.mean().item() == pytest.approx(d * p, abs=5 * deviation * math.sqrt(d))
    assert number.var().item() == pytest.approx(d * p * (1 - p), rel=0.1)
    # neighbours share a word of random bits
    pairs = kept.flatten(0, 1)
    together = (pairs[:, 0::2] * pairs[:, 1::2]).mean().item()
    assert together == pytest.approx(p * p, abs=5 * math.sqrt(p * p / pairs[:, ::2].numel()))


def test_bernoulli_draws():
    draws = Draws.of(3, ESTIMATION, torch.arange(2), range(5))
    words = draws.words(4)
    low, high = words & 0xFFFF, words >> 16
    low = torch.where(low < 1 << 15, low, low - (1 << 16))  # as two's complement
    signed = torch.stack((low, high - (1 << 15)), -1).flatten(2)
    for chances in (0, 1, 1 << 14, 40_000, (1 << 16) - 1):
        for count in (1, 2, 7, 8):
            assert torch.equal(draws.bernoulli(chances, count), signed[..., :count] < chances - (1 << 15))
    assert draws.bernoulli(1 << 16, 3).all()
    assert draws.bernoulli(1 << 16, 3).shape == (2, 5, 3)
    with pytest.raises(ValueError, match="chances: got 65537"):
        draws.bernoulli(65537, 1)


def test_all_retained():
    x = torch.rand(2, 1, 2, 2)
    copies = BernoulliAblation(4).sample(x, Draws.of(0, ESTIMATION, torch.arange(2), range(3)))
    assert torch.equal(copies[:, :, :1], x[:, None].expand(2, 3, 1, 2, 2))


def test_certifies():
    base = lambda copies: torch.stack((copies[:, 0].sum((1, 2)), copies[:, 1].sum((1, 2)) - 1e-6), 1)  # noqa: E731
    x = torch.full((1, 1, 8, 8), 250, dtype=torch.uint8)
    result = Smoothed(base, BernoulliAblation(8), 2, n0=100, n=1000).certify(x)
    assert result.threat == L0("pixel")
    assert (result.prediction.item(), result.radius.item()) == (0, 5)  # (7/8)^5 = 0.513


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0}, "keep: got 0"),
        ({"keep": 4.5}, "keep: got 4.5, expected an integer"),
        ({"keep": 1, "null": "noise"}, "null: got 'noise'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        BernoulliAblation(**options)


def test_keep_out_of_range():
    with pytest.raises(ValueError, match=r"keep: got 17, expected between 1 .* d = 16"):
        Smoothed(lambda c: c, BernoulliAblation(17), 2).certify(torch.rand(1, 1, 4, 4))
    with pytest.raises(
        ValueError, match="keep: got 2 of d = 150528 units, less than one in 2\\^16, expected at least 3"
    ):
        BernoulliAblation(2, unit="feature").retention((3, 224, 224))


def test_radius_needs_the_shape():
    counts = torch.tensor([[90, 10]])
    with pytest.raises(ValueError, match="BernoulliAblation needs the image shape"):
        BernoulliAblation(2).certify_counts(counts.clone(), counts, 0.05, n=100)
