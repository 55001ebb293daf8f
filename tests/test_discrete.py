from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from certify import L0, DiscreteNoise, RandomizedAblation, Smoothed
from certify.ablation import touched_shares
from certify.coverage import doubles_above
from certify.discrete import MAX_RADIUS, LikelihoodRatio, noise_words
from certify.draws import ESTIMATION, TRAINING, Draws

HALF = Fraction(1, 2)


def ratio_of(kappa: float, q: int) -> LikelihoodRatio:
    return LikelihoodRatio(*noise_words(kappa, q))


def paper_regions(d: int, q: int, r: int) -> dict[tuple[int, int], int]:
    """How many copies differ from x in u and from y in v of the d features: the paper's count over all features.

    i differences in the features that x and y share; in the r others, r - (u - i) values of x, r - (v - i) of y.
    """
    counts = {}
    for u, v, i in itertools.product(range(d + 1), range(d + 1), range(d - r + 1)):
        equal_x, equal_y = r - (u - i), r - (v - i)
        rest = r - equal_x - equal_y
        if min(equal_x, equal_y, rest) < 0:
            continue
        changed = math.factorial(r) // (math.factorial(equal_x) * math.factorial(equal_y) * math.factorial(rest))
        ways = math.comb(d - r, i) * q**i * changed * (q - 1) ** rest
        counts[u, v] = counts.get((u, v), 0) + ways
    return {pair: count for pair, count in counts.items() if count}


def paper_least(kappa: Fraction, q: int, d: int, r: int, p: Fraction) -> Fraction:
    """The paper's algorithm with all d features: regions by falling likelihood ratio, filled up to p."""
    other = (1 - kappa) / q
    regions = [
        (kappa ** (d - u) * other**u * count, kappa ** (d - v) * other**v * count)
        for (u, v), count in paper_regions(d, q, r).items()
    ]
    regions.sort(key=lambda masses: masses[0] / masses[1], reverse=True)
    least = Fraction(0)
    for at_x, at_y in regions:
        taken = min(p, at_x)
        p, least = p - taken, least + taken * at_y / at_x
    return least


@pytest.mark.parametrize(("d", "q"), [(4, 1), (3, 2), (3, 3), (4, 2)])
def test_the_paper_s_count_against_enumeration(d, q):
    for r in range(d + 1):
        counts: dict[tuple[int, int], int] = {}
        for copy in itertools.product(range(q + 1), repeat=d):
            u, v = sum(z != 0 for z in copy), sum(z != int(i < r) for i, z in enumerate(copy))
            counts[u, v] = counts.get((u, v), 0) + 1
        assert paper_regions(d, q, r) == counts


@given(
    q=st.integers(1, 300),
    d=st.integers(1, 8),
    share=st.floats(0.01, 0.99),
    p=st.fractions(0, 1, max_denominator=10**6),
    data=st.data(),
)
def test_worst_case_against_the_paper_s_sum_over_all_features(q, d, share, p, data):
    kappa = (1 + share * q) / (q + 1)
    keep, _ = noise_words(kappa, q)
    r = data.draw(st.integers(0, d))
    assert ratio_of(kappa, q).least(p, r) == paper_least(Fraction(keep, 1 << 32), q, d, r, p)


@pytest.mark.parametrize(("kappa", "q", "r"), [(0.6, 1, 1), (0.6, 1, 4), (0.4, 2, 2), (0.45, 2, 3), (0.3, 4, 2)])
def test_worst_case_against_a_linear_program_over_all_classifiers(kappa, q, r):
    """d = r + 1 features; a variable for the probability that the base classifier says "class" on each copy."""
    d = r + 1
    keep = float(DiscreteNoise(kappa, q).keep_probability)
    other = (1 - keep) / q
    x, y = [0] * d, [1] * r + [0]
    copies = list(itertools.product(range(q + 1), repeat=d))

    def law(centre: list[int]) -> np.ndarray:
        return np.array([math.prod(keep if a == b else other for a, b in zip(z, centre, strict=True)) for z in copies])

    at_x, at_y = law(x), law(y)
    for p in (0.1, 0.5, 0.77, 0.93, 0.999):
        least = linprog(at_y, A_eq=at_x[None], b_eq=[p], bounds=(0, 1)).fun
        most = -linprog(-at_y, A_eq=at_x[None], b_eq=[p], bounds=(0, 1)).fun
        ratio = ratio_of(kappa, q)
        assert float(ratio.least(Fraction(p), r)) == pytest.approx(least, abs=1e-8)
        assert float(ratio.most(Fraction(p), r)) == pytest.approx(most, abs=1e-8)


