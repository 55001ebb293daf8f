"""Sampling until a question is settled: anytime-valid confidence sequences instead of a fixed sample size.

Most images are far from the point at which a certificate changes, and a few hundred samples are enough for them. With
a confidence sequence, the votes may be inspected after every few samples and sampling stopped at any time.
Clopper-Pearson bounds do not allow that: they hold for one sample size that is fixed in advance.

Source: Voracek, "Treatment of statistical estimation problems in randomized smoothing for adversarial robustness"
(NeurIPS 2024, arXiv 2406.17830); the mixture is that of Krichevsky and Trofimov (1981), the inequality is Ville's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from scipy.special import gammaln
from torch import Tensor

from certify.checks import check_integer, is_finite
from certify.confidence import check_alpha
from certify.draws import ESTIMATION, SELECTION
from certify.engine import VoteEngine
from certify.images import Shape
from certify.scheme import Certified, SampledScheme, checked_radius
from certify.votes import Votes

# Logarithms of likelihoods are sums of a few terms of size n; their rounding errors stay below this for n <= 10^9.
_SLACK = 1e-5


def sequence_bounds(successes: Tensor, n: int, alpha: float) -> tuple[Tensor, Tensor]:
    """Bounds on a probability that hold at *all* sample sizes at once.

    Guarantee: for every true probability p, with probability at least 1 - alpha, ``lower <= p <= upper`` for every
    n = 1, 2, 3, ... of one sequence of samples: inspecting the bounds as often as one likes, and stopping at any time,
    costs nothing.

    p stays in the confidence set while ``log Q_n - log P_p < log(1 / alpha)``, with P_p the likelihood of the samples
    so far and Q_n that of the Krichevsky-Trofimov mixture (the Beta(1/2, 1/2) average of all P_p): their ratio is a
    nonnegative martingale under p; by Ville's inequality, it ever reaches 1 / alpha with probability at most alpha.

    Args:
        successes: integer counts of any shape, each in [0, n].
        n: number of samples so far, up to 10^9.
        alpha: failure probability, of both bounds and all n together.

    Returns:
        ``lower`` and ``upper``, float64 of the same shape, on the same device.
    """
    check_alpha(alpha)
    if successes.is_floating_point() or successes.is_complex():
        raise TypeError(f"votes: got {successes.dtype}, expected integer counts")
    k = successes.detach().cpu().numpy().astype(np.float64)
    if not 1 <= n <= 10**9 or (k < 0).any() or (k > n).any():
        raise ValueError(f"votes: got counts in [{k.min():g}, {k.max():g}] of n = {n}, expected 0 <= count <= n <= 1e9")
    lower = _sequence_lower(k, n, alpha)
    upper = 1 - _sequence_lower(n - k, n, alpha)  # by symmetry, from the number of failures
    upper = np.minimum(1, np.nextafter(upper, 2))
    return torch.from_numpy(lower).to(successes.device), torch.from_numpy(upper).to(successes.device)


def _sequence_lower(k: np.ndarray, n: int, alpha: float) -> np.ndarray:
    """The lower end of the confidence set after ``k`` successes among ``n`` samples, by bisection from below."""
    mixture = gammaln(k + 0.5) + gammaln(n - k + 0.5) - gammaln(n + 1) - math.log(math.pi)
    threshold = mixture - math.log(1 / alpha) - _SLACK  # p is rejected if its log-likelihood is at most this

    def rejected(p: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            successes = np.where(k > 0, k * np.log(np.where(k > 0, p, 1.0)), 0.0)
        return successes + (n - k) * np.log1p(-p) <= threshold

    # the likelihood increases up to k / n: of the p below it, those up to some point are rejected
    low, high = np.zeros_like(k), k / n
    for _ in range(64):
        middle = (low + high) / 2
        below = (middle < 1) & rejected(np.minimum(middle, 1 - 2.0**-53))
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return low


class Question(Protocol):
    """A stopping rule: what to find out about an image, from bounds on the radius that can be certified for it."""

    def settled(self, at_least: Tensor, at_most: Tensor) -> Tensor:
        """Whether the question is answered, so that sampling may stop: bool ``[B]``.

        Args:
            at_least: float64 ``[B]``, the radius that is certified already; -1 where nothing is.
            at_most: float64 ``[B]``, a bound on what more samples could certify; -1 where that is nothing.
        """
        ...


@dataclass(frozen=True)
class CertifiedAt:
    """Is the prediction certified at ``radius``?"""

    radius: float

    def __post_init__(self) -> None:
        if not (is_finite(self.radius) and self.radius >= 0):
            raise ValueError(f"radius: got {self.radius}, expected a finite number of at least 0")

    def settled(self, at_least: Tensor, at_most: Tensor) -> Tensor:
        """Whether the radius is known to be at least ``radius``, or below: bool ``[B]``."""
        return (at_least >= self.radius) | (at_most < self.radius)


@dataclass(frozen=True)
class RadiusWithin:
    """What is the certified radius, to within ``factor``?"""

    factor: float

    def __post_init__(self) -> None:
        if not (is_finite(self.factor) and self.factor >= 1):
            raise ValueError(f"factor: got {self.factor}, expected a finite number of at least 1")

    def settled(self, at_least: Tensor, at_most: Tensor) -> Tensor:
        """Whether nothing is certified, or the two radii are within ``factor``: bool ``[B]``."""
        return (at_most < 0) | ((at_least >= 0) & (at_most <= self.factor * at_least))


@dataclass(frozen=True, kw_only=True, eq=False)
class SequentialCertified(Certified):
    """A certificate from as many samples as it took to settle a question.

    Attributes:
        radius: what is certified, as in :class:`~certify.scheme.Certified`. After ``CertifiedAt(r)`` it is at least r,
            or else the image is not certified at r.
        radius_upper: float64 ``[B]``, an upper bound on what more samples could certify (-1: nothing), with probability
            1 - alpha.
        settled: bool ``[B]``; False where ``max_n`` samples did not settle the question.
        samples: int64 ``[B]``, estimation samples used (the ``n0`` selection samples come on top).
        votes: int64 ``[B, C]``, the votes of these samples. Sampling stopped depending on the votes: bounds for a fixed
            sample size (Clopper-Pearson) do not hold for them.
        selection: int64 ``[B, C]``, the ``n0`` votes that chose the class.
    """

    radius_upper: Tensor
    settled: Tensor
    samples: Tensor
    votes: Tensor
    selection: Tensor

    def votes_of(self, i: int, index: Tensor, shape: Shape) -> Votes:
        """The votes of image ``i`` alone, as :class:`~certify.votes.Votes`."""
        return Votes(
            self.votes[i : i + 1],
            self.selection[i : i + 1],
            shape,
            int(self.samples[i]),
            index[i : i + 1].cpu(),
            stopped=True,
        )


def next_look(n: int) -> int:
    """The sample size at which to inspect the votes next, after ``n``: about a quarter more, in multiples of 16."""
    return n + 16 * max(2, -(-n // 64))


def certify_sequentially(
    engine: VoteEngine,
    x: Tensor,
    question: Question,
    *,
    n0: int,
    max_n: int,
    alpha: float,
    index: Tensor | None = None,
    seed: int = 0,
) -> SequentialCertified:
    """Sample each image of ``x [B, C, H, W]`` until ``question`` is settled for it.

    Guarantee: for each image, with probability at least 1 - alpha over the sampling, either this abstains, or the
    smoothed classifier returns ``prediction`` for every input within ``radius``. The result for an image does not
    depend on the other images.

    Args:
        engine: of a :class:`~certify.scheme.SampledScheme`.
        n0: selection samples, which fix the class.
        max_n: give up after this many estimation samples.
        alpha: failure probability of each image.
        index, seed: see :meth:`~certify.engine.VoteEngine.sampled`.
    """
    scheme = engine.scheme
    if not isinstance(scheme, SampledScheme):
        raise TypeError(
            f"scheme: got {type(scheme).__name__}, which is exact; sequential sampling needs a SampledScheme"
        )
    check_alpha(alpha)
    check_integer("n0", n0, 1)
    check_integer("max_n", max_n, 1, 10**9)
    items = torch.arange(len(x)) if index is None else index
    selection = engine.sampled(x, n0, index=items, seed=seed, stream=SELECTION)
    progress = _Progress(scheme, tuple(x.shape[1:]), selection)
    n = 0
    while n < max_n and len(rows := progress.unsettled()):
        last, n = n, min(max_n, next_look(n))
        own = items[rows.to(items.device)]
        fresh = engine.sampled(x[rows], n - last, index=own, seed=seed, stream=ESTIMATION, first=last)
        progress.look(rows, fresh, n, alpha, question)
    return progress.result()


class _Progress:
    """What the samples so far say about each image of a batch.

    Args:
        selection: int64 ``[B, C]``, the votes that choose the class.
    """

    def __init__(self, scheme: SampledScheme, shape: Shape, selection: Tensor) -> None:
        self.scheme, self.shape, self.selection = scheme, shape, selection
        self.selected = selection.argmax(1)
        self.votes = torch.zeros_like(selection)
        self.samples = torch.zeros_like(self.selected)
        self.lower = torch.zeros(len(selection), dtype=torch.float64, device=selection.device)
        self.upper = torch.ones_like(self.lower)
        self.radius, self.radius_upper = torch.full_like(self.lower, -1), torch.full_like(self.lower, math.inf)
        self.settled = torch.zeros_like(self.selected, dtype=torch.bool)

    def unsettled(self) -> Tensor:
        """Which images need more samples: int64 ``[K]``."""
        return (~self.settled).nonzero()[:, 0]

    def look(self, rows: Tensor, fresh: Tensor, n: int, alpha: float, question: Question) -> None:
        """Add ``fresh`` votes of the images ``rows``, which now have ``n`` samples each, and ask ``question`` again."""
        self.votes[rows] += fresh
        self.samples[rows] = n
        lower, upper = sequence_bounds(self.votes[rows, self.selected[rows]], n, alpha)
        # the bounds hold at all sample sizes simultaneously, so the best one so far holds, too
        self.lower[rows] = torch.maximum(self.lower[rows], lower)
        # below 1: samples cannot show that all copies vote for a class, and p = 1 would certify everything
        self.upper[rows] = torch.minimum(self.upper[rows], upper).clamp(max=1 - 2.0**-53)
        self.radius[rows] = _radius_at(self.scheme, self.lower[rows], self.shape)
        self.radius_upper[rows] = _radius_at(self.scheme, self.upper[rows], self.shape)
        self.settled[rows] = question.settled(self.radius[rows], self.radius_upper[rows])

    def result(self) -> SequentialCertified:
        """The certificates from all samples so far."""
        return SequentialCertified(
            prediction=torch.where(self.radius >= 0, self.selected, -1),
            radius=self.radius,
            threat=self.scheme.threat,
            p_lower=self.lower,
            radius_upper=self.radius_upper,
            settled=self.settled,
            samples=self.samples,
            votes=self.votes,
            selection=self.selection,
        )


def _radius_at(scheme: SampledScheme, p: Tensor, shape: Shape) -> Tensor:
    """The radius that is certified if the class has probability ``p`` (float64 ``[B]``) and the rest is one rival's."""
    return checked_radius(scheme, scheme.radius(p, 1 - p, shape=shape), len(p))
