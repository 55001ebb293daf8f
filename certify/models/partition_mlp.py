"""One small network per partition of the pixels: an ensemble of models on disjoint features.

With deterministic ablation, every pixel is retained in exactly one copy. If each copy also has its own model, the vote
is that of an ensemble on a partition of the features, and a changed pixel changes at most one vote: the certificate of
partition aggregation, with pixels instead of training samples. Sources: Levine and Feizi
(AISTATS 2022, l0 section); Hammoudeh and Lowd, "Feature partition aggregation" (arXiv 2302.11628).
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from certify.offsets import fixed_offsets
from certify.threats import Unit


class PartitionMLP(nn.Module):
    """``alpha`` networks with two hidden layers; each reads only the pixels (or features) of its own partition.

    The inputs are copies of :class:`~certify.ablation.DeterministicAblation` in the multichannel encoding, (x, 1 - x)
    where a unit is retained and (0, 0) elsewhere. The retained units reveal which partition a copy shows; since they do
    not depend on the image, neither does the choice of the network.

    Args:
        in_channels: of a copy, twice those of the image.
        num_classes: number of classes.
        image_size: ``(height, width)``.
        alpha, seed, unit: of the scheme.
        hidden: width of both hidden layers.
    """

    partition: Tensor
    units: Tensor
    present: Tensor

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        image_size: tuple[int, int],
        *,
        alpha: int,
        seed: int = 0,
        unit: Unit = "pixel",
        hidden: int = 128,
    ) -> None:
        super().__init__()
        if in_channels % 2:
            raise ValueError(f"in_channels: got {in_channels}, expected an even number: (x, 1 - x) for every channel")
        channels = in_channels // 2
        shape = (channels if unit == "feature" else 1, *image_size)
        offsets = fixed_offsets(seed, alpha, shape, torch.device("cpu")).long().flatten()
        width = max(1, int(torch.bincount(offsets, minlength=alpha).max()))
        units = torch.zeros((alpha, width), dtype=torch.int64)
        present = torch.zeros((alpha, width), dtype=torch.bool)
        for t in range(alpha):
            mine = (offsets == t).nonzero()[:, 0]
            units[t, : len(mine)], present[t, : len(mine)] = mine, True
        self.unit, self.channels = unit, channels
        # all of these follow from the arguments; as buffers, they keep a checkpoint from loading with other arguments
        self.register_buffer("partition", offsets)
        self.register_buffer("units", units)
        self.register_buffer("present", present)
        inputs = width * (1 if unit == "feature" else channels)
        sizes = (inputs, hidden, hidden, num_classes)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(alpha, a, b) * math.sqrt(2 / a)) for a, b in itertools.pairwise(sizes)
        )
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(alpha, b)) for b in sizes[1:])

    def forward(self, copies: Tensor) -> Tensor:
        image = copies[:, : self.channels]
        retained = (image + copies[:, self.channels :]) > 0.5  # x + (1 - x), or 0 + 0
        if self.unit == "pixel":
            values, retained = image.flatten(2), retained[:, 0].flatten(1)
        else:
            values, retained = image.flatten(1)[:, None], retained.flatten(1)
        # a partition may be empty: its copy shows nothing, and any fixed network may classify it
        which = self.partition[retained.to(torch.uint8).argmax(1)]
        index = self.units[which][:, None].expand(-1, values.shape[1], -1)
        shown = (2 * values.gather(2, index) - 1) * self.present[which][:, None]
        hidden = shown.flatten(1)[:, None]
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = hidden @ weight[which] + bias[which][:, None]
            if layer < 2:
                hidden = hidden.relu()
        return hidden[:, 0]
