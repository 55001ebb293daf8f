"""Statistics and accuracies measured on a data set before and after training."""

from __future__ import annotations

import math

import torch
from torch import nn

from certify.data import Dataset
from certify.draws import EVALUATION, Draws
from certify.images import to_float
from certify.inference import device_of
from certify.models import Denoised
from certify.scheme import Scheme
from certify.training.copies import one_copy


@torch.no_grad()
def copy_statistics(
    scheme: Scheme | None, data: Dataset, *, images: int = 2_048, seed: int = 0
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of the *copies* that a scheme makes, to normalize them in the model.

    Often most of a copy is a constant that encodes "no information"; a network without normalization layers then learns
    faster, or learns at all, if that constant is near zero.

    Args:
        images: number of training images, evenly spaced, of which one copy each is used.
    """
    index = torch.arange(0, len(data), max(1, len(data) // images))
    parts = []
    for items in index.split(256):
        copies = one_copy(scheme, data.batch(items)[0], Draws.of(seed, EVALUATION, items, range(1)))
        over = (0, *range(2, copies.ndim))
        parts.append(torch.stack((copies.mean(over), copies.square().mean(over))) * len(items))
    mean, square = (torch.stack(parts).sum(0) / len(index)).double()
    std = (square - mean**2).clamp(min=1e-8).sqrt()
    return tuple(round(m, 4) for m in mean.tolist()), tuple(max(1e-4, round(s, 4)) for s in std.tolist())


@torch.no_grad()
def base_accuracy(
    module: nn.Module,
    scheme: Scheme | None,
    data: Dataset,
    *,
    seed: int = 0,
    batch_size: int = 250,
    device: str | torch.device | None = None,
) -> float:
    """Accuracy of a base classifier on one noised copy of every image (on the image itself without a scheme).

    Args:
        device: where copies are made, by default that of the module.
    """
    module.eval()
    device = device_of(module, torch.device("cpu")) if device is None else device
    right = 0
    batch_size = max(1, min(batch_size, (1 << 26) // math.prod(data.shape)))  # fewer, for clips
    for start in range(0, len(data), batch_size):
        index = torch.arange(start, min(start + batch_size, len(data)))
        images, labels = data.batch(index)
        items = index.to(device)
        copies = one_copy(scheme, images.to(device), Draws.of(seed, EVALUATION, items, range(1)))
        right += int((module(copies).argmax(1).cpu() == labels).sum())
    return right / len(data)


@torch.no_grad()
def denoising_errors(
    module: Denoised,
    scheme: Scheme,
    data: Dataset,
    *,
    seed: int = 0,
    batch_size: int = 250,
    device: str | torch.device | None = None,
) -> tuple[float, float]:
    """Mean squared error per pixel of one copy of each image (of its first C channels), and of the denoised copy.

    Args:
        device: where copies are made, by default that of the module.
    """
    module.eval()
    device = device_of(module, torch.device("cpu")) if device is None else device
    before = after = 0.0
    for index in torch.arange(len(data)).split(batch_size):
        images = data.batch(index)[0].to(device)
        clean = to_float(images)
        copies = one_copy(scheme, images, Draws.of(seed, EVALUATION, index.to(device), range(1)))
        before += (copies[:, : clean.shape[1]] - clean).square().sum(dtype=torch.float64).item()
        after += (module.denoiser(copies) - clean).square().sum(dtype=torch.float64).item()
    pixels = len(data) * math.prod(data.shape)
    return before / pixels, after / pixels