def test_two_sided_worst_case_against_a_linear_program():
    """Two classes at once: the smallest lead at y, over all ways to give every copy to the class, the rival or none."""
    keep, r = float(DiscreteNoise(0.4, 2).keep_probability), 3
    other, copies = (1 - keep) / 2, list(itertools.product(range(3), repeat=r))
    at_x = np.array([math.prod(keep if z == 0 else other for z in copy) for copy in copies])
    at_y = np.array([math.prod(keep if z == 1 else other for z in copy) for copy in copies])
    zero, size = np.zeros_like(at_x), len(copies)
    for low, high in ((0.5, 0.2), (0.6, 0.4), (0.7, 0.1), (0.35, 0.3)):
        lead = linprog(
            np.concatenate((at_y, -at_y)),
            A_ub=np.vstack(
                (np.concatenate((-at_x, zero)), np.concatenate((zero, at_x)), np.hstack((np.eye(size), np.eye(size))))
            ),
            b_ub=np.concatenate(([-low, high], np.ones(size))),
            bounds=(0, 1),
        ).fun
        ratio = ratio_of(0.4, 2)
        exact = ratio.least(Fraction(low), r) - ratio.most(Fraction(high), r)
        assert float(exact) == pytest.approx(lead, abs=1e-8)
        assert ratio.certified(Fraction(low), Fraction(high), r) == (exact > 0)


@given(kappa=st.floats(0.4, 0.99), q=st.integers(2, 300), r=st.integers(0, 12), p=st.fractions(0, 1))
def test_the_worst_cases_are_inverse_monotone_and_on_their_side(kappa, q, r, p):
    ratio = ratio_of(kappa, q)
    least = ratio.least(p, r)
    assert ratio.most(least, r) == p
    assert least <= p <= ratio.most(p, r)
    assert ratio.least(p, r + 1) <= least
    assert ratio.most(1 - p, r) == 1 - least
    assert ratio.threshold(r) < ratio.threshold(r + 1) < 1


# Printed by the authors' release to 20 digits, for binary MNIST (kappa 0.8) and ImageNet (kappa 0.1, 0.2).
PUBLISHED = {
    (0.8, 1): [0.875, 0.96875, 0.9921875, 0.99275, 0.9969875, 0.999006875, 0.99970371875, 0.9999163296875],
    (0.1, 255): [0.59647058823529, 0.68295363321799, 0.76055123631183, 0.83023729891357, 0.89287305667933],
    (0.2, 255): [0.69686274509804, 0.85373533256440, 0.97898829668830, 0.99493645881486, 0.99619020439204],
}


@pytest.mark.parametrize(("kappa", "q"), PUBLISHED)
def test_published_thresholds(kappa, q):
    """They are of the decimal kappa, ours of the probability that is drawn: at most q / 2^32 below it for a feature."""
    for r, published in enumerate(PUBLISHED[kappa, q], start=1):
        ours = float(ratio_of(kappa, q).threshold(r))
        assert published - r * q / 2**32 <= ours <= published + 1e-13


