"""Baseline agents that need no training: greedy (dissertation, Figure 8.4 (d)) and random.

A policy maps observations, with any leading dimensions, to actions [..., action]; an observation is a dictionary with
``observation`` [..., size] and ``desired_goal`` [..., goals, item + 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs.drive_seek import DriveSeek
from envs.geometry import wrapped
from envs.noisy_seek import NoisySeek
from envs.task import Array, Task

Observation = Mapping[str, Array]
Policy = Callable[[Observation], NDArray[Any]]


def to_nearest_goal(position: Array, desired: Array, period: float | None = None) -> NDArray[np.float64]:
    """Displacement [..., item] from positions [..., item] to the nearest present goals; 0 where no goal is present.

    Nearest in Euclidean distance; among equally near goals, the first.

    Args:
        period: period of positions, if they wrap.
    """
    ways = desired[..., :-1].astype(np.float64) - position[..., None, :]
    if period is not None:
        ways = wrapped(ways, period)
    present = desired[..., -1] != 0
    distance = np.where(present, (ways * ways).sum(-1), np.inf)
    nearest = distance.argmin(-1)[..., None, None]
    way = np.take_along_axis(ways, nearest, -2)[..., 0, :]
    return np.where(present.any(-1)[..., None], way, 0.0)


def greedy_noisy_seek(observation: Observation, max_speed: float = 1.0) -> Array:
    """Moves towards the nearest goal at full speed, or exactly onto it if it is within one step: [..., 2]."""
    way = to_nearest_goal(observation["observation"][..., :2], observation["desired_goal"])
    way /= np.maximum(1.0, np.hypot(way[..., :1], way[..., 1:]) / max_speed)
    return way.astype(np.float32)


def greedy_drive_seek(observation: Observation, edge: float = 10.0, max_turn: float = 0.5) -> Array:
    """Turns towards the nearest goal, across the edges if that is nearer, as far as allowed: [..., 1]."""
    seen = observation["observation"]
    way = to_nearest_goal(seen[..., :2], observation["desired_goal"], 2.0 * edge)
    heading = np.arctan2(seen[..., 4].astype(np.float64), seen[..., 5])
    turn = np.where(way.any(-1), wrapped(np.arctan2(way[..., 1], way[..., 0]) - heading, 2 * np.pi), 0.0)
    return np.clip(turn, -max_turn, max_turn).astype(np.float32)[..., None]


def greedy(task: Task) -> Policy:
    """The greedy policy of a task; raises ``TypeError`` for tasks that have none."""
    if isinstance(task, NoisySeek):
        return lambda observation: greedy_noisy_seek(observation, task.max_speed)
    if isinstance(task, DriveSeek):
        return lambda observation: greedy_drive_seek(observation, task.edge, task.max_turn)
    raise TypeError(f"task: got {type(task).__name__}, expected DriveSeek or NoisySeek; others have no greedy agent")


def random(task: Task, rng: np.random.Generator) -> Policy:
    """A policy with actions uniform in the action space of a task."""
    space: Any = task.action_space
    if isinstance(space, spaces.Discrete):
        return lambda observation: rng.integers(0, space.n, observation["observation"].shape[:-1])
    return lambda observation: rng.uniform(
        space.low, space.high, (*observation["observation"].shape[:-1], *space.shape)
    ).astype(np.float32)
