"""Metrics against their definitions, counted image by image."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from certify import metrics

NA = (False, -1.0)

# Few different radii, so that ties and radii that are asked for exactly are common.
radii = st.sampled_from([0.0, 0.5, 1.0, 85 / 255, 2.0]) | st.floats(0, 1e6)
images = st.tuples(st.booleans(), st.just(-1.0) | radii)
data_sets = st.lists(images, min_size=1, max_size=30)
probabilities = st.sampled_from([0.001, 0.05, 0.1]) | st.floats(1e-6, 1 - 1e-6)


def columns(data: list[tuple[bool, float]]) -> tuple[list[bool], list[float]]:
    return [correct for correct, _ in data], [radius for _, radius in data]


def accuracy_by_counting(data: list[tuple[bool, float]], at: float) -> Fraction:
    return Fraction(sum(correct and radius >= 0 and radius >= at for correct, radius in data), len(data))


@given(data_sets, st.lists(radii, max_size=5))
def test_certified_accuracy_by_counting(data, at):
    at = at + [radius for _, radius in data if radius >= 0]
    got = metrics.certified_accuracy(*columns(data), at)
    assert got.tolist() == pytest.approx([float(accuracy_by_counting(data, r)) for r in at], abs=1e-12)


@given(data_sets)
def test_median_by_counting(data):
    median = metrics.median_certified_robustness(*columns(data))
    reached = [r for correct, r in data if correct and r >= 0 and accuracy_by_counting(data, r) >= Fraction(1, 2)]
    assert median == max(reached, default=-math.inf)


@given(data_sets)
def test_average_by_counting(data):
    total = sum((Fraction(radius) for correct, radius in data if correct and radius >= 0), Fraction(0))
    average = metrics.average_certified_radius(*columns(data))
    assert average == pytest.approx(float(total / len(data)), rel=1e-12)


@given(data_sets, st.randoms())
def test_order_does_not_matter(data, random):
    shuffled = random.sample(data, len(data))
    grid = [0.0, 0.5, 1.0]
    assert np.array_equal(
        metrics.certified_accuracy(*columns(data), grid), metrics.certified_accuracy(*columns(shuffled), grid)
    )
    assert metrics.median_certified_robustness(*columns(data)) == metrics.median_certified_robustness(
        *columns(shuffled)
    )


@pytest.mark.parametrize(
    ("data", "median"),
    [
        ([NA, NA, (True, 1), (True, 2), (True, 3)], 1),
        ([NA, NA, NA, (True, 2), (True, 3)], -math.inf),
        ([NA, (True, 4)], 4),
        ([(True, 1), (True, 2), (True, 3), (True, 4)], 3),
        ([(True, 1), (True, 2), (True, 3)], 2),
        ([(True, 7)], 7),
        ([NA], -math.inf),
        ([(False, 5), (False, 5), (True, 1), (True, 2), (True, 3)], 1),
    ],
)
def test_medians(data, median):
    assert metrics.median_certified_robustness(*columns(data)) == median


def test_radii_are_inclusive():
    third = 85 / 255
    at = [0, np.nextafter(third, 0), third, np.nextafter(third, 1)]
    assert metrics.certified_accuracy([True, True], [third, 0.0], at).tolist() == [1, 0.5, 0.5, 0]


def test_wrong_and_abstaining_images_are_never_certified():
    correct, radius = [True, False, True, False], [2.0, 9.0, -1.0, -1.0]
    assert metrics.certified_accuracy(correct, radius, [-1, -0.5, 0, 2, 9]).tolist() == [0.25, 0.25, 0.25, 0.25, 0]
    assert metrics.average_certified_radius(correct, radius) == 0.5
    assert metrics.median_certified_robustness(correct, radius) == -math.inf


def test_infinite_radius():
    correct, radius = [True, True], [math.inf, 1.0]
    assert metrics.certified_accuracy(correct, radius, [1, 1e9]).tolist() == [1, 0.5]
    assert metrics.median_certified_robustness(correct, radius) == math.inf
    assert metrics.average_certified_radius(correct, radius) == math.inf


def test_abstentions_count_as_wrong():
    prediction, label = [0, 1, -1, -1, 2], [0, 2, 0, 1, 2]
    assert metrics.clean_accuracy(prediction, label) == 0.4
    assert metrics.abstention_rate(prediction) == 0.4


FUNCTIONS = [
    lambda correct, radius: metrics.certified_accuracy(correct, radius, [0]),
    metrics.median_certified_robustness,
    metrics.average_certified_radius,
    lambda correct, radius: metrics.certified_accuracy_lower_bound(correct, radius, [0], alpha=0.05),
]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("correct", [True, False])
def test_nan_is_refused(function, correct):
    with pytest.raises(ValueError, match="radius: got NaN"):
        function([True, correct], [1, math.nan])


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("correct", "radius"), [([], []), ([True], [1, 2]), ([[True]], [[1]]), (True, 1)])
def test_shapes_that_do_not_fit(function, correct, radius):
    with pytest.raises(ValueError, match="correct, radius: got shapes"):
        function(correct, radius)


def allowed_failures(m: int, alpha: float, rho: float) -> int:
    """The j of the bound: of m right and certified images, m - j are what is left."""
    bound = metrics.certified_accuracy_lower_bound([True] * m, [1.0] * m, [1], alpha=alpha, rho=rho)
    return round((1 - bound.item()) * m)


@given(m=st.integers(1, 2000), alpha=probabilities, rho=probabilities)
def test_allowed_failures_are_the_binomial_quantile(m, alpha, rho):
    j = allowed_failures(m, alpha, rho)
    tails = binom.sf([j - 1, j], m, alpha)
    assert tails[1] <= rho * (1 + 1e-9)
    assert tails[0] > rho * (1 - 1e-9)


@pytest.mark.parametrize("m", [100, 500, 10_000])
@pytest.mark.parametrize("alpha", [0.05, 0.001])
@pytest.mark.parametrize("rho", [0.05, 0.001])
def test_allowed_failures_are_scipys(m, alpha, rho):
    assert allowed_failures(m, alpha, rho) == binom.ppf(1 - rho, m, alpha)


@given(m=st.integers(1, 40), alpha=probabilities, rho=probabilities)
def test_too_many_failures_are_rarer_than_rho_exactly(m, alpha, rho):
    j, p = allowed_failures(m, alpha, rho), Fraction(alpha)
    tail = sum((math.comb(m, i) * p**i * (1 - p) ** (m - i) for i in range(j + 1, m + 1)), Fraction(0))
    assert tail <= Fraction(rho)


@given(data=data_sets, alpha=probabilities, rho=probabilities, at=st.lists(radii, min_size=1, max_size=4))
def test_bound_is_certified_accuracy_less_the_failures(data, alpha, rho, at):
    bound = metrics.certified_accuracy_lower_bound(*columns(data), at, alpha=alpha, rho=rho)
    j = Fraction(allowed_failures(len(data), alpha, rho), len(data))
    assert bound.tolist() == pytest.approx([float(max(0, accuracy_by_counting(data, r) - j)) for r in at], abs=1e-12)


@given(m=st.integers(1, 3000), alpha=probabilities, rho=probabilities)
def test_never_below_bernstein(m, alpha, rho):
    grid = [0, 1]
    correct, radius = np.ones(m, bool), np.arange(m) % 2
    bound = metrics.certified_accuracy_lower_bound(correct, radius, grid, alpha=alpha, rho=rho)
    accuracy = metrics.certified_accuracy(correct, radius, grid)
    assert (bound >= metrics.bernstein_lower_bound(accuracy, m, alpha=alpha, rho=rho) - 1e-12).all()


@given(accuracy=st.floats(0, 1), m=st.integers(1, 10**6), alpha=probabilities, rho=probabilities)
def test_bernstein_as_printed(accuracy, m, alpha, rho):
    log = math.log(1 / rho)
    expected = accuracy - alpha - math.sqrt(2 * alpha * (1 - alpha) * log / m) - log / (3 * m)
    got = metrics.bernstein_lower_bound(accuracy, m, alpha=alpha, rho=rho)
    assert float(got) == pytest.approx(max(0, expected), abs=1e-12)


@pytest.mark.parametrize(("m", "alpha", "rho"), [(150, 0.05, 0.1), (60, 0.2, 0.02), (500, 0.001, 0.1)])
def test_bound_holds_in_simulation(m, alpha, rho):
    """Half of the images are robust at radius 1; a certificate that fails claims that any other is, too."""
    runs, rng = 3000, np.random.default_rng(0)
    robust = np.arange(m) % 2 == 0
    failed = rng.random((runs, m)) < alpha
    claimed = np.where(robust | failed, 1.0, 0.0)
    right = np.ones(m, bool)
    bounds = np.array(
        [metrics.certified_accuracy_lower_bound(right, radius, [1], alpha=alpha, rho=rho).item() for radius in claimed]
    )
    assert (bounds > robust.mean() + 1e-12).mean() <= rho
    # without a robust image among them every failure counts: the bound is wrong about as often as it may be
    failures = failed.sum(1)
    j = allowed_failures(m, alpha, rho)
    assert (failures > j).mean() <= rho + 4 * math.sqrt(rho * (1 - rho) / runs)
    assert (failures > j - 1).mean() > rho - 4 * math.sqrt(rho * (1 - rho) / runs)


@pytest.mark.parametrize("name", ["alpha", "rho"])
@pytest.mark.parametrize("value", [0, 1, -0.1, 1.5, math.nan])
def test_probabilities_out_of_range(name, value):
    options = {"alpha": 0.05, "rho": 0.001} | {name: value}
    with pytest.raises(ValueError, match=f"{name}: got {value}, expected a probability"):
        metrics.certified_accuracy_lower_bound([True], [1.0], [0], **options)


def test_predictions_are_not_taken_for_what_is_right():
    with pytest.raises(ValueError, match="correct: got values other than 0 and 1, expected prediction == label"):
        metrics.certified_accuracy([3, -1, 2, 0], [1.0, 1.0, 1.0, 1.0], [0])
    with pytest.raises(ValueError, match="correct: got values other"):
        metrics.average_certified_radius([1, math.nan], [1.0, 1.0])
    with pytest.raises(ValueError, match=r"label: got shape \(3, 1\), expected that of prediction, \(3,\)"):
        metrics.clean_accuracy([0, 1, 2], np.array([[0], [1], [2]]))
