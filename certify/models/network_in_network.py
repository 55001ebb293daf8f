"""Network-in-Network (Lin et al., 2014) with batch normalization, as the poisoning experiments use it."""

from __future__ import annotations

from torch import nn

from certify.checks import check_integer
from certify.models.convolution import he_conv


def _block(inputs: int, widths: tuple[int, int, int], kernel: int) -> list[nn.Module]:
    """One spatial and two 1x1 convolutions."""
    layers: list[nn.Module] = []
    for width, size in zip(widths, (kernel, 1, 1), strict=True):
        layers += [he_conv(inputs, width, size), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        inputs = width
    return layers


def _pooled_linear(num_classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(192, num_classes)]


def network_in_network(
    in_channels: int, num_classes: int, image_size: tuple[int, int], *, blocks: int = 3
) -> nn.Sequential:
    """Three blocks of one spatial and two 1x1 convolutions, with pooling in between; any image size from 8.

    Args:
        blocks: 3, or 4 for rotation prediction (Gidaris et al., 2018); there is no pooling between the last two then.
    """
    check_integer("blocks", blocks, 3, 4)
    return nn.Sequential(
        *_block(in_channels, (192, 160, 96), 5),
        nn.MaxPool2d(3, 2, 1),
        *_block(96, (192, 192, 192), 5),
        nn.AvgPool2d(3, 2, 1),
        *(layer for _ in range(blocks - 2) for layer in _block(192, (192, 192, 192), 3)),
        *_pooled_linear(num_classes),
    )


def nin_block(in_channels: int, num_classes: int, image_size: tuple[int, int]) -> nn.Sequential:
    """The last block of a Network-in-Network: a classifier on top of the features of its first two blocks."""
    return nn.Sequential(*_block(in_channels, (192, 192, 192), 3), *_pooled_linear(num_classes))