def test_comparison_with_randomized_ablation_of_chapter_2():
    """p = 0.596 certifies one feature of ImageNet at kappa = 0.1; ablation may then keep 14,521 features."""
    needed = ratio_of(0.1, 255).threshold(1)
    shape, p = (3, 224, 224), torch.tensor(doubles_above([needed]), dtype=torch.float64)
    assert round(float(needed), 3) == 0.596
    assert DiscreteNoise(0.1).radius(p, 1 - p, shape=shape).item() == 1
    assert DiscreteNoise(0.1).radius(p - 1e-12, 1 - p + 1e-12, shape=shape).item() == 0
    assert touched_shares(150528, 14521)[1] < needed - HALF < touched_shares(150528, 14522)[1]
    assert RandomizedAblation(14521, unit="feature").radius(p, 1 - p, shape=shape).item() == 1
    assert RandomizedAblation(14522, unit="feature").radius(p, 1 - p, shape=shape).item() == 0


@given(kappa=st.floats(0.34, 0.95), q=st.sampled_from([2, 255]), p=st.floats(0.45, 1, exclude_max=True))
def test_radius_is_the_largest_certified_number(kappa, q, p):
    """Against the definition, change by change, with the exact value of the double."""
    ratio, certified = ratio_of(kappa, q), -1
    while certified < 30 and ratio.least(Fraction(p), certified + 1) > HALF:
        certified += 1
    lower = torch.tensor([p], dtype=torch.float64)
    assert DiscreteNoise(kappa, q).radius(lower, 1 - lower, shape=(1, 5, 6)).item() == certified


@given(p=st.floats(0, 1), u=st.floats(0, 1))
def test_two_sided_radius(p, u):
    scheme, ratio, shape = DiscreteNoise(0.3, 4), ratio_of(0.3, 4), (1, 3, 4)
    lower, upper = torch.tensor([p], dtype=torch.float64), torch.tensor([u], dtype=torch.float64)
    got = scheme.radius(lower, upper, shape=shape).item()
    one_sided = scheme.radius(lower, 1 - lower, shape=shape).item()
    low, high = Fraction(p), min(Fraction(u), 1 - Fraction(p))
    expected = max((r for r in range(13) if ratio.certified(low, high, r)), default=-1) if p < 1 else 12
    assert got == expected >= one_sided


def test_radius_at_the_ends():
    lower = torch.tensor([0.0, 0.5, 0.5 + 2**-53, 1 - 2**-53, 1.0, float("nan")], dtype=torch.float64)
    radius = DiscreteNoise(0.6, q=1).radius(lower, 1 - lower, shape=(1, 2, 2))
    assert radius.tolist() == [-1, -1, 0, 4, 4, -1]
    close_to_nothing = DiscreteNoise(0.501, q=1).radius(lower, 1 - lower, shape=(1, 100, 100))
    assert close_to_nothing.tolist() == [-1, -1, 0, MAX_RADIUS, 10_000, -1]
    both = torch.tensor([0.9], dtype=torch.float64)
    assert DiscreteNoise(0.501, q=1).radius(both, both - 0.85, shape=(1, 100, 100)).item() == MAX_RADIUS


@pytest.mark.parametrize(("kappa", "q"), [(0.1, 255), (0.2, 255), (0.5, 255), (0.8, 1), (0.55, 1), (0.3, 7)])
def test_words_make_the_distribution_exactly(kappa, q):
    """Of all 2^32 words, other for each other value, from the ends of the blocks that are mapped to it."""
    keep, other = noise_words(kappa, q)
    assert keep + q * other == 1 << 32
    assert 0 <= Fraction(kappa) - Fraction(keep, 1 << 32) < Fraction(q, 1 << 32)
    first = [i * other for i in range(q + 1)]
    words = torch.tensor(first + [w - 1 for w in first[1:]] + [(1 << 32) - 1])

    class Words(Draws):
        def words(self, count: int, start: int = 0) -> torch.Tensor:
            return words.view(1, 1, -1)

    level = q // 2
    x = torch.full((1, 1, 1, len(words)), level / q, dtype=torch.float64)
    copies = DiscreteNoise(kappa, q).sample(x, Words(0, ESTIMATION, torch.zeros(1, 1).long(), torch.zeros(1, 1).long()))
    shown = (copies.flatten().double() * q).round().long().tolist()
    moved = [(level + 1 + i) % (q + 1) for i in range(q)]
    assert shown == [*moved, level, *moved, level]
    assert level not in moved


