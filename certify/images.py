"""Image batches ``[B, C, H, W]``: ``uint8`` (the value v stands for v / 255) or floats in [0, 1].

Schemes that add independent noise to every number also accept videos, ``[B, C, T, H, W]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

Shape = tuple[int, ...]  # of one image: (C, H, W); of a video: (C, T, H, W)

IMAGES, VIDEOS = "[B, C, H, W]", "[B, C, T, H, W]"


def check_images(x: Tensor, layouts: tuple[str, ...] = (IMAGES,)) -> None:
    """Raise unless ``x`` is a batch of images with valid values (finite, in range).

    Args:
        layouts: allowed layouts of ``x``: images, videos, or both, depending on the scheme.
    """
    expected = " or ".join(layouts)
    if not isinstance(x, Tensor):
        raise TypeError(f"images: got {type(x).__name__}, expected a torch.Tensor {expected}")
    if x.ndim not in [layout.count(",") + 1 for layout in layouts]:
        advice = {
            2: "features [B, D] are images x[:, :, None, None], one grey image [H, W] is x[None, None]",
            3: "grey images [B, H, W] are x[:, None], one image [C, H, W] is x[None]",
            4: "this scheme takes clips only",
            5: f"videos {VIDEOS} need a scheme that adds independent noise to every number, such as GaussianNoise",
        }.get(x.ndim, "pass a batch")
        raise ValueError(f"images: got shape {tuple(x.shape)}, expected {expected}; {advice}")
    if x.numel() == 0:
        raise ValueError(f"images: got an empty batch of shape {tuple(x.shape)}")
    if x.dtype == torch.uint8:
        return
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"images: got dtype {x.dtype}, expected uint8 (0..255), float32 or float64 (0..1)")
    if not torch.isfinite(x).all():
        raise ValueError("images: got NaN or infinite values, expected values in [0, 1]; clean the data first")
    low, high = x.min().item(), x.max().item()
    if low < 0 or high > 1:
        raise ValueError(
            f"images: got values in [{low:g}, {high:g}], expected [0, 1]; "
            "scale the data, and put any normalization inside the base classifier"
        )


def channels_first(shape: Sequence[int]) -> bool:
    """Whether an image of this shape may be ``[C, H, W]``; False if it looks like ``[H, W, C]`` with few channels."""
    return not (shape[0] > 4 and shape[1] > 4 and shape[2] <= 4)


@lru_cache(maxsize=8)
def _byte_levels(device: torch.device) -> Tensor:
    return (torch.arange(256, dtype=torch.float64) / 255).float().to(device)


def to_float(x: Tensor) -> Tensor:
    """float32 image in [0, 1]. 8-bit values are looked up in one table, so that every device gets the same bits.

    Turns -0.0 into 0.0: their distance is 0, so both must have the same copies.
    """
    return _byte_levels(x.device)[x.long()] if x.dtype == torch.uint8 else x.float() + 0.0


def to_levels(x: Tensor, q: int) -> Tensor:
    """The integers ``i`` with ``x = i / q``: int64, same shape. Raises where ``x`` is not on the grid."""
    if x.dtype == torch.uint8:
        scaled = x.to(torch.int64) * q
        if q != 255 and (scaled % 255 != 0).any():
            raise ValueError(
                f"images: got 8-bit values that are not multiples of 1/{q}, expected images of {q + 1} levels; "
                f"quantize them by (x.float() * {q} / 255).round() / {q}, or use a scheme with q = 255"
            )
        return scaled // 255
    levels = (x.to(torch.float64) * q).round()
    distance = (x - (levels / q).to(x.dtype)).abs()
    if not bool((distance <= torch.finfo(x.dtype).eps).all()):  # one unit in the last place; also rejects NaN
        worst = distance.max().item()
        if x.dtype == torch.float64 and worst <= torch.finfo(torch.float32).eps:
            raise ValueError(
                f"images: got float64 values up to {worst:.2g} away from the grid i/{q}, as if they had been computed "
                "in float32; pass them as float32 (x.float()), which stand for the nearest grid points, or as uint8"
            )
        raise ValueError(
            f"images: got values up to {worst:.2g} away from the grid i/{q}, expected multiples of 1/{q}, outside of "
            f"which the certificate does not hold; pass the uint8 images, quantize them by (x * {q}).round() / {q}, "
            "or give the right q"
        )
    return levels.to(torch.int64)
