"""Confidence bounds on vote probabilities, and the test that decides when to abstain.

Every function errs on the safe side: floating-point error can only make a lower bound lower, an upper bound higher and
an abstention more likely. ``tests/test_confidence.py`` checks this against exact rational and 50-digit arithmetic.
"""

from __future__ import annotations

from numbers import Integral
from typing import Literal

import numpy as np
import torch
from scipy.special import betainc, betaincinv
from torch import Tensor

from certify.checks import is_finite
from certify.draws import BOUNDS, Draws

Interval = Literal["clopper-pearson", "randomized"]

# The incomplete beta function has a relative error of a few 1e-14 for few samples and of 6e-12 for 1e8 samples, which
# this margin covers, except for the tails that _margin is about. Its inverse is less accurate (it has branch points,
# and fails for extreme arguments), so its results are checked with the function itself.
_MARGIN = 1e-11
_MOST_SAMPLES = 10**8
_ROUNDING = 1e-14  # exceeds the rounding error of a mean of two numbers
_LEAST_ALPHA = 1e-150  # below about 1e-267 the function returns 0, which is not a bound


def _margin(n: int, alpha: float) -> float:
    """A bound on the relative error of a tail, or of a mean of two neighbouring tails, that is compared with ``alpha``.

    For few successes, a tail above 1/2 loses as many digits as n has: the error reaches 0.2 n eps, which is 4e-9 for
    1e8 samples. No such tail occurs if alpha is at most 0.1, since P(X > k) <= 0.1 implies P(X >= k) < 1/2 there.
    """
    return _MARGIN if alpha <= 0.1 else max(_MARGIN, n * 2.0**-52)


def check_alpha(alpha: float) -> None:
    """Raise unless 0 < alpha < 1 and alpha is large enough for double precision to resolve tails of that size."""
    if not (is_finite(alpha) and 0 < alpha < 1):
        raise ValueError(f"alpha (failure probability): got {alpha!r}, expected a number strictly between 0 and 1")
    if alpha < _LEAST_ALPHA:
        raise ValueError(f"alpha (failure probability): got {alpha}, expected at least {_LEAST_ALPHA}")


def _whole(votes: Tensor) -> Tensor:
    """Integer votes as int64, in which sums and differences cannot overflow."""
    if votes.is_floating_point() or votes.is_complex():
        raise TypeError(f"votes: got {votes.dtype}, expected integer counts (never averaged floats)")
    return votes.to(torch.int64)


def _successes(successes: Tensor, n: int) -> np.ndarray:
    k = _whole(successes).detach().cpu().numpy().astype(np.float64)
    if not isinstance(n, Integral) or not 1 <= n <= _MOST_SAMPLES:
        raise ValueError(f"n (samples): got {n}, expected an integer in [1, {_MOST_SAMPLES:,}]")
    if (k < 0).any() or (k > n).any():
        raise ValueError(f"votes: got counts in [{k.min():g}, {k.max():g}] of n = {n}, expected 0 <= count <= n")
    return k


def lower_bound(successes: Tensor, n: int, alpha: float, *, uniforms: Tensor | None = None) -> Tensor:
    """One-sided lower bound: Clopper-Pearson, or randomized Clopper-Pearson if ``uniforms`` are given.

    Guarantee: for every true probability p, ``P(lower_bound <= p) >= 1 - alpha`` over ``successes ~ Binomial(n, p)``
    (and over the uniforms; the probability is then exactly 1 - alpha wherever the bound is not 0, and no bound is
    smaller than the plain one). Randomized: Stevens (Biometrika 1950); for smoothing, Voracek (arXiv 2406.17830).

    Args:
        successes: integer counts of any shape, each in [0, n].
        n: number of independent samples.
        alpha: failure probability of each bound.
        uniforms: float64 in (0, 1], of the same shape, uniform and independent of the samples. Draw them only once:
            the guarantee does not cover the best of several draws.

    Returns:
        float64 of the same shape, on the same device.
    """
    check_alpha(alpha)
    k = _successes(successes, n)
    if uniforms is not None:
        u = _uniforms(uniforms, k.shape)
        return torch.from_numpy(_randomized_lower_bound(k, u, n, alpha)).to(successes.device)
    different, where = np.unique(k, return_inverse=True)  # far fewer than the counts of all classes and images
    bound = _plain_lower_bound(different, n, alpha)[where.reshape(k.shape)]
    return torch.from_numpy(bound).to(successes.device)


