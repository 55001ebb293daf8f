"""The failure probability of sampled certificates, exactly: all votes that may come up, with their probabilities.

A certificate fails if it claims more than would be certified with the probabilities of all classes known. Samples are
few and alpha is large here, so that an excess would be large, too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
import torch

from certify import GaussianNoise, RandomizedAblation, SampledScheme, SmoothReduceVideo, WassersteinNoise, topk, topk_l2

from .table import sampled

SCHEMES: dict[str, tuple[SampledScheme, tuple[int, ...]]] = {
    toy.name: (toy.scheme, toy.shape) for toy in sampled() if isinstance(toy.scheme, SampledScheme)
} | {
    "wasserstein": (WassersteinNoise(0.05), (1, 3, 3)),
    "wasserstein published": (WassersteinNoise(0.05, bound="published"), (1, 3, 3)),
    "wasserstein uniform": (WassersteinNoise(0.05, noise="uniform"), (1, 3, 3)),
    "wasserstein pixels": (WassersteinNoise(0.05, on="pixels"), (1, 3, 3)),
    "smooth-reduce video": (SmoothReduceVideo(0.5, frames=4, chunk=2, count=2), (1, 4, 2, 2)),
}
N0, N, CLASSES = 2, 9, 3


def votes_of(n: int, classes: int) -> Iterator[tuple[int, ...]]:
    """All votes of ``n`` samples."""
    if classes == 1:
        yield (n,)
        return
    for k in range(n + 1):
        for others in votes_of(n - k, classes - 1):
            yield (k, *others)


def probability(votes: tuple[int, ...], shares: tuple[Fraction, ...]) -> Fraction:
    """Of these votes, if each sample votes for class c with probability ``shares[c]``."""
    left, product = sum(votes), Fraction(1)
    for k, share in zip(votes, shares, strict=True):
        product *= math.comb(left, k) * share**k
        left -= k
    return product


def all_shares(classes: int, parts: int) -> list[tuple[Fraction, ...]]:
    return [tuple(Fraction(k, parts) for k in votes) for votes in votes_of(parts, classes)]


# from the shares of classes to the probability of each pair of votes, which all schemes have in common
SHARES = all_shares(CLASSES, 20)
PAIRS = list(itertools.product(votes_of(N0, CLASSES), votes_of(N, CLASSES)))
SELECTION, COUNTS = (torch.tensor([pair[i] for pair in PAIRS]) for i in (0, 1))
WEIGHTS = np.array(
    [
        np.outer(
            [float(probability(votes, shares)) for votes in votes_of(N0, CLASSES)],
            [float(probability(votes, shares)) for votes in votes_of(N, CLASSES)],
        ).ravel()
        for shares in SHARES
    ]
)


def beyond(claimed: torch.Tensor, known: torch.Tensor) -> np.ndarray:
    return (claimed > known + known.abs() * 1e-9 + 1e-12).numpy()


@pytest.mark.parametrize("alpha", [0.05, 0.3])
@pytest.mark.parametrize("bounds", ["one-sided", "simultaneous"])
@pytest.mark.parametrize("name", SCHEMES)
def test_no_certificate_fails_more_often_than_alpha(name, bounds, alpha):
    scheme, shape = SCHEMES[name]
    result = scheme.certify_counts(SELECTION, COUNTS, alpha, n=N, shape=shape, bounds=bounds)
    certified = result.prediction >= 0
    worst = 0.0
    for shares, weights in zip(SHARES, WEIGHTS, strict=True):
        own = torch.tensor([float(share) for share in shares], dtype=torch.float64)
        rivals = [1 - p if bounds == "one-sided" else max(shares[:c] + shares[c + 1 :]) for c, p in enumerate(shares)]
        known = scheme.radius(own, torch.tensor([float(p) for p in rivals], dtype=torch.float64), shape=shape)
        wrong = certified.numpy() & beyond(result.radius, known[SELECTION.argmax(1)])
        worst = max(worst, float(weights[wrong].sum()))
    assert worst <= alpha + 1e-12
    assert certified.any()


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("method", ["ablation", "gaussian"])
def test_no_label_fails_more_often_than_alpha(method, k):
    classes, n, alpha, d, keep = 4, 7, 0.4, 5, 2
    outcomes = list(votes_of(n, classes))
    counts = torch.tensor(outcomes)
    gaussian = GaussianNoise(0.5)
    scheme = RandomizedAblation(keep) if method == "ablation" else gaussian
    result = scheme.certify_top_k(counts, k, alpha, n=n, shape=(1, 1, d))
    worst = 0.0
    for shares in all_shares(classes, math.comb(d, keep)):  # ablation: possible probabilities are multiples of 1 / 10
        weights = np.array([float(probability(votes, shares)) for votes in outcomes])
        if method == "ablation":
            others = [shares[:c] + shares[c + 1 :] for c in range(classes)]
            known = [topk.certified_radius(p, rest, k, d, keep) for p, rest in zip(shares, others, strict=True)]
            known = torch.tensor(known, dtype=torch.float64)
        else:
            exact = torch.tensor([[float(p) for p in shares]], dtype=torch.float64)
            radius = topk_l2.certified_radius(exact, exact, k)[0]
            known = torch.where(radius >= 0, radius * gaussian.sigma, -1.0)
        wrong = beyond(result.radius.double(), known)
        worst = max(worst, float((weights[:, None] * wrong).sum(0).max()))
    assert 0 < worst <= alpha
