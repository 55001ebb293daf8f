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
    source = torch.from_numpy(values)
    out = torch.empty((len(places), *values.shape[1:]), dtype=source.dtype, pin_memory=True)
    # large minibatches wait for memory, which all threads of PyTorch do at once, but NumPy's one does alone
    torch.index_select(source, 0, torch.from_numpy(places), out=out)
    return out.numpy()


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