def _plain_lower_bound(k: np.ndarray, n: int, alpha: float) -> np.ndarray:
    margin = _margin(n, alpha)
    with np.errstate(all="ignore"):
        bound = np.where(k > 0, betaincinv(k, n - k + 1, alpha), 0.0) * (1 - margin)
        bound = np.clip(np.nan_to_num(bound, nan=0.0, posinf=0.0, neginf=0.0), 0, 1)
        shrink = 1e-10
        while True:
            # P(Binomial(n, bound) >= k), which must not exceed alpha
            unsafe = (bound > 0) & ~(betainc(k, n - k + 1, bound) <= alpha * (1 - margin))
            if not unsafe.any():
                return bound
            bound = np.where(unsafe, bound * max(0.0, 1 - shrink), bound)
            shrink *= 4


def bound_uniforms(seed: int, index: Tensor, num_classes: int) -> Tensor:
    """The uniforms of randomized bounds: float64 ``[B, num_classes]`` in (0, 1], a function of seed and image index.

    They are rounded up to multiples of 2^-52, which can only make a bound smaller.
    """
    draws = Draws.of(seed, BOUNDS, index.to(torch.int64), range(1))
    return draws.uniforms(num_classes)[:, 0] + 2.0**-53


def _uniforms(uniforms: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    if tuple(uniforms.shape) != shape or uniforms.dtype != torch.float64:
        got = f"{uniforms.dtype} {tuple(uniforms.shape)}"
        raise ValueError(f"uniforms: got {got}, expected torch.float64 {shape}, one number for each bound")
    u = uniforms.detach().cpu().numpy()
    if not ((u > 0) & (u <= 1)).all():
        raise ValueError(f"uniforms: got numbers in [{u.min():g}, {u.max():g}], expected (0, 1]")
    return u


def _randomized_lower_bound(k: np.ndarray, u: np.ndarray, n: int, alpha: float, *, cap: bool = False) -> np.ndarray:
    """The largest p found by bisection with ``u P(X >= k) + (1 - u) P(X > k) <= alpha`` for X ~ Binomial(n, p).

    With ``cap``, a value that is at most, bit for bit, the result for any u in (0, ``u``].
    """

    def safe(p: np.ndarray) -> np.ndarray:
        at_least = np.where(k > 0, betainc(np.maximum(k, 1), n - k + 1, p), 1.0)
        more = np.where(k < n, betainc(k + 1, np.maximum(n - k, 1), p), 0.0)
        tail = u * at_least + (1 - u) * more
        if cap:
            # Before rounding, the mean for a smaller u lies between this tail and `more`; both computed tails, however
            # inexact, are the same for all u. So bisection takes the same path up to a p that only the smaller u
            # accepts.
            tail = np.maximum(tail, more) * (1 + _ROUNDING)
        return (p == 0) | (tail * (1 + margin) <= alpha)

    margin = _margin(n, alpha)
    # At p = 0 the probability of k or more successes is 0, except for k = 0, where only u has to be at most alpha.
    low, high = np.zeros_like(k), np.ones_like(k)
    for _ in range(64):
        middle = (low + high) / 2
        fine = safe(middle)
        low, high = np.where(fine, middle, low), np.where(fine, high, middle)
    # Below 1: for unanimous votes and small u, p = 1 would be safe, too, but claims more than samples ever can.
    return np.asarray(np.minimum(low, 1 - 2.0**-53))


def upper_bound(successes: Tensor, n: int, alpha: float, *, uniforms: Tensor | None = None) -> Tensor:
    """One-sided Clopper-Pearson upper bound: one minus the lower bound on the failures. See :func:`lower_bound`."""
    failures = n - _whole(successes)
    complement = lower_bound(failures, n, alpha, uniforms=uniforms)
    return torch.nextafter(1 - complement, torch.ones_like(complement)).clamp(max=1)


def simultaneous_bounds(
    counts: Tensor, selected: Tensor, n: int, alpha: float, *, uniforms: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Bounds that hold for all classes at once (Bonferroni over the C classes, "SimuEM").

    Guarantee: with probability at least 1 - alpha, ``p_lower`` is at most the probability of the selected class *and*
    ``p_upper`` is at least the probability of every other class. The selected class must not depend on ``counts``.

    Args:
        counts: int64 ``[B, C]`` votes out of ``n`` samples.
        selected: int64 ``[B]``, chosen from other samples.
        uniforms: float64 ``[B, C]`` for randomized bounds, see :func:`lower_bound`.

    Returns:
        ``p_lower [B]`` of the selected class and ``p_upper [B]``, the largest upper bound of the others; float64.
    """
    check_alpha(alpha)
    counts = _whole(counts)
    share = alpha / counts.shape[1]
    own = None if uniforms is None else uniforms.gather(1, selected[:, None])[:, 0]
    p_lower = lower_bound(counts.gather(1, selected[:, None])[:, 0], n, share, uniforms=own)
    if uniforms is None:
        others = counts.scatter(1, selected[:, None], 0).amax(1)
        return p_lower, upper_bound(others, n, share)
    return p_lower, _largest_upper_bound(counts, selected, n, share, uniforms)


def _largest_upper_bound(counts: Tensor, selected: Tensor, n: int, alpha: float, uniforms: Tensor) -> Tensor:
    """The largest randomized upper bound over the classes that are not selected, computing only a few of them.

    Bit for bit the maximum of ``upper_bound(counts, n, alpha, uniforms=uniforms)`` over these classes, float64 ``[B]``.
    Classes are skipped if their bound cannot be the largest, either for any uniform in (0, 1] or for any uniform up to
    that of another class with as many votes.

    Args: as for :func:`simultaneous_bounds`.
    """
    failures = _successes(n - counts, n)
    u = _uniforms(uniforms, failures.shape)

    def upper(k: np.ndarray, u: np.ndarray, *, cap: bool) -> np.ndarray:
        return np.minimum(np.nextafter(1 - _randomized_lower_bound(k, u, n, alpha, cap=cap), 1), 1)

    different, where = np.unique(failures, return_inverse=True)
    caps = upper(different, np.ones_like(different), cap=True)[where.reshape(failures.shape)]
    open_ = np.ones(failures.shape, dtype=bool)
    np.put_along_axis(open_, selected.cpu().numpy()[:, None], False, axis=1)
    largest = np.zeros(len(failures))
    while True:
        open_ &= caps > largest[:, None]
        rows = np.flatnonzero(open_.any(1))
        if not len(rows):
            return torch.from_numpy(largest).to(counts.device)
        # among the classes with the most votes, the one with the largest uniform
        fewest = np.where(open_[rows], failures[rows], np.inf).min(1, keepdims=True)
        tied = open_[rows] & (failures[rows] == fewest)
        first = np.where(tied, u[rows], 0).argmax(1)
        k, own = fewest[:, 0], u[rows, first]
        settled = upper(k, own, cap=True) <= largest[rows]
        open_[rows[settled]] &= ~tied[settled]  # rules out all classes with as many votes
        open_[rows, first] = False
        more = rows[~settled]
        largest[more] = np.maximum(largest[more], upper(k[~settled], own[~settled], cap=False))


def binomial_p_value(top: Tensor, second: Tensor) -> Tensor:
    """Two-sided exact binomial test that two classes are equally likely: float64 p-values, never too small.

    Args:
        top, second: integer votes for the two leading classes, ``top >= second``.
    """
    top = _whole(top)
    total = top + _whole(second)
    k, m = top.cpu().numpy().astype(np.float64), total.cpu().numpy().astype(np.float64)
    with np.errstate(all="ignore"):
        tail = np.where(k > 0, betainc(k, m - k + 1, 0.5), 1.0)  # P(Binomial(m, 1/2) >= k)
    margin = np.where(tail > 0.1, np.maximum(_MARGIN, m * 2.0**-52), _MARGIN)  # see _margin
    return torch.from_numpy(np.minimum(1.0, 2 * tail * (1 + margin))).to(top.device)


def predict_or_abstain(counts: Tensor, alpha: float) -> Tensor:
    """PREDICT of Cohen, Rosenfeld and Kolter (2019): the leading class, or -1 where the votes are inconclusive.

    Guarantee: the returned class is the most probable one, or -1, with probability at least 1 - alpha.

    Args:
        counts: int64 ``[B, C]`` votes of independent samples.

    Returns:
        int64 ``[B]``; on an exact tie of the two leading classes, always -1.
    """
    check_alpha(alpha)
    counts = _whole(counts)
    first = counts.argmax(1)
    top = counts.gather(1, first[:, None])[:, 0]
    second = counts.scatter(1, first[:, None], -1).amax(1)
    return torch.where(binomial_p_value(top, second) <= alpha, first, -1)
