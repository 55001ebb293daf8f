"""A small environment with many goals at a time, and agents for it."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import stable_baselines3 as sb3
import torch
from gymnasium import spaces
from stable_baselines3.common.logger import configure
from stable_baselines3.common.noise import NormalActionNoise
from torch import Tensor

import rl

BOUND = 1


class Collect(gymnasium.Env[dict[str, Any], Any]):
    """Walk over a square; each goal that the rounded position is at gives 1. The state is as DriveSeek's, six numbers.

    With ``item_rewards`` the observation says which of the goals were reached.
    """

    def __init__(self, n_max: int = 5, steps: int = 8, item_rewards: bool = False) -> None:
        self.n_max, self.steps, self.item_rewards = n_max, steps, item_rewards
        box = lambda *shape: spaces.Box(-np.inf, np.inf, shape, np.float32)  # noqa: E731
        parts: dict[str, spaces.Space[Any]] = {
            "observation": box(6),
            "achieved_goal": box(2),
            "desired_goal": box(n_max, 3),
        }
        if item_rewards:
            parts["reached"] = box(n_max)
        self.observation_space = spaces.Dict(parts)
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.position, self.angle, self.elapsed = np.zeros(2), 0.0, 0
        n = self.np_random.integers(1, self.n_max + 1)
        cells = self.np_random.choice((2 * BOUND + 1) ** 2, n, replace=False)
        self.goals = np.zeros((self.n_max, 3), np.float32)
        self.goals[:n, :2] = np.stack(np.divmod(cells, 2 * BOUND + 1), 1) - BOUND
        self.goals[:n, 2] = 1
        return self._observe(), {}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.position = np.clip(self.position + action, -BOUND, BOUND)
        self.angle = float(np.arctan2(action[1], action[0]))
        self.elapsed += 1
        observation = self._observe()
        return observation, float(self._reached().sum()), False, self.elapsed >= self.steps, {}

    def _reached(self) -> np.ndarray:
        at_goal = (np.round(self.position) == self.goals[:, :2]).all(1)
        return (at_goal * self.goals[:, 2]).astype(np.float32)

    def _observe(self) -> dict[str, Any]:
        rounded = np.round(self.position)
        state = np.concatenate([self.position, rounded, [np.sin(self.angle), np.cos(self.angle)]])
        observation = {"observation": state, "achieved_goal": rounded, "desired_goal": self.goals}
        if self.item_rewards:
            observation["reached"] = self._reached()
        return {key: np.asarray(value, np.float32).copy() for key, value in observation.items()}


SMALL = {"deep-sets": {"layers": [9, 8]}, "cnn": {"bound": 2}, "attention": {"width": 8, "heads": 2}}


def collector(
    name: str = "DDPG", *, stock: bool = False, env: Any = None, encoder: str = "deep-sets", **arguments: Any
) -> Any:
    """An agent with small networks, which have learned a little after ``learn(40)``."""
    policy = {"net_arch": [8], "encoder": encoder, "encoder_kwargs": {"embedding_dim": 4, **SMALL[encoder]}}
    options: dict[str, Any] = {
        "learning_rate": 1e-2,
        "batch_size": 16,
        "buffer_size": 200,
        "learning_starts": 20,
        "gamma": 0.9,
        "tau": 0.1,
        "train_freq": 1,
        "gradient_steps": 1,
        "action_noise": NormalActionNoise(np.zeros(2), np.full(2, 0.1)),
        "replay_buffer_class": rl.GoalSetReplayBuffer,
        "seed": 0,
        "device": "cpu",
    }
    policy |= arguments.pop("policy_kwargs", {})
    module = sb3 if stock else rl
    model = getattr(module, name)(
        rl.MultiGoalPolicy if stock else "MultiGoalPolicy",
        Collect() if env is None else env,
        policy_kwargs=policy,
        **(options | arguments),
    )
    model.set_logger(configure(None, []))
    return model


def double_batch(model: Any, size: int = 24) -> Any:
    """A minibatch in float64, in which some transitions end their episode; the model's networks become float64, too."""
    model.policy.double()
    batch = model.replay_buffer.sample(size)
    parts = {name: value for name, value in batch._asdict().items() if value is not None}
    for name, value in parts.items():
        parts[name] = value.double() if isinstance(value, Tensor) else {k: v.double() for k, v in value.items()}
    return batch._replace(**parts)._replace(dones=(torch.arange(size) % 5 == 0).double()[:, None])


def shuffled(observation: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """The same goals in another order."""
    order = torch.randperm(observation["desired_goal"].shape[1], generator=torch.Generator().manual_seed(seed))
    return {**observation, "desired_goal": observation["desired_goal"][:, order]}


def repadded(observation: dict[str, Tensor], value: float = 77.0) -> dict[str, Tensor]:
    """Other numbers in the rows of absent goals."""
    goal = observation["desired_goal"].clone()
    absent = goal[..., -1] == 0
    goal[..., :-1][absent] = value
    return {**observation, "desired_goal": goal}
