"""A small network of 3-D convolutions, for short clips."""

from __future__ import annotations

from torch import Tensor, nn


class ConvNet3d(nn.Module):
    """Four 3x3x3 convolutions, each with batch normalization and ReLU, then global average pooling and a linear layer.

    The second and third convolution halve height and width, the last two the number of frames. Clips may have any size.

    Args:
        in_channels: channels of a frame.
        num_classes: number of classes.
        width: channels of the first convolution; the others have 2, 4 and 4 times as many.
    """

    def __init__(self, in_channels: int, num_classes: int, width: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = in_channels
        for outputs, stride in (
            (width, (1, 1, 1)),
            (2 * width, (1, 2, 2)),
            (4 * width, (2, 2, 2)),
            (4 * width, (2, 1, 1)),
        ):
            # strides instead of pooling, whose gradient is not deterministic on every device
            conv = nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            layers += [conv, nn.BatchNorm3d(outputs), nn.ReLU(inplace=True)]
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, num_classes)

    def forward(self, clips: Tensor) -> Tensor:
        return self.head(self.features(clips).mean((2, 3, 4)))


def cnn3d(in_channels: int, num_classes: int, size: tuple[int, int, int]) -> nn.Module:
    """A network for clips ``[B, C, T, H, W]`` of any size."""
    return ConvNet3d(in_channels, num_classes)
