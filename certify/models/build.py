"""Models by name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from certify.ablation import DeterministicAblation
from certify.models.cnn3d import cnn3d
from certify.models.mnist_cnn import mnist_cnn
from certify.models.network_in_network import network_in_network, nin_block
from certify.models.partition_mlp import PartitionMLP
from certify.models.pointnet import pointnet, pointnet_basic, pointnet_small
from certify.models.resnet import cifar_resnet110, resnet18, resnet50
from certify.models.small import linear, small_cnn
from certify.models.wide_resnet import wide_resnet40_2
from certify.registry import check_same_place
from certify.spec import parse_scheme

Size = tuple[int, ...]  # height, width; for clips frames, height, width

Builder = Callable[[int, int, Any], nn.Module]  # channels of a copy, classes, size of an image

MODELS: dict[str, Builder] = {
    "mnist_cnn": mnist_cnn,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "resnet110": cifar_resnet110,
    "wide_resnet40_2": wide_resnet40_2,
    "network_in_network": network_in_network,
    "nin_block": nin_block,
    "small_cnn": small_cnn,
    "linear": linear,
    "pointnet": pointnet,
    "pointnet_basic": pointnet_basic,
    "pointnet_small": pointnet_small,
    "cnn3d": cnn3d,
}
PARTITION_MLP = "partition_mlp"  # depends on the scheme, see ModelSpec
POINT_CLOUDS = ("pointnet", "pointnet_basic", "pointnet_small")  # models of [C, N, 1] clouds, in any order of points
CLIPS = ("cnn3d",)  # models of clips [C, T, H, W]
own_models: dict[str, Builder] = {}  # added by register_model; also in MODELS


def register_model(name: str, build: Builder) -> None:
    """Register an architecture of your own under a name, for :class:`ModelSpec`, checkpoints and command lines.

    Call it in a module of yours, which command lines import with ``--import MODULE``. A checkpoint holds only the name
    and the parameters, so the module must also be imported wherever the checkpoint is loaded.

    Args:
        name: as in ``--model NAME``; letters, digits and underscores, not beginning with a digit.
        build: ``build(in_channels, num_classes, (height, width))`` returns a new network, copies ``[N, C, H, W]`` ->
            scores ``[N, num_classes]``; a function or class at the top level of its module, so that worker processes
            can import it.
    """
    if not name.isidentifier() or name in (PARTITION_MLP, *MODELS.keys() - own_models.keys()):
        raise ValueError(
            f"model: got the name {name!r}, expected a new name of letters, digits and underscores that does not begin "
            "with a digit"
        )
    check_same_place("model", name, own_models.get(name, build), build)
    own_models[name] = MODELS[name] = build


def is_typed(build: Builder) -> bool:
    """Whether a builder is not defined in a file, but in a notebook, for example."""
    function: Any = build.func if isinstance(build, partial) else build
    return function.__module__ == "__main__" and not hasattr(sys.modules["__main__"], "__file__")


class Normalize(nn.Module):
    """``(x - mean) / std`` per channel of images or clips; the statistics repeat if an input has more channels (two
    images in one)."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], channels: int) -> None:
        super().__init__()
        if not mean or len(mean) != len(std) or channels % len(mean):
            raise ValueError(
                f"normalization: got {len(mean)} means and {len(std)} stds for {channels} channels, expected as "
                "many stds as means, and a number of them that divides the number of channels"
            )
        repeat = channels // len(mean)
        self.register_buffer("mean", torch.tensor(mean).repeat(repeat)[:, None, None])
        self.register_buffer("std", torch.tensor(std).repeat(repeat)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 5:
            return (x - self.mean[..., None]) / self.std[..., None]
        return (x - self.mean) / self.std


@dataclass(frozen=True)
class ModelSpec:
    """Everything needed to rebuild a model.

    Attributes:
        name: one of ``MODELS``.
        in_channels: channels of a *copy*, see :meth:`certify.Scheme.channels`.
        num_classes: number of classes.
        image_size: ``(height, width)``, for clips ``(frames, height, width)``; for square images a single number,
            which is also how their size is kept and stored.
        mean, std: normalization inside the model; None for none.
        scheme: text of the deterministic ablation whose partition a ``partition_mlp`` uses; None for other models.
    """

    name: str
    in_channels: int
    num_classes: int
    image_size: int | Size
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scheme: str | None = None

    def __post_init__(self) -> None:
        size = self.size
        if len(size) not in (2, 3) or min(size) < 1:
            raise ValueError(f"image_size: got {self.image_size}, expected at least 1 pixel each way")
        object.__setattr__(self, "image_size", size[0] if len(size) == 2 and size[0] == size[1] else size)

    @property
    def size(self) -> Size:
        """(height, width), for clips (frames, height, width)."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    def build(self) -> nn.Module:
        """The network, freshly initialized."""
        if self.name == PARTITION_MLP:
            return self._build_partition_mlp()
        if self.name not in MODELS:
            raise ValueError(
                f"model: got {self.name!r}, expected one of {', '.join((*MODELS, PARTITION_MLP))}; for one of your "
                "own, import the module that calls certify.models.register_model (--import MODULE)"
            )
        if self.scheme is not None:
            raise ValueError(f"scheme: got {self.scheme}, expected none; only {PARTITION_MLP} depends on a scheme")
        if (len(self.size) == 3) != (self.name in CLIPS):
            got, what = "x".join(map(str, self.size)), "clips (cnn3d)" if len(self.size) == 3 else "images"
            raise ValueError(f"model: got {self.name} for inputs of size {got}, expected a model for {what}")
        model = MODELS[self.name](self.in_channels, self.num_classes, self.size)
        if self.mean is None and self.std is None:
            return model
        if self.mean is None or self.std is None:
            raise ValueError(f"normalization: got mean={self.mean}, std={self.std}, expected both or neither")
        if self.name in POINT_CLOUDS:
            raise ValueError(
                f"normalization: got mean and std, but {self.name} recognizes NULL points by their zeros, which "
                "normalization would hide; train without it, as clouds are already scaled to the unit cube"
            )
        return nn.Sequential(Normalize(self.mean, self.std, self.in_channels), model)

    def _build_partition_mlp(self) -> nn.Module:
        scheme = None if self.scheme is None else parse_scheme(self.scheme)
        if not isinstance(scheme, DeterministicAblation) or scheme.null != "multichannel" or scheme.std is not None:
            raise ValueError(
                f"scheme: got {self.scheme}, expected a DeterministicAblation with the plain multichannel encoding; "
                f"{PARTITION_MLP} has one network for each of its copies"
            )
        if self.mean is not None or self.std is not None:
            raise ValueError(
                f"normalization: got mean or std, but {PARTITION_MLP} recognizes ablated units by their zeros; train "
                "without it"
            )
        if len(self.size) == 3:
            raise ValueError(f"model: got {PARTITION_MLP} for clips, expected a model for clips (cnn3d)")
        height, width = self.size
        return PartitionMLP(
            self.in_channels,
            self.num_classes,
            (height, width),
            alpha=scheme.alpha,
            seed=scheme.seed,
            unit=scheme.unit,
        )


def build(
    name: str,
    in_channels: int,
    num_classes: int,
    image_size: int | Size,
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    scheme: str | None = None,
) -> nn.Module:
    """A freshly initialized model; see :class:`ModelSpec`."""
    return ModelSpec(name, in_channels, num_classes, image_size, mean, std, scheme).build()
