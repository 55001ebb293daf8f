"""Planning an attack on models that are trained on parts of a training set: which parts to poison, and how much.

Whoever knows everything can try each part on its own, since a model depends on its part alone: how many poisoned
samples does it take until its model votes as wanted? The rest is a knapsack. So the attack concentrates on few parts or
spreads over many, whichever changes more votes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from certify.poisoning.partition import Partitioner


def amounts_up_to(largest: int) -> list[int]:
    """Amounts of poison that are worth a try: 1, 2, 3, 5, 8, 13, ..., and the largest."""
    amounts = [1, 2]
    while amounts[-1] < largest:
        amounts.append(amounts[-1] + amounts[-2])
    return sorted({min(amount, largest) for amount in amounts})


def best_plan(votes: Tensor, poisoned: dict[int, Tensor], label: int, wrong: int, budget: int) -> list[int]:
    """How much poison each part gets: what brings ``wrong`` closest to ``label``, or furthest ahead of it.

    Args:
        votes: int ``[models]``, without poison.
        poisoned: amount -> int ``[models]``, the votes when every part has that much poison.
        label, wrong: the classes in question; a vote that leaves the first or comes to the second gains 1 each.
        budget: the sum of all amounts at most.
    """

    def lead(of: Tensor) -> np.ndarray:
        return ((of == label).long() - (of == wrong).long()).numpy()

    amounts = sorted(amount for amount in poisoned if amount <= budget)
    gains = np.array([lead(votes) - lead(poisoned[amount]) for amount in amounts]).reshape(len(amounts), len(votes))
    best = np.zeros(budget + 1, dtype=np.int64)  # the largest gain with at most so much poison, of the parts so far
    choices = np.zeros((len(votes), budget + 1), dtype=np.int64)
    for part in range(len(votes)):
        before = best.copy()
        for amount, gain in zip(amounts, gains[:, part], strict=True):
            with_it = before[: budget + 1 - amount] + gain
            better = with_it > best[amount:]
            best[amount:][better] = with_it[better]
            choices[part, amount:][better] = amount
    plan, left = [0] * len(votes), budget
    for part in reversed(range(len(votes))):
        plan[part] = int(choices[part, left])
        left -= plan[part]
    return plan


def near_copies(x: Tensor, partitioner: Partitioner, count: int) -> list[Tensor]:
    """For each part, ``count`` images that are like ``x`` and belong to it: uint8 ``[count, C, H, W]`` each.

    Single pixels are changed where that is enough, otherwise more; where few images are found, they are repeated, and
    where none is, the part gets an empty list.

    Args:
        x: uint8 ``[C, H, W]``.
    """
    generator = torch.Generator().manual_seed(0)
    found: list[list[Tensor]] = [[] for _ in range(partitioner.num_partitions)]
    tries = 16 * max(64, partitioner.num_partitions)
    changes = 1
    while changes <= 16 and min(map(len, found)) < count:
        copies = x.flatten().repeat(tries, 1)
        places = torch.randint(0, x.numel(), (tries, changes), generator=generator)
        values = torch.randint(0, 256, (tries, changes), generator=generator).to(torch.uint8)
        copies = copies.scatter(1, places, values).view(-1, *x.shape)
        for copy, part in zip(copies, partitioner.assign(copies).tolist(), strict=True):
            if len(found[part]) < count:
                found[part].append(copy)
        changes *= 2
    empty = x.new_empty((0, *x.shape))
    return [torch.stack([own[i % len(own)] for i in range(count)]) if own else empty for own in found]


def nearest_in_parts(samples: Tensor, among: Tensor, x: Tensor, buckets: Tensor, parts: int) -> list[Tensor]:
    """For each part, its samples in the order of their distance to ``x``, of those that may be chosen.

    Args:
        samples: uint8 ``[N, C, H, W]``.
        among: bool ``[N]``, which may be chosen.
        buckets: int64 ``[N]``, the part of each.

    Returns:
        int64 indices of samples.
    """
    distances = ((samples.long() - x.long()) ** 2).flatten(1).sum(1)
    order = distances.sort(stable=True).indices
    order = order[among[order]]
    return [order[buckets[order] == part] for part in range(parts)]
