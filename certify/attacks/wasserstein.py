"""The Wasserstein attack used to evaluate Wasserstein smoothing: projected gradient descent in a growing ball.

Source: Wong, Schmidt and Kolter (ICML 2019), with the gradient of Salman et al. (NeurIPS 2019) for smoothed
classifiers; Section 5.5.2 of the dissertation. The projection is in :mod:`certify.attacks.sinkhorn`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from certify.attacks.attacked import Attacked
from certify.attacks.gradient import (
    check_differentiable,
    check_samples_differentiable,
    gradient_of_samples,
    votes_and_gradient,
)
from certify.attacks.ifgsm import Found, check_steps, prepare
from certify.attacks.oracle import Oracle
from certify.attacks.sinkhorn import project
from certify.checks import check_integer
from certify.images import check_images, to_float
from certify.smooth import Smoothed
from certify.threats import FLOAT_BITS, GroundMetric, Wasserstein, mass_of, normalized, whole_numbers
from certify.transport import path_distance
from certify.wasserstein import WassersteinNoise

_GRID = 2**FLOAT_BITS  # adversarial images are multiples of 2^-24: Wasserstein smoothing rounds floats to them
_BYTE = (_GRID - 1) // 255  # grid steps per 8-bit level; the division is exact


@dataclass(frozen=True)
class Growth:
    """Steps of the attack, and how fast the ball grows.

    Attributes:
        steps: number of gradient steps; the classifier is queried before every step and after the last one.
        step_size: of each feature, against the sign of the gradient, before the projection.
        start: initial radius of the ball.
        factor: growth factor of the radius.
        every: number of steps between increases of the radius. The defaults reach 1.5 in 200 steps.
        samples: number of copies, with fixed noise, that estimate the gradient of a sampled scheme.
    """

    steps: int = 200
    step_size: float = 0.1
    start: float = 0.01
    factor: float = 1.3
    every: int = 10
    samples: int = 128

    def __post_init__(self) -> None:
        check_steps(self.steps, self.step_size)
        for name, value, least in (("start", self.start, 0), ("factor", self.factor, 1)):
            if not (math.isfinite(value) and value >= least and value > 0):
                raise ValueError(f"{name}: got {value!r}, expected a positive number, at least {least}")
        check_integer("every", self.every, 1)
        check_integer("samples", self.samples, 1)

    def radius(self, step: int) -> float:
        """Radius of the ball at step number ``step``."""
        return self.start * self.factor ** (step // self.every)


def wasserstein_attack(
    smoothed: Smoothed,
    images: Tensor,
    labels: Tensor,
    *,
    growth: Growth | None = None,
    metric: GroundMetric | None = None,
    seed: int = 0,
    index: Tensor | None = None,
    on_queries: Callable[[int], None] | None = None,
) -> Attacked:
    """Look for an image at a small Wasserstein distance on which the smoothed classifier is wrong or abstains.

    Every step goes against the gradient of the true class's mean soft-max and is projected onto the ball, which grows
    slowly. The attack on an image ends at the first step at which the classifier fails (judged by its votes; for a
    sampled scheme, on the same samples as ``predict``). The mass of each channel is preserved exactly, in units of
    2^-24. 8-bit images are scaled by 1 - 2^-24 to become multiples of it, which does not change their normalized form.

    Args:
        smoothed: with :class:`~certify.wasserstein.WassersteinNoise`, or with a scheme that has a fixed list of
            differentiable copies, such as :class:`~certify.undefended.Undefended`.
        images: ``[B, C, H, W]``, uint8 or floats in [0, 1], each with a positive sum.
        labels: int64 ``[B]``, the true classes.
        growth: steps of the attack, and how fast the ball grows; by default ``Growth()``.
        metric: ground metric between pixels; by default that of the scheme's certificate, or l2.
        seed: of the samples that estimate the gradient.
        index: int64 ``[B]``, each image's index in its data set.
        on_queries: called with the number of queries just answered, to show progress.

    Returns:
        ``magnitude`` is the cost of the transport plan that made ``adversarial``, including its rounding to multiples
        of 2^-24: an upper bound on the distance, and at most the radius of the ball up to that rounding.
    """
    growth = growth or Growth()
    threat = Wasserstein(metric or default_metric(smoothed))
    check_images(images)
    oracle = prepare(smoothed, in_steps(images), labels, index, on_queries, check=check_attackable)
    clean = oracle.classes(oracle.images, torch.arange(len(oracle.images), device=oracle.images.device))
    found = Found(oracle.images.clone(), clean.clone(), torch.zeros_like(clean, dtype=torch.bool), clean)
    magnitude = torch.full_like(clean, torch.inf, dtype=torch.float64)
    _descend(oracle, found, magnitude, growth, threat, seed)
    result = found.attacked(oracle, magnitude, threat, images.device)
    kept = ~found.broken.to(images.device)[:, None, None, None]
    result = replace(result, adversarial=torch.where(kept, to_float(images), result.adversarial))
    return _verified(oracle, result) if oracle.sampled else result


def check_attackable(smoothed: Smoothed, x: Tensor) -> None:
    """Raise unless :func:`wasserstein_attack` has a gradient for this classifier on images like ``x``."""
    mass_of(x)
    check = check_samples_differentiable if isinstance(smoothed.scheme, WassersteinNoise) else check_differentiable
    check(smoothed, x)


def default_metric(smoothed: Smoothed) -> GroundMetric:
    """The metric of the scheme's own certificate, or that of the published attack."""
    threat = smoothed.scheme.threat
    return threat.metric if isinstance(threat, Wasserstein) else "l2"


