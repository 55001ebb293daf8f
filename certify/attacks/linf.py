"""The l-inf attack used to evaluate structured ablation: IFGSM, starting at the image itself.

Source: Levine and Feizi (NeurIPS 2020; dissertation, Section 6.3.1 and Appendix E.7). Patch defenses guarantee nothing
against it; it shows whether they are *more* vulnerable than an undefended classifier.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from certify.attacks.attacked import Attacked
from certify.attacks.ifgsm import Starts, check_steps, clean_votes, ifgsm, prepare
from certify.smooth import Smoothed
from certify.threats import LInf

EPS = (1 / 255, 2 / 255, 4 / 255, 8 / 255)


def linf_attack(
    smoothed: Smoothed,
    images: Tensor,
    labels: Tensor,
    *,
    eps: Sequence[float] = EPS,
    steps: int = 50,
    step_size: float = 0.5 / 255,
    index: Tensor | None = None,
    on_queries: Callable[[int], None] | None = None,
) -> Attacked:
    """Find the smallest of several ``eps`` at which the attack makes the smoothed classifier wrong.

    For each ``eps``, smallest first, images that no smaller one broke are attacked by signed gradient steps, clipped to
    the l-inf ball of radius ``eps`` around the image and to [0, 1]. Nothing is random. Empirical accuracy at an ``eps``
    is the share of images with a larger ``magnitude``.

    Args:
        smoothed: with a scheme that has a fixed list of differentiable copies;
            :class:`~certify.undefended.Undefended` for an undefended classifier.
        images: ``[B, C, H, W]``, uint8 or floats in [0, 1].
        labels: int64 ``[B]``, the true classes.
        eps: radii, ascending; pixel values are in [0, 1].
        steps, step_size: for each ``eps``; the defaults are the published ones.
        index: int64 ``[B]``, each image's index in its data set; has no effect on the result.
        on_queries: called with the number of queries just answered, to show progress.

    Returns:
        ``magnitude`` is the smallest of ``eps`` that broke an image. ``adversarial`` is float32 in [0, 1], within
        ``eps`` up to the rounding of one addition.
    """
    check_linf_options(eps, steps, step_size)
    oracle = prepare(smoothed, images, labels, index, on_queries)
    votes, found = clean_votes(oracle)
    x = oracle.images
    every = torch.arange(votes.n, device=x.device)
    magnitude = torch.full_like(oracle.labels, torch.inf, dtype=torch.float64)
    for radius in eps:
        left = ((found.clean == oracle.labels) & ~found.broken).nonzero()[:, 0]
        low, high = (x[left] - radius).clamp(min=0), (x[left] + radius).clamp(max=1)
        outside = torch.zeros_like(votes.counts)[left]
        starts = Starts(left, x[left], low, high, every.expand(len(left), -1), outside)
        ifgsm(oracle, starts, found, steps=steps, step_size=step_size)
        magnitude[found.broken & torch.isinf(magnitude)] = radius
    return found.attacked(oracle, magnitude, LInf(), images.device)


def check_linf_options(eps: Sequence[float], steps: int, step_size: float) -> None:
    """Raise unless these are legal arguments of :func:`linf_attack`."""
    legal = len(eps) > 0 and all(math.isfinite(e) and 0 < e <= 1 for e in eps)
    if not legal or list(eps) != sorted(set(eps)):
        raise ValueError(f"eps: got {list(eps)}, expected distinct numbers in (0, 1], ascending, such as 2/255")
    check_steps(steps, step_size)
