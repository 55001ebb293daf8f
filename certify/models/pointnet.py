"""PointNet for point clouds of which ablation retains a few points.

Source: Qi, Su, Mo and Guibas, "PointNet: Deep Learning on Point Sets for 3D Classification and Segmentation"
(CVPR 2017). A cloud of N points is an image ``[3, N, 1]``; the base classifier sees its copies in the multichannel
encoding, (x, 1 - x) for a point and (0, 0) for NULL.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional


class KeptPoints:
    """The M points of a batch that are not NULL, concatenated cloud by cloud.

    The encoding shows which points are kept (x and 1 - x are never both 0), so this depends on the copy's mask alone
    and never on the values of the image: for the same masks, all tensors have the same shapes for every image.

    Args:
        kept: bool ``[B, N]``.
    """

    def __init__(self, kept: Tensor) -> None:
        slot = kept.cumsum(1) - 1
        self.row, column = kept.nonzero(as_tuple=True)
        self.slot = slot[self.row, column]
        self.clouds, self.column = len(kept), column
        self.most = max(1, int(kept.sum(1).amax())) if len(kept) else 1
        self.full = (
            len(self.row) == self.clouds * self.most
        )  # all clouds keep equally many, as randomized ablation does

    def take(self, points: Tensor) -> Tensor:
        """The kept points of ``[B, N, C]``: ``[M, C]``."""
        return points[self.row, self.column]

    def pad(self, listed: Tensor) -> Tensor:
        """``[M, C]`` as ``[B, most, C]``; clouds with fewer points are padded with zeros."""
        if self.full:
            return listed.view(self.clouds, self.most, -1)
        padded = listed.new_zeros(self.clouds, self.most, listed.shape[1])
        padded[self.row, self.slot] = listed
        return padded

    def unpad(self, padded: Tensor) -> Tensor:
        """Back to ``[M, C]``."""
        return padded.flatten(0, 1) if self.full else padded[self.row, self.slot]

    def pool(self, listed: Tensor) -> Tensor:
        """The maximum over the points of each cloud, ``[B, C]``, of features that are at least 0; 0 without points."""
        return self.pad(listed).amax(1)


class BatchNorm(nn.BatchNorm1d):
    """Batch normalization over rows; a single row, which has no variance, is normalized as in evaluation mode."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and len(input) < 2:
            return functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        return super().forward(input)


def layers(inputs: int, widths: Sequence[int]) -> nn.Sequential:
    """Fully connected layers, each with batch normalization and ReLU. Rows are points or clouds."""
    modules: list[nn.Module] = []
    for width in widths:
        modules += [nn.Linear(inputs, width, bias=False), BatchNorm(width), nn.ReLU(inplace=True)]
        inputs = width
    return nn.Sequential(*modules)