def test_division_of_words_has_the_right_floor():
    generator = np.random.default_rng(0)
    for other in (1, 2, 3, 255, 15158709, 858993460, (1 << 31) - 1):
        multiples = generator.integers(0, (1 << 32) // other, 2000) * other
        words = np.concatenate((multiples, np.maximum(multiples - 1, 0), generator.integers(0, 1 << 32, 2000)))
        assert (np.floor(words.astype(np.float64) / other) == words // other).all()


def test_copies_of_8_bit_images():
    x = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    copies = DiscreteNoise(0.3).sample(x, Draws.of(0, ESTIMATION, torch.arange(2), range(50)))
    assert copies.shape == (2, 50, 3, 8, 8)
    assert copies.dtype == torch.float32
    levels = (copies.double() * 255).round()
    assert torch.equal((levels / 255).float(), copies)
    kept = (levels == x[:, None]).double().mean().item()
    assert kept == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / copies.numel()))
    as_float = DiscreteNoise(0.3).sample(x.double() / 255, Draws.of(0, ESTIMATION, torch.arange(2), range(50)))
    assert torch.equal(copies, as_float)


def test_one_noise_for_a_minibatch():
    shared = Draws(0, TRAINING, torch.tensor([[3]]), torch.tensor([[0]]))
    x = torch.randint(0, 256, (6, 1, 5, 5), dtype=torch.uint8)
    copies = (DiscreteNoise(0.3).sample(x, shared)[:, 0] * 255).round().long()
    assert len(torch.unique((copies - x) % 256, dim=0)) == 1


def test_certifies_the_threat_it_says():
    base = lambda copies: torch.stack((copies.mean((1, 2, 3)) - 0.5, 0.5 - copies.mean((1, 2, 3))), 1)  # noqa: E731
    x = torch.ones(1, 1, 6, 6)
    result = Smoothed(base, DiscreteNoise(0.9, q=1), 2, n0=100, n=2_000).certify(x)
    assert result.threat == L0("feature")
    assert result.prediction.item() == 0
    assert result.radius.item() == 2


def test_simultaneous_bounds_certify_what_one_sided_cannot():
    scheme, shape = DiscreteNoise(0.2, q=9), (1, 4, 4)
    counts = torch.tensor([[4500] + [550] * 10])
    selection = counts // 10
    one = scheme.certify_counts(selection, counts, 0.05, n=10_000, shape=shape)
    both = scheme.certify_counts(selection, counts, 0.05, n=10_000, shape=shape, bounds="simultaneous")
    assert one.radius.item() == -1
    assert both.radius.item() >= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kappa": 0.0}, "kappa: got 0.0"),
        ({"kappa": 1.0}, "kappa: got 1.0"),
        ({"kappa": math.nan}, "kappa: got nan"),
        ({"kappa": 0.5, "q": 1}, r"kappa: got 0.5, expected more than 1 / \(q \+ 1\) = 0.5"),
        ({"kappa": 1 / 256}, "expected more than"),
        ({"kappa": 0.5, "q": 0}, "q .*: got 0"),
        ({"kappa": 0.5, "q": 1.5}, "q .*: got 1.5"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        DiscreteNoise(**options)


def test_images_off_the_grid():
    with pytest.raises(ValueError, match="not multiples of 1/1, expected images of 2 levels; quantize"):
        Smoothed(lambda c: c, DiscreteNoise(0.8, q=1), 2).certify(torch.full((1, 1, 2, 2), 7, dtype=torch.uint8))


def test_radius_needs_the_shape():
    counts = torch.tensor([[90, 10]])
    with pytest.raises(ValueError, match="shape: got None; DiscreteNoise needs"):
        DiscreteNoise(0.5).certify_counts(counts.clone(), counts, 0.05, n=100)
