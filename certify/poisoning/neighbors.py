"""Nearest neighbours: a base learner without training, for arrays and small partitions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from certify.checks import check_integer
from certify.poisoning.learner import Learner, Part, State

_ROWS = 64  # test samples per batch, always this many; the last one is repeated


@dataclass(frozen=True)
class NearestNeighbors(Learner):
    """k nearest neighbours in Euclidean distance, exact for integer data.

    Ties go to the earlier sample in canonical order; an empty partition scores all classes 0.

    Attributes:
        neighbors: number of nearest samples that vote.
    """

    neighbors: int = 1

    def __post_init__(self) -> None:
        check_integer("neighbors", self.neighbors, 1)

    def fit(self, part: Part, *, num_classes: int, device: torch.device) -> State:
        return {"samples": part.samples.to(device), "labels": part.labels.to(device)}

    def scores(self, states: Sequence[State], x: Tensor, *, num_classes: int) -> Tensor:
        return torch.stack([self._scores(state, x, num_classes) for state in states])

    def _scores(self, state: State, x: Tensor, num_classes: int) -> Tensor:
        own, labels = state["samples"].flatten(1).to(torch.float64), state["labels"]
        scores = torch.zeros((len(x), num_classes), device=own.device)
        if len(own) == 0:
            return scores
        norms = (own**2).sum(1)
        for rows, count in fixed_batches(x, _ROWS):
            queries = rows.to(own.device).flatten(1).to(torch.float64)
            # without the query's norm, a common constant; sums of integers below 2^53 are exact in any order
            distances = norms - 2 * queries @ own.T
            nearest = distances.sort(dim=1, stable=True).indices[:, : self.neighbors]
            votes = torch.nn.functional.one_hot(labels[nearest], num_classes).sum(1)
            scores[count] = votes[: count.stop - count.start].float()
        return scores


def fixed_batches(x: Tensor, size: int) -> list[tuple[Tensor, slice]]:
    """Batches of ``x``, all of ``size`` rows (the last row is repeated), and the rows of ``x`` that each covers."""
    batches = []
    for start in range(0, len(x), size):
        stop = min(start + size, len(x))
        index = torch.arange(start, start + size, device=x.device).clamp(max=len(x) - 1)
        batches.append((x[index], slice(start, stop)))
    return batches
