"""BitFlipping: turn one bit string into another, one bit per step.

Source: Andrychowicz et al., "Hindsight Experience Replay" (NeurIPS 2017), Section 3.1; dissertation, Appendix G.2.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from PIL import Image

from envs import drawing
from envs.task import Array, Episode, Task, check_count


@dataclass(frozen=True)
class BitFlipping(Task):
    """s, g in {0, 1}^d; action i flips bit i; reward 0 if ``s' = g``, else -1. Initial states and goals are uniform.

    Reaching the goal does not end the episode unless ``terminate`` is set: hindsight could not relabel the end, since a
    replay buffer that relabels goals keeps the terminations of the original goals. Rewards and values are thus
    functions of (s', g) alone, and success means that the goal was reached at any step.

    Bits are float32 in Boxes, not MultiBinary, because gradients with respect to goals need real numbers.

    Attributes:
        d: number of bits.
        steps: time limit, always d.
        terminate: whether episodes end at the goal.
    """

    d: int = 20
    steps: int = field(init=False)
    terminate: bool = False

    def __post_init__(self) -> None:
        check_count("d", self.d)
        object.__setattr__(self, "steps", self.d)

    @property
    def observation_space(self) -> spaces.Dict:
        names = ("observation", "achieved_goal", "desired_goal")
        return spaces.Dict({name: spaces.Box(0.0, 1.0, (self.d,), np.float32) for name in names})

    @property
    def state_space(self) -> spaces.MultiBinary:
        return spaces.MultiBinary(self.d)

    @property
    def goal_space(self) -> spaces.MultiBinary:
        return spaces.MultiBinary(self.d)

    @property
    def action_space(self) -> spaces.Discrete:
        return spaces.Discrete(self.d)

    def start(self, rng: np.random.Generator, n: int) -> tuple[Array, Array]:
        bits = rng.integers(0, 2, (2, n, self.d), dtype=np.int8).astype(np.float32)
        return bits[0], bits[1]

    def step(self, state: Array, action: NDArray[np.integer], noise: Array | None) -> Array:
        flipped, rows = state.copy(), np.arange(len(state))
        flipped[rows, action] = 1 - flipped[rows, action]
        return flipped

    def reward(self, achieved: Array, desired: Array) -> NDArray[np.float64]:
        return self.success(achieved, desired).astype(np.float64) - 1

    def success(self, achieved: Array, desired: Array) -> NDArray[np.bool_]:
        return (achieved == desired).all(-1)

    def terminated(self, achieved: Array, desired: Array) -> NDArray[np.bool_]:
        return self.success(achieved, desired) if self.terminate else super().terminated(achieved, desired)

    def draw(self, episode: Episode) -> Image.Image:
        return drawing.bits(episode, self.steps)
