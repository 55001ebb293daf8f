"""A replay buffer for memory-hungry goals."""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3.common.buffers import DictReplayBuffer
from torch import Tensor

from rl.goals import GOAL
from rl.transfer import to_device


class GoalSetReplayBuffer(DictReplayBuffer):
    """A ``DictReplayBuffer`` that stores ``desired_goal`` once per transition, as it is constant within an episode.

    Halves the memory where goals dominate it. Transitions are not relabelled.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # the replaced array was never written to, so it took no memory
        self.next_observations[GOAL] = self.observations[GOAL]

    def to_torch(self, array: np.ndarray, copy: bool = True) -> Tensor:
        """The array as a tensor, without a copy on the CPU: the array was made for this minibatch alone."""
        return to_device(array, self.device)
