"""Data augmentation of the papers. It comes before the scheme and never touches a certificate."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from certify.data import Dataset
from certify.data.folders import FolderImages


def augmented(data: Dataset, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A training batch: random resized crops of large image files (ImageNet), else padded crops; flips for both."""
    images = data.images
    if isinstance(images, FolderImages) and images.resize is not None:
        return images.random_resized_crops(index, generator), data.labels[index]
    batch, labels = data.batch(index)
    return random_crop_and_flip(batch, generator), labels


def random_crop_and_flip(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Random translations by up to ``padding`` pixels (zeros come in) and horizontal flips, one per image."""
    count, _, height, width = images.shape
    padded = functional.pad(images, (padding,) * 4)
    down, right = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator)
    flip = torch.rand(count, 1, generator=generator) < 0.5
    rows = down + torch.arange(height)
    columns = torch.arange(width).expand(count, width)
    columns = right + torch.where(flip, columns.flip(1), columns)
    item = torch.arange(count)[:, None, None]
    cropped = padded.permute(0, 2, 3, 1)[item, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2).contiguous()
