"""Bounds and tests against exact rational arithmetic: never on the unsafe side, and sharp."""

from __future__ import annotations

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from certify import DeterministicSplittingNoise, GaussianNoise, confidence, topk


def tail(k: int, n: int, p: Fraction) -> Fraction:
    """P(Binomial(n, p) >= k), exactly."""
    return sum((math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1)), Fraction(0))


@given(n=st.integers(1, 60), alpha=st.sampled_from([0.5, 0.05, 0.001, 1e-6]), data=st.data())
def test_lower_bound_against_exact_arithmetic(n, alpha, data):
    k = data.draw(st.integers(0, n))
    bound = confidence.lower_bound(torch.tensor([k]), n, alpha).item()
    if k == 0:
        assert bound == 0
        return
    # at the bound, seeing k or more is at most as likely as alpha; a little above, more likely
    assert tail(k, n, Fraction(bound)) <= Fraction(alpha)
    assert tail(k, n, Fraction(bound) * (1 + Fraction(1, 10**9))) > Fraction(alpha)


def fifty_digit_tail(k: int, n: int, p: mpmath.mpf) -> mpmath.mpf:
    """P(Binomial(n, p) >= k) for k > n p: terms fall from the first on, each by a known ratio."""
    log_term = mpmath.loggamma(n + 1) - mpmath.loggamma(k + 1) - mpmath.loggamma(n - k + 1)
    term = mpmath.exp(log_term + k * mpmath.log(p) + (n - k) * mpmath.log1p(-p))
    total = term
    for i in range(k, n):
        term *= p / (1 - p) * (n - i) / (i + 1)
        total += term
        if term < total * mpmath.mpf(10) ** -40:
            break
    return total


@pytest.mark.parametrize("n", [1_000, 10_000, 100_000])
@pytest.mark.parametrize("alpha", [0.05, 0.001, 0.001 / 1000])
def test_lower_bound_against_fifty_digits(n, alpha):
    for k in [1, 2, n // 7, n // 2, n // 2 + 1, n - 300, n - 1, n]:
        bound = confidence.lower_bound(torch.tensor([k]), n, alpha).item()
        with mpmath.workdps(50):
            exact = mpmath.mpf(bound)
            assert fifty_digit_tail(k, n, exact) <= mpmath.mpf(alpha)
            assert fifty_digit_tail(k, n, exact * (1 + mpmath.mpf(10) ** -9)) > mpmath.mpf(alpha)


@pytest.mark.parametrize("n", [10**5, 10**6, 10**7, 10**8])
@pytest.mark.parametrize("alpha", [0.1, 0.11, 0.35, 0.5, 0.7, 0.9])
def test_few_successes_and_large_failure_probabilities(n, alpha):
    """There the incomplete beta function itself is inaccurate."""

    def exact_tail(k: int, p: mpmath.mpf) -> mpmath.mpf:
        log_p, log_q = mpmath.log(p), mpmath.log1p(-p)
        return 1 - sum(math.comb(n, i) * mpmath.exp(i * log_p + (n - i) * log_q) for i in range(k))

    with mpmath.workdps(50):
        for k in (1, 2, 3, 5, 8, 13, 21, 29):
            plain = confidence.lower_bound(torch.tensor([k]), n, alpha).item()
            assert alpha * (1 - 1e-6) < exact_tail(k, mpmath.mpf(plain)) <= alpha
            for u in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9):
                number = torch.tensor([u], dtype=torch.float64)
                bound = mpmath.mpf(confidence.lower_bound(torch.tensor([k]), n, alpha, uniforms=number).item())
                mean = u * exact_tail(k, bound) + (1 - mpmath.mpf(u)) * exact_tail(k + 1, bound)
                assert alpha * (1 - 1e-6) < mean <= alpha


