"""Fixed pseudorandom offsets: how the deterministic schemes couple the features of an image."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from certify.images import Shape


@lru_cache(maxsize=32)
def fixed_offsets(seed: int, count: int, shape: Shape, device: torch.device) -> Tensor:
    """int32 ``shape`` in 0..count - 1, the same on every device; NumPy guarantees that RandomState never changes."""
    offsets = np.random.RandomState(seed).randint(0, count, size=shape)
    return torch.from_numpy(offsets.astype(np.int32)).to(device)
