"""Array transfers to the device that do not make Python wait for a GPU."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def _page_locked(device: torch.device) -> bool:
    """Whether transfers to the device start from page-locked memory."""
    return device.type == "cuda"


def rows(values: np.ndarray, places: np.ndarray, device: torch.device) -> np.ndarray:
    """``values[places]``; for a GPU in page-locked memory, from which transfers run asynchronously."""
    if not _page_locked(device):
        return values.take(places, axis=0)
    kind = torch.from_numpy(values[:0]).dtype
    out = torch.empty((len(places), *values.shape[1:]), dtype=kind, pin_memory=True).numpy()
    return values.take(places, axis=0, out=out, mode="clip")  # no place is out of range; "raise" would write twice


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """The array as a tensor, which on a CPU shares its memory.

    For a GPU, the transfer may still be in flight on return. PyTorch does not reuse the page-locked memory before it
    finishes, provided that the source tensor owns that memory: it is the one of :func:`rows`, or a new copy.
    """
    if not _page_locked(device):
        return torch.from_numpy(array).to(device)
    owner = array.base
    if not (isinstance(owner, Tensor) and owner.shape == array.shape):
        values = torch.from_numpy(array)
        owner = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values)
    return owner.to(device, non_blocking=True)