def test_bounds_of_a_single_number():
    number = torch.tensor(0.5, dtype=torch.float64)
    for bound in (confidence.lower_bound, confidence.upper_bound):
        single = bound(torch.tensor(3), 10, 0.05, uniforms=number)
        assert single.shape == ()
        assert single == bound(torch.tensor([3]), 10, 0.05, uniforms=number[None])[0]


@pytest.mark.parametrize(
    ("n", "alpha", "k"),
    # where the inverse of the incomplete beta function itself is inaccurate or fails
    [(10**7, 1e-6, 9_999_001), (10**7, 1e-5, 1000), (10**5, 1e-100, 99_001), (10, 1e-150, 9), (200, 1e-145, 4)],
)
def test_lower_bound_where_the_inverse_function_is_wrong(n, alpha, k):
    bound = confidence.lower_bound(torch.tensor([k]), n, alpha).item()
    assert 0 <= bound < k / n
    if bound > 0:
        with mpmath.workdps(50):
            assert fifty_digit_tail(k, n, mpmath.mpf(bound)) <= mpmath.mpf(alpha)


@pytest.mark.parametrize("alpha", [1e-300, 1e-151])
def test_alpha_that_double_precision_cannot_tell_from_0(alpha):
    with pytest.raises(ValueError, match=r"alpha .*: got 1e-.*, expected at least 1e-150"):
        confidence.lower_bound(torch.tensor([2129]), 2149, alpha)


@pytest.mark.parametrize("n", [1, 50, 100_000, 10**7])
@pytest.mark.parametrize("alpha", [0.999, 0.001, 1e-145])
def test_bounds_of_many_counts_are_those_of_each(n, alpha):
    """A bound does not depend on what else is bounded, though each count is bounded once."""
    counts = torch.from_numpy(np.random.default_rng(0).integers(0, n + 1, (5, 6)))
    counts[0], counts[1] = torch.arange(6) % (n + 1), n
    for bound in (confidence.lower_bound, confidence.upper_bound):
        together = bound(counts, n, alpha)
        assert together.shape == counts.shape
        assert together.flatten().tolist() == [bound(count, n, alpha).item() for count in counts.view(-1, 1)]


@given(n=st.integers(1, 60), alpha=st.sampled_from([0.5, 0.05, 0.001]), data=st.data())
def test_upper_bound_against_exact_arithmetic(n, alpha, data):
    k = data.draw(st.integers(0, n))
    bound = confidence.upper_bound(torch.tensor([k]), n, alpha).item()
    if k == n:
        assert bound == 1
        return
    assert 1 - tail(k + 1, n, Fraction(bound)) <= Fraction(alpha)


@pytest.mark.parametrize("p", [0.02, 0.5, 0.83, 0.999])
def test_lower_bound_coverage(p):
    n, alpha, runs = 200, 0.05, 40_000
    k = torch.from_numpy(np.random.default_rng(0).binomial(n, p, runs))
    failures = (confidence.lower_bound(k, n, alpha) > p).double().mean().item()
    assert failures <= alpha + 4 * math.sqrt(alpha * (1 - alpha) / runs)


def test_simultaneous_coverage():
    p, n, alpha, runs = np.array([0.5, 0.3, 0.15, 0.05]), 300, 0.05, 20_000
    counts = torch.from_numpy(np.random.default_rng(1).multinomial(n, p, runs))
    selected = torch.zeros(runs, dtype=torch.int64)
    lower, upper = confidence.simultaneous_bounds(counts, selected, n, alpha)
    failures = ((lower > p[0]) | (upper < p[1:].max())).double().mean().item()
    assert failures <= alpha + 4 * math.sqrt(alpha * (1 - alpha) / runs)


NUMBERS = st.one_of(
    st.sampled_from([2.0**-53, 0.25, 0.5, 0.5 + 2.0**-53, 0.75, 1 - 2.0**-53, 1.0]), st.floats(2.0**-53, 1)
)


