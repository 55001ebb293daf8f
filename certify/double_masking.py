"""Double masking: a certificate against patches for an ordinary classifier, without special training.

Source: Xiang, Mahloujifar and Mittal, "PatchCleanser: Certifiably Robust Defense against Adversarial Patches for Any
Image Classifier" (USENIX Security 2022), Algorithms 1 and 2, Theorem 1.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from certify.checks import check_integer
from certify.images import Shape, to_float
from certify.patch import PatchSize, height_and_width
from certify.scheme import Certified, EnumeratedScheme
from certify.threats import Patch


def mask_starts(size: int, patch: int, masks: int) -> tuple[list[int], int]:
    """Starts of at most ``masks`` masks along ``size`` pixels, and their length: each patch lies inside one of them."""
    patch = min(patch, size)
    stride = -(-(size - patch + 1) // masks)
    length = patch + stride - 1
    return [min(start, size - length) for start in range(0, size - patch + 1, stride)], length


@lru_cache(maxsize=16)
def _pairs(count: int, device: torch.device) -> Tensor:
    """All pairs i <= j, row by row: int64 ``[count (count + 1) / 2, 2]``."""
    return torch.tensor(list(itertools.combinations_with_replacement(range(count), 2)), device=device)


@dataclass(frozen=True)
class DoubleMasking(EnumeratedScheme):
    """Each copy hides one or two rectangles; a patch at any location lies inside one of the rectangles.

    The prediction is the class on which all one-mask copies agree. If they disagree, it is the class of a mask that
    differs from the majority and that keeps its class under every second mask; failing that, it is the majority (ties
    go to the lower index).

    Guarantee: if the base classifier gives all copies the same class, this class is returned for every image that
    differs in one patch. ``radius`` is the side of ``patch`` if certified (1 for a rectangle), otherwise 0.

    Attributes:
        patch: side m of the patch to defend against, or (height, width), in pixels.
        masks: largest number of masks along each side of the image; K masks in total need ``K (K + 1) / 2`` copies.
        fill: value of hidden pixels, in [0, 1].
    """

    patch: PatchSize
    masks: int = 6
    fill: float = 0.5

    positional: ClassVar[bool] = True

    def __post_init__(self) -> None:
        height_and_width(self.patch)
        check_integer("masks", self.masks, 1)
        if not 0 <= self.fill <= 1:
            raise ValueError(f"fill: got {self.fill}, expected a value in [0, 1]")

    @property
    def threat(self) -> Patch:
        height, width = height_and_width(self.patch)
        return Patch() if height == width else Patch(height, width)

    def single_masks(self, shape: Shape, device: torch.device) -> Tensor:
        """The pixels that each mask hides: bool ``[K, H, W]``."""
        sides = []
        for size, patch in zip(shape[1:], height_and_width(self.patch), strict=True):
            starts, length = mask_starts(size, patch, self.masks)
            pixels = torch.arange(size, device=device)
            from_start = pixels - torch.tensor(starts, device=device)[:, None]
            sides.append((from_start >= 0) & (from_start < length))
        return (sides[0][:, None, :, None] & sides[1][None, :, None, :]).flatten(0, 1)

    def _num_masks(self, shape: Shape) -> int:
        patch = height_and_width(self.patch)
        rows, columns = (len(mask_starts(n, m, self.masks)[0]) for n, m in zip(shape[1:], patch, strict=True))
        return rows * columns

    def num_copies(self, shape: Shape) -> int:
        count = self._num_masks(shape)
        return count * (count + 1) // 2

    def copies(self, x: Tensor, index: Tensor) -> Tensor:
        shape = tuple(x.shape[1:])
        hidden = self.single_masks(shape, x.device)[_pairs(self._num_masks(shape), x.device)[index]].any(-3)
        return to_float(x)[:, None].masked_fill(hidden[:, :, None], self.fill)

    def radius_of_flips(self, flips: Tensor, *, shape: Shape | None = None) -> Tensor:
        raise ValueError(
            "flips: got a number of votes, but double masking needs the votes copy by copy; use certify_copies"
        )

    def predict_copies(self, by_copy: Tensor, *, shape: Shape) -> Tensor:
        classes = self._classes(by_copy, shape)  # [B, K, K]
        single = classes.diagonal(dim1=1, dim2=2)
        votes = single[:, :, None] == torch.arange(by_copy.shape[2], device=by_copy.device)
        majority = votes.sum(1).argmax(1)
        agreed = (classes == single[:, :, None]).all(2) & (single != majority[:, None])
        outvoted = single.gather(1, agreed.int().argmax(1, keepdim=True))[:, 0]
        return torch.where(agreed.any(1), outvoted, majority)

    def certify_copies(self, by_copy: Tensor, *, shape: Shape) -> Certified:
        classes = self._classes(by_copy, shape).flatten(1)
        certified = (classes == classes[:, :1]).all(1)
        height, width = height_and_width(self.patch)
        radius = certified.to(torch.float64) * (height if height == width else 1)
        return Certified(self.predict_copies(by_copy, shape=shape), radius, self.threat)

    def _classes(self, by_copy: Tensor, shape: Shape) -> Tensor:
        """The class of every pair of masks, int64 ``[B, K, K]``."""
        count = self._num_masks(shape)
        if by_copy.ndim != 3 or by_copy.shape[1] != self.num_copies(shape):
            raise ValueError(
                f"votes: got {tuple(by_copy.shape)}, expected [B, {self.num_copies(shape)}, classes] for images of "
                f"shape {shape}"
            )
        if (by_copy.sum(2) != 1).any():
            raise ValueError(
                "votes: got copies with no vote or several, expected one per copy; double masking needs the argmax vote"
            )
        i, j = _pairs(count, by_copy.device).unbind(1)
        classes = torch.zeros((len(by_copy), count, count), dtype=torch.int64, device=by_copy.device)
        classes[:, i, j] = classes[:, j, i] = by_copy.int().argmax(2)
        return classes
