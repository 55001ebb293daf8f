"""Planning an attack on an ensemble trained on parts of a training set: which parts to poison, and how much.

Each model depends on its own part alone, so an attacker who knows everything can treat the parts separately: how many
poisoned samples does it take to make the part's model vote as desired? The rest is a knapsack problem: the attack
concentrates on a few parts or spreads over many, whichever changes more votes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from certify.poisoning.partition import Partitioner


def amounts_up_to(largest: int) -> list[int]:
    """Amounts of poison worth trying: 1, 2, 3, 5, 8, 13, ..., and the largest."""
    amounts = [1, 2]
    while amounts[-1] < largest:
        amounts.append(amounts[-1] + amounts[-2])
    return sorted({min(amount, largest) for amount in amounts})


def best_plan(votes: Tensor, poisoned: dict[int, Tensor], label: int, wrong: int, budget: int) -> list[int]:
    """How much poison each part gets, to bring ``wrong`` as close to ``label`` as possible, or as far ahead of it.

    Args:
        votes: int ``[models]``, without poison.
        poisoned: amount -> int ``[models]``, the votes when every part has that much poison.
        label, wrong: the classes in question; a vote gains 1 for leaving ``label`` and 1 for moving to ``wrong``.
        budget: upper bound on the sum of all amounts.
    """

    def lead(of: Tensor) -> np.ndarray:
        return ((of == label).long() - (of == wrong).long()).numpy()

    amounts = sorted(amount for amount in poisoned if amount <= budget)
    gains = np.array([lead(votes) - lead(poisoned[amount]) for amount in amounts]).reshape(len(amounts), len(votes))
    best = np.zeros(budget + 1, dtype=np.int64)  # largest gain of the parts so far, with at most this much poison
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
    """For each part, ``count`` near copies of ``x`` that are assigned to it: uint8 ``[count, C, H, W]`` each.

    A single value is changed where that is enough, otherwise more; a part for which too few copies are found repeats
    them, and a part for which none is found gets an empty tensor.

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
    """For each part, its eligible samples, ordered by their distance to ``x``.

    Args:
        samples: uint8 ``[N, C, H, W]``.
        among: bool ``[N]``, which samples are eligible.
        buckets: int64 ``[N]``, the part of each sample.

    Returns:
        int64 indices of samples.
    """
    distances = ((samples.long() - x.long()) ** 2).flatten(1).sum(1)
    order = distances.sort(stable=True).indices
    order = order[among[order]]
    return [order[buckets[order] == part] for part in range(parts)]
