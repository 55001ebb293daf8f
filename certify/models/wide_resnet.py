"""Wide residual networks (Zagoruyko and Komodakis, 2016), with pre-activation blocks."""

from __future__ import annotations

from torch import Tensor, nn

from certify.models.convolution import he_conv


class PreActivationBlock(nn.Module):
    """Batch normalization and ReLU before each of two 3x3 convolutions; if width or resolution changes, the shortcut is
    a projection of the first activation."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(inplace=False))
        self.body = nn.Sequential(
            he_conv(inputs, outputs, 3, stride),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            he_conv(outputs, outputs, 3),
        )
        self.projection = he_conv(inputs, outputs, 1, stride) if inputs != outputs or stride != 1 else None

    def forward(self, x: Tensor) -> Tensor:
        activated = self.first(x)
        shortcut = x if self.projection is None else self.projection(activated)
        return shortcut + self.body(activated)


def wide_resnet(in_channels: int, num_classes: int, *, depth: int, widen: int) -> nn.Module:
    """Three stages of ``(depth - 4) / 6`` blocks with 16, 32 and 64 channels times ``widen``."""
    if (depth - 4) % 6:
        raise ValueError(f"depth: got {depth}, expected 6 n + 4")
    blocks: list[nn.Module] = []
    inputs = 16
    for stage in range(3):
        for i in range((depth - 4) // 6):
            outputs = (16 << stage) * widen
            blocks.append(PreActivationBlock(inputs, outputs, 2 if stage > 0 and i == 0 else 1))
            inputs = outputs
    head = [nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(he_conv(in_channels, 16, 3), *blocks, *head, nn.Linear(inputs, num_classes))


def wide_resnet40_2(in_channels: int, num_classes: int, image_size: tuple[int, int]) -> nn.Module:
    """WRN-40-2, the CIFAR-10 network of the l1 and lp experiments; any image size."""
    return wide_resnet(in_channels, num_classes, depth=40, widen=2)
