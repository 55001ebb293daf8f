"""Goal-conditioned environments: a task as one Gymnasium environment, or as many that step together.

The goal interface has the names and the meaning of gymnasium-robotics: observations are dictionaries of
``observation``, ``achieved_goal`` and ``desired_goal``, and ``compute_reward``, ``compute_terminated`` and
``compute_truncated`` evaluate a step that arrives at ``achieved_goal`` for any ``desired_goal``; hindsight replay calls
the first. They accept arrays with any leading dimensions, [..., goal] -> [...].

Both kinds are built on :class:`envs.batch.Batch`. Environment i of a vector environment reset with seed s runs the same
episodes as a single environment reset with seed s + i.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike, NDArray

from envs.batch import ALL, Batch
from envs.task import Array, Task, check_actions, check_count

Observation = dict[str, Array]


class _GoalContract:
    """Reward, termination and truncation as functions of goals, which are read as float32, as they are observed."""

    task: Task

    def compute_reward(self, achieved_goal: ArrayLike, desired_goal: ArrayLike, info: Any) -> Any:
        """Reward of a step that arrives at ``achieved_goal`` [..., goal]: float64 [...]. ``info`` is not used."""
        return self.task.reward(np.asarray(achieved_goal, np.float32), np.asarray(desired_goal, np.float32))

    def compute_item_rewards(self, achieved_goal: ArrayLike, desired_goal: ArrayLike) -> NDArray[np.float64]:
        """Contribution of each goal of a set to that reward: float64 [..., goals]; 0 for padding."""
        achieved, desired = np.asarray(achieved_goal, np.float32), np.asarray(desired_goal, np.float32)
        return self.task.item_rewards(achieved, desired).astype(np.float64)

    def compute_terminated(self, achieved_goal: ArrayLike, desired_goal: ArrayLike, info: Any) -> Any:
        """Whether that step ends the episode: bool [...]."""
        terminated = self.task.terminated(np.asarray(achieved_goal, np.float32), np.asarray(desired_goal, np.float32))
        return terminated if terminated.ndim else bool(terminated)

    def compute_truncated(self, achieved_goal: ArrayLike, desired_goal: ArrayLike, info: Any) -> Any:
        """False [...]: goals never truncate an episode; only time limits do, outside of the environment."""
        shape = self.task.leading(np.asarray(achieved_goal), np.asarray(desired_goal))
        return np.zeros(shape, dtype=np.bool_) if shape else False


def _check_render_mode(mode: str | None, modes: Sequence[str], task: Task) -> None:
    if mode is not None and mode not in modes:
        raise ValueError(f"render_mode: got {mode!r}, expected None or one of {', '.join(map(repr, modes))}")
    if mode is not None and not task.draws():
        raise ValueError(
            f"render_mode: got {mode!r}, but {type(task).__name__} defines no pictures; add a method draw(self, "
            "episode), for example with envs.drawing"
        )


class GoalEnv(_GoalContract, gymnasium.Env[Observation, Any]):
    """A single environment of a task, without a time limit; ``gymnasium.make`` adds the task's.

    ``reset(options={"state": ..., "goal": ...})`` starts from a given state and goal. For tasks that define success,
    ``info["is_success"]`` tells whether any step of the episode so far has reached the goal. Render mode:
    ``"rgb_array"``. Random numbers are drawn in blocks, so setting the state of ``np_random`` back does not repeat an
    episode; ``reset(seed=...)`` does, and copies and pickles of the environment continue as it would.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012  (gymnasium's type)

    def __init__(self, task: Task, render_mode: str | None = None) -> None:
        _check_render_mode(render_mode, self.metadata["render_modes"], task)
        self.task, self.render_mode = task, render_mode
        self.observation_space: spaces.Space[Any] = task.observation_space
        self.action_space: spaces.Space[Any] = task.action_space
        self._batch = Batch(task, 1, record=render_mode is not None)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        if self.np_random is not self._batch.generators.get(0):
            self._batch.seed(0, self.np_random)
        self._batch.begin(ALL, {name: [value] for name, value in (options or {}).items()})
        return self._observe(), self._info()

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        self._batch.check_started("step")
        rewards, terminated = self._batch.step(ALL, check_actions([action], self.action_space, 1))
        return self._observe(), float(rewards[0]), bool(terminated[0]), False, self._info()

    def render(self) -> NDArray[np.uint8] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self.render_mode is None:
            gymnasium.logger.warn('render: got no render_mode; create the environment with render_mode="rgb_array"')
            return None
        self._batch.check_started("render")
        return np.array(self.task.draw(self._batch.episodes[0]))

    def _observe(self) -> Observation:
        return {name: rows[0] for name, rows in self._batch.observe().items()}

    def _info(self) -> dict[str, Any]:
        return {"is_success": bool(self._batch.reached[0])} if self.task.has_success else {}


class GoalVectorEnv(_GoalContract, VectorEnv[Observation, Any, NDArray[Any]]):
    """n environments of a task that step together in NumPy, with a time limit and autoreset.

    It returns, bit for bit, what ``gymnasium.vector.SyncVectorEnv`` returns for n single environments: the same
    episodes, and with ``AutoresetMode.SAME_STEP`` the ``final_obs`` and ``final_info`` of those that ended. It also has
    ``compute_reward`` and the other functions of goals.

    Args:
        max_episode_steps: time limit; the task's ``steps`` if None. It can shorten the task's limit, not extend it.
        autoreset_mode: ``NEXT_STEP`` (Gymnasium's default: the step after the last one resets and ignores its action)
            or ``SAME_STEP`` (the last step of an episode returns the first observation of the next).
    """

    def __init__(
        self,
        task: Task,
        num_envs: int = 1,
        *,
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
    ) -> None:
        check_count("num_envs", num_envs)
        if max_episode_steps is not None:
            check_count("max_episode_steps", max_episode_steps)
        _check_render_mode(render_mode, GoalEnv.metadata["render_modes"], task)
        mode = AutoresetMode(autoreset_mode)
        if mode is AutoresetMode.DISABLED:
            raise ValueError("autoreset_mode: got DISABLED, expected NEXT_STEP or SAME_STEP")
        self.metadata = {**GoalEnv.metadata, "autoreset_mode": mode}
        self.task, self.num_envs, self.render_mode = task, num_envs, render_mode
        self.max_episode_steps = min(task.steps, max_episode_steps or task.steps)
        self.single_observation_space, self.single_action_space = task.observation_space, task.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._batch = Batch(task, num_envs, record=render_mode is not None)
        self._same_step = mode is AutoresetMode.SAME_STEP
        self._ended = np.zeros(num_envs, dtype=np.bool_)

    @property
    def np_random(self) -> tuple[np.random.Generator, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The random generators of the environments, as in a SyncVectorEnv; empty before the first reset."""
        return tuple(self._batch.generators.values())

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start new episodes in all environments.

        Environment i gets seed + i, or entry i of a sequence of seeds; None keeps its generator. ``options`` may hold
        ``state`` and ``goal``, with the environments as the first dimension.
        """
        seeds = [None] * self.num_envs if seed is None else seed
        if isinstance(seeds, (int, np.integer)):
            seeds = [int(seeds) + i for i in range(self.num_envs)]
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed: got {len(seeds)} seeds, expected an integer or one for each of {self.num_envs}")
        for row, each in enumerate(seeds):
            if each is not None or row not in self._batch.generators:
                self._batch.seed(row, seeding.np_random(each)[0])
        self._batch.begin(ALL, options)
        self._ended[:] = False
        return self._batch.observe(), self._info()

    def step(
        self, actions: Any
    ) -> tuple[Observation, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        self._batch.check_started("step")
        actions = check_actions(actions, self.single_action_space, self.num_envs)
        rewards = np.zeros(self.num_envs)
        terminated = np.zeros(self.num_envs, dtype=np.bool_)
        truncated = np.zeros(self.num_envs, dtype=np.bool_)
        rows = ALL
        if not self._same_step and self._ended.any():
            self._batch.begin(np.flatnonzero(self._ended))
            rows = np.flatnonzero(~self._ended)
        rewards[rows], terminated[rows] = self._batch.step(rows, actions[rows])
        truncated[rows] = self._batch.elapsed[rows] >= self.max_episode_steps
        self._ended = terminated | truncated
        last: dict[str, Any] = {}
        if self._same_step and self._ended.any():
            last = self._final(self._ended)
            self._batch.begin(np.flatnonzero(self._ended))
        return self._batch.observe(), rewards, terminated, truncated, {**last, **self._info()}

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """One picture per environment."""
        if self.render_mode is None:
            gymnasium.logger.warn('render: got no render_mode; create the environments with render_mode="rgb_array"')
            return None
        self._batch.check_started("render")
        return tuple(np.array(self.task.draw(episode)) for episode in self._batch.episodes.values())

    def _info(self, rows: NDArray[np.bool_] | None = None) -> dict[str, Any]:
        """The infos of the rows (a mask; default: all), with the masks that accompany them in vector environments."""
        if not self.task.has_success:
            return {}
        rows = np.ones(self.num_envs, dtype=np.bool_) if rows is None else rows
        return {"is_success": self._batch.reached & rows, "_is_success": rows.copy()}

    def _final(self, ended: NDArray[np.bool_]) -> dict[str, Any]:
        """``final_obs`` and ``final_info`` of the environments that ended, before they are reset."""
        observed = self._batch.observe()
        final_obs = np.full(self.num_envs, None, dtype=object)
        for row in np.flatnonzero(ended):
            final_obs[row] = {name: values[row] for name, values in observed.items()}
        return {
            "final_obs": final_obs,
            "_final_obs": ended.copy(),
            "final_info": self._info(ended),
            "_final_info": ended.copy(),
        }
