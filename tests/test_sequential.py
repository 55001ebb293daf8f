"""Confidence sequences: valid at all times at once, and stopping decisions that do not depend on the company."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from certify import DeterministicAblation, DiscreteNoise, RandomizedAblation, Smoothed, confidence
from certify.sequential import CertifiedAt, RadiusWithin, next_look, sequence_bounds
from certify.testing import RandomTable


def mixture(k: int, n: int) -> Fraction:
    """The Beta(1/2, 1/2) average of p^k (1 - p)^(n - k), from its sequential definition: (n_c + 1/2) / (n + 1)."""
    value, counts = Fraction(1), [0, 0]
    for i in range(n):
        side = int(i < k)
        value *= (Fraction(counts[side]) + Fraction(1, 2)) / (i + 1)
        counts[side] += 1
    return value


@given(n=st.integers(1, 60), alpha=st.sampled_from([0.5, 0.05, 0.001]), data=st.data())
def test_bounds_against_exact_arithmetic(n, alpha, data):
    k = data.draw(st.integers(0, n))
    lower, upper = (bound.item() for bound in sequence_bounds(torch.tensor([k]), n, alpha))
    assert 0 <= lower <= k / n <= upper <= 1

    def kept(p: Fraction) -> bool:
        return mixture(k, n) < p**k * (1 - p) ** (n - k) / Fraction(alpha)

    if lower > 0:
        assert not kept(Fraction(lower))
        assert kept(min(Fraction(k, n), Fraction(lower) * (1 + Fraction(1, 1000))))
    if upper < 1:
        assert not kept(Fraction(upper))
    assert kept(Fraction(k, n))


def ever_wrong(p: Fraction, alpha: float, horizon: int) -> tuple[Fraction, Fraction]:
    """Probability that within ``horizon`` samples the bounds ever exclude p: below the lower, above the upper."""
    alive, low, high = {0: Fraction(1)}, Fraction(0), Fraction(0)
    for n in range(1, horizon + 1):
        after: dict[int, Fraction] = {}
        for k, mass in alive.items():
            after[k] = after.get(k, Fraction(0)) + mass * (1 - p)
            after[k + 1] = after.get(k + 1, Fraction(0)) + mass * p
        counts = sorted(after)
        lower, upper = sequence_bounds(torch.tensor(counts), n, alpha)
        alive = {}
        for k, below, above in zip(counts, lower.tolist(), upper.tolist(), strict=True):
            if Fraction(below) > p:
                low += after[k]
            elif Fraction(above) < p:
                high += after[k]
            else:
                alive[k] = after[k]
    return low, high


@pytest.mark.parametrize("p", [Fraction(1, 50), Fraction(1, 2), Fraction(3, 5), Fraction(19, 20)])
@pytest.mark.parametrize("alpha", [0.2, 0.05])
def test_coverage_at_all_times_together_exactly(p, alpha):
    low, high = ever_wrong(p, alpha, 120)
    assert 0 < low + high <= Fraction(alpha)


def test_a_fixed_sample_bound_would_not_survive_looking_often():
    """The same computation with Clopper-Pearson at every n: why a confidence sequence is needed."""
    p, alpha = Fraction(1, 2), 0.05
    alive, wrong = {0: Fraction(1)}, Fraction(0)
    for n in range(1, 121):
        after: dict[int, Fraction] = {}
        for k, mass in alive.items():
            after[k] = after.get(k, Fraction(0)) + mass * (1 - p)
            after[k + 1] = after.get(k + 1, Fraction(0)) + mass * p
        bounds = confidence.lower_bound(torch.tensor(sorted(after)), n, alpha).tolist()
        excluded = {k for k, bound in zip(sorted(after), bounds, strict=True) if Fraction(bound) > p}
        wrong += sum((after[k] for k in excluded), Fraction(0))
        alive = {k: mass for k, mass in after.items() if k not in excluded}
    assert wrong > 3 * Fraction(alpha)


def test_bounds_close_in_and_stay_ordered():
    for share in (0.0, 0.3, 0.5, 0.99, 1.0):
        widths = []
        for n in (10, 100, 10_000, 1_000_000):
            k = torch.tensor([round(share * n)])
            lower, upper = sequence_bounds(k, n, 0.001)
            fixed = confidence.lower_bound(k, n, 0.001)
            assert lower <= fixed  # looking at any time has its price
            widths.append(float(upper - lower))
        assert widths == sorted(widths, reverse=True)
        assert widths[-1] < 0.01


def test_bounds_refuse_bad_input():
    with pytest.raises(TypeError, match=r"votes: got torch.float32"):
        sequence_bounds(torch.tensor([1.0]), 2, 0.1)
    with pytest.raises(ValueError, match=r"counts in \[-1, 1\] of n = 2"):
        sequence_bounds(torch.tensor([1, -1]), 2, 0.1)
    with pytest.raises(ValueError, match=r"counts in \[3, 3\] of n = 2"):
        sequence_bounds(torch.tensor([3]), 2, 0.1)
    with pytest.raises(ValueError, match="alpha"):
        sequence_bounds(torch.tensor([1]), 2, 1.0)
    with pytest.raises(ValueError, match="radius: got -1"):
        CertifiedAt(-1)
    with pytest.raises(ValueError, match=r"factor: got 0\.5"):
        RadiusWithin(0.5)


def test_looks_grow_by_a_quarter():
    n, looks = 0, []
    while n < 100_000:
        n = next_look(n)
        looks.append(n)
    assert looks[:5] == [32, 64, 96, 128, 160]
    assert all(b <= 1.3 * a + 32 for a, b in itertools.pairwise(looks))
    assert len(looks) < 45


IMAGES = torch.tensor(np.random.RandomState(0).randint(0, 2, (12, 1, 2, 4)) * 255, dtype=torch.uint8)


def toy(**options) -> Smoothed:
    return Smoothed(RandomTable(3, seed=5, bias=0.75), RandomizedAblation(2), 3, n0=64, alpha=0.01, **options)


def test_decisions_agree_with_many_fixed_samples():
    smoothed = toy(n=40_000)
    fixed = smoothed.certify(IMAGES)
    for radius in (0, 1):
        result = smoothed.certify_at(IMAGES, radius, max_n=40_000)
        decided = result.settled
        assert decided.sum() >= 10
        assert torch.equal((result.radius >= radius)[decided], fixed.certified_at(radius)[decided])
        assert torch.equal(result.prediction >= 0, result.radius >= 0)
        assert result.samples.float().median() < 4_000


def test_radius_within_a_factor():
    smoothed = toy()
    result = smoothed.certify_within(IMAGES, 1.0, max_n=60_000)
    done = result.settled & (result.radius >= 0)
    assert done.any()
    assert torch.equal(result.radius[done], result.radius_upper[done])
    assert (result.radius <= result.radius_upper).all()
    assert ((result.radius_upper < 0) | (result.radius >= 0) | ~result.settled).all()


def test_results_do_not_depend_on_the_company():
    smoothed = toy()
    index = torch.arange(20, 32)
    together = smoothed.certify_at(IMAGES, 1, max_n=5_000, index=index)
    for i in (0, 3, 7):
        alone = smoothed.certify_at(IMAGES[i : i + 1], 1, max_n=5_000, index=index[i : i + 1])
        assert torch.equal(alone.votes[0], together.votes[i])
        assert alone.samples[0] == together.samples[i] == together.votes[i].sum()
        assert alone.p_lower is not None
        assert together.p_lower is not None
        assert alone.p_lower[0] == together.p_lower[i]


def test_samples_are_those_of_the_fixed_size():
    """The first n estimation samples are the same ones, whether they come at once or one look after the other."""
    smoothed = toy(n=96)
    result = smoothed.certify_at(IMAGES, 1, max_n=96)
    open_to_the_end = result.samples == 96
    assert open_to_the_end.any()
    votes = smoothed.votes(IMAGES)
    assert torch.equal(result.votes[open_to_the_end], votes.counts[open_to_the_end])
    assert torch.equal(result.selection, votes.selection)


def test_an_easy_image_takes_one_look():
    smoothed = Smoothed(RandomTable(3, seed=0, bias=1.0), RandomizedAblation(1), 3, n0=16, alpha=0.01)
    result = smoothed.certify_at(IMAGES, 0)
    assert (result.samples == 32).all()
    assert (result.prediction == 0).all()
    assert result.settled.all()


def test_stopped_votes_are_no_fixed_sample():
    smoothed = toy()
    index = torch.arange(12)
    result = smoothed.certify_at(IMAGES, 1, max_n=500)
    votes = result.votes_of(3, index, (1, 2, 4))
    for use in (smoothed.certificate, smoothed.prediction):
        with pytest.raises(ValueError, match="sampled until a question was settled"):
            use(votes)


def test_unanimous_votes_do_not_certify_everything():
    """p = 1 would certify every feature of discrete noise; no number of samples shows p = 1."""
    smoothed = Smoothed(RandomTable(2, seed=0, bias=1.0), DiscreteNoise(0.6, q=1), 2, n0=8, alpha=0.01)
    result = smoothed.certify_within(IMAGES, 3.0, max_n=4_000)
    assert result.settled.all()
    assert (result.radius_upper < 300).all()
    few = torch.tensor([1e-6], dtype=torch.float64)
    assert confidence.lower_bound(torch.tensor([100]), 100, 0.05, uniforms=few).item() < 1


def test_radii_that_are_not_float64_are_refused():
    @dataclass(frozen=True)
    class Coarse(RandomizedAblation):
        def radius(self, p_lower, p_upper, *, shape=None):
            return super().radius(p_lower, p_upper, shape=shape).float()

    smoothed = Smoothed(RandomTable(3, seed=0), Coarse(2), 3, n0=10)
    with pytest.raises(ValueError, match=r"Coarse: got radii torch\.float32"):
        smoothed.certify_at(IMAGES, 1)


def test_exact_schemes_have_nothing_to_sample():
    smoothed = Smoothed(RandomTable(3, seed=0), DeterministicAblation(2), 3)
    with pytest.raises(TypeError, match="DeterministicAblation, which is exact"):
        smoothed.certify_at(IMAGES, 1)


@settings(max_examples=20)
@given(alpha=st.sampled_from([0.3, 0.05, 0.001, 1e-9]), n=st.integers(1, 40), p=st.fractions(0, 1, max_denominator=30))
def test_randomized_bounds_are_wrong_exactly_as_often_as_alpha(alpha, n, p):
    """P(bound > p), integrated over the uniforms: the bound exceeds p iff u P(X >= k) + (1 - u) P(X > k) < alpha."""
    counts = torch.arange(n + 1)
    low, high = torch.zeros(n + 1, dtype=torch.float64), torch.ones(n + 1, dtype=torch.float64)
    for _ in range(30):  # uniforms below a threshold give a bound above p
        middle = (low + high) / 2
        bounds = confidence.lower_bound(counts, n, alpha, uniforms=middle).tolist()
        above = torch.tensor([Fraction(bound) > p for bound in bounds])
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    masses = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    failure = sum((mass * Fraction(u) for mass, u in zip(masses, low.tolist(), strict=True)), Fraction(0))
    assert failure <= Fraction(alpha)
    if 0 < p < 1:
        assert failure > Fraction(alpha) * Fraction(999, 1000) - Fraction(1, 10**6)


@given(n=st.integers(1, 500), alpha=st.sampled_from([0.3, 0.05, 0.001]), u=st.floats(1e-9, 1), data=st.data())
def test_randomized_bounds_lie_between_two_plain_ones(n, alpha, u, data):
    k = torch.tensor([data.draw(st.integers(0, n))])
    uniforms = torch.tensor([u], dtype=torch.float64)
    bound = confidence.lower_bound(k, n, alpha, uniforms=uniforms)
    assert bound >= confidence.lower_bound(k, n, alpha) * (1 - 1e-9)
    if k < n:
        assert bound <= confidence.lower_bound(k + 1, n, alpha) * (1 + 1e-9)
    upper = confidence.upper_bound(k, n, alpha, uniforms=uniforms)
    assert upper <= confidence.upper_bound(k, n, alpha) * (1 + 1e-9)


def test_randomized_intervals_through_smoothed():
    plain, randomized = toy(n=200), toy(n=200, interval="randomized")
    index = torch.arange(100, 112)
    votes = plain.votes(IMAGES, index=index)
    a, b = plain.certificate(votes), randomized.certificate(votes)
    assert a.p_lower is not None
    assert b.p_lower is not None
    assert (b.p_lower >= a.p_lower * (1 - 1e-9)).all()
    assert (b.p_lower > a.p_lower * (1 + 1e-6)).any()
    assert torch.equal(b.p_lower, randomized.certify(IMAGES, index=index).p_lower)
    simultaneous = toy(n=200, interval="randomized", bounds="simultaneous").certificate(votes)
    assert (simultaneous.radius >= toy(n=200, bounds="simultaneous").certificate(votes).radius).all()
    with pytest.raises(ValueError, match="interval: got 'exact'"):
        toy(interval="exact")


def test_uniforms_are_checked_and_reproducible():
    uniforms = confidence.bound_uniforms(3, torch.arange(2_000), 10)
    assert uniforms.shape == (2_000, 10)
    assert uniforms.min() > 0
    assert uniforms.max() <= 1
    assert abs(uniforms.mean() - 0.5) < 0.01
    assert torch.equal(uniforms[7:9], confidence.bound_uniforms(3, torch.tensor([7, 8]), 10))
    with pytest.raises(ValueError, match=r"uniforms: got torch.float64 \(1,\)"):
        confidence.lower_bound(torch.tensor([1, 2]), 5, 0.1, uniforms=torch.ones(1, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"expected \(0, 1\]"):
        confidence.lower_bound(torch.tensor([1]), 5, 0.1, uniforms=torch.zeros(1, dtype=torch.float64))
