"""Scores copy by copy: the lead of the top class on each copy (Smooth-Reduce, Appendix D.1).

A vote discards by how much it was won. The distribution of the top two classes' scores over noisy copies shows whether
an image abstains because the classes are close or because their scores scatter. It certifies nothing.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from certify.smooth import Smoothed
from certify.votes import argmax_vote


@dataclass(frozen=True, eq=False)
class TopTwo:
    """The scores of the two leading classes on every copy of an image.

    Attributes:
        first, second: the classes with the most and the second most votes; ties go to the larger mean score, then to
            the lower class.
        of_first, of_second: float64 ``[n]``, their scores.
        share: share of the copies that vote for ``first``.
    """

    first: int
    second: int
    of_first: Tensor
    of_second: Tensor
    share: float

    @property
    def margin(self) -> Tensor:
        """Lead of ``first`` over ``second`` on each copy, negative where it is behind: float64 ``[n]``."""
        return self.of_first - self.of_second


def top_two(scores: Tensor, *, softmax: bool = True) -> TopTwo:
    """The two leading classes of an image.

    Args:
        scores: float ``[n, classes]``, of n copies; each votes for its largest score, ties go to the lower class.
        softmax: return soft-max values instead of the scores themselves.
    """
    if scores.ndim != 2 or scores.shape[0] < 1 or scores.shape[1] < 2 or not scores.is_floating_point():
        raise ValueError(
            f"scores: got {scores.dtype} {tuple(scores.shape)}, expected floats [n, classes], classes >= 2"
        )
    votes = torch.bincount(argmax_vote(scores), minlength=scores.shape[1])
    values = scores.double().softmax(1) if softmax else scores.double()
    mean = values.mean(0).tolist()
    order = sorted(range(scores.shape[1]), key=lambda c: (-int(votes[c]), -mean[c], c))
    first, second = order[:2]
    share = int(votes[first]) / len(scores)
    return TopTwo(first, second, values[:, first], values[:, second], share)


def histogram(values: Tensor, edges: Tensor) -> Tensor:
    """Number of values in each bin, int64 ``[bins]``: bins are ``[edge_i, edge_i+1)``, the last one closed.

    Args:
        values: float64 ``[n]``, all within the edges.
        edges: float64 ``[bins + 1]``, ascending.
    """
    bins = len(edges) - 1
    if values.numel() and not bool(((values >= edges[0]) & (values <= edges[-1])).all()):
        raise ValueError(
            f"values: got some outside of [{edges[0]:g}, {edges[-1]:g}], expected edges that enclose all of them"
        )
    return torch.bincount(
        (torch.bucketize(values.contiguous(), edges, right=True) - 1).clamp(max=bins - 1), minlength=bins
    )


def scores_of_copies(smoothed: Smoothed, x: Tensor, *, n: int, stream: int, index: int) -> Tensor:
    """The scores of the copies of one image, in the order of their indices: float32 ``[n, classes]``.

    They are the very copies whose votes a certificate counts.

    Args:
        smoothed: a classifier smoothed by a sampled scheme, used as configured.
        x: the image, ``[1, C, H, W]``.
        n: number of copies.
        stream: which copies: :data:`certify.draws.ESTIMATION` for those that bound the probability.
        index: index of the image in its data set.
    """
    seen: list[Tensor] = []

    def remember(scores: Tensor) -> Tensor:
        seen.append(scores.clone())
        return smoothed.engine.vote(scores)

    smoothed.engine.prepare(x)
    listener = copy.copy(smoothed.engine)  # a new engine would wrap a patch classifier a second time
    listener.vote = remember
    listener.sampled(x, n, index=torch.tensor([index]), seed=smoothed.seed, stream=stream)
    return torch.cat(seen)[:n].to(x.device)
