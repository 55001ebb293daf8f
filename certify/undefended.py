"""No smoothing: the base classifier itself, as a baseline for defenses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from certify.images import Shape, to_float
from certify.scheme import EnumeratedScheme
from certify.threats import L0


@dataclass(frozen=True)
class Undefended(EnumeratedScheme):
    """A single copy, the image itself.

    Guarantee: none beyond the image itself. The radius is 0, since a single changed pixel may change the only vote.
    """

    @property
    def threat(self) -> L0:
        return L0()

    def num_copies(self, shape: Shape) -> int:
        return 1

    def copies(self, x: Tensor, index: Tensor) -> Tensor:
        return to_float(x)[:, None].expand(-1, index.shape[1], -1, -1, -1)

    def radius_of_flips(self, flips: Tensor, *, shape: Shape | None = None) -> Tensor:
        return torch.zeros_like(flips, dtype=torch.float64)
