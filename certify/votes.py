"""Votes: how a copy votes, and the counts that certificates are computed from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from certify.checks import is_finite
from certify.images import Shape

if TYPE_CHECKING:
    from certify.scheme import Scheme

VoteRule = Callable[[Tensor], Tensor]

_BYTE = 255  # the most votes that a byte can count


def argmax_vote(logits: Tensor) -> Tensor:
    """One vote per copy, for the class with the largest score; ties go to the lower index. int64 ``[N]``."""
    return logits.argmax(1)


@dataclass(frozen=True)
class ThresholdVote:
    """A copy votes for every class whose soft-max exceeds ``theta``: none, one or several. bool ``[N, C]``."""

    theta: float

    def __post_init__(self) -> None:
        if not (is_finite(self.theta) and 0 <= self.theta < 1):
            raise ValueError(f"theta: got {self.theta!r}, expected a threshold in [0, 1)")

    @property
    def exclusive(self) -> bool:
        """No copy votes for two classes: two soft-max values cannot both exceed one half."""
        return self.theta >= 0.5

    def __call__(self, logits: Tensor) -> Tensor:
        return logits.softmax(1) > self.theta


def sum_votes(votes: Tensor) -> Tensor:
    """``votes.sum(1)``, int64 ``[B, C]``, of bool or integer votes ``[B, n, C]``; much faster for bool."""
    if votes.dtype != torch.bool:
        return votes.sum(1)
    counts = torch.zeros((len(votes), votes.shape[2]), dtype=torch.int64, device=votes.device)
    for part in votes.view(torch.uint8).split(_BYTE, dim=1):  # sums of bytes are vectorized
        counts += part.sum(1, dtype=torch.uint8)
    return counts


@dataclass(frozen=True, eq=False)
class Votes:
    """The votes of a batch of images: all that a certificate needs.

    Attributes:
        counts: int64 ``[B, C]``, votes of all copies (enumerated schemes) or of the ``n`` estimation samples.
        selection: int64 ``[B, C]``, votes of the ``n0`` selection samples; None for enumerated schemes.
        shape: of one image (C, H, W).
        n: number of copies behind ``counts``.
        index: int64 ``[B]``, each image's index in its data set; None for enumerated schemes.
        stopped: whether sampling stopped depending on the votes; bounds for a fixed sample size do not hold then.
        by_copy: bool ``[B, n, C]``, which copy votes for which class, for schemes whose certificate asks for it
            (:attr:`~certify.scheme.Scheme.positional`); ``counts`` are their sums.
        scheme: the scheme that made the copies, if it is known: votes certify nothing for another one.
    """

    counts: Tensor
    selection: Tensor | None
    shape: Shape
    n: int
    index: Tensor | None = None
    stopped: bool = False
    by_copy: Tensor | None = None
    scheme: Scheme | None = None

    def each(self) -> list[Votes]:
        """The votes of each image on its own."""

        def one(votes: Tensor | None, i: int) -> Tensor | None:
            return None if votes is None else votes[i : i + 1]

        return [
            replace(
                self,
                counts=self.counts[i : i + 1],
                selection=one(self.selection, i),
                index=one(self.index, i),
                by_copy=one(self.by_copy, i),
            )
            for i in range(len(self.counts))
        ]