@settings(max_examples=60, deadline=None)
@given(
    n=st.sampled_from([1, 2, 9, 300, 100_000, 10**8]),
    alpha=st.sampled_from([0.999, 0.5, 0.001, 1e-100]),
    classes=st.integers(2, 12),
    data=st.data(),
)
def test_largest_randomized_bound_is_that_of_all_classes(n, alpha, classes, data):
    """The same doubles as from the bounds of all classes, with ties and with neighbouring counts and uniforms."""
    counts = st.one_of(st.integers(0, min(n, 3)), st.integers(max(0, n - 2), n), st.integers(0, n))
    votes = torch.tensor(data.draw(st.lists(st.lists(counts, min_size=classes, max_size=classes), max_size=3)))
    votes = votes.view(-1, classes).long()
    drawn = data.draw(st.lists(NUMBERS, min_size=votes.numel(), max_size=votes.numel()))
    uniforms = torch.tensor(drawn, dtype=torch.float64).view(votes.shape)
    selected = torch.tensor(data.draw(st.lists(st.integers(0, classes - 1), min_size=len(votes), max_size=len(votes))))
    selected = selected.long()
    lower, upper = confidence.simultaneous_bounds(votes, selected, n, alpha, uniforms=uniforms)
    each = confidence.upper_bound(votes, n, alpha / classes, uniforms=uniforms)
    assert torch.equal(upper, each.scatter(1, selected[:, None], 0).amax(1))
    own = [t.gather(1, selected[:, None])[:, 0] for t in (votes, uniforms)]
    assert torch.equal(lower, confidence.lower_bound(own[0], n, alpha / classes, uniforms=own[1]))


@pytest.mark.parametrize(("n", "spread"), [(1_000, 0.02), (100_000, 0.05), (100_000, 5.0)])
def test_largest_randomized_bound_of_many_classes(n, spread):
    generator = np.random.default_rng(3)
    counts = torch.from_numpy(np.stack([generator.multinomial(n, p) for p in generator.dirichlet([spread] * 300, 6)]))
    counts[0], counts[1] = 0, torch.eye(300, dtype=torch.int64)[7] * n  # ties of all, and of all but one class
    uniforms = torch.from_numpy(1 - generator.random(counts.shape))
    upper = confidence.simultaneous_bounds(counts, counts.argmax(1), n, 0.001, uniforms=uniforms)[1]
    each = confidence.upper_bound(counts, n, 0.001 / 300, uniforms=uniforms)
    assert torch.equal(upper, each.scatter(1, counts.argmax(1)[:, None], 0).amax(1))


def test_numbers_of_randomized_bounds_are_checked():
    counts, selected = torch.tensor([[3, 2, 1]]), torch.tensor([0])
    for bad in (torch.full((1, 3), 0.5), torch.tensor([[0.5, 0.5, 0.0]]).double(), torch.ones(1, 2).double()):
        with pytest.raises(ValueError, match="uniforms: got"):
            confidence.simultaneous_bounds(counts, selected, 6, 0.05, uniforms=bad)
    with pytest.raises(ValueError, match="expected 0 <= count <= n"):
        confidence.simultaneous_bounds(torch.tensor([[3, 7, 1]]), selected, 6, 0.05, uniforms=torch.ones(1, 3).double())


@given(top=st.integers(0, 400), second=st.integers(0, 400))
def test_binomial_test_against_exact_arithmetic(top, second):
    top, second = max(top, second), min(top, second)
    p_value = confidence.binomial_p_value(torch.tensor([top]), torch.tensor([second])).item()
    exact = min(Fraction(1), 2 * tail(top, top + second, Fraction(1, 2)))
    assert exact <= Fraction(p_value) <= exact * (1 + Fraction(1, 10**9))


def test_predict_or_abstain():
    counts = torch.tensor([[90, 10, 0], [50, 50, 0], [0, 53, 47], [0, 0, 0], [0, 0, 100]])
    assert confidence.predict_or_abstain(counts, 0.05).tolist() == [0, -1, -1, -1, 2]


