"""Hindsight experience replay: Stable-Baselines3's buffer with a faster ``sample``."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer as StockHerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from stable_baselines3.her.goal_selection_strategy import KEY_TO_GOAL_STRATEGY, GoalSelectionStrategy

from rl.checks import SB3_VEC_ENVS, check_goal_function, check_goal_spaces, check_infos
from rl.drawable import Drawable
from rl.goals import ACHIEVED, GOAL
from rl.transfer import rows, to_device
from rl.vec_env import VectorEnvAdapter


class HerReplayBuffer(StockHerReplayBuffer):
    """Samples the same minibatches as Stable-Baselines3's buffer, from the same random numbers, in a third of the time.

    The transitions that may be drawn are cached between episodes, real and relabelled transitions are gathered
    together, and tensors share the memory of the gathered arrays; copies to a GPU are asynchronous.

    Args:
        env: its ``compute_reward`` relabels.
        n_sampled_goal: relabelled transitions per real one (the papers' k).
        goal_selection_strategy: ``future``, ``final`` or ``episode``.
        copy_info_dict: keep the infos of all transitions, for rewards that depend on them (slow). Not with
            :class:`rl.VectorEnvAdapter`, which has no infos of steps within an episode.
        relabel_terminations: for environments that end episodes before their time limit: whether a relabelled
            transition terminates is decided by ``compute_terminated``. By default, as in Stable-Baselines3, it
            terminates only where its own episode did: a transition that reaches its new goal does not, and learned
            values can exceed every possible return. Terminations for other reasons, which ``compute_terminated`` does
            not explain, are kept.

    Raises:
        ValueError: if observations have no goals, or the environment lacks ``compute_reward(achieved, goal, info)``
            although goals are relabelled, or lacks what other arguments need.
    """

    # defaults for buffers that were pickled by versions without these attributes
    relabel_terminations: bool | None = None
    _looked_at_ends = _looked_at_rewards = True

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Dict,
        action_space: spaces.Space[Any],
        env: VecEnv,
        device: torch.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        n_sampled_goal: int = 4,
        goal_selection_strategy: GoalSelectionStrategy | str = "future",
        copy_info_dict: bool = False,
        relabel_terminations: bool | None = None,
    ) -> None:
        if n_sampled_goal < 0:
            raise ValueError(f"n_sampled_goal: got {n_sampled_goal}, expected at least 0")
        check_goal_spaces(observation_space, relabelled=n_sampled_goal > 0)
        self.goal_selection_strategy = _goal_strategy(goal_selection_strategy)
        # skips the parent's, which makes a dictionary for every entry of the buffer
        DictReplayBuffer.__init__(
            self,
            buffer_size,
            observation_space,
            action_space,
            device=device,
            n_envs=n_envs,
            optimize_memory_usage=optimize_memory_usage,
            handle_timeout_termination=handle_timeout_termination,
        )
        self.copy_info_dict = copy_info_dict
        self.relabel_terminations = relabel_terminations
        self.n_sampled_goal = n_sampled_goal
        self.her_ratio = 1 - 1 / (n_sampled_goal + 1)
        self.ask(env)
        self._keep_episodes()

    def _keep_episodes(self) -> None:
        """Allocate what is stored about each transition besides the transition itself."""
        places = (self.buffer_size, self.n_envs)
        self.infos = np.empty(places if self.copy_info_dict else (0, self.n_envs), dtype=object)
        self.ep_start = np.zeros(places, dtype=np.int64)
        self.ep_length = np.zeros(places, dtype=np.int64)
        self._current_ep_start = np.zeros(self.n_envs, dtype=np.int64)
        self._drawable = Drawable()
        self._fresh: list[np.ndarray] = []
        self.keep_fresh = False  # whether take_fresh() is going to be called

    def ask(self, env: VecEnv) -> None:
        """Let ``env`` compute rewards and terminations from now on; whether its steps agree is checked again.

        Raises:
            ValueError: if it lacks a function that will be called, or infos that are to be kept.
        """
        self.check(env)
        self.env = env
        told = self.relabel_terminations is not None or not self.handle_timeout_termination
        self._looked_at_ends = told or self.n_sampled_goal == 0
        self._looked_at_rewards = self.n_sampled_goal == 0

    def check(self, env: VecEnv) -> None:
        """Raise ``ValueError`` unless ``env`` has what :meth:`ask` needs."""
        if self.relabel_terminations:
            check_goal_function(env, "compute_terminated", "relabel_terminations: got True")
        if self.n_sampled_goal > 0:
            check_goal_function(env, "compute_reward", f"replay buffer: got n_sampled_goal={self.n_sampled_goal}")
        if self.copy_info_dict:
            check_infos(env)

    def set_env(self, env: VecEnv) -> None:
        """For an unpickled buffer, which has no environment; see :meth:`ask`."""
        if self.env is None:
            self.check(env)
        super().set_env(env)  # refuses to replace an environment
        self.ask(env)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._drawable = Drawable()  # older pickles hold something else under that name

    def add(self, *args: Any, **kwargs: Any) -> None:
        self._drawable.touch(self.pos * self.n_envs + np.arange(self.n_envs))
        if self.full:  # overwriting a transition removes what is left of its episode
            self._drawable.change()
            for i in np.flatnonzero(self.ep_length[self.pos]):
                end = self.ep_start[self.pos, i] + self.ep_length[self.pos, i]
                self._drawable.touch(np.arange(self.pos, end) % self.buffer_size * self.n_envs + i)
        super().add(*args, **kwargs)
        if not self._looked_at_ends and (self.dones[self.pos - 1] > self.timeouts[self.pos - 1]).any():
            self._looked_at_ends = True
            warnings.warn(
                "replay buffer: got an episode that terminates. Relabelled transitions terminate only where their own "
                "episode does, even if they reach their new goal; give relabel_terminations=True to let the "
                "environment's compute_terminated decide, or False to keep it so",
                UserWarning,
                stacklevel=2,
            )

    def _compute_episode_length(self, env_idx: int) -> None:
        start, end = int(self._current_ep_start[env_idx]), self.pos
        super()._compute_episode_length(env_idx)
        self._drawable.change()
        if self.keep_fresh:
            steps = np.arange(start, end if end >= start else end + self.buffer_size) % self.buffer_size
            self._fresh.append(steps * self.n_envs + env_idx)

    def take_fresh(self) -> dict[str, np.ndarray]:
        """Observations, with hindsight, of all transitions of the episodes that were finished since the last call.

        Each goal is relabelled as in a minibatch, with probability 1 - 1 / (1 + ``n_sampled_goal``).
        """
        # a small buffer may have overwritten some of them, with other episodes or an unfinished one
        places = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *self._fresh]))
        places = places[self.ep_length.reshape(-1)[places] > 0]
        self._fresh.clear()
        observations = {key: _entries(values, places) for key, values in self.observations.items()}
        relabelled = np.flatnonzero(np.random.random(len(places)) < self.her_ratio)  # noqa: NPY002
        if len(relabelled):
            observations[GOAL][relabelled] = self._sample_goals(*np.divmod(places[relabelled], self.n_envs))
        return observations

    def drawable(self) -> np.ndarray:
        """Flat places ``[N]`` of the transitions of finished episodes."""
        return self._drawable.at(np.arange(self._count_drawable()))

    def _count_drawable(self) -> int:
        """How many transitions of finished episodes there are: at least one, or an error."""
        used = self.buffer_size if self.full else self.pos
        count = self._drawable.look(self.ep_length.reshape(-1)[: used * self.n_envs])
        if count > 0:
            return count
        limit = "an environment without a time limit needs one (gymnasium.wrappers.TimeLimit)"
        if self.full:
            raise RuntimeError(
                f"replay buffer: got no finished episode to sample from in the last {used} steps of each environment; "
                f"it holds no more (buffer_size // n_envs, with n_envs={self.n_envs}), expected room for at least two "
                f"episodes of each: give a larger buffer_size; {limit}"
            )
        raise RuntimeError(
            f"replay buffer: got no finished episode to sample from in {used} steps of each environment; "
            "learning_starts has to be larger than the number of steps of an episode times the number of environments, "
            f"here {self.n_envs}; {limit}; after load(), load_replay_buffer() brings the transitions back"
        )

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> DictReplayBufferSamples:  # type: ignore[override]
        count = self._count_drawable()
        # from the global generator, as in Stable-Baselines3, which the algorithm seeds
        drawn = self._drawable.at(np.random.randint(0, count, size=batch_size))  # noqa: NPY002
        relabelled = int(self.her_ratio * batch_size)
        places = np.concatenate([drawn[relabelled:], drawn[:relabelled]])  # real transitions come first
        real = batch_size - relabelled

        observations = {key: self._gathered(values, places) for key, values in self.observations.items()}
        next_observations = {key: self._gathered(values, places) for key, values in self.next_observations.items()}
        rewards = self._gathered(self.rewards, places)
        dones = _entries(self.dones, places) * (1 - _entries(self.timeouts, places))
        steps, envs = np.divmod(places, self.n_envs)
        if not self._looked_at_rewards and real and self.env is not None:
            self._looked_at_rewards = True
            own = self._rewards(
                next_observations[ACHIEVED][:real], next_observations[GOAL][:real], steps[:real], envs[:real]
            )
            _warn_if_rewards_differ(own, rewards[:real])
        if relabelled:
            goals = self._sample_goals(steps[real:], envs[real:])
            achieved = next_observations[ACHIEVED][real:]
            if self.relabel_terminations:
                before = self._terminations(achieved, next_observations[GOAL][real:], steps[real:], envs[real:])
                after = self._terminations(achieved, goals, steps[real:], envs[real:])
                dones[real:] = after | ((dones[real:] > 0) & ~before)
            observations[GOAL][real:] = goals
            next_observations[GOAL][real:] = goals
            rewards[real:] = self._rewards(achieved, goals, steps[real:], envs[real:])
        return DictReplayBufferSamples(
            observations=self._tensors(self._normalize_obs(observations, env)),  # type: ignore[arg-type]
            actions=self._tensor(self._gathered(self.actions, places)),
            next_observations=self._tensors(self._normalize_obs(next_observations, env)),  # type: ignore[arg-type]
            dones=self._tensor(dones)[:, None],
            rewards=self._tensor(self._normalize_reward(rewards, env))[:, None],
        )

    def _rewards(self, achieved: np.ndarray, goals: np.ndarray, steps: np.ndarray, envs: np.ndarray) -> np.ndarray:
        """What the environment gives for reaching ``achieved`` when ``goals`` were desired, float32 ``[N]``."""
        rewards = np.asarray(self._ask("compute_reward", achieved, goals, steps, envs), dtype=np.float32)
        if rewards.size != len(steps):
            raise ValueError(
                f"compute_reward: got rewards of shape {rewards.shape} for {len(steps)} goals at a time, expected "
                f"({len(steps)},): it has to accept arrays [N, ...] of goals, and reduce all axes but the first"
            )
        return rewards.reshape(len(steps))

    def _terminations(self, achieved: np.ndarray, goals: np.ndarray, steps: np.ndarray, envs: np.ndarray) -> np.ndarray:
        """Whether the environment ends an episode that reaches ``achieved`` under ``goals``: bool ``[N]``."""
        ends = np.asarray(self._ask("compute_terminated", achieved, goals, steps, envs), dtype=np.bool_)
        # gymnasium-robotics answers with one False for all goals; an achieved goal shows whether it ever says True
        if ends.shape == () and not ends:
            ends = np.zeros(len(steps), dtype=np.bool_)
            met = self._ask("compute_terminated", achieved[0], achieved[0], steps[:1], envs[:1])
            ends = ends if not np.any(met) else np.zeros(0, dtype=np.bool_)
        if ends.size != len(steps):
            raise ValueError(
                f"compute_terminated: got one answer for {len(steps)} goals at a time, expected ({len(steps)},): it "
                "has to accept arrays [N, ...] of goals, and reduce all axes but the first"
            )
        return ends.reshape(len(steps))

    def _ask(self, function: str, achieved: np.ndarray, goals: np.ndarray, steps: np.ndarray, envs: np.ndarray) -> Any:
        """The result of a function of the environment that takes goals; it is the same for all environments."""
        if self.env is None:
            raise RuntimeError("replay buffer: got no environment to compute rewards with; call set_env(env) first")
        infos: Any = [{}] * len(steps)
        if self.copy_info_dict:
            infos = copy.deepcopy(self.infos[steps, envs])
        try:
            return self.env.env_method(function, achieved, goals, infos, indices=[0])[0]
        except KeyError as error:
            if self.copy_info_dict:
                raise
            other = f", and {SB3_VEC_ENVS}" if isinstance(self.env.unwrapped, VectorEnvAdapter) else ""
            raise ValueError(
                f"{function}: looked for {error} in the info, which is empty unless infos are kept; use "
                f"copy_info_dict=True{other}"
            ) from error
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{function}: got {type(error).__name__} ({error}) for {len(steps)} goals at a time, expected a "
                "function of achieved goals [N, ...], goals [N, ...] and a list of N infos that returns N numbers"
            ) from error

    def _gathered(self, values: np.ndarray, places: np.ndarray) -> np.ndarray:
        """A copy of the entries at flat places (step, environment), on its way to the device."""
        return rows(values.reshape(-1, *values.shape[2:]), places, self.device)

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return to_device(values, self.device)

    def _tensors(self, values: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        return {key: self._tensor(array) for key, array in values.items()}


def end_open_episodes(buffer: Any) -> bool:
    """Mark unfinished episodes as truncated by a time limit; False if the buffer does not track episodes."""
    if not hasattr(buffer, "truncate_last_trajectory"):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that it truncates, which is intended
        buffer.truncate_last_trajectory()
    return True


def _goal_strategy(given: Any) -> GoalSelectionStrategy:
    if isinstance(given, GoalSelectionStrategy):
        return given
    if isinstance(given, str) and given.lower() in KEY_TO_GOAL_STRATEGY:
        return KEY_TO_GOAL_STRATEGY[given.lower()]
    raise ValueError(f"goal_selection_strategy: got {given!r}, expected one of {', '.join(KEY_TO_GOAL_STRATEGY)}")


def _warn_if_rewards_differ(computed: np.ndarray, stored: np.ndarray) -> None:
    """Warn if the environment's steps return other rewards than its ``compute_reward``."""
    other = np.flatnonzero(~np.isclose(computed, stored, rtol=1e-3, atol=1e-4, equal_nan=True))
    if len(other):
        warnings.warn(
            f"replay buffer: got a reward of {stored[other[0]]:g} from a step, for which compute_reward gives "
            f"{computed[other[0]]:g} ({len(other)} of {len(stored)} differ): real and relabelled transitions have "
            "different rewards; expected the same",
            UserWarning,
            stacklevel=3,
        )


def _entries(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """A copy of the entries at flat places (step, environment)."""
    return values.reshape(-1, *values.shape[2:]).take(places, axis=0)
