"""The convolution shared by the residual networks."""

from __future__ import annotations

from torch import nn


def he_conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A size-preserving convolution without bias (normalization follows), initialized as by He et al. (2015)."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
