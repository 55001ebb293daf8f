"""Denoisers in front of a classifier.

Source: Salman, Sun, Yang, Kapoor and Kolter, "Denoised smoothing: a provable defense for pretrained classifiers"
(NeurIPS 2020); Appendix B.4 of the dissertation puts them behind splitting noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from certify.models.build import ModelSpec


class DnCNN(nn.Module):
    """A residual denoiser: it estimates the noise to subtract from a copy (Zhang et al., TIP 2017).

    ``depth`` 3x3 convolutions with ``width`` channels, with batch normalization in all but the first and the last, and
    orthogonal initialization. The last one is initialized to zero, so an untrained denoiser returns the copy's first
    ``out_channels`` channels. If a copy has twice the channels of the image, these are the image with its ablated
    pixels at zero (ablation), or the lower ends of the cells (Variable-Lambda smoothing).
    """

    def __init__(self, in_channels: int, out_channels: int, *, depth: int = 17, width: int = 64) -> None:
        super().__init__()
        if not 1 <= out_channels <= in_channels:
            raise ValueError(f"in_channels: got {in_channels}, expected at least the image's {out_channels}")
        layers: list[nn.Module] = [nn.Conv2d(in_channels, width, 3, padding=1), nn.ReLU(inplace=True)]
        for _ in range(depth - 2):
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        last = nn.Conv2d(width, out_channels, 3, padding=1, bias=False)
        self.noise = nn.Sequential(*layers, last)
        for layer in self.noise:
            if isinstance(layer, nn.Conv2d):
                nn.init.orthogonal_(layer.weight)
        nn.init.zeros_(last.weight)
        self.out_channels = out_channels

    def forward(self, copies: Tensor) -> Tensor:
        return copies[:, : self.out_channels] - self.noise(copies)


def dncnn(in_channels: int, out_channels: int) -> nn.Module:
    """17 layers of 64 channels, as published."""
    return DnCNN(in_channels, out_channels)


def dncnn_small(in_channels: int, out_channels: int) -> nn.Module:
    """6 layers of 32 channels, at a fiftieth of the cost: for small images and for CPUs."""
    return DnCNN(in_channels, out_channels, depth=6, width=32)


DENOISERS: dict[str, Callable[[int, int], nn.Module]] = {"dncnn": dncnn, "dncnn_small": dncnn_small}


class Denoised(nn.Module):
    """A base classifier: a denoiser, from copies ``[N, C', H, W]`` to images ``[N, C, H, W]``, then a classifier.

    Certificates are for this composition, and assume nothing about the denoiser.
    """

    def __init__(self, denoiser: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.denoiser, self.classifier = denoiser, classifier

    def forward(self, copies: Tensor) -> Tensor:
        return self.classifier(self.denoiser(copies))


@dataclass(frozen=True)
class DenoisedSpec:
    """Everything needed to rebuild a :class:`Denoised`; used like a :class:`~certify.models.ModelSpec`.

    Attributes:
        denoiser: one of ``DENOISERS``.
        in_channels: channels of a *copy*, see :meth:`certify.Scheme.channels`.
        classifier: a classifier of images: ``classifier.in_channels`` are the image's channels.
    """

    denoiser: str
    in_channels: int
    classifier: ModelSpec

    def __post_init__(self) -> None:
        if self.denoiser not in DENOISERS:
            raise ValueError(f"denoiser: got {self.denoiser!r}, expected one of {', '.join(DENOISERS)}")
        if len(self.classifier.size) == 3:
            raise ValueError(f"denoiser: got {self.classifier.name}, a classifier of clips, expected one of images")

    @property
    def name(self) -> str:
        """Names of both networks, as one."""
        return f"{self.denoiser}+{self.classifier.name}"

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.classifier.num_classes

    @property
    def size(self) -> tuple[int, ...]:
        """Size of the images."""
        return self.classifier.size

    def build(self) -> Denoised:
        """The networks, freshly initialized."""
        denoiser = DENOISERS[self.denoiser](self.in_channels, self.classifier.in_channels)
        return Denoised(denoiser, self.classifier.build())


def read_spec(fields: dict[str, Any]) -> ModelSpec | DenoisedSpec:
    """The specification, from its ``dataclasses.asdict`` after a round trip through JSON."""
    if "classifier" in fields:
        parts: dict[str, Any] = fields | {"classifier": _plain(fields["classifier"])}
        return DenoisedSpec(**parts)
    return _plain(fields)


def _plain(fields: dict[str, Any]) -> ModelSpec:
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
    return ModelSpec(**values)
