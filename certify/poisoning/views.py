"""Random views of images for SimCLR: crops, flips and colour jitter."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

_BRIGHTNESS = (0.299, 0.587, 0.114)  # weights of red, green, blue
_SMALLEST, _ASPECT = 0.2, 4 / 3  # smallest share of the area that a crop keeps; largest aspect ratio
_JITTER, _HUE = 0.4, 0.1  # strength for brightness, contrast and saturation; for the hue, in turns
_JITTERED, _GRAY = 0.8, 0.2  # probabilities


def random_view(images: Tensor, generator: torch.Generator, *, flip: bool) -> Tensor:
    """One view of each image: float32 ``[B, C, H, W]`` in [0, 1]; random numbers are drawn on the CPU.

    Source: Chen et al. (2020), with the strengths of Khosla et al. (2020), on which Appendix F.9 of the dissertation
    builds.

    Args:
        images: float32 ``[B, C, H, W]`` in [0, 1]; saturation and hue change only if C is 3.
        flip: whether to flip half of the views.
    """
    views = resized_crops(images, torch.rand(len(images), 5, generator=generator), flip=flip)
    return jittered(views, torch.rand(len(images), 6, generator=generator))


def resized_crops(images: Tensor, u: Tensor, *, flip: bool) -> Tensor:
    """A random crop of each image, resized to the image's size, flipped half of the time if ``flip``.

    Args:
        u: float32 ``[B, 5]`` in [0, 1): area, aspect ratio, position (two), flip.
    """
    area = _SMALLEST + (1 - _SMALLEST) * u[:, 0]
    ratio = torch.exp(math.log(_ASPECT) * (2 * u[:, 1] - 1))
    width, height = ((area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1))
    x, y = (1 - width) * (2 * u[:, 2] - 1), (1 - height) * (2 * u[:, 3] - 1)  # of the centre, from -1 to 1
    mirror = torch.where((u[:, 4] < 0.5) & flip, -1.0, 1.0)
    zero = torch.zeros_like(x)
    maps = torch.stack((width * mirror, zero, x, zero, height, y), 1).view(-1, 2, 3).to(images.device)
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def jittered(images: Tensor, u: Tensor) -> Tensor:
    """Jitter brightness and contrast; for colour images also saturation and hue, and turn some of them gray.

    Args:
        u: float32 ``[B, 6]`` in [0, 1): whether to jitter, brightness, contrast, saturation, hue; whether to turn gray.
    """
    u = u.to(images.device)[..., None, None, None]
    factor = 1 + _JITTER * (2 * u[:, 1:4] - 1)
    changed = (images * factor[:, 0]).clamp(0, 1)
    middle = gray(changed).mean((1, 2, 3), keepdim=True)
    changed = (middle + factor[:, 1] * (changed - middle)).clamp(0, 1)
    if images.shape[1] == 3:
        changed = (gray(changed) + factor[:, 2] * (changed - gray(changed))).clamp(0, 1)
        changed = turned(changed, 2 * math.pi * _HUE * (2 * u[:, 4] - 1)).clamp(0, 1)
    changed = torch.where(u[:, 0] < _JITTERED, changed, images)
    return torch.where((u[:, 5] < _GRAY) & (images.shape[1] == 3), gray(changed).expand_as(changed), changed)


def gray(images: Tensor) -> Tensor:
    """Brightness ``[B, 1, H, W]``."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    weights = torch.tensor(_BRIGHTNESS, device=images.device)[:, None, None]
    return (images * weights).sum(1, keepdim=True)


def turned(images: Tensor, angle: Tensor) -> Tensor:
    """Colours ``[B, 3, H, W]`` rotated about the gray axis by ``angle [B, 1, 1, 1]``, which shifts the hue."""
    cos, sin = angle.cos(), angle.sin() / math.sqrt(3)
    mean = images.mean(1, keepdim=True)
    return mean + cos * (images - mean) + sin * (images.roll(1, 1) - images.roll(-1, 1))
