"""Turns a classifier of patches into a classifier of stacks of patches."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from certify.inference import BaseClassifier

Reduce = Literal["max", "mean"]


class Reduced(nn.Module):
    """Reduces the scores of all patches of a stack to the scores of the stack.

    Args:
        base_classifier: maps inputs ``[N, C, ...]`` to scores ``[N, num_classes]``.
        reduce: ``"mean"`` of the scores, or ``"max"`` of their soft-max.
        chunked: stacks ``[N, k, chunks, C, ...]`` instead of ``[N, k, C, ...]``; the scores of a patch are the mean
            over its chunks.
    """

    def __init__(self, base_classifier: BaseClassifier, reduce: Reduce, *, chunked: bool = False) -> None:
        super().__init__()
        self.base_classifier, self.reduce, self.chunked = base_classifier, reduce, chunked

    def forward(self, copies: Tensor) -> Tensor:
        """Scores ``[N, num_classes]``."""
        stack = copies.shape[: 3 if self.chunked else 2]
        inputs = copies.flatten(0, len(stack) - 1)
        scores = self.base_classifier(inputs)
        if not isinstance(scores, Tensor) or scores.ndim != 2 or len(scores) != len(inputs):
            got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(f"base classifier: got {got}, expected scores of shape ({len(inputs)}, num_classes)")
        scores = scores.view(*stack, -1)
        if self.chunked:
            scores = scores.mean(2)
        return scores.mean(1) if self.reduce == "mean" else scores.softmax(2).amax(1)
