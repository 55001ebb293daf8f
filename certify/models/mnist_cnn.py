"""The MNIST network of randomized ablation (dissertation, Table A.1)."""

from __future__ import annotations

from torch import nn


def mnist_cnn(in_channels: int, num_classes: int, image_size: tuple[int, int]) -> nn.Module:
    """Two 4x4 convolutions of stride 2 (64 and 128 channels), then 500, 100 and ``num_classes`` units.

    At 28x28 pixels, the flattened features are the table's 6,272; any other size of at least 4 works, too.
    """
    height, width = image_size
    if min(image_size) < 4:
        raise ValueError(f"image_size: got {height}x{width}, mnist_cnn needs at least 4 pixels each way")
    return nn.Sequential(
        nn.Conv2d(in_channels, 64, 4, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(64, 128, 4, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(128 * (height // 4) * (width // 4), 500),
        nn.ReLU(inplace=True),
        nn.Linear(500, 100),
        nn.ReLU(inplace=True),
        nn.Linear(100, num_classes),
    )
