"""Models for small training sets: a small convolutional network, and a linear one."""

from __future__ import annotations

from torch import nn


def small_cnn(in_channels: int, num_classes: int, image_size: tuple[int, int]) -> nn.Sequential:
    """Two 3x3 convolutions (16 and 32 channels), each followed by 2x2 pooling, then a linear layer; sizes from 4."""
    height, width = image_size
    if min(image_size) < 4:
        raise ValueError(f"image_size: got {height}x{width}, small_cnn needs at least 4 pixels each way")
    return nn.Sequential(
        nn.Conv2d(in_channels, 16, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), num_classes),
    )


def linear(in_channels: int, num_classes: int, image_size: tuple[int, int]) -> nn.Sequential:
    """A linear layer: multinomial logistic regression, if trained with cross-entropy."""
    height, width = image_size
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * height * width, num_classes))