def _descend(oracle: Oracle, found: Found, magnitude: Tensor, growth: Growth, threat: Wasserstein, seed: int) -> None:
    """Attack all correctly classified images, and enter successes into ``found`` and ``magnitude``."""
    smoothed = oracle.classifier
    assert isinstance(smoothed, Smoothed)
    left = (found.clean == oracle.labels).nonzero()[:, 0]
    x = oracle.images[left].clone()
    for step in range(growth.steps):
        if len(left) == 0:
            return
        original = whole_numbers(oracle.images[left])
        mass = mass_of(original) / _GRID
        slope = _gradient(smoothed, x, oracle.labels[left], oracle.index[left], growth.samples, seed)
        wanted = x.to(torch.float64) - growth.step_size * slope.sign().to(torch.float64)
        eps = torch.full((len(left),), growth.radius(step), dtype=torch.float64, device=x.device)
        plan = project(normalized(original), wanted / mass, eps, threat.metric, limit=1 / mass.flatten())
        exact = plan.arrived()
        steps = (exact * mass * _GRID).round().clamp(0, _GRID)
        x = (_with_totals(steps, original.sum((2, 3))) / _GRID).float()
        cost = plan.cost() + path_distance(exact, normalized(x))
        answer = oracle.classes(x, left)
        broken = answer != oracle.labels[left]
        hit = left[broken]
        found.adversarial[hit], found.prediction[hit], found.broken[hit] = x[broken], answer[broken], True
        magnitude[hit] = cost[broken]
        left, x = left[~broken], x[~broken]


def in_steps(images: Tensor) -> Tensor:
    """Floats unchanged; 8-bit images as multiples of 2^-24 that have exactly the same normalized form."""
    return images.float() * (_BYTE / _GRID) if images.dtype == torch.uint8 else images


def _with_totals(steps: Tensor, totals: Tensor) -> Tensor:
    """Integer-valued images ``[B, C, H, W]``, 0 to 2^24, adjusted by single steps to have the sums ``[B, C]``."""
    values = steps.flatten(2)
    while (missing := totals - values.sum(2)).any():
        sign = missing.sign()[:, :, None]
        room = torch.where(sign > 0, values < _GRID, values > 0)
        values = values + sign * (room & (room.cumsum(2) <= missing.abs()[:, :, None]))
    return values.view_as(steps)


def _gradient(smoothed: Smoothed, x: Tensor, labels: Tensor, items: Tensor, samples: int, seed: int) -> Tensor:
    """The gradient of the true class's mean soft-max, up to a positive factor: float32 like ``x``."""
    if isinstance(smoothed.scheme, WassersteinNoise):
        return gradient_of_samples(smoothed, x, labels, items, samples=samples, seed=seed)
    every = torch.arange(smoothed.copies_per_image(tuple(x.shape[1:])), device=x.device)
    return votes_and_gradient(smoothed, x, labels, every.expand(len(x), -1))[1]


def _verified(oracle: Oracle, result: Attacked) -> Attacked:
    """The result, with ``verified`` set to the magnitudes that fresh samples confirm."""
    verified = torch.full_like(result.magnitude, torch.inf)
    broken = result.success.nonzero()[:, 0]
    if len(broken):
        answer = oracle.fresh(result.adversarial[broken].to(oracle.images.device), broken.to(oracle.images.device))
        agree = (answer != oracle.labels[broken.to(answer.device)]).to(verified.device)
        verified[broken[agree]] = result.magnitude[broken[agree]]
    return replace(result, verified=verified, queries=oracle.queries.to(verified.device))
