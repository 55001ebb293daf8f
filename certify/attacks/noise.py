"""Starting points: images with roughly the least salt-and-pepper noise that makes them adversarial."""

from __future__ import annotations

import torch
from torch import Tensor

from certify.attacks.jobs import Jobs

LEVELS = 64  # noise levels, each a share of pixels; a power of two
ATTEMPTS = 3  # draws of noise before the fallback
NOISE = 0  # substream of the random numbers


def salt_and_pepper(images: Tensor, uniforms: Tensor, level: Tensor) -> Tensor:
    """Images in which each unit is set to black or white, each with probability ``level / LEVELS / 2``.

    With the same ``uniforms``, a higher level adds noise to further units and keeps the noise that is there.

    Args:
        images: ``[N, C, H, W]``, uint8 or floats in [0, 1].
        uniforms: ``[N, 1 or C, H, W]`` in (0, 1), one number per pixel or per feature.
        level: int64 ``[N]`` in [0, LEVELS].
    """
    share = (level.to(torch.float64) / LEVELS).view(-1, 1, 1, 1)
    white = 255 if images.dtype == torch.uint8 else 1
    noisy = torch.where(uniforms < share / 2, 0, images)
    return torch.where(uniforms >= 1 - share / 2, white, noisy)


def find_starts(jobs: Jobs, fallback: Tensor | None) -> tuple[Tensor, Tensor]:
    """An adversarial starting point for each job.

    The noise level doubles until the image is adversarial, then bisection lowers it. A job for which ``ATTEMPTS`` draws
    of noise all fail takes the first adversarial image of ``fallback``, beginning at the index of its restart.

    Args:
        fallback: ``[S, C, H, W]``, images of several classes.

    Returns:
        the starting points ``[J, C, H, W]``, and bool ``[J]``, whether one was found.
    """
    starts = jobs.original.clone()
    found = torch.zeros(len(jobs), dtype=torch.bool, device=starts.device)
    for attempt in range(ATTEMPTS):
        rows = (~found & jobs.may_ask()).nonzero()[:, 0]
        if len(rows) == 0:
            break
        uniforms = jobs.per_feature(jobs.uniforms(rows, attempt, NOISE))
        level = _least_level(jobs, rows, uniforms)
        hit = level <= LEVELS
        starts[rows[hit]] = salt_and_pepper(jobs.original[rows[hit]], uniforms[hit], level[hit])
        found[rows[hit]] = True
    for shift in range(0 if fallback is None else len(fallback)):
        assert fallback is not None
        rows = (~found & jobs.may_ask()).nonzero()[:, 0]
        candidates = fallback[(jobs.restart[rows] + shift) % len(fallback)]
        hit = jobs.adversarial(rows, candidates)
        starts[rows[hit]] = candidates[hit]
        found[rows[hit]] = True
    return starts, found


def _least_level(jobs: Jobs, rows: Tensor, uniforms: Tensor) -> Tensor:
    """A small level at which the noise is adversarial, int64 ``[N]``; above LEVELS where none is."""

    def ask(some: Tensor, level: Tensor) -> Tensor:
        images = salt_and_pepper(jobs.original[rows[some]], uniforms[some], level[some])
        return jobs.adversarial(rows[some], images)

    high = torch.full_like(rows, 2 * LEVELS)  # the lowest level known to be adversarial
    low = torch.zeros_like(rows)
    level = 1
    while level <= LEVELS:
        some = ((high > LEVELS) & jobs.may_ask()[rows]).nonzero()[:, 0]
        hit = ask(some, torch.full_like(rows, level))
        high[some[hit]], low[some[~hit]] = level, level
        level *= 2
    while True:
        some = ((high <= LEVELS) & (high - low > 1) & jobs.may_ask()[rows]).nonzero()[:, 0]
        if len(some) == 0:
            return high
        middle = (low + high) // 2
        hit = ask(some, middle)
        high[some[hit]], low[some[~hit]] = middle[some[hit]], middle[some[~hit]]
