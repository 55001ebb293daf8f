"""Exploration noise for many environments at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from stable_baselines3.common.noise import NormalActionNoise, VectorizedActionNoise


class VectorizedNormalNoise(VectorizedActionNoise):
    """Gaussian noise for ``n_envs`` environments, drawn at once.

    The numbers are those of ``VectorizedActionNoise(NormalActionNoise(mean, sigma), n_envs)`` in Stable-Baselines3. It
    draws for one environment after the other, which takes as long as acting if there are dozens. To change mean or
    deviation, make a new object.

    Args:
        mean: ``[actions]``.
        sigma: standard deviation, ``[actions]``.
    """

    def __init__(self, mean: ArrayLike, sigma: ArrayLike, n_envs: int) -> None:
        mean, sigma = np.broadcast_arrays(mean, sigma)
        super().__init__(NormalActionNoise(mean, sigma), n_envs)
        self._all = NormalActionNoise(*(np.broadcast_to(own, (n_envs, *own.shape)) for own in (mean, sigma)))

    def __call__(self) -> np.ndarray:
        return self._all()
