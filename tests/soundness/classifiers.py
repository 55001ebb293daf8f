"""Base classifiers for toy domains: any function from copies to classes, as a lookup table."""

from __future__ import annotations

import random

import torch
from torch import Tensor


def key(copy: Tensor) -> bytes:
    return copy.contiguous().numpy().tobytes()


class Lookup:
    """A classifier that assigns a class to every distinct copy; unseen copies get a fixed pseudorandom class.

    Args:
        num_classes: number of classes.
        seed: of the pseudorandom classes.
        bias: probability of class 0, the others share the rest: biased tables have certificates worth attacking.
    """

    def __init__(self, num_classes: int, seed: int, bias: float = 0.0) -> None:
        self.num_classes, self.seed, self.bias = num_classes, seed, bias
        self.table: dict[bytes, int] = {}

    def classify(self, copy: Tensor) -> int:
        k = key(copy)
        if k not in self.table:
            generator = random.Random(k + self.seed.to_bytes(4, "big"))
            biased = generator.random() < self.bias
            self.table[k] = 0 if biased else generator.randrange(self.num_classes)
        return self.table[k]

    def __call__(self, copies: Tensor) -> Tensor:
        classes = torch.tensor([self.classify(copy) for copy in copies])
        return torch.nn.functional.one_hot(classes, self.num_classes).float()
