"""The contract of an environment: a task, pure functions of NumPy arrays for a batch of n environments.

A task is a frozen dataclass. Everything around it is shared: :mod:`envs.batch` holds the states of n environments,
:mod:`envs.core` makes a Gymnasium environment of one and a vector environment of many. A new environment is thus one
file with a task, and one line in ``envs/__init__.py``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

Array = NDArray[np.float32]


@dataclass
class Episode:
    """What :meth:`Task.draw` may show: the states from the first to the current one, and the rewards in between.

    Attributes:
        reached: whether the goal was reached by any step so far.
    """

    goal: Array
    states: list[Array] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    reached: bool = False


class Task(ABC):
    """Initial states, goals, dynamics, rewards and success of n environments at a time.

    States, goals and observations are float32, because they fill replay buffers: what an agent sees, what its reward is
    computed from and what is stored are the same numbers. No function modifies its arguments. Each row of a result
    depends on the same row of the arguments alone and is rounded in the same way for every n, so that one environment
    and many compute the same.

    Attributes:
        steps: time limit, applied by the registration and unknown to the dynamics.
        stochastic: whether :meth:`step` is given :meth:`noise`.
        has_success: whether :meth:`success` is defined.
        goal_axes: number of axes of a desired goal: 1 for a vector, 2 for a set of vectors; achieved goals are vectors.
    """

    steps: int
    stochastic: ClassVar[bool] = False
    has_success: ClassVar[bool] = True
    goal_axes: ClassVar[int] = 1

    @property
    @abstractmethod
    def observation_space(self) -> spaces.Dict:
        """Observations of one environment, with the keys ``observation``, ``achieved_goal`` and ``desired_goal``."""

    @property
    @abstractmethod
    def action_space(self) -> spaces.Space[Any]:
        """Actions of one environment: a Box or a Discrete space."""

    @property
    def state_space(self) -> spaces.Space[Any]:
        """Legal states of one environment; the observations unless a task says otherwise."""
        return self.observation_space["observation"]

    @property
    def goal_space(self) -> spaces.Space[Any]:
        """Legal goals of one environment."""
        return self.observation_space["desired_goal"]

    @abstractmethod
    def start(self, rng: np.random.Generator, n: int) -> tuple[Array, Array]:
        """n independent pairs of an initial state [n, ...] and a goal [n, ...]."""

    def noise(self, rng: np.random.Generator, n: int) -> Array:
        """The random part of n steps: [n, ...]. For stochastic tasks."""
        raise NotImplementedError(
            f"{type(self).__name__}: is deterministic and has no noise; set stochastic and define noise"
        )

    @abstractmethod
    def step(self, state: Array, action: NDArray[Any], noise: Array | None) -> Array:
        """The next states [n, ...] after actions [n, ...]; noise [n, ...] if the task is stochastic, else None."""

    def observation(self, state: Array) -> Array:
        """What the agent sees of the states [n, ...], beside the goals."""
        return state

    def achieved(self, state: Array) -> Array:
        """The goals that the states [n, ...] achieve."""
        return state

    @abstractmethod
    def reward(self, achieved: Array, desired: Array) -> NDArray[np.float64]:
        """Reward of arriving at states that achieve ``achieved`` [..., goal] with the goals ``desired``: [...]."""

    def item_rewards(self, achieved: Any, desired: Any) -> Any:
        """The reward that each goal of a set adds: [..., goals]. For tasks with sets of goals (envs/multi_goal.py)."""
        raise NotImplementedError(f"{type(self).__name__} has one goal at a time: its reward has no parts")

    def success(self, achieved: Array, desired: Array) -> NDArray[np.bool_]:
        """Whether the desired goals are reached: [...]. For tasks with ``has_success``."""
        raise NotImplementedError(f"{type(self).__name__} has rewards only: it knows no success")

    def terminated(self, achieved: Array, desired: Array) -> NDArray[np.bool_]:
        """Whether an episode ends there for a reason other than the time limit: [...]; by default never.

        By default, hindsight does not use it: a relabelled transition ends where its own episode did, so that values
        beyond a goal are learned, too. ``HerReplayBuffer(relabel_terminations=True)`` does use it. Environments that
        never terminate are the simpler choice.
        """
        return np.zeros(self.leading(achieved, desired), dtype=np.bool_)

    def leading(self, achieved: NDArray[Any], desired: NDArray[Any]) -> tuple[int, ...]:
        """The leading dimensions, in front of those of one goal; also the shape of rewards."""
        return np.broadcast_shapes(achieved.shape[:-1], desired.shape[: desired.ndim - self.goal_axes])

    def draw(self, episode: Episode) -> Image.Image:
        """A picture of the last state of the episode, of the same size for all states of a task. For pictures only."""
        raise NotImplementedError(
            f"{type(self).__name__}: defines no pictures; add a method draw(self, episode), for example with "
            "envs.drawing"
        )

    def draws(self) -> bool:
        """Whether pictures are defined."""
        return type(self).draw is not Task.draw


def box(size: int, bound: float = np.inf) -> spaces.Box:
    """Vectors of ``size`` float32 numbers in [-bound, bound]."""
    return spaces.Box(-bound, bound, (size,), np.float32)


def check_count(name: str, value: object) -> None:
    """Raises unless the value is an integer above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name}: got {value!r}, expected an integer above 0")


def check_positive(name: str, value: float) -> None:
    """Raises unless the value is finite and above 0."""
    if isinstance(value, bool) or not (isinstance(value, (int, float, np.number)) and 0 < value < math.inf):
        raise ValueError(f"{name}: got {value!r}, expected a finite number above 0")


def check_rows(name: str, value: object, space: spaces.Space[Any], n: int) -> Array:
    """The value as float32 [n, ...]; raises unless each row is finite and in the space (Box or MultiBinary)."""
    rows = np.asarray(value, dtype=np.float32)
    if rows.shape != (n, *(space.shape or ())):
        raise ValueError(f"{name}: got shape {rows.shape}, expected {(n, *(space.shape or ()))}")
    if isinstance(space, spaces.Box):
        legal = np.isfinite(rows) & (rows >= space.low) & (rows <= space.high)
        expected = f"finite numbers from {space.low.min()} to {space.high.max()}"
    else:
        legal, expected = (rows == 0) | (rows == 1), "zeros and ones"
    if not legal.all():
        raise ValueError(f"{name}: got {rows[~legal].flat[0]}, expected {expected}")
    return rows


def check_actions(value: object, space: spaces.Space[Any], n: int) -> NDArray[Any]:
    """The value as actions [n, ...]; raises unless they have the shape of the space and are finite or in range.

    Finite continuous actions beyond the bounds are legal here: each task says what it does with them.
    """
    actions = np.asarray(value)
    if actions.shape != (n, *(space.shape or ())):
        raise ValueError(f"action: got shape {actions.shape}, expected {(n, *(space.shape or ()))}")
    if isinstance(space, spaces.Discrete):
        if not np.issubdtype(actions.dtype, np.integer) or (actions < 0).any() or (actions >= space.n).any():
            raise ValueError(f"action: got {value!r}, expected integers from 0 to {space.n - 1}")
    elif not np.isfinite(actions).all():
        raise ValueError(
            "action: got a number that is not finite, expected finite numbers; check whether the policy has diverged"
        )
    return actions
