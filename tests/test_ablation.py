from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from certify import L0, DeterministicAblation, RandomizedAblation, Smoothed
from certify.ablation import touched_shares
from certify.draws import ESTIMATION, TRAINING, Draws


def draws(items=1, copies=4) -> Draws:
    return Draws.of(0, ESTIMATION, torch.arange(items), range(copies))


@given(d=st.integers(1, 200), data=st.data())
def test_touched_shares_against_binomials(d, data):
    keep = data.draw(st.integers(1, d))
    shares = touched_shares(d, keep)
    for rho, share in enumerate(shares):
        assert share == 1 - Fraction(math.comb(d - rho, keep), math.comb(d, keep))
        # a second derivation: the chance that none of the rho changed units is drawn, one unit after another
        none = math.prod((Fraction(d - keep - i, d - i) for i in range(rho)), start=Fraction(1))
        assert share == 1 - none
    assert shares[-1] >= Fraction(1, 2) > shares[-2]


def test_published_delta_at_imagenet_size():
    """Chapter 2: keeping 14,521 of the 150,528 features certifies one pixel at p = 0.596."""
    margin = torch.tensor([0.596], dtype=torch.float64)
    scheme = RandomizedAblation(14521, unit="feature")
    assert scheme.radius(margin + 1e-3, 1 - margin - 1e-3, shape=(3, 224, 224)).item() == 1
    assert float(touched_shares(150528, 14521)[1]) == pytest.approx(0.096, abs=1e-3)


def test_radius_is_the_largest_certified_count():
    """Against the definition, rho by rho, in exact arithmetic."""
    scheme, shape, d, keep = RandomizedAblation(45), (1, 28, 28), 784, 45
    p = torch.linspace(0.4, 1, 997, dtype=torch.float64)
    radius = scheme.radius(p, 1 - p, shape=shape)
    for value, got in zip(p.tolist(), radius.tolist(), strict=True):
        delta = [1 - Fraction(math.comb(d - rho, keep), math.comb(d, keep)) for rho in range(14)]
        certified = [rho for rho, share in enumerate(delta) if Fraction(value) - share > Fraction(1, 2)]
        assert got == max(certified, default=-1)


def test_simultaneous_bounds_certify_what_one_sided_cannot():
    """Corollary 2 beats Corollary 1 when the rest is spread over many classes."""
    scheme = RandomizedAblation(5)
    selection = torch.tensor([[60] + [4] * 10])
    counts = torch.tensor([[4500] + [550] * 10])
    one = scheme.certify_counts(selection, counts, 0.05, n=10_000, shape=(1, 10, 10))
    both = scheme.certify_counts(selection, counts, 0.05, n=10_000, shape=(1, 10, 10), bounds="simultaneous")
    assert (one.prediction.item(), one.radius.item()) == (-1, -1)
    assert both.prediction.item() == 0
    assert both.radius.item() == 3


@pytest.mark.parametrize("unit", ["pixel", "feature"])
def test_masks_retain_exactly_keep_units(unit):
    scheme, shape = RandomizedAblation(7, unit=unit), (3, 4, 5)
    masks = scheme.masks(shape, draws(2, 6))
    assert masks.shape == (2, 6, 3 if unit == "feature" else 1, 4, 5)
    assert (masks.flatten(2).sum(-1) == 7).all()


def test_multichannel_encoding():
    x = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    scheme = RandomizedAblation(5)
    copies, masks = scheme.sample(x, draws(2, 3)), scheme.masks((3, 4, 4), draws(2, 3))
    image = (x.double() / 255).float()[:, None]
    assert copies.shape == (2, 3, 6, 4, 4)
    assert torch.equal(copies[:, :, :3], image * masks)
    assert torch.equal(copies[:, :, 3:], (1 - image) * masks)
    retained = masks.expand(2, 3, 3, 4, 4)
    sums = copies[:, :, :3] + copies[:, :, 3:]
    assert torch.allclose(sums, retained.float(), atol=1e-6)


def test_mean_encoding():
    x = torch.rand(1, 3, 4, 4)
    scheme = RandomizedAblation(5, null="mean", mean=(0.1, 0.2, 0.3))
    copies, masks = scheme.sample(x, draws()), scheme.masks((3, 4, 4), draws()).expand(1, 4, 3, 4, 4)
    colour = torch.tensor([0.1, 0.2, 0.3])[:, None, None].expand_as(copies)
    assert scheme.channels(3) == 3
    assert torch.equal(copies[masks], x[:, None].expand_as(copies)[masks])
    assert torch.equal(copies[~masks], colour[~masks])


