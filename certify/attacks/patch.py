"""The patch attack used to evaluate structured ablation: IFGSM on the pixels of randomly placed patches.

Sources: Chiang et al., "Certified Defenses for Adversarial Patches" (ICLR 2020), for the attack on a plain classifier;
Levine and Feizi (NeurIPS 2020; dissertation, Section 6.3.1 and Appendix E.7), for that on a smoothed one's soft-max.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from certify.attacks.attacked import Attacked
from certify.attacks.ifgsm import Starts, check_steps, clean_votes, ifgsm, prepare
from certify.attacks.oracle import Oracle
from certify.checks import check_integer
from certify.draws import ATTACK, Draws
from certify.images import Shape
from certify.patch import PatchSize, StructuredAblation, clip, height_and_width
from certify.places import at_risk, covered, grid_of_places
from certify.smooth import Smoothed
from certify.threats import Patch
from certify.votes import Votes

PLACE, CONTENT = 2, 3  # substreams of the random numbers
MAX_RESTARTS = 1 << 16


def patch_attack(
    smoothed: Smoothed,
    images: Tensor,
    labels: Tensor,
    *,
    patch_size: PatchSize = 5,
    restarts: int = 80,
    steps: int = 150,
    step_size: float = 0.05,
    seed: int = 0,
    index: Tensor | None = None,
    on_queries: Callable[[int], None] | None = None,
) -> Attacked:
    """Look for a patch that makes the smoothed classifier wrong.

    Each restart places the patch uniformly at random inside the image, fills it with uniformly random values, and
    optimizes them by signed gradient steps, clipped to [0, 1] only. All restarts of an image advance together until one
    succeeds. The result depends on an image, its label, its ``index`` and the seed, not on the rest of the batch.

    Cost: a query is a forward and a backward pass of the copies that the patch can reach; the votes of the others
    cannot change.

    Args:
        smoothed: with a scheme that has a fixed list of differentiable copies;
            :class:`~certify.undefended.Undefended` for an undefended classifier.
        images: ``[B, C, H, W]``, uint8 or floats in [0, 1].
        labels: int64 ``[B]``, the true classes.
        patch_size: m for m x m pixels, or (height, width).
        restarts, steps, step_size: the defaults are the published ones.
        seed: of the patches' locations and initial contents.
        index: int64 ``[B]``, each image's index in its data set, on which these depend, too; by default 0..B-1.
        on_queries: called with the number of queries just answered, to show progress.

    Returns:
        ``magnitude`` is 1 where a patch was found. ``adversarial`` is float32 in [0, 1].
    """
    height, width = check_patch_options(patch_size, restarts, steps, step_size, seed)
    oracle = prepare(smoothed, images, labels, index, on_queries)
    votes, found = clean_votes(oracle)
    attacked = (found.clean == oracle.labels).nonzero()[:, 0]
    if len(attacked):
        patch = clip(votes.shape, (height, width))
        starts = _starts(oracle, votes, attacked.repeat_interleave(restarts), patch, restarts, seed)
        ifgsm(oracle, starts, found, steps=steps, step_size=step_size)
    magnitude = torch.ones_like(oracle.labels, dtype=torch.float64)
    return found.attacked(oracle, magnitude, Patch(height, width), images.device)


def check_patch_options(
    patch_size: PatchSize, restarts: int, steps: int, step_size: float, seed: int
) -> tuple[int, int]:
    """Height and width of the patch; raise unless these are legal arguments of :func:`patch_attack`."""
    check_integer("restarts", restarts, 1, MAX_RESTARTS - 1)
    check_integer("seed", seed, 0, (1 << 64) - 1)
    check_steps(steps, step_size)
    return height_and_width(patch_size)


def copies_reached(smoothed: Smoothed, shape: Shape, patch_size: PatchSize) -> int:
    """The number of copies that one query of :func:`patch_attack` evaluates."""
    scheme = smoothed.scheme
    if isinstance(scheme, StructuredAblation):
        return scheme.most_touched(shape, clip(shape, height_and_width(patch_size)))
    return smoothed.copies_per_image(shape)


def _starts(oracle: Oracle, votes: Votes, which: Tensor, patch: tuple[int, int], restarts: int, seed: int) -> Starts:
    smoothed, shape = oracle.classifier, votes.shape
    assert isinstance(smoothed, Smoothed)
    original = oracle.images[which]
    copy = torch.arange(restarts, device=which.device).repeat(len(which) // restarts)
    draws = Draws(seed, ATTACK, oracle.index[which][:, None], copy[:, None])
    rows, columns = grid_of_places(shape, patch)
    place = draws.substream(PLACE).integers(rows * columns, 1)[:, 0, 0]
    covers = covered(shape, patch, place)
    contents = draws.substream(CONTENT).uniforms(shape[0] * patch[0] * patch[1]).float()
    inside = covers[:, None].expand_as(original)
    x = original.masked_scatter(inside, contents)
    low, high = torch.where(inside, 0.0, original), torch.where(inside, 1.0, original)
    count = copies_reached(smoothed, shape, patch)
    if count == votes.n:
        copies = torch.arange(count, device=which.device).expand(len(which), count)
        return Starts(which, x, low, high, copies, torch.zeros_like(votes.counts)[which])
    assert isinstance(smoothed.scheme, StructuredAblation)
    assert votes.by_copy is not None
    # copies at risk come first; where a location has fewer, the row is filled with others, whose gradient is zero
    risk = at_risk(smoothed.scheme, shape, covers).to(torch.uint8)
    copies = risk.argsort(dim=1, descending=True, stable=True)[:, :count]
    outside = votes.counts[which] - votes.by_copy[which[:, None], copies].sum(1)
    return Starts(which, x, low, high, copies, outside)
