"""Data augmentation of the papers. It is applied before the scheme and does not affect certificates."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from certify.data import Dataset
from certify.data.folders import FolderImages
from certify.data.videos import FolderClips


def augmented(data: Dataset, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A training batch: random resized crops of large image files (ImageNet), otherwise padded crops; flips in both.

    All frames of a clip are cropped and flipped alike; clips of longer videos start at a random frame. Data whose
    labels change under reflection are not flipped. Point clouds are rotated and jittered instead.
    """
    images = data.images
    if isinstance(images, FolderClips):
        return random_crop_and_flip(images.random_clips(index, generator), generator), data.labels[index]
    if isinstance(images, FolderImages) and images.resize is not None:
        return images.random_resized_crops(index, generator), data.labels[index]
    batch, labels = data.batch(index)
    if data.kind == "points":
        return random_turn_and_jitter(batch, generator), labels
    return random_crop_and_flip(batch, generator, flips=data.mirrored), labels


def random_crop_and_flip(images: Tensor, generator: torch.Generator, padding: int = 4, *, flips: bool = True) -> Tensor:
    """A random translation by up to ``padding`` pixels (filled with zeros) and a random flip for each image or clip."""
    moves = torch.randint(0, 2 * padding + 1, (2, len(images), 1), generator=generator)[..., 0]
    flip = (torch.rand(len(images), 1, generator=generator)[:, 0] < 0.5) & flips
    return crop_and_flip(images, moves, flip, padding)


def crop_and_flip(images: Tensor, moves: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Images padded with ``padding`` zeros on each side, cropped to their original size, then flipped.

    Args:
        images: ``[B, C, ..., H, W]``; frames of a clip move together.
        moves: int64 ``[2, B]`` in [0, 2 padding], the first row and column of each crop.
        flip: bool ``[B]``, which images to flip horizontally.
    """
    count, height, width = len(images), *images.shape[-2:]
    padded = functional.pad(images, (padding,) * 4)
    down, right = moves[..., None]
    rows = down + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(count, width)
    columns = right + torch.where(flip[:, None], columns.flip(1), columns)
    item = torch.arange(count, device=images.device)[:, None, None]
    cropped = padded.movedim((-2, -1), (1, 2))[item, rows[:, :, None], columns[:, None, :]]
    return cropped.movedim((1, 2), (-2, -1)).contiguous()


def random_turn_and_jitter(
    clouds: Tensor, generator: torch.Generator, *, jitter: float = 0.01, largest: float = 0.025
) -> Tensor:
    """Clouds ``[B, 3, N, 1]`` rotated about the second, vertical axis, with Gaussian noise on coordinates (PointNet).

    Args:
        jitter, largest: standard deviation of the noise and its clipping bound, in sides of the unit cube: half the
            published numbers, which are for the unit sphere.
    """
    angle = 2 * math.pi * torch.rand(len(clouds), generator=generator)[:, None, None]
    x, y, z = (clouds - 0.5).unbind(1)
    turned = torch.stack((angle.cos() * x - angle.sin() * z, y, angle.sin() * x + angle.cos() * z), 1)
    noise = (jitter * torch.randn(clouds.shape, generator=generator)).clamp(-largest, largest)
    return (0.5 + turned + noise).clamp(0, 1)
