"""The checks for own schemes find what is wrong with one."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from certify import DeterministicAblation, RandomizedAblation
from certify.scheme import Scheme
from certify.testing import all_images, attack, check_scheme
from tests.soundness.table import ablation_outcomes

IMAGES = all_images((1, 1, 4), 2)


@pytest.fixture(autouse=True)
def no_own_schemes(monkeypatch):
    monkeypatch.setattr(Scheme, "own", type(Scheme.own)())


def test_all_images():
    assert len(all_images((2, 1, 2), 3)) == 3**4
    assert all_images((1, 1, 2), 3).flatten(1).tolist()[:4] == [[0, 0], [0, 0.5], [0, 1], [0.5, 0]]


def test_a_class_is_no_scheme():
    with pytest.raises(TypeError, match=r"got <class .*RandomizedAblation'>, expected a scheme, as an instance"):
        check_scheme(RandomizedAblation, IMAGES[:5])  # pyright: ignore[reportArgumentType]


def test_radii_that_are_too_large_are_broken():
    @dataclass(frozen=True)
    class Doubled(DeterministicAblation):
        def radius_of_flips(self, flips, *, shape=None):
            return 2 * super().radius_of_flips(flips, shape=shape)

    assert attack(DeterministicAblation(3), IMAGES) > 0
    with pytest.raises(AssertionError, match=r"image \d+ is certified to \d, but image \d+ at distance \d is class"):
        attack(Doubled(3), IMAGES, tables=20)


def test_sampled_schemes_need_all_their_copies():
    scheme = RandomizedAblation(1)
    assert attack(scheme, IMAGES, outcomes=ablation_outcomes(scheme)) > 0
    with pytest.raises(TypeError, match="outcomes: got none"):
        attack(scheme, IMAGES)
    with pytest.raises(AssertionError, match="sum to 3/2, expected 1"):
        attack(scheme, IMAGES, outcomes=lambda x: [(Fraction(3, 2), x[0])])

    @dataclass(frozen=True)
    class Generous(RandomizedAblation):
        def radius(self, p_lower, p_upper, *, shape=None):
            radius = super().radius(p_lower, p_upper, shape=shape)
            return torch.where(radius >= 0, radius + 1, radius)

    with pytest.raises(AssertionError, match="is certified to"):
        attack(Generous(1), IMAGES, outcomes=ablation_outcomes(scheme), tables=20)


def _of_batch(self, x: Tensor, draws) -> Tensor:
    return RandomizedAblation.sample(self, x, draws) + x.sum()


def _of_place(self, x: Tensor, draws) -> Tensor:
    return RandomizedAblation.sample(self, x, draws) + torch.arange(draws.copy.shape[1])[:, None, None, None] / 100


def _signed(self, x: Tensor, draws) -> Tensor:
    return (torch.atan2(x, -x.abs() - 1)[:, None]).repeat(1, draws.copy.shape[1], 2, 1, 1)


def _double(self, x: Tensor, draws) -> Tensor:
    return RandomizedAblation.sample(self, x, draws).double()


def _wide(self, x: Tensor, draws) -> Tensor:
    return RandomizedAblation.sample(self, x, draws).repeat(1, 1, 2, 1, 1)


def _float32(self, p_lower: Tensor, p_upper: Tensor, *, shape=None) -> Tensor:
    return RandomizedAblation.radius(self, p_lower, p_upper, shape=shape).float()


def _at_half(self, p_lower: Tensor, p_upper: Tensor, *, shape=None) -> Tensor:
    return RandomizedAblation.radius(self, p_lower, p_upper, shape=shape).clamp(min=0)


def _falling(self, p_lower: Tensor, p_upper: Tensor, *, shape=None) -> Tensor:
    radius = RandomizedAblation.radius(self, p_lower, p_upper, shape=shape)
    return torch.where(p_lower == 1, 0.0, radius)


def _nan(self, p_lower: Tensor, p_upper: Tensor, *, shape=None) -> Tensor:
    return RandomizedAblation.radius(self, p_lower, p_upper, shape=shape) * torch.where(p_lower == 1, torch.nan, 1.0)


@pytest.mark.parametrize(
    ("name", "method", "message"),
    [
        ("sample", _of_batch, "depend on the other images of a batch"),
        ("sample", _of_place, "depend on which others are made with them"),
        ("sample", _signed, r"differ for -0\.0 and 0\.0"),
        ("sample", _double, r"its copies are torch\.float64"),
        ("sample", _wide, "not of input_shape"),
        ("radius", _float32, r"radius returns torch\.float32 \(101,\), not float64"),
        ("radius", _at_half, "radius is not negative where both classes may have probability one half"),
        ("radius", _falling, "radius is not monotone"),
        ("radius", _nan, "radius returns NaN"),
    ],
)
def test_broken_contracts_are_named(name, method, message):
    check_scheme(RandomizedAblation(1), IMAGES[:5])
    broken = dataclass(frozen=True)(type("Broken", (RandomizedAblation,), {name: method, "__module__": __name__}))(1)
    with pytest.raises(AssertionError, match=message):
        check_scheme(broken, IMAGES[:5])
