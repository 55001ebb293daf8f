"""Running normalization of observations inside the policy, so that goal gradients are those of the raw goal.

The recipe is that of OpenAI's DDPG+HER (Plappert et al., "Multi-Goal Reinforcement Learning", 2018): the inputs of
actor and critic are centred and scaled by running statistics of the collected transitions after hindsight relabelling,
and then clipped.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from rl.goals import GOAL, Observation


class RunningStatistics(nn.Module):
    """Mean and standard deviation of the vectors seen so far, starting from a single vector of zeros.

    Attributes:
        epsilon: lower bound of the standard deviations.
    """

    count: Tensor
    total: Tensor
    squares: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.register_buffer("count", torch.ones((), dtype=torch.float64))
        self.register_buffer("total", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(size, dtype=torch.float64))
        # read by forward passes: the mean, and one over the standard deviation
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    @torch.no_grad()
    def update(self, vectors: Tensor) -> None:
        """Add vectors ``[N, size]`` to the statistics."""
        vectors = vectors.double()
        self.count += len(vectors)
        self.total += vectors.sum(dim=0)
        self.squares += vectors.square().sum(dim=0)
        mean = self.total / self.count
        variance = self.squares / self.count - mean.square()
        self.mean.copy_(mean)
        self.scale.copy_(variance.clamp(min=self.epsilon**2).rsqrt())


class NormalizedExtractor(BaseFeaturesExtractor):
    """Features extractor for dictionary observations that concatenates some of their entries, normalized and clipped.

    Pass it as ``policy_kwargs={"features_extractor_class": rl.NormalizedExtractor}``. The algorithms of this package
    let all networks share one :class:`RunningStatistics` and update it before training, which requires
    :class:`rl.HerReplayBuffer`.

    Args:
        keys: the entries, in order. By default, the achieved goal is left out, since the robotics environments contain
            it in the observation.
        clip: largest absolute value after normalization.
        clip_raw: largest absolute value before normalization.
        epsilon: lower bound of the standard deviations.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        keys: Sequence[str] = ("observation", GOAL),
        clip: float = 5.0,
        clip_raw: float = 200.0,
        epsilon: float = 0.01,
    ) -> None:
        missing = [key for key in keys if key not in observation_space.spaces]
        if missing:
            raise ValueError(f"keys: got {missing[0]!r}, expected some of {', '.join(observation_space.spaces)}")
        if len(set(keys)) < len(keys):
            raise ValueError(f"keys: got {tuple(keys)}, expected each of them once")
        for key in keys:  # other spaces are preprocessed already: one-hot encoded, or scaled to [0, 1]
            space = observation_space[key]
            if not isinstance(space, spaces.Box | spaces.MultiBinary) or is_image_space(space):
                raise ValueError(
                    f"keys: got {key!r} with the space {space}, expected a MultiBinary, or a Box that is no image"
                )
        for name, value in (("clip", clip), ("clip_raw", clip_raw), ("epsilon", epsilon)):
            if not (np.isfinite(value) and value > 0):
                raise ValueError(f"{name}: got {value}, expected a finite number above 0")
        sizes = [get_flattened_obs_dim(observation_space[key]) for key in keys]
        super().__init__(observation_space, features_dim=sum(sizes))
        self.keys, self.clip, self.clip_raw = tuple(keys), clip, clip_raw
        ends = np.cumsum(sizes).tolist()
        self.columns = {key: slice(end - size, end) for key, size, end in zip(keys, sizes, ends, strict=True)}
        self.statistics = RunningStatistics(sum(sizes), epsilon)

    def raw(self, observations: Observation) -> Tensor:
        """The concatenated entries, ``[B, features]``, clipped to ``[-clip_raw, clip_raw]``."""
        parts = [observations[key].float().flatten(1) for key in self.keys]
        return torch.cat(parts, dim=1).clamp(-self.clip_raw, self.clip_raw)

    def forward(self, observations: Observation) -> Tensor:
        statistics = self.statistics
        return ((self.raw(observations) - statistics.mean) * statistics.scale).clamp(-self.clip, self.clip)

    def slope(self, observations: Observation, key: str) -> Tensor:
        """Derivatives of the features of ``key`` with respect to ``key``, coordinate by coordinate: ``[B, size]``.

        Where a value equals a clip exactly, this is the derivative on the inner side, as that of ``torch.clamp`` up to
        PyTorch 2.13.
        """
        columns, statistics = self.columns[key], self.statistics
        raw = observations[key].float().flatten(1)
        normalized = (raw - statistics.mean[columns]) * statistics.scale[columns]
        inside = (raw.abs() <= self.clip_raw) & (normalized.abs() <= self.clip)
        return inside * statistics.scale[columns]


def share_statistics(policy: nn.Module) -> NormalizedExtractor | None:
    """Make all normalizing extractors of a policy share their statistics, and return one of them; None without any."""
    extractors = [module for module in policy.modules() if isinstance(module, NormalizedExtractor)]
    for extractor in extractors[1:]:
        extractor.statistics = extractors[0].statistics
    return extractors[0] if extractors else None
