"""Points and moves of a batch, with the same rounding for every batch size."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_HUGE = 1e150  # its square is finite


def rounded(points: NDArray[Any]) -> NDArray[Any]:
    """The nearest integers, with halves rounded to even; of the dtype of the points, and never -0."""
    return np.rint(points) + points.dtype.type(0)


def wrapped(values: NDArray[np.float64], period: float) -> NDArray[np.float64]:
    """Values shifted by multiples of the period into [-period / 2, period / 2]; both ends are left unchanged."""
    return values - period * np.rint(values / period)  # a half rounds to 0, which is even


def shortened(vectors: NDArray[Any], length: float = 1.0) -> NDArray[np.float64]:
    """Vectors [n, d] projected onto the ball of radius ``length``. Always a copy."""
    vectors = np.clip(vectors.astype(np.float64), -_HUGE, _HUGE)
    vectors /= np.maximum(1.0, np.sqrt((vectors * vectors).sum(-1, keepdims=True)) / length)
    return vectors
