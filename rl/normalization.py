"""Running normalization of observations inside the policy, so that goal gradients stay those of the raw goal.

The recipe is that of OpenAI's DDPG with hindsight (Plappert et al., "Multi-Goal Reinforcement Learning", 2018): inputs
of actor and critic are centred and scaled by running statistics of the transitions that were collected, with hindsight
applied, and clipped.
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
    """Mean and standard deviation of vectors seen so far, starting from one vector of zeros.

    Attributes:
        epsilon: standard deviations are at least this.
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
        # what forward passes read: mean, and one over the standard deviation
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    @torch.no_grad()
    def update(self, vectors: Tensor) -> None:
        """Take in vectors ``[N, size]``."""
        vectors = vectors.double()
        self.count += len(vectors)
        self.total += vectors.sum(dim=0)
        self.squares += vectors.square().sum(dim=0)
        mean = self.total / self.count
        variance = self.squares / self.count - mean.square()
        self.mean.copy_(mean)
        self.scale.copy_(variance.clamp(min=self.epsilon**2).rsqrt())


class NormalizedExtractor(BaseFeaturesExtractor):
    """Features of a dictionary observation: some of its parts, normalized and clipped.

    To be given as ``policy_kwargs={"features_extractor_class": rl.NormalizedExtractor}``. The algorithms of this
    package let all networks share one :class:`RunningStatistics` and feed it before they train, which needs
    :class:`rl.HerReplayBuffer`.

    Args:
        keys: the parts, in order. The achieved goal is not among them by default, being part of the observation in the
            robotics environments.
        clip: largest size of a normalized number.
        clip_raw: largest size of a number before it is normalized.
        epsilon: least standard deviation.
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
        for key in keys:  # as others are preprocessed: one-hot, or from 0 to 1
            space = observation_space[key]
            if not isinstance(space, spaces.Box | spaces.MultiBinary) or is_image_space(space):
                raise ValueError(f"keys: got {key!r} with the space {space}, expected a Box that is no image, or bits")
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
        """The parts side by side, ``[B, features]``, with numbers of at most ``clip_raw``."""
        parts = [observations[key].float().flatten(1) for key in self.keys]
        return torch.cat(parts, dim=1).clamp(-self.clip_raw, self.clip_raw)

    def forward(self, observations: Observation) -> Tensor:
        statistics = self.statistics
        return ((self.raw(observations) - statistics.mean) * statistics.scale).clamp(-self.clip, self.clip)

    def slope(self, observations: Observation, key: str) -> Tensor:
        """Derivatives of the features that are ``key`` with respect to it, coordinate by coordinate: ``[B, size]``."""
        columns, statistics = self.columns[key], self.statistics
        raw = observations[key].float().flatten(1)
        normalized = (raw - statistics.mean[columns]) * statistics.scale[columns]
        inside = (raw.abs() <= self.clip_raw) & (normalized.abs() <= self.clip)
        return inside * statistics.scale[columns]


def share_statistics(policy: nn.Module) -> NormalizedExtractor | None:
    """Let all normalizing extractors of a policy use the same statistics; one of them, if there is any."""
    extractors = [module for module in policy.modules() if isinstance(module, NormalizedExtractor)]
    for extractor in extractors[1:]:
        extractor.statistics = extractors[0].statistics
    return extractors[0] if extractors else None
