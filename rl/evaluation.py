"""Statistics of learning curves over a few independent runs.

A score is the result of one evaluation of one run: a success rate or a mean return. Methods are compared by aggregates
over runs with interval estimates rather than by point estimates (Agarwal et al., "Deep reinforcement learning at the
edge of the statistical precipice", NeurIPS 2021): the interquartile mean, the area under the curve, the probability of
improvement, and stratified bootstrap intervals.

What an interval over few runs is worth: the percentile bootstrap only recombines the runs at hand, so its interval
never leaves their range, and is too narrow by a factor of about sqrt((n - 1) / n) even for normal scores. With 4 runs
there are 35 distinct resamples, and the median of a continuous distribution lies outside the range of the runs with
probability 1/8. A nominal 95 % interval of a mean therefore covers about 80 % of the time with 4 runs, 90 % with 10 and
92 % with 20; where every run of A beats every run of B, the interval of P(A > B) is [1, 1]. It depicts the spread and
is not a test. :func:`student_interval` is exact for normal scores with any number of runs, and approximately valid for
means of bounded scores, at the price of being wide; if it leaves the possible range (a success rate above 1), there are
too few runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

Floats: TypeAlias = NDArray[np.float64]
Statistic: TypeAlias = Callable[..., Floats]

_VALUES_AT_ONCE = 4_000_000  # resampled scores held in memory


@dataclass(frozen=True)
class Estimate:
    """A number, or an array of numbers, with an interval around each."""

    value: Any
    low: Any
    high: Any


def checked_scores(scores: ArrayLike, name: str = "scores", *, at_least: int = 1) -> Floats:
    """Scores as float64 ``[runs, ...]``; raises ``ValueError`` for too few runs or non-finite scores."""
    values = np.asarray(scores, np.float64)
    if values.ndim == 0 or len(values) < at_least or values.size == 0:
        raise ValueError(f"{name}: got shape {values.shape}, expected [runs, ...] with at least {at_least} runs")
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: got NaN or infinity, expected finite numbers")
    return values


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level: got {level}, expected a probability strictly between 0 and 1, such as 0.95")


def mean(scores: ArrayLike, axis: int = 0) -> Floats:
    """The mean over ``axis``."""
    return np.asarray(scores, np.float64).mean(axis)


def interquartile_mean(scores: ArrayLike, axis: int = 0) -> Floats:
    """The mean of the middle half of the scores along ``axis``.

    Exactly a quarter of the weight is removed at each end: where n / 4 is not an integer, the two scores at the cuts
    have fractional weight. With 5 scores the weights are 0, 3/4, 1, 3/4, 0 (divided by 5/2).
    ``scipy.stats.trim_mean(scores, 0.25)``, which drops whole scores only (one of 5 at each end, none of 3), agrees
    where n is a multiple of 4.
    """
    values = np.moveaxis(np.asarray(scores, np.float64), axis, -1)
    n = values.shape[-1]
    ranks = np.arange(n)
    weights = np.minimum(ranks + 1, 0.75 * n) - np.maximum(ranks, 0.25 * n)
    return np.sort(values, axis=-1) @ (np.maximum(weights, 0) / (0.5 * n))


def area_under_curve(scores: ArrayLike, timesteps: ArrayLike) -> Floats:
    """The mean height of each learning curve between its first and last evaluation, in the unit of the scores.

    The trapezoidal rule over environment steps, divided by the number of steps: for equally spaced evaluations, the
    mean score with half weight on the first and the last. A curve with a single evaluation has that score as its area.

    Args:
        scores: ``[..., evaluations]``.
        timesteps: ``[evaluations]``, increasing.
    """
    values, steps = np.asarray(scores, np.float64), np.asarray(timesteps, np.float64)
    if steps.ndim != 1 or values.shape[-1:] != steps.shape or steps.size == 0:
        raise ValueError(
            f"scores, timesteps: got shapes {values.shape} and {steps.shape}, expected [..., evaluations] and "
            "[evaluations], at least one"
        )
    if not (np.diff(steps) > 0).all():
        raise ValueError("timesteps: got steps that do not increase, expected strictly increasing ones")
    if steps.size == 1:
        return values[..., 0]
    return np.trapezoid(values, steps, axis=-1) / (steps[-1] - steps[0])


def bootstrap(
    statistic: Statistic,
    *samples: ArrayLike,
    generator: np.random.Generator,
    level: float = 0.95,
    resamples: int = 2_000,
    paired: bool = False,
) -> Estimate:
    """The percentile bootstrap interval of a statistic of one or several independent samples of runs.

    Runs are drawn with replacement within each sample, so samples that are the tasks of a benchmark act as strata
    (:func:`stratified`). See the module docstring for what the interval is worth with few runs.

    Args:
        statistic: maps arrays ``[resamples, runs of that sample, ...]``, one per sample, to ``[resamples, ...]``.
        samples: scores ``[runs, ...]``; whole rows are resampled, so curves ``[runs, evaluations]`` stay intact.
        generator: source of randomness; one integer is drawn per resampled run.
        level: nominal coverage of the interval, which is two-sided with equal tails.
        paired: resample run i of all samples jointly, because it belongs together (the same seed).

    Returns:
        The statistic of the original samples, with ``low`` and ``high`` of the same shape.
    """
    _check_level(level)
    if resamples < 1:
        raise ValueError(f"resamples: got {resamples}, expected at least 1")
    arrays = [checked_scores(sample) for sample in samples]
    runs = [len(array) for array in arrays]
    if paired and len(set(runs)) > 1:
        raise ValueError(f"paired: got samples of {runs} runs, expected equally many in each")
    chosen = [generator.integers(n, size=(resamples, n)) for n in (runs[:1] if paired else runs)]
    chosen = chosen * len(runs) if paired else chosen
    step = max(1, _VALUES_AT_ONCE // sum(array.size for array in arrays))
    values = np.concatenate(
        [
            statistic(*(array[index[start : start + step]] for array, index in zip(arrays, chosen, strict=True)))
            for start in range(0, resamples, step)
        ]
    )
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Estimate(statistic(*(array[None] for array in arrays))[0], low, high)


def stratified(aggregate: Callable[..., Floats]) -> Statistic:
    """A statistic that pools the runs of all tasks, as Agarwal et al. do: ``bootstrap(stratified(mean), *tasks)``.

    Args:
        aggregate: aggregates scores along an axis: :func:`mean` or :func:`interquartile_mean`.
    """
    return lambda *tasks: aggregate(np.concatenate(tasks, axis=1), axis=1)


def difference(aggregate: Callable[..., Floats] = mean) -> Statistic:
    """The statistic "aggregate of the first sample minus aggregate of the second", for :func:`bootstrap`."""
    return lambda a, b: aggregate(a, axis=1) - aggregate(b, axis=1)


def probability_of_improvement(a: Floats, b: Floats) -> Floats:
    """P(A > B) for one run each of A and B, with ties counting half: the Mann-Whitney statistic over all pairs of runs.

    A statistic for :func:`bootstrap`, to be used unpaired even if seeds match: it compares two independent runs.

    Args:
        a, b: scores ``[resamples, runs of A]`` and ``[resamples, runs of B]``.

    Returns:
        ``[resamples]``, between 0 and 1; 1/2 for equal methods.
    """
    sign = np.sign(a[:, :, None] - b[:, None, :])
    return (1 + sign.mean((1, 2))) / 2


def _student(value: float, error: float, freedom: float, level: float) -> Estimate:
    half = float(stdtrit(freedom, (1 + level) / 2)) * error if error > 0 else 0.0
    return Estimate(value, value - half, value + half)


def student_interval(scores: ArrayLike, *, level: float = 0.95) -> Estimate:
    """The mean of scores ``[runs]`` with Student's t interval, exact for normal scores; needs at least 2 runs."""
    _check_level(level)
    values = checked_scores(scores, at_least=2)
    return _student(values.mean().item(), math.sqrt(values.var(ddof=1) / len(values)), len(values) - 1, level)


def student_difference(a: ArrayLike, b: ArrayLike, *, level: float = 0.95, paired: bool = False) -> Estimate:
    """Mean of ``a`` minus mean of ``b``, scores ``[runs]``, with a t interval.

    If paired, the interval is that of the run-by-run differences. Otherwise it is Welch's, which allows for unequal
    variances and is approximate.
    """
    first, second = checked_scores(a, "a", at_least=2), checked_scores(b, "b", at_least=2)
    if paired:
        if len(first) != len(second):
            raise ValueError(f"paired: got {len(first)} and {len(second)} runs, expected equally many")
        return student_interval(first - second, level=level)
    _check_level(level)
    parts = [values.var(ddof=1) / len(values) for values in (first, second)]
    total = sum(parts)
    freedom = total**2 / sum(p**2 / (len(v) - 1) for p, v in zip(parts, (first, second), strict=True)) if total else 1.0
    return _student((first.mean() - second.mean()).item(), math.sqrt(total), freedom, level)
