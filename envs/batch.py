"""States of n environments of one task, each with its own random stream; both kinds of environments step these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from envs.contract import check_task
from envs.task import Array, Episode, Task, check_rows

Rows = slice | NDArray[np.intp]
ALL = slice(None)

# Draws that are made at once for one environment: a generator call per 32 episodes and per 256 steps, not for each.
_STARTS_AHEAD, _NOISE_AHEAD = 32, 256


class Pool:
    """Random draws for n environments, each from its own generator, one block ahead.

    What an environment gets depends on its generator alone, neither on the other environments nor on their number.
    """

    def __init__(
        self,
        draw: Callable[[np.random.Generator, int], tuple[NDArray[Any], ...]],
        generators: Mapping[int, np.random.Generator],
        n: int,
        block: int,
    ) -> None:
        self._draw, self._generators, self._block = draw, generators, block
        self._rows = np.arange(n)
        self._used = np.full(n, block)
        self._fields: tuple[NDArray[Any], ...] = ()

    def forget(self, row: int) -> None:
        """Drops what was drawn ahead, because the environment has a new generator."""
        self._used[row] = self._block

    def take(self, rows: Rows) -> tuple[NDArray[Any], ...]:
        """The next draw of each of the rows: copies, [len(rows), ...]."""
        rows = self._rows[rows]
        for row in rows[self._used[rows] == self._block].tolist():
            self._refill(row)
        used = self._used[rows]
        self._used[rows] += 1
        return tuple(values[rows, used] for values in self._fields)

    def _refill(self, row: int) -> None:
        drawn = self._draw(self._generators[row], self._block)
        if not self._fields:
            self._fields = tuple(np.empty((len(self._rows), *values.shape), values.dtype) for values in drawn)
        for values, block in zip(self._fields, drawn, strict=True):
            values[row] = block
        self._used[row] = 0


class Batch:
    """n environments of a task, below the Gymnasium interface: states, goals, steps, and whether the goal was reached.

    Attributes:
        generators: one per environment, by its index; empty until :meth:`seed`.
        elapsed: steps since the start of the episode, int64 [n].
        reached: whether the goal was reached by any step of the episode, bool [n].
        episodes: the current episode of each environment, kept for pictures only (``record``).
    """

    def __init__(self, task: Task, n: int, *, record: bool) -> None:
        check_task(task)
        self.task, self.n, self.record = task, n, record
        self.generators: dict[int, np.random.Generator] = {}
        self.elapsed = np.zeros(n, dtype=np.int64)
        self.reached = np.zeros(n, dtype=np.bool_)
        self.episodes: dict[int, Episode] = {}
        self._spaces = {"state": task.state_space, "goal": task.goal_space}
        self._state, self._goal = (np.zeros((n, *(s.shape or ())), np.float32) for s in self._spaces.values())
        self._starts = Pool(task.start, self.generators, n, _STARTS_AHEAD)
        self._noise = Pool(self._draw_noise, self.generators, n, _NOISE_AHEAD) if task.stochastic else None

    def seed(self, row: int, generator: np.random.Generator) -> None:
        """From now on this environment draws from the generator; its next episode is the first one from it."""
        self.generators[row] = generator
        self._starts.forget(row)
        if self._noise is not None:
            self._noise.forget(row)

    def check_started(self, caller: str) -> None:
        """Raises ResetNeeded before the first reset."""
        if not self.generators:
            raise ResetNeeded(f"{caller}: got a call before the first reset; call reset() first")

    def _draw_noise(self, rng: np.random.Generator, n: int) -> tuple[Array]:
        return (self.task.noise(rng, n),)

    def begin(self, rows: Rows, options: dict[str, Any] | None = None) -> None:
        """New episodes for the rows; ``options`` may hold ``state`` and ``goal`` for all of them.

        A start is drawn in any case, so that the options of one episode do not change the next.
        """
        options = options or {}
        unknown = sorted(options.keys() - self._spaces.keys())
        if unknown:
            raise ValueError(f"options: got {', '.join(unknown)}, expected only 'state' and 'goal'")
        given = {
            name: check_rows(f"options[{name!r}]", value, self._spaces[name], self.n) for name, value in options.items()
        }
        state, goal = self._starts.take(rows)
        self._state[rows] = given.get("state", state)
        self._goal[rows] = given.get("goal", goal)
        self.elapsed[rows] = 0
        self.reached[rows] = False
        if self.record:
            for row in np.arange(self.n)[rows].tolist():
                self.episodes[row] = Episode(self._goal[row].copy(), [self._state[row].copy()])

    def step(self, rows: Rows, actions: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Steps of the rows with actions [len(rows), ...]: rewards and terminations [len(rows)]."""
        task, goal = self.task, self._goal[rows]
        noise = None if self._noise is None else self._noise.take(rows)[0]
        # in the precision of observations, from which hindsight computes rewards again
        state = task.step(self._state[rows], actions, noise).astype(self._state.dtype, copy=False)
        self._state[rows] = state
        self.elapsed[rows] += 1
        achieved = task.achieved(state)
        rewards = task.reward(achieved, goal)
        if task.has_success:
            self.reached[rows] |= task.success(achieved, goal)
        if self.record:
            self._record(rows, rewards)
        return rewards, task.terminated(achieved, goal)

    def _record(self, rows: Rows, rewards: NDArray[np.float64]) -> None:
        for row, reward in zip(np.arange(self.n)[rows].tolist(), rewards, strict=True):
            episode = self.episodes[row]
            episode.states.append(self._state[row].copy())
            episode.rewards.append(float(reward))
            episode.reached = bool(self.reached[row])

    def observe(self) -> dict[str, Array]:
        """The observations of all environments, as copies."""
        return {
            "observation": self.task.observation(self._state).copy(),
            "achieved_goal": self.task.achieved(self._state).copy(),
            "desired_goal": self._goal.copy(),
        }
