"""Top-k certificates under Gaussian noise, against the formula of the paper and against every classifier of a line."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from certify import GaussianNoise, SmoothReduce
from certify.confidence import lower_bound, upper_bound
from certify.topk_l2 import certified_radius, certify_counts


def slack(own: float, others: list[float], k: int, radius: float):
    """How much is left of Theorem 1's inequality at a radius in standard deviations."""

    def quantile(p):
        return mpmath.sqrt(2) * mpmath.erfinv(2 * p - 1)

    p, rivals = mpmath.mpf(own), sorted(map(mpmath.mpf, others))[-k:]
    together = [min(sum(rivals[:t], mpmath.mpf(0)), 1 - p) for t in range(1, k + 1)]
    bounds = [mpmath.ncdf(quantile(b) + radius) / t for t, b in enumerate(together, start=1)]
    return mpmath.ncdf(quantile(p) - radius) - min(bounds)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_radius_is_the_formula_of_the_paper_rounded_down(data):
    classes = data.draw(st.integers(2, 5))
    k = data.draw(st.integers(1, classes - 1))
    shares = data.draw(st.lists(st.floats(0.001, 0.999), min_size=2 * classes, max_size=2 * classes))
    lower, upper = torch.tensor(shares).double().view(2, 1, classes)
    found = certified_radius(lower, upper, k)[0].tolist()
    for label, radius in enumerate(found):
        own, others = float(lower[0, label]), [float(p) for c, p in enumerate(upper[0]) if c != label]
        with mpmath.workdps(40):
            if radius < 0:
                assert slack(own, others, k, 0) < 1e-9
            else:
                assert slack(own, others, k, radius) > 0
                assert slack(own, others, k, radius + 1e-6) < 0


def test_top_1_is_the_radius_of_cohen():
    scheme, counts = GaussianNoise(0.5), torch.tensor([[900, 60, 40], [500, 490, 10]])
    result = certify_counts(counts, 1, scheme, 0.001, n=1000, shape=(3, 8, 8))
    lower, upper = lower_bound(counts, 1000, 0.001 / 3), upper_bound(counts, 1000, 0.001 / 3)
    for b in range(2):
        rival = torch.minimum(upper[b, 1:].max(), 1 - lower[b, 0])
        expected = scheme.radius(lower[b, :1], rival[None], shape=(3, 8, 8))
        torch.testing.assert_close(result.radius[b, :1], expected, rtol=1e-8, atol=1e-8)
    assert (result.radius[:, 1:] == -1).all()
    assert result.radius_of(torch.tensor([0, 1])).tolist() == [result.radius[0, 0], -1]


def test_larger_k_never_certifies_less():
    counts = torch.tensor([[500, 300, 150, 50]])
    radii = [certify_counts(counts, k, GaussianNoise(0.5), 0.001, n=1000).radius[0] for k in (1, 2, 3)]
    assert (radii[1] >= radii[0]).all()
    assert (radii[2] >= radii[1]).all()
    assert (radii[2][:3] >= 0).all()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_certificates_hold_for_classifiers_of_a_line(k):
    """Random partitions of a line into labels, exact probabilities, every shift inside the certified radius."""
    generator, attacked = np.random.default_rng(k), 0
    for _ in range(150):
        edges = np.concatenate(([-np.inf], np.sort(generator.normal(0, 1.2, 7)), [np.inf]))
        labels = generator.choice(5, 8, p=(0.4, 0.2, 0.2, 0.1, 0.1))

        def shares(x, edges=edges, labels=labels) -> np.ndarray:
            return np.bincount(labels, np.diff(ndtr(edges - x)), 5)

        exact = torch.from_numpy(shares(0.0))[None]
        radius = certified_radius(exact - 1e-12, exact + 1e-12, k)[0].tolist()
        for label, reach in enumerate(radius):
            for x in np.linspace(-reach, reach, 9) if reach >= 0 else ():
                p = shares(x)
                assert (p > p[label]).sum() < k
                attacked += 1
    assert attacked > 300


def test_two_rivals_share_what_the_label_loses():
    """For k = 2 both have to overtake it: from 1/2, its probability may fall to 1/3."""
    lower, upper = torch.tensor([[0.5, 0, 0]]).double(), torch.tensor([[1, 0.25, 0.25]]).double()
    radius = float(certified_radius(lower, upper, 2)[0, 0])
    assert ndtr(-radius) == pytest.approx(1 / 3, abs=1e-9)


def test_smooth_reduce_has_top_k_certificates_too():
    counts = torch.tensor([[600, 300, 100]])
    schemes = GaussianNoise(0.5), SmoothReduce(0.5, 6, stride=1), SmoothReduce(0.5, 6, count=4, noise="patch")
    plain, image, patch = (
        certify_counts(counts, 2, scheme, 0.001, n=1000, shape=(1, 8, 8)).radius for scheme in schemes
    )
    assert torch.equal(image, plain)
    torch.testing.assert_close(patch[0, :2], plain[0, :2] / 2, rtol=1e-6, atol=0)


def test_errors():
    with pytest.raises(ValueError, match=r"k \(predicted labels\)"):
        certify_counts(torch.tensor([[3, 2]]), 2, GaussianNoise(0.5), 0.001, n=5)
    with pytest.raises(ValueError, match="got 5 votes of n = 4 samples"):
        certify_counts(torch.tensor([[3, 2], [1, 1]]), 1, GaussianNoise(0.5), 0.001, n=4)
