"""Small agents for the tests of ``rl``."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import stable_baselines3 as sb3
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.logger import configure
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

import envs as _registered  # noqa: F401
import rl
from rl.goals import GoalGradient
from rl.reengage import Logs

ALGORITHMS = ("DDPG", "TD3", "SAC", "DQN")
STOCK = {name: getattr(sb3, name) for name in ALGORITHMS}
OURS = {name: getattr(rl, name) for name in ALGORITHMS}


def check_plain_critic(model: Any, batch: Any, monkeypatch: pytest.MonkeyPatch, *, atol: float) -> None:
    """The quick way through linear layers gives the loss and its gradients that differentiating twice gives."""
    assert model._plain_critic(batch) is not None
    if isinstance(model, rl.SAC):
        model._begin(batch, Logs())
    losses = []
    for plain in (True, False):
        monkeypatch.setattr(GoalGradient, "plain", plain)
        torch.manual_seed(0)
        losses.append(model._critic_loss(batch, Logs()))
    assert torch.allclose(losses[0], losses[1], rtol=1e-5)
    critics = [p for p in model.policy.parameters() if p.requires_grad]
    both = [torch.autograd.grad(loss, critics, allow_unused=True) for loss in losses]
    for first, second in zip(*both, strict=True):
        assert (first is None) == (second is None)
        assert first is None or torch.allclose(first, second, rtol=1e-4, atol=atol)


def seek(num_envs: int = 1, **arguments: Any) -> rl.VectorEnvAdapter:
    return vector("ContinuousSeek-v0", num_envs, **{"d": 3, "bound": 1.0, "eps": 0.3, "steps": 5, **arguments})


def bits(num_envs: int = 1, **arguments: Any) -> rl.VectorEnvAdapter:
    return vector("BitFlipping-v0", num_envs, **{"d": 4, **arguments})


class Mute(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment without ``compute_reward``."""

    def get_wrapper_attr(self, name: str) -> Any:
        if name == "compute_reward":
            raise AttributeError(name)
        return super().get_wrapper_attr(name)


def vector(env_id: str, num_envs: int, **arguments: Any) -> rl.VectorEnvAdapter:
    mode = AutoresetMode.SAME_STEP
    return rl.VectorEnvAdapter(
        gymnasium.make_vec(
            env_id, num_envs=num_envs, vectorization_mode="vector_entry_point", autoreset_mode=mode, **arguments
        )
    )


def agent(name: str, *, stock: bool = False, env: Any = None, **arguments: Any) -> OffPolicyAlgorithm:
    """An algorithm on a small environment with a small network, ready to train after ``learn``."""
    options: dict[str, Any] = {
        "learning_rate": 1e-3,
        "batch_size": 32,
        "buffer_size": 1_000,
        "learning_starts": 50,
        "gamma": 0.9,
        "train_freq": 1,
        "replay_buffer_class": sb3.HerReplayBuffer if stock else rl.HerReplayBuffer,
        "policy_kwargs": {"net_arch": [16, 16]},
        "seed": 0,
        "device": "cpu",
    }
    if name in ("DDPG", "TD3"):
        options["action_noise"] = NormalActionNoise(np.zeros(3), np.full(3, 0.1))
    if name == "DQN":
        options |= {"target_update_interval": 20, "tau": 0.5, "exploration_fraction": 0.5}
    env = env if env is not None else (bits() if name == "DQN" else seek())
    model = (STOCK if stock else OURS)[name]("MultiInputPolicy", env, **(options | arguments))
    model.set_logger(configure(None, []))
    return model
