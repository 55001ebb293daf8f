"""Patches by location: which copies each location puts at risk, and by what margin a prediction survives it."""

from __future__ import annotations

import torch
from torch import Tensor

from certify.images import Shape
from certify.patch import PatchSize, StructuredAblation, clip, height_and_width, votes_needed
from certify.scheme import leader_and_gap
from certify.votes import sum_votes

_CHUNK = 1 << 24  # pixels of masks or of locations processed at once


def grid_of_places(shape: Shape, patch: tuple[int, int]) -> tuple[int, int]:
    """Numbers of rows and columns in which the upper left corner of a patch (no larger than the image) can lie."""
    return shape[1] - patch[0] + 1, shape[2] - patch[1] + 1


def covered(shape: Shape, patch: tuple[int, int], place: Tensor) -> Tensor:
    """The pixels that a patch covers at each location.

    Args:
        place: int64 ``[L]``, indices of locations in row-major order, see :func:`grid_of_places`.

    Returns:
        bool ``[L, H, W]``.
    """
    columns = grid_of_places(shape, patch)[1]
    inside = []
    for size, length, first in ((shape[1], patch[0], place // columns), (shape[2], patch[1], place % columns)):
        offset = torch.arange(size, device=place.device) - first[:, None]
        inside.append((offset >= 0) & (offset < length))
    return inside[0][:, :, None] & inside[1][:, None, :]


def at_risk(scheme: StructuredAblation, shape: Shape, places: Tensor) -> Tensor:
    """Which copies show a pixel of the patch at each location.

    Args:
        places: bool ``[L, H, W]``, the pixels covered at each location.

    Returns:
        bool ``[L, copies]``.
    """
    # sums of zeros and ones: positive exactly where a copy and a patch share a pixel, however they are rounded
    pixels, step = places.flatten(1).float(), max(1, _CHUNK // places[0].numel())
    numbers = torch.arange(scheme.num_copies(shape), device=places.device)
    return torch.cat(
        [pixels @ scheme.masks(shape, part).flatten(1).float().T > 0 for part in numbers.split(step)], dim=1
    )


def margins(scheme: StructuredAblation, votes: Tensor, patch_size: PatchSize, *, shape: Shape | None = None) -> Tensor:
    """Worst-case lead, in votes, of the prediction over every other class, for each location of a patch.

    With c the prediction and S the copies at risk, this is ``n_c(outside S) - n_c'(outside S) - |S| - [c' < c]``,
    minimized over c'. It is negative iff an adversary at that location can change the prediction of some classifier
    with these votes, so the prediction is certified (``bound="location"``) iff no location has a negative margin.

    Args:
        votes, patch_size, shape: see :meth:`~certify.patch.StructuredAblation.certify_votes`.

    Returns:
        int64 ``[B, H - height + 1, W - width + 1]``, indexed by the upper left corner of the patch.
    """
    shape = scheme.check_votes(votes, shape)
    patch = clip(shape, height_and_width(patch_size))
    label = leader_and_gap(sum_votes(votes))[0]
    rows, columns = grid_of_places(shape, patch)
    found = []
    for part in torch.arange(rows * columns, device=votes.device).split(max(1, _CHUNK // (shape[1] * shape[2]))):
        risk = at_risk(scheme, shape, covered(shape, patch, part))
        # zeros and ones: all partial sums are integers far below 2^53, exact in any order
        outside = torch.einsum("lp,bpc->bcl", (~risk).double(), votes.double()).long()
        found.append(votes_needed(outside, label).amin(1) - 1 - risk.sum(1))
    return torch.cat(found, dim=1).view(-1, rows, columns)
