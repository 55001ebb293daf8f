"""Band and block ablation: each copy retains one window of the image, and every position is classified.

Source: Levine and Feizi, "(De)Randomized Smoothing for Certifiable Defense against Patch Attacks" (NeurIPS 2020;
dissertation, Chapter 6).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from certify.checks import check_integer
from certify.images import Shape
from certify.patch import StructuredAblation


class WindowAxis(NamedTuple):
    """Windows of ``width`` pixels along one side of an image, starting at 0, ``stride``, 2 ``stride``, ... and wrapping
    around its end."""

    size: int
    width: int
    stride: int

    @property
    def positions(self) -> int:
        return -(-self.size // self.stride)

    def kept(self, position: Tensor) -> Tensor:
        """Pixels in the windows with indices ``position``: bool ``[*position.shape, size]``."""
        pixels = torch.arange(self.size, device=position.device)
        return (pixels - position[..., None] * self.stride) % self.size < self.width

    def touched(self, length: int) -> Tensor:
        """Which windows meet the ``length`` pixels starting at 0, 1, ...: bool ``[size - length + 1, positions]``."""
        first = torch.arange(self.size - length + 1)[:, None]
        start = torch.arange(self.positions) * self.stride
        # windows that start after first - width and no later than the last of these pixels
        return (start - (first - self.width + 1)) % self.size < length + self.width - 1


@lru_cache(maxsize=1024)
def touched_runs(axis: WindowAxis, length: int) -> tuple[tuple[int, int], ...]:
    """The distinct sets of windows that ``length`` consecutive pixels can meet, as circular runs (first, count)."""
    touched = axis.touched(length)
    count = touched.sum(1)
    starts = touched & ~touched.roll(1, dims=1)
    first = torch.where(count == axis.positions, 0, starts.int().argmax(1))
    if (starts.sum(1) > 1).any():
        raise AssertionError("the windows that a patch meets must be consecutive")
    return tuple(sorted(set(zip(first.tolist(), count.tolist(), strict=True))))


def circular_sums(values: Tensor, first: Tensor, count: Tensor) -> Tensor:
    """Sums over circular runs along the last dimension, in the integer type of ``values``.

    Args:
        values: integers ``[..., n]``.
        first: int64 ``[L]``, start of each run, in 0..n - 1.
        count: int64 ``[L]``, length of each run, in 0..n.

    Returns:
        ``[..., L]``.
    """
    sums = torch.nn.functional.pad(values.cumsum(-1, dtype=values.dtype), (1, 0))
    sums = torch.cat((sums, sums[..., 1:] + sums[..., -1:]), dim=-1)  # once more around
    return sums.index_select(-1, first + count) - sums.index_select(-1, first)


@dataclass(frozen=True)
class WindowAblation(StructuredAblation):
    """One window per copy, the product of a window of rows and a window of columns; positions in row-major order."""

    @abstractmethod
    def axes(self, shape: Shape) -> tuple[WindowAxis, WindowAxis]:
        """Windows along the height and the width."""

    def num_copies(self, shape: Shape) -> int:
        rows, columns = self.axes(shape)
        return rows.positions * columns.positions

    def masks(self, shape: Shape, index: Tensor) -> Tensor:
        rows, columns = self.axes(shape)
        in_rows, in_columns = rows.kept(index // columns.positions), columns.kept(index % columns.positions)
        return in_rows[..., :, None] & in_columns[..., None, :]

    def most_touched(self, shape: Shape, patch: tuple[int, int]) -> int:
        # with stride 1 this is m + s - 1 per axis, as published; otherwise, enumerating all locations gives it
        return math.prod(
            max(count for _, count in touched_runs(axis, length))
            for axis, length in zip(self.axes(shape), patch, strict=True)
        )

    def outside(self, votes: Tensor, shape: Shape, patch: tuple[int, int]) -> tuple[Tensor, Tensor]:
        rows, columns = self.axes(shape)
        # intermediate sums go up to twice the number of positions
        dtype = torch.int16 if 2 * votes.shape[1] < 1 << 15 else torch.int32
        values = votes.transpose(1, 2).to(dtype).view(*votes[:, 0].shape, rows.positions, columns.positions)
        total = values.sum((2, 3), dtype=dtype)[:, :, None]
        touched = torch.ones(1, dtype=torch.int64, device=votes.device)
        for axis, length in ((columns, patch[1]), (rows, patch[0])):
            first, count = torch.tensor(touched_runs(axis, length), device=votes.device).unbind(1)
            values = circular_sums(values, first, count).transpose(2, 3)
            touched = (count[:, None] * touched).flatten()
        return total - values.flatten(2), touched.to(dtype)

    def check_shape(self, shape: Shape) -> None:
        for axis, name in zip(self.axes(shape), ("high", "wide"), strict=True):
            if axis.width > axis.size or axis.stride > axis.size:
                raise ValueError(
                    f"{type(self).__name__}: got windows of {axis.width} pixels every {axis.stride}, expected at most "
                    f"{axis.size} for both, as images are {axis.size} pixels {name}"
                )


@dataclass(frozen=True)
class BandAblation(WindowAblation):
    """Each copy retains one band of columns (or rows); there is a copy for every position, wrapping around the image.

    Guarantee: see :class:`~certify.patch.StructuredAblation`. Published form: dissertation,
    Theorem 6.2 (NeurIPS 2020, appendix, Theorem 2).

    Attributes:
        width: width of a band in pixels, the paper's s.
        axis: ``"column"`` or ``"row"``.
        stride: pixels between positions; 1 in the paper. The copies at risk are counted exactly: if the stride does not
            divide the size of the image, the last and the first position are closer together, and more than
            ``ceil((m + s - 1) / stride)`` bands may meet a patch there.
        null, mean, std: see :class:`~certify.ablation.NullEncoding`.
    """

    width: int
    axis: Literal["column", "row"] = "column"
    stride: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("width", self.width, 1)
        check_integer("stride", self.stride, 1)
        if self.axis not in ("column", "row"):
            raise ValueError(f"axis: got {self.axis!r}, expected 'column' or 'row'")

    def axes(self, shape: Shape) -> tuple[WindowAxis, WindowAxis]:
        _, height, width = shape
        if self.axis == "row":
            return WindowAxis(height, self.width, self.stride), WindowAxis(width, width, width)
        return WindowAxis(height, height, height), WindowAxis(width, self.width, self.stride)

    def guess_shape(self, positions: int) -> Shape | None:
        return (1, positions, positions) if self.stride == 1 else None  # the other side does not matter


@dataclass(frozen=True)
class BlockAblation(WindowAblation):
    """Each copy retains one square block; there is a copy for every position, wrapping around the image.

    Guarantee: see :class:`~certify.patch.StructuredAblation`. Published form: dissertation,
    Theorem 6.1 (NeurIPS 2020, appendix, Theorem 1).

    Attributes:
        size: side of a block in pixels, the paper's s.
        stride: pixels between positions in both directions; see :class:`BandAblation`.
        null, mean, std: see :class:`~certify.ablation.NullEncoding`.
    """

    size: int
    stride: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("size", self.size, 1)
        check_integer("stride", self.stride, 1)

    def axes(self, shape: Shape) -> tuple[WindowAxis, WindowAxis]:
        _, height, width = shape
        return WindowAxis(height, self.size, self.stride), WindowAxis(width, self.size, self.stride)

    def guess_shape(self, positions: int) -> Shape | None:
        return None  # ambiguous: 36 positions may be 6x6 pixels or 4x9
