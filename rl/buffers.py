"""A replay buffer for goals that take much memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3.common.buffers import DictReplayBuffer
from torch import Tensor

from rl.goals import GOAL
from rl.transfer import to_device


class GoalSetReplayBuffer(DictReplayBuffer):
    """Stable-Baselines3's buffer, with ``desired_goal`` stored once per transition: it holds for a whole episode.

    Half the memory where the goals are most of it. Transitions are not relabelled.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.next_observations[GOAL] = self.observations[GOAL]  # the other was never written, so took no memory

    def to_torch(self, array: np.ndarray, copy: bool = True) -> Tensor:
        """Of an array that was made for the minibatch, so that it need not be copied again."""
        return to_device(array, self.device)
