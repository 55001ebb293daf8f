"""Multi-band and multi-block ablation: each copy retains several bands or blocks of a grid.

Source: Levine and Feizi, "(De)Randomized Smoothing for Certifiable Defense against Patch Attacks" (NeurIPS 2020),
appendix, Section D; dissertation, Appendix E.4.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from certify.checks import check_integer
from certify.images import Shape
from certify.patch import StructuredAblation

MOST_COPIES = 2_000_000


@lru_cache(maxsize=8)
def _choices(cells: int, count: int, device: torch.device) -> Tensor:
    """All choices of ``count`` cells, in lexicographic order: int64 ``[C(cells, count), count]``."""
    flat = itertools.chain.from_iterable(itertools.combinations(range(cells), count))
    return torch.from_numpy(np.fromiter(flat, dtype=np.int64).reshape(-1, count)).to(device)


def touched_cells(size: int, cell: int, length: int) -> list[range]:
    """The distinct runs of grid cells, ``cell`` pixels each, that ``length`` adjacent pixels of ``size`` can meet."""
    runs = {(first // cell, (first + length - 1) // cell + 1) for first in range(size - length + 1)}
    return [range(*run) for run in sorted(runs)]


@lru_cache(maxsize=1)  # large, and requested repeatedly for the same patch size
def _untouched(grid: tuple[int, int], count: int, met: tuple[tuple[range, range], ...], device: torch.device) -> Tensor:
    """Which choices of ``count`` cells avoid all cells met, given as rows and columns: bool ``[len(met), choices]``."""
    rows, columns = grid
    choices = _choices(rows * columns, count, device)
    safe = []
    for in_rows, in_columns in met:
        cells = torch.zeros((rows, columns), dtype=torch.bool, device=device)
        cells[in_rows.start : in_rows.stop, in_columns.start : in_columns.stop] = True
        safe.append(~cells.flatten()[choices].any(1))
    return torch.stack(safe)


@dataclass(frozen=True)
class GridAblation(StructuredAblation):
    """One copy for every choice of ``count`` cells of a grid, in lexicographic order.

    The grid begins in the upper left corner. Cells at the right and lower border are smaller if the image does not
    divide evenly; none wraps around.
    """

    @abstractmethod
    def cell(self, shape: Shape) -> tuple[int, int]:
        """Height and width of a cell."""

    @property
    @abstractmethod
    def chosen(self) -> int:
        """Number of cells in a copy, the paper's kappa."""

    def grid(self, shape: Shape) -> tuple[int, int]:
        """Number of cells along the height and the width."""
        height, width = self.cell(shape)
        return -(-shape[1] // height), -(-shape[2] // width)

    def num_copies(self, shape: Shape) -> int:
        return math.comb(math.prod(self.grid(shape)), self.chosen)

    def masks(self, shape: Shape, index: Tensor) -> Tensor:
        rows, columns = self.grid(shape)
        choices = _choices(rows * columns, self.chosen, index.device)[index]
        kept = torch.zeros((*index.shape, rows * columns), dtype=torch.bool, device=index.device)
        kept = kept.scatter_(-1, choices, True).view(*index.shape, rows, columns)
        height, width = self.cell(shape)
        pixels = kept.repeat_interleave(height, dim=-2).repeat_interleave(width, dim=-1)
        return pixels[..., : shape[1], : shape[2]]

    def most_touched(self, shape: Shape, patch: tuple[int, int]) -> int:
        cells = math.prod(self.grid(shape))
        touched = math.prod(
            min(-(-(length - 1) // cell) + 1, count)
            for length, cell, count in zip(patch, self.cell(shape), self.grid(shape), strict=True)
        )
        return math.comb(cells, self.chosen) - math.comb(cells - touched, self.chosen)

    def outside(self, votes: Tensor, shape: Shape, patch: tuple[int, int]) -> tuple[Tensor, Tensor]:
        cells = [touched_cells(*side) for side in zip(shape[1:], self.cell(shape), patch, strict=True)]
        untouched = _untouched(self.grid(shape), self.chosen, tuple(itertools.product(*cells)), votes.device)
        # zeros and ones: all partial sums are integers far below 2^53, exact in any order
        outside = torch.einsum("lp,bpc->bcl", untouched.double(), votes.double()).long()
        return outside, (~untouched).sum(1)

    def check_shape(self, shape: Shape) -> None:
        for cell, size, name in zip(self.cell(shape), shape[1:], ("high", "wide"), strict=True):
            if cell > size:
                raise ValueError(
                    f"{type(self).__name__}: got cells of {cell} pixels, expected at most {size}, as images are {size} "
                    f"pixels {name}"
                )
        cells = math.prod(self.grid(shape))
        if self.chosen > cells:
            raise ValueError(f"count: got {self.chosen}, expected at most the {cells} cells of the grid")
        if self.num_copies(shape) > MOST_COPIES:
            raise ValueError(
                f"count: got {self.chosen} of {cells} cells, {self.num_copies(shape)} copies, expected at most "
                f"{MOST_COPIES}; choose fewer or larger cells"
            )

    def guess_shape(self, positions: int) -> Shape | None:
        return None


@dataclass(frozen=True)
class MultiBandAblation(GridAblation):
    """Each copy retains ``count`` of the bands that begin at multiples of ``width``; there is a copy for every choice.

    Guarantee: see :class:`~certify.patch.StructuredAblation`. Published form: dissertation,
    Appendix E.4.

    Attributes:
        width: width of a band in pixels, the paper's s.
        count: number of bands, the paper's kappa.
        axis: ``"column"`` or ``"row"``.
        null, mean, std: see :class:`~certify.ablation.NullEncoding`.
    """

    width: int
    count: int
    axis: Literal["column", "row"] = "column"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("width", self.width, 1)
        check_integer("count", self.count, 1)
        if self.axis not in ("column", "row"):
            raise ValueError(f"axis: got {self.axis!r}, expected 'column' or 'row'")

    @property
    def chosen(self) -> int:
        return self.count

    def cell(self, shape: Shape) -> tuple[int, int]:
        return (shape[1], self.width) if self.axis == "column" else (self.width, shape[2])


@dataclass(frozen=True)
class MultiBlockAblation(GridAblation):
    """Each copy retains ``count`` of the square blocks that begin at multiples of ``size``; one copy for every choice.

    Guarantee: see :class:`~certify.patch.StructuredAblation`. Published form: dissertation,
    Appendix E.4.

    Attributes:
        size: side of a block in pixels, the paper's s.
        count: number of blocks, the paper's kappa.
        null, mean, std: see :class:`~certify.ablation.NullEncoding`.
    """

    size: int
    count: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("size", self.size, 1)
        check_integer("count", self.count, 1)

    @property
    def chosen(self) -> int:
        return self.count

    def cell(self, shape: Shape) -> tuple[int, int]:
        return self.size, self.size
