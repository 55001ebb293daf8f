"""ContinuousSeek: move through a box to a small box around the goal (dissertation, Section 8.3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from PIL import Image

from envs import drawing
from envs.task import Array, Episode, Task, box, check_count, check_positive


@dataclass(frozen=True)
class ContinuousSeek(Task):
    """s, g in [-bound, bound]^d; ``s' = clip(s + a)``; reward 0 if ``||s' - g||_inf <= eps``, else -1.

    Episodes start at 0 with a goal uniform in the box, and never terminate. Actions are clipped to [-1, 1]^d.

    Attributes:
        d: dimension of states, actions and goals.
        bound: half the side of the box, the paper's D.
        eps: largest distance that counts as reached, inclusive (computed in float32).
        steps: time limit.
    """

    d: int = 20
    bound: float = 5.0
    eps: float = 0.1
    steps: int = 10

    def __post_init__(self) -> None:
        check_count("d", self.d)
        check_positive("bound", self.bound)
        check_positive("eps", self.eps)
        check_count("steps", self.steps)

    @property
    def observation_space(self) -> spaces.Dict:
        names = ("observation", "achieved_goal", "desired_goal")
        return spaces.Dict({name: box(self.d, self.bound) for name in names})

    @property
    def action_space(self) -> spaces.Box:
        return box(self.d, 1.0)

    def start(self, rng: np.random.Generator, n: int) -> tuple[Array, Array]:
        goal = rng.uniform(-self.bound, self.bound, (n, self.d)).astype(np.float32)
        return np.zeros((n, self.d), dtype=np.float32), goal

    def step(self, state: Array, action: NDArray[np.floating], noise: Array | None) -> Array:
        # clip before converting to float32, in which a large action would become infinite
        move = np.clip(action, -1.0, 1.0).astype(np.float32)
        return np.clip(state + move, np.float32(-self.bound), np.float32(self.bound))

    def reward(self, achieved: Array, desired: Array) -> NDArray[np.float64]:
        return self.success(achieved, desired).astype(np.float64) - 1

    def success(self, achieved: Array, desired: Array) -> NDArray[np.bool_]:
        return np.abs(achieved - desired).max(-1) <= np.float32(self.eps)

    def draw(self, episode: Episode) -> Image.Image:
        return drawing.lanes(episode, self.bound, self.eps, self.steps)
