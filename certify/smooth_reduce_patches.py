"""Patches of an image as linear maps: bilinear resizing, windows, and the operator norm of the stacked patches.

Everything works axis by axis and in integers: an axis is interpolated at positions rounded to quarters of a pixel, so
values on the grid ``1 / q`` become values on the grid ``1 / (4 q)``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

QUARTERS = 4


@dataclass(frozen=True)
class Axis:
    """One axis of an image, along which patches are windows.

    Attributes:
        dim: dimension in a batch ``[B, n, C, ...]`` of copies.
        size, resized: length before and after resizing; equal without resizing.
        window: length of a patch along this axis.
    """

    dim: int
    size: int
    resized: int
    window: int

    @property
    def places(self) -> int:
        """Number of positions at which a window may start."""
        return self.resized - self.window + 1


def _interpolation(size: int, resized: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """For each resized pixel: the pixels below and above its centre, and its offset from the lower one in quarters."""
    i = np.arange(resized)
    # The centre of pixel i lies at (i + 1/2) size / resized - 1/2; here in quarters, rounded and clipped to the image.
    quarters = ((8 * i + 4) * size - 3 * resized) // (2 * resized)
    quarters = quarters.clip(0, QUARTERS * (size - 1))
    below = quarters // QUARTERS
    return below, np.minimum(below + 1, size - 1), quarters % QUARTERS


@lru_cache(maxsize=16)
def _interpolation_on(size: int, resized: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    below, above, quarters = (torch.from_numpy(part).to(device) for part in _interpolation(size, resized))
    return below, above, quarters.float()


def resize(images: Tensor, axes: Sequence[Axis]) -> Tensor:
    """Images resized along all axes, multiplied by 4 per axis; exact for integers that remain below 2^24.

    Avoids matrix products, in which a GPU may round the arguments.
    """
    for axis in axes:
        below, above, quarters = _interpolation_on(axis.size, axis.resized, images.device)
        quarters = quarters.view(-1, *[1] * (images.ndim - 1 - axis.dim))
        low, high = images.index_select(axis.dim, below), images.index_select(axis.dim, above)
        images = low.mul_(QUARTERS - quarters).add_(high.mul_(quarters))
    return images


def dense_starts(axes: Sequence[Axis], stride: int) -> list[tuple[int, ...]]:
    """Start positions of patches that are ``stride`` apart along each axis."""
    return list(itertools.product(*(range(0, axis.places, stride) for axis in axes)))


def dense_windows(images: Tensor, axes: Sequence[Axis], stride: int) -> Tensor:
    """The patches at :func:`dense_starts` of images ``[B, n, C, ...]``: ``[B, n, k, C, ...]``.

    No two patches share memory; a single patch may share it with the image.
    """
    view = _places(images, axes, stride)
    sides = len(axes)
    places = range(2, 2 + sides)
    view = view.movedim([axis.dim for axis in axes], list(places))
    view = view.movedim(list(range(-sides, 0)), [axis.dim + sides for axis in axes])
    # contiguous: with merged positions, this may still be a view of overlapping windows
    return view.flatten(places.start, places.stop - 1).contiguous()


def windows(images: Tensor, starts: Sequence[Tensor], axes: Sequence[Axis]) -> Tensor:
    """Patches of images.

    Args:
        images: ``[B, n, C, ...]``.
        starts: one int64 tensor ``[B, n, k]`` per axis, with positions in range, which is not checked; B and n may be 1
            in ``starts`` or in ``images``.

    Returns:
        ``[B, n, k, C, ...]``.
    """
    if images.shape[1] == 1 and math.prod(axis.places for axis in axes) <= starts[0][0].numel():
        # cut all possible windows, then select whole ones: faster than gathering single values
        every = dense_windows(images, axes, 1)[:, 0]
        number = torch.arange(len(images), device=images.device)[:, None, None]
        for axis, start in zip(axes, starts, strict=True):
            number = number * axis.places + start
        return every.flatten(0, 1).index_select(0, number.flatten()).unflatten(0, number.shape)
    row = torch.arange(images.shape[0], device=images.device)[:, None, None]
    column = torch.arange(images.shape[1], device=images.device)[None, :, None]
    patches = _places(images, axes, 1)[(row, column, slice(None), *starts)]
    last = range(-len(axes), 0)
    return patches.movedim(tuple(last), tuple(axis.dim + 1 for axis in axes))


def _places(images: Tensor, axes: Sequence[Axis], stride: int) -> Tensor:
    """A view with window positions in the dimension of each axis, and the windows' contents in the last dimensions."""
    for axis in axes:
        images = images.unfold(axis.dim, axis.window, stride)
    return images


def _gram(axis: Axis, starts: Sequence[int]) -> NDArray[np.float64]:
    """``R^T D R``, with R the resizing of one axis and D the number of windows that cover each resized pixel; exact."""
    covered = np.zeros(axis.resized)
    for start in starts:
        covered[start : start + axis.window] += 1
    below, above, quarters = _interpolation(axis.size, axis.resized)
    matrix = np.zeros((axis.resized, axis.size))
    np.add.at(matrix, (np.arange(axis.resized), below), (QUARTERS - quarters) / QUARTERS)
    np.add.at(matrix, (np.arange(axis.resized), above), quarters / QUARTERS)
    return matrix.T @ (covered[:, None] * matrix)


def eigenvalue_bound(matrix: NDArray[np.float64]) -> float:
    """An upper bound on the largest eigenvalue of a symmetric nonnegative matrix, about 1e-9 above it.

    For any positive vector v, no eigenvalue exceeds the largest ``(matrix v)_i / v_i`` (Collatz and Wielandt). So
    floating-point error only affects the choice of v and the rounding of this quotient of sums of nonnegative numbers.
    """
    if not np.count_nonzero(matrix - np.diag(matrix.diagonal())):
        return float(matrix.diagonal().max())  # windows without resizing: exact
    near = np.linalg.eigvalsh(matrix)[-1] * (1 + 1e-9)
    # If near exceeds the largest eigenvalue, v is positive and matrix v = near v - 1.
    v = np.linalg.solve(near * np.eye(len(matrix)) - matrix, np.ones(len(matrix)))
    v = np.maximum(v, np.finfo(float).tiny)
    return float((matrix @ v / v).max()) * (1 + len(matrix) * 2.0**-50)


@lru_cache(maxsize=64)
def stack_norm(axes: tuple[Axis, ...], stride: int | None, count: int | None) -> float:
    """The operator norm of the stacked patches of an image; never too small.

    The patches are dense (``stride``), or ``count`` random ones: then this is the maximum over the draws, in which all
    may coincide. The squared norm is a product over the axes, since windows and interpolation are separable.
    """
    square = 1.0 if count is None else float(count)
    for axis in axes:
        if stride is not None:
            square *= eigenvalue_bound(_gram(axis, range(0, axis.places, stride)))
        else:
            square *= max(eigenvalue_bound(_gram(axis, [start])) for start in range(axis.places))
    return math.sqrt(square)