def test_normalization_comes_before_the_encoding():
    x = torch.rand(1, 1, 3, 3)
    copies = RandomizedAblation(9, mean=(0.5,), std=(0.25,)).sample(x, draws(copies=1))
    z = (x - 0.5) / 0.25
    assert torch.allclose(copies[:, 0], torch.cat((z, 1 - z), 1))


def test_one_mask_for_a_minibatch():
    x = torch.rand(6, 1, 5, 5) * 0.5 + 0.25
    shared = Draws(0, TRAINING, torch.tensor([[3]]), torch.tensor([[0]]))
    visible = RandomizedAblation(4).sample(x, shared)[:, 0, 0] > 0
    assert (visible == visible[:1]).all()


def test_abstains_without_a_majority():
    base = lambda copies: torch.stack((copies[:, 0, 0, 0] > 0, copies[:, 0, 0, 0] <= 0), 1).float()  # noqa: E731
    x = torch.full((1, 1, 2, 2), 200, dtype=torch.uint8)
    smoothed = Smoothed(base, RandomizedAblation(2), 2, n0=100, n=1000, seed=1)
    result = smoothed.certify(x)  # the probability is exactly one half
    assert (result.prediction.item(), result.radius.item()) == (-1, -1)
    assert smoothed.predict(x).item() == -1


def test_certificates_fail_at_most_as_often_as_alpha():
    """Simulated runs at a true probability just below what a radius of 2 needs: it may be claimed by chance only."""
    scheme, shape, alpha, runs, n = RandomizedAblation(5), (1, 8, 8), 0.1, 5_000, 400
    needed = 0.5 + float(touched_shares(64, 5)[2])
    generator = np.random.default_rng(0)

    def votes(total: int) -> torch.Tensor:
        return torch.from_numpy(generator.multinomial(total, [needed - 1e-9, 1 - needed + 1e-9], runs))

    result = scheme.certify_counts(votes(50), votes(n), alpha, n=n, shape=shape)
    wrong = (result.radius >= 2).double().mean().item()
    assert 0 < wrong <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)


@pytest.mark.parametrize("unit", ["pixel", "feature"])
def test_every_unit_is_retained_in_exactly_one_copy(unit):
    x = torch.randint(1, 255, (2, 3, 5, 6), dtype=torch.uint8)
    scheme = DeterministicAblation(7, unit=unit, seed=3)
    copies = scheme.copies(x, torch.arange(7)[None])
    shown = copies[:, :, :3] + copies[:, :, 3:] > 0
    assert copies.shape == (2, 7, 6, 5, 6)
    assert (shown.sum(1) == 1).all()
    assert (shown.all(2) == shown.any(2)).all() == (unit == "pixel")
    assert torch.allclose(copies.sum(1)[:, :3], x / 255)
    assert torch.equal(shown[0], shown[1])


def test_deterministic_radius():
    counts = torch.tensor([[5, 2, 0], [3, 4, 0], [0, 0, 7]])
    result = DeterministicAblation(7).certify_counts(counts)
    assert result.prediction.tolist() == [0, 1, 2]
    assert result.radius.tolist() == [1, 0, 3]
    assert result.threat == L0("pixel")


def test_threat():
    x = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    y = x.clone()
    y[0, :, 0, 0] = 9
    assert RandomizedAblation(1).threat == L0("pixel")
    assert L0("pixel").distance(x, y).item() == 1
    assert L0("feature").distance(x, y).item() == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0}, "keep: got 0"),
        ({"keep": 4.5}, "keep: got 4.5, expected an integer"),
        ({"keep": True}, "keep: got True, expected an integer"),
        ({"keep": 1, "unit": "row"}, "unit: got 'row'"),
        ({"keep": 1, "null": "noise"}, "null: got 'noise'"),
        ({"keep": 1, "null": "mean"}, "null='mean': got mean"),
        ({"keep": 1, "std": (1.0,)}, "needs mean"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        RandomizedAblation(**options)


def test_keep_more_than_there_is():
    with pytest.raises(ValueError, match=r"keep: got 17, expected between 1 .* d = 16"):
        Smoothed(lambda c: c, RandomizedAblation(17), 2).certify(torch.rand(1, 1, 4, 4))


def test_wrong_number_of_channel_values():
    with pytest.raises(ValueError, match="mean: got 1 values, expected one per channel, 3"):
        RandomizedAblation(2, null="mean", mean=(0.5,)).check(torch.rand(1, 3, 4, 4))


def test_radius_needs_the_shape():
    counts = torch.tensor([[90, 10]])
    with pytest.raises(ValueError, match="shape"):
        RandomizedAblation(2).certify_counts(counts.clone(), counts, 0.05, n=100)
