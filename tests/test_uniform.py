from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch

from certify import Smoothed, UniformNoise
from certify.draws import ESTIMATION, Draws
from certify.splitting import splitting_period
from certify.uniform import _box_shares, _grid_shares


@pytest.mark.parametrize(("lam", "q"), [(0.5, 255), (1.5, 255), (0.25, 4), (7.0, 3)])
def test_copies_are_the_image_plus_noise_on_the_grid(lam, q):
    """Bit by bit: i / q + (j + 1/2) / q - lam in half-steps, divided once."""
    draws = Draws.of(0, ESTIMATION, torch.arange(3), range(20))
    levels = torch.randint(0, q + 1, (3, 2, 3, 3), generator=torch.Generator().manual_seed(0))
    values = splitting_period(lam, q)
    noise = draws.integers(values, 18).view(3, 20, 2, 3, 3)
    halves = 2 * levels[:, None] + 2 * noise + 1 - values
    copies = UniformNoise(lam, q).sample(levels.double() / q, draws)
    assert torch.equal(copies, (halves.double() / (2 * q)).float())
    assert ((copies - (levels / q)[:, None]).abs() < lam).all()
    one_noise = UniformNoise(lam, q).sample(
        levels.double() / q, Draws.of(0, ESTIMATION, torch.zeros(1).long(), range(2))
    )
    assert one_noise.shape == (3, 2, 2, 3, 3)


@pytest.mark.parametrize(("values", "q", "features"), [(4, 1, 3), (9, 2, 3), (10, 3, 2), (3, 4, 2), (12, 2, 4)])
def test_no_change_inside_the_box_moves_more_noise_than_it_says(values, q, features):
    """Every change of every feature: two images' copies have the product of what those of each feature share."""
    shares, slack = _box_shares(values, q), Fraction(values * features * q, 1 << 32)
    most = dict.fromkeys(range(features * q + 1), Fraction(0))
    for change in itertools.product(range(q + 1), repeat=features):
        moved = 1 - math.prod((max(Fraction(0), 1 - Fraction(m, values)) for m in change), start=Fraction(1))
        most[sum(change)] = max(most[sum(change)], moved)
    for steps, share in enumerate(shares[: features * q + 1]):
        assert most[steps] <= share <= most[steps] + slack
    assert shares[-1] >= Fraction(1, 2) > shares[-2]
    assert all(before <= after for before, after in itertools.pairwise(shares))


@pytest.mark.parametrize("lam", [0.5, 1.0, 2.0, 6.0])
def test_the_bound_of_the_box_is_never_below_the_published_one(lam):
    p = torch.linspace(0.3, 1, 400, dtype=torch.float64)
    published, box = (UniformNoise(lam, bound=bound).radius(p, 1 - p) for bound in ("published", "box"))
    assert (box >= published).all()
    assert torch.equal(box[published <= 1 - 1 / 255], published[published <= 1 - 1 / 255])
    whole, rest = box.clamp(min=0).floor(), box.clamp(min=0).frac()
    moved = 1 - (1 - 1 / (2 * lam)) ** whole * (1 - rest / (2 * lam))
    assert (moved[box >= 0] < (p - 0.5)[box >= 0] + 1e-6).all()
    if lam > 1:
        assert (box > published).any()
    assert all(low <= high for low, high in zip(_box_shares(1020, 255), _grid_shares(1020), strict=False))


def test_both_bounds_follow_from_the_same_votes():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    with torch.no_grad():
        model[1].weight.mul_(0).add_(torch.tensor([[1.0], [0.0], [0.0]]))
        model[1].bias.copy_(torch.tensor([9.0, 0.0, 0.0]))
    x = torch.full((1, 1, 4, 4), 255, dtype=torch.uint8)
    published = Smoothed(model, UniformNoise(4.0), 3, n0=50, n=2_000)
    box = Smoothed(model, UniformNoise(4.0, bound="box"), 3, n0=50, n=2_000)
    votes = published.votes(x)
    assert box.certificate(votes).radius > published.certificate(votes).radius + 0.5
    assert torch.equal(box.certify(x).radius, box.certificate(votes).radius)
    with pytest.raises(ValueError, match="bound: got 'tight', expected one of published, box"):
        UniformNoise(4.0, bound="tight")  # type: ignore[arg-type]