class _AddedLoss(torch.autograd.Function):
    """The identity in ``value``; in the backward pass, ``penalty`` acts as an additional term of the loss."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, penalty: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return grads[0], grads[0].new_ones(())


class TransformNet(nn.Module):
    """T-Net: a small PointNet that predicts a matrix for each cloud and applies it to the cloud's points.

    It is initialized to the identity. With ``orthogonality`` > 0, training adds ``orthogonality * mean |I - A A^T|^2``
    to the loss (to its gradient, not to its reported value).
    """

    def __init__(self, size: int, point: Sequence[int], head: Sequence[int], orthogonality: float) -> None:
        super().__init__()
        self.size, self.orthogonality = size, orthogonality
        self.features = layers(size, point)
        self.head = layers(point[-1], head)
        self.matrix = nn.Linear(head[-1], size * size)
        nn.init.zeros_(self.matrix.weight)
        with torch.no_grad():
            self.matrix.bias.copy_(torch.eye(size).flatten())

    def forward(self, points: Tensor, kept: KeptPoints) -> Tensor:
        matrix = self.matrix(self.head(kept.pool(self.features(points)))).view(-1, self.size, self.size)
        if self.training and self.orthogonality > 0:
            off = matrix @ matrix.transpose(1, 2) - torch.eye(self.size, device=matrix.device)
            penalty = self.orthogonality * off.float().square().sum((1, 2)).mean()
            matrix = _AddedLoss.apply(matrix, penalty)
        return kept.unpad(kept.pad(points) @ matrix)


class PointNet(nn.Module):
    """Classifies a *set* of points: a shared network on every point that is not NULL, max pooling, then a head.

    NULL points are ignored everywhere, in the maximum as in batch statistics, and cost nothing. The scores do not
    depend on the order of the points; the rows of a batch are independent in evaluation mode. A copy without any points
    is legal.

    Args:
        coordinates: coordinates per point; copies have ``2 * coordinates`` channels.
        num_classes: number of classes.
        local: widths of the layers before the feature transform.
        point: widths of the layers after it, of which the last is pooled; also those of both T-Nets.
        head: hidden widths of the classifier; also those of both T-Nets.
        input_transform: whether to use a T-Net on the coordinates.
        feature_transform: whether to use a T-Net on the local features.
        dropout: dropout probability before the last layer.
        orthogonality: weight of the feature transform's regularization, see :class:`TransformNet`.

    Attributes:
        lists_by_mask: the number of rows in a matrix product depends on the masks of all copies in a batch, which are
            the same for all images (see :class:`KeptPoints`): only copies with the same masks can stand for others.
    """

    lists_by_mask: ClassVar[bool] = True

    def __init__(
        self,
        coordinates: int,
        num_classes: int,
        *,
        local: Sequence[int] = (64, 64),
        point: Sequence[int] = (64, 128, 1024),
        head: Sequence[int] = (512, 256),
        input_transform: bool = True,
        feature_transform: bool = True,
        dropout: float = 0.3,
        orthogonality: float = 1e-3,
    ) -> None:
        super().__init__()
        self.coordinates = coordinates
        self.input_transform = TransformNet(coordinates, point, head, 0.0) if input_transform else None
        self.local = layers(coordinates, local)
        self.feature_transform = TransformNet(local[-1], point, head, orthogonality) if feature_transform else None
        self.features = layers(local[-1], point)
        self.head = nn.Sequential(layers(point[-1], head), nn.Dropout(dropout), nn.Linear(head[-1], num_classes))

    def forward(self, copies: Tensor) -> Tensor:
        if copies.shape[1] != 2 * self.coordinates:
            raise ValueError(
                f"copies: got {copies.shape[1]} channels, expected {2 * self.coordinates}: the multichannel encoding"
            )
        encoded = copies.flatten(2).transpose(1, 2)
        kept = KeptPoints((encoded != 0).any(2))
        lower, upper = kept.take(encoded).split(self.coordinates, 1)
        points = lower - upper  # x - (1 - x), in [-1, 1]
        if self.input_transform is not None:
            points = self.input_transform(points, kept)
        points = self.local(points)
        if self.feature_transform is not None:
            points = self.feature_transform(points, kept)
        return self.head(kept.pool(self.features(points)))


def _coordinates(in_channels: int) -> int:
    if in_channels < 2 or in_channels % 2:
        raise ValueError(
            f"in_channels: got {in_channels}, expected two for each coordinate: PointNet recognizes NULL points by the "
            "multichannel encoding; use an ablation scheme with null='multichannel'"
        )
    return in_channels // 2


def pointnet(in_channels: int, num_classes: int, image_size: tuple[int, int]) -> nn.Module:
    """The published network: both T-Nets, 1,024 pooled features, and 512 and 256 hidden units."""
    return PointNet(_coordinates(in_channels), num_classes)


def pointnet_basic(in_channels: int, num_classes: int, image_size: tuple[int, int]) -> nn.Module:
    """The published network without T-Nets ("vanilla")."""
    return PointNet(_coordinates(in_channels), num_classes, input_transform=False, feature_transform=False)


def pointnet_small(in_channels: int, num_classes: int, image_size: tuple[int, int]) -> nn.Module:
    """A small PointNet without T-Nets, for tests and CPUs."""
    return PointNet(
        _coordinates(in_channels),
        num_classes,
        local=(32,),
        point=(64, 128),
        head=(64,),
        input_transform=False,
        feature_transform=False,
        dropout=0.0,
    )
