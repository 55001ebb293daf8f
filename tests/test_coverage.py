from __future__ import annotations

from fractions import Fraction

import torch
from hypothesis import given
from hypothesis import strategies as st

from certify import coverage

shares = st.lists(st.fractions(0, 1, max_denominator=10**6), min_size=1, max_size=12).map(
    lambda values: [Fraction(0), *sorted(values), Fraction(1)]
)


@given(st.fractions(-2, 2, max_denominator=10**9))
def test_doubles_above_is_the_next_double(share):
    (value,) = coverage.doubles_above([share])
    below = torch.nextafter(torch.tensor(value, dtype=torch.float64), torch.tensor(-9.0, dtype=torch.float64)).item()
    assert Fraction(below) <= share < Fraction(value)


@given(shares, st.lists(st.floats(-1, 0.5), min_size=1, max_size=5))
def test_steps_within_compares_exactly(touched, margins):
    steps = coverage.steps_within(torch.tensor(margins, dtype=torch.float64), touched)
    for margin, step in zip(margins, steps.tolist(), strict=True):
        certified = [j for j, share in enumerate(touched) if share < Fraction(margin)]
        assert step == max(certified, default=-1)


@given(st.lists(shares, min_size=1, max_size=4), st.lists(st.floats(-1, 0.5), min_size=1, max_size=5))
def test_what_is_kept_of_shares_is_theirs(several, margins):
    """Tuples are looked up by identity: equal ones, others, and lists that are changed give what belongs to them."""
    at = torch.tensor(margins, dtype=torch.float64)
    for touched in (*several, *several):
        kept, given = tuple(touched), list(touched)
        expected = [max((j for j, share in enumerate(touched) if share < Fraction(m)), default=-1) for m in margins]
        for shares_ in (kept, kept, given, given):
            assert coverage.steps_within(at, shares_).tolist() == expected
        given[:-1] = [Fraction(1)] * (len(given) - 1)
        assert coverage.steps_within(at, given).tolist() == [-1] * len(margins)


@given(st.floats(0, 1), st.floats(0, 1))
def test_margin_is_never_too_large(p_lower, p_upper):
    margin = coverage.margin(*(torch.tensor([p], dtype=torch.float64) for p in (p_lower, p_upper))).item()
    exact = (Fraction(p_lower) - Fraction(p_upper)) / 2
    assert Fraction(margin) < exact or exact == Fraction(margin) == 0
    assert exact - Fraction(margin) <= Fraction(1, 10**15)


def test_nan_certifies_nothing():
    nan = torch.tensor([float("nan")], dtype=torch.float64)
    assert coverage.steps_within(nan, [Fraction(0), Fraction(1)]).item() == -1
    assert coverage.steps_within(coverage.margin(nan, nan), [Fraction(0), Fraction(1)]).item() == -1
