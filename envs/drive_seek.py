"""DriveSeek: steer a vehicle that never stops through many goals (dissertation, Section 8.5.1, App. G.6.4.1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from PIL import Image

from envs import drawing
from envs.geometry import rounded, wrapped
from envs.multi_goal import MultiGoalTask, goal_sets, pack_sets
from envs.task import Array, Episode, box, check_count, check_positive


@dataclass(frozen=True)
class DriveSeek(MultiGoalTask):
    """A vehicle turns by at most ``max_turn`` and then moves by 1; a step has reward 1 if it ends on a goal.

    A goal is reached if the position, rounded to integers (halves to even), equals it. Episodes start at (0, 0),
    heading along the first axis. The number of goals is uniform in 1, ..., max_goals; they are drawn without
    replacement from the integer points of [-half_width, half_width]^2.

    Positions wrap around: a vehicle that leaves the square enters it at the opposite edge, so opposite edges are the
    same line of a torus. A position on an edge stays on that side. For goals, the two sides still differ, since the
    rounded position counts: a goal at 10 is reached in [9.5, 10], one at -10 in [-10, -9.5]. This follows the text. In
    the authors' code, the torus extends half a unit beyond the outermost goals, so that all goals have the same size:
    ``margin=0.5``.

    Attributes:
        max_goals: largest number of goals of an episode.
        half_width: half the side of the square of goals, an integer.
        margin: how far positions extend beyond that square, in [0, 0.5].
        max_turn: largest turn, in radians; actions are clipped to [-max_turn, max_turn].
        steps: time limit.

    States are (x, y, angle of the velocity in [-pi, pi]); the agent observes (x, y, rounded x, rounded y, sine and
    cosine of the angle).
    """

    max_goals: int = 200
    half_width: int = 10
    max_turn: float = 0.5
    steps: int = 40
    margin: float = 0.0

    def __post_init__(self) -> None:
        check_count("max_goals", self.max_goals)
        check_count("half_width", self.half_width)
        check_positive("max_turn", self.max_turn)
        check_count("steps", self.steps)
        if not 0 <= self.margin <= 0.5:
            raise ValueError(f"margin: got {self.margin}, expected a number from 0 to 0.5")
        if self.max_goals > self._side**2:
            raise ValueError(
                f"max_goals: got {self.max_goals}, expected at most {self._side**2}, the integer points of the square"
            )

    @property
    def _side(self) -> int:
        return 2 * self.half_width + 1

    @property
    def edge(self) -> float:
        """Largest coordinate of a position."""
        return self.half_width + self.margin

    @property
    def observation_space(self) -> spaces.Dict:
        high = np.array([self.edge] * 2 + [self.half_width] * 2 + [1, 1], dtype=np.float32)
        return spaces.Dict(
            {
                "observation": spaces.Box(-high, high, dtype=np.float32),
                "achieved_goal": box(2, self.half_width),
                "desired_goal": goal_sets(self.max_goals, 2, self.half_width),
            }
        )

    @property
    def state_space(self) -> spaces.Box:
        high = np.array([self.edge, self.edge, np.pi], dtype=np.float32)
        return spaces.Box(-high, high, dtype=np.float32)

    @property
    def action_space(self) -> spaces.Box:
        return box(1, self.max_turn)

    def start(self, rng: np.random.Generator, n: int) -> tuple[Array, Array]:
        count = rng.integers(1, self.max_goals + 1, n)
        points = rng.permuted(np.tile(np.arange(self._side**2), (n, 1)), axis=1)[:, : self.max_goals]
        present = np.arange(self.max_goals) < count[:, None]
        items = np.stack(np.divmod(points[present], self._side), -1) - self.half_width
        goal = pack_sets(items, np.nonzero(present)[0], n, self.max_goals)
        return np.zeros((n, 3), dtype=np.float32), goal

    def step(self, state: Array, action: NDArray[np.floating], noise: Array | None) -> Array:
        turn = np.clip(action[:, 0], -self.max_turn, self.max_turn).astype(np.float64)
        angle = wrapped(state[:, 2] + turn, 2 * np.pi).astype(np.float32)
        position = wrapped(state[:, :2] + self.velocity(angle).astype(np.float64), 2.0 * self.edge)
        return np.concatenate([position.astype(np.float32), angle[:, None]], -1)

    def velocity(self, angle: Array) -> Array:
        """Unit vectors [n, 2] of angles [n]: cosine and sine."""
        # In float64, from a contiguous array, and rounded afterwards: the routine that computes a sine can depend on
        # stride and position in the array, so its last bit could depend on the number of environments.
        radians = np.ascontiguousarray(angle, dtype=np.float64)
        return np.stack([np.cos(radians), np.sin(radians)], -1).astype(np.float32)

    def observation(self, state: Array) -> Array:
        velocity = self.velocity(state[:, 2])
        return np.concatenate([state[:, :2], self.achieved(state), velocity[:, ::-1]], -1)

    def achieved(self, state: Array) -> Array:
        return rounded(state[:, :2])

    def draw(self, episode: Episode) -> Image.Image:
        states = np.stack(episode.states)
        view = drawing.View((0.0, 0.0), self.half_width + 0.5, period=2.0 * self.edge)
        heading = self.velocity(states[-1:, 2])[0]
        return drawing.goal_map(episode, states[:, :2], self.achieved(states), view, self.steps, heading)
