"""Residual networks (He et al., 2016): ResNet-18 and -50 for small and large images, ResNet-110 for CIFAR."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from certify.models.convolution import he_conv


class ResidualBlock(nn.Module):
    """``relu(shortcut(x) + body(x))``; the body is two 3x3 convolutions, or a 1x1-3x3-1x1 bottleneck."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = width * 4 if bottleneck else width
        if bottleneck:
            layers = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        else:
            layers = [(inputs, width, 3, stride), (width, outputs, 3, 1)]
        modules: list[nn.Module] = []
        for layer in layers:
            modules += [he_conv(*layer), nn.BatchNorm2d(layer[1]), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*modules[:-1])  # the last ReLU comes after the sum
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(he_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
        self.relu = nn.ReLU(inplace=True)
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.shortcut(x) + self.body(x))


def residual_network(
    in_channels: int,
    num_classes: int,
    *,
    depths: Sequence[int],
    widths: Sequence[int],
    bottleneck: bool,
    large_images: bool,
) -> nn.Module:
    """Stages of residual blocks, each but the first halving the resolution, then global average pooling."""
    width = widths[0]
    if large_images:
        stem = [he_conv(in_channels, width, 7, 2), nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    else:
        stem = [he_conv(in_channels, width, 3), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    blocks: list[nn.Module] = []
    inputs = width
    for stage, (depth, stage_width) in enumerate(zip(depths, widths, strict=True)):
        for i in range(depth):
            block = ResidualBlock(inputs, stage_width, 2 if stage > 0 and i == 0 else 1, bottleneck)
            blocks.append(block)
            inputs = block.outputs
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, num_classes))


_WIDTHS = (64, 128, 256, 512)
_LARGE = 64  # images above this size get the ImageNet stem (7x7 of stride 2, then pooling)


def resnet18(in_channels: int, num_classes: int, image_size: tuple[int, int]) -> nn.Module:
    return residual_network(
        in_channels,
        num_classes,
        depths=(2, 2, 2, 2),
        widths=_WIDTHS,
        bottleneck=False,
        large_images=max(image_size) > _LARGE,
    )


def resnet50(in_channels: int, num_classes: int, image_size: tuple[int, int]) -> nn.Module:
    return residual_network(
        in_channels,
        num_classes,
        depths=(3, 4, 6, 3),
        widths=_WIDTHS,
        bottleneck=True,
        large_images=max(image_size) > _LARGE,
    )


def cifar_resnet110(in_channels: int, num_classes: int, image_size: tuple[int, int]) -> nn.Module:
    """ResNet-110 for 32x32 images (Cohen et al., 2019): three stages of 18 blocks, 16, 32 and 64 channels."""
    return residual_network(
        in_channels, num_classes, depths=(18,) * 3, widths=(16, 32, 64), bottleneck=False, large_images=False
    )