def test_prediction_errors_are_rare():
    """Of two almost equally likely classes, the wrong one is returned in at most a share alpha of all runs."""
    runs, alpha = 20_000, 0.1
    counts = torch.from_numpy(np.random.default_rng(2).multinomial(100, [0.505, 0.495], runs))
    wrong = (confidence.predict_or_abstain(counts, alpha) == 1).double().mean().item()
    assert wrong <= alpha


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 1.5, float("nan")])
def test_alpha_out_of_range(alpha):
    with pytest.raises(ValueError, match="alpha"):
        confidence.lower_bound(torch.tensor([1]), 2, alpha)


@pytest.mark.parametrize("n", [0, -1, 10.5, math.nan, math.inf, 10**8 + 1])
def test_impossible_numbers_of_samples(n):
    with pytest.raises(ValueError, match=r"n \(samples\): got .*, expected an integer in \[1, 100,000,000\]"):
        confidence.lower_bound(torch.tensor([0]), n, 0.05)


def test_averaged_votes_are_refused():
    with pytest.raises(TypeError, match="integer counts"):
        confidence.lower_bound(torch.tensor([0.5]), 2, 0.05)
    with pytest.raises(TypeError, match="integer counts"):
        confidence.upper_bound(torch.tensor([9.9]), 100, 0.05)
    averaged = torch.tensor([[90.7, 9.3]])
    for uniforms in (None, torch.full((1, 2), 0.5, dtype=torch.float64)):
        with pytest.raises(TypeError, match="integer counts"):
            confidence.simultaneous_bounds(averaged, torch.tensor([0]), 100, 0.05, uniforms=uniforms)
    with pytest.raises(TypeError, match="integer counts"):
        confidence.predict_or_abstain(averaged, 0.05)
    with pytest.raises(TypeError, match="integer counts"):
        confidence.binomial_p_value(averaged[:, 0], averaged[:, 1])


@pytest.mark.parametrize(("k", "n"), [(3, 2), (-1, 2)])
def test_impossible_counts(k, n):
    with pytest.raises(ValueError, match="expected 0 <= count <= n"):
        confidence.lower_bound(torch.tensor([k]), n, 0.05)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint64])
def test_votes_in_small_integers_are_worth_the_same(dtype):
    """Sums and differences of votes do not fit into these types."""
    counts = torch.tensor([[100, 100, 0], [60, 40, 27], [120, 7, 0], [0, 0, 127]])
    small, selected = counts.to(dtype), torch.tensor([0, 0, 0, 2])
    assert confidence.predict_or_abstain(small, 0.05).equal(confidence.predict_or_abstain(counts, 0.05))
    assert confidence.predict_or_abstain(small, 0.05).tolist() == [-1, -1, 0, 2]
    assert confidence.binomial_p_value(small[:, 0], small[:, 1]).equal(
        confidence.binomial_p_value(counts[:, 0], counts[:, 1])
    )
    for n in (254, 1_000, 100_000):
        assert confidence.upper_bound(small, n, 0.01).equal(confidence.upper_bound(counts, n, 0.01))
        both = zip(
            confidence.simultaneous_bounds(small, selected, n, 0.01),
            confidence.simultaneous_bounds(counts, selected, n, 0.01),
            strict=True,
        )
        assert all(own.equal(other) for own, other in both)
        scheme = GaussianNoise(0.5)
        for bounds in ("one-sided", "simultaneous"):
            radii = [
                scheme.certify_counts(votes.flip(0), votes, 0.01, n=n, bounds=bounds).radius
                for votes in (small, counts)
            ]
            assert radii[0].equal(radii[1])
        assert topk.certify_counts(small, 2, 64, 5, 0.01, n=n).radius.equal(
            topk.certify_counts(counts, 2, 64, 5, 0.01, n=n).radius
        )
    exact = DeterministicSplittingNoise(0.5)
    assert exact.certify_counts(small).radius.equal(exact.certify_counts(counts).radius)
