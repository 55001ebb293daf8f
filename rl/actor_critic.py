"""The continuous-action algorithms DDPG, TD3 and SAC, as adapters of the training loop in :mod:`rl.reengage`."""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import nullcontext
from typing import Any, ClassVar

import numpy as np
import stable_baselines3 as sb3
import torch
import torch.nn.functional as F
from stable_baselines3.common.distributions import Distribution as SB3Distribution
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor, nn
from torch.distributions import Normal

from rl.checks import is_number
from rl.goals import Observation
from rl.graphs import Results
from rl.multi_goal import MultiGoalPolicy
from rl.reengage import Batch, GoalConditioned, Logs, Networks, NextValue, add_up, show_arguments
from rl.slopes import PlainCritic, plain_critic
from rl.updates import descend, unchecked_distributions


class _ActorCritic(GoalConditioned):
    """Common base of the continuous-action algorithms, whose critics take an observation and an action.

    Args:
        random_action: probability of exploring with a uniformly random action, drawn per environment and step.
    """

    actor: Any
    critic: Any
    critic_target: Any
    random_action: float = 0.0

    def __init__(self, *args: Any, random_action: float = 0.0, **kwargs: Any) -> None:
        if not (is_number(random_action) and 0 <= random_action <= 1):
            raise ValueError(f"random_action: got {random_action!r}, expected a probability")
        self.random_action = random_action
        super().__init__(*args, **kwargs)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        action, scaled = super()._sample_action(learning_starts, action_noise, n_envs)
        if self.random_action == 0:
            return action, scaled
        # NumPy's global generator, as for action noise: Stable-Baselines3 seeds it with the algorithm's seed
        chosen = np.random.random(n_envs) < self.random_action  # noqa: NPY002
        uniform = np.random.uniform(-1, 1, scaled.shape).astype(scaled.dtype)  # noqa: NPY002
        scaled = np.where(chosen.reshape(-1, *[1] * (scaled.ndim - 1)), uniform, scaled)
        return self.policy.unscale_action(scaled), scaled

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.actor.optimizer, self.critic.optimizer]

    def _targets(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.critic, self.critic_target)]

    def _values(self, observation: Observation, batch: Batch) -> tuple[Tensor, ...]:
        return self.critic(observation, batch.actions)

    def _plain_critic(self, batch: Batch) -> PlainCritic | None:
        return plain_critic(self.critic, self.critic.q_networks, batch.observations, batch.actions)

    def _td_loss(self, values: tuple[Tensor, ...], target: Tensor) -> Tensor:
        return self.gradient_scale * add_up([F.mse_loss(value, target) for value in values])

    def _descend_critic(self, loss: Tensor) -> None:
        descend(self.critic.optimizer, loss)


class _DeterministicActor(_ActorCritic):
    """Adapter for TD3 and for DDPG, which is TD3 with one critic, no target policy noise and no policy delay.

    Args:
        action_l2: coefficient of the mean squared action (actions scaled to [-1, 1]) that is added to the actor loss.
        target_update_interval: gradient updates between target-network updates; a multiple of TD3's ``policy_delay``.
    """

    actor_target: Any
    target_policy_noise: float
    target_noise_clip: float
    policy_delay: int
    action_l2: float = 0.0
    target_update_interval: int = 1

    def __init__(self, *args: Any, action_l2: float = 0.0, target_update_interval: int = 1, **kwargs: Any) -> None:
        if not (is_number(action_l2) and action_l2 >= 0):
            raise ValueError(f"action_l2: got {action_l2!r}, expected a number of at least 0")
        if not (isinstance(target_update_interval, int | np.integer) and target_update_interval >= 1):
            raise ValueError(
                f"target_update_interval: got {target_update_interval!r}, expected an integer of at least 1"
            )
        self.action_l2, self.target_update_interval = action_l2, target_update_interval
        super().__init__(*args, **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        if isinstance(self.policy, MultiGoalPolicy) and isinstance(self.replay_buffer, sb3.HerReplayBuffer):
            raise ValueError(
                "replay_buffer_class: got a hindsight buffer with MultiGoalPolicy, whose goal sets are not relabelled; "
                "expected rl.GoalSetReplayBuffer"
            )
        if self.target_update_interval > 1 and self.target_update_interval % self.policy_delay:
            raise ValueError(
                f"target_update_interval: got {self.target_update_interval}, expected a multiple of policy_delay "
                f"({self.policy_delay}), since target networks are only updated together with the actor"
            )

    def _targets(self) -> list[tuple[nn.Module, nn.Module]]:
        return [*super()._targets(), (self.actor, self.actor_target)]

    def _encode(self, observation: Observation, networks: Networks) -> Observation:
        return self.policy.encode(observation, networks) if isinstance(self.policy, MultiGoalPolicy) else observation

    def updates_are_alike(self) -> bool:
        return not isinstance(self.policy, MultiGoalPolicy)

    def _kind(self, step: int) -> Hashable:
        return self._n_updates % self.policy_delay == 0, self._n_updates % self.target_update_interval == 0

    def _next_value(self, batch: Batch, observation: Observation) -> NextValue:
        with torch.no_grad():
            noise = torch.empty_like(batch.actions).normal_(0, self.target_policy_noise)
            noise = noise.clamp_(-self.target_noise_clip, self.target_noise_clip)
        actions = (self.actor_target(observation) + noise).clamp(-1, 1)
        value = _lowest(self.critic_target(observation, actions))
        return NextValue(value, value)

    def _finish(self, batch: Batch, step: int, logs: Logs) -> None:
        if self._n_updates % self.policy_delay != 0:
            return
        observation = self._encode(batch.observations, "actor")
        actions = self.actor(observation)
        loss = -self.critic.q1_forward(observation, actions).mean()
        if self.action_l2 > 0:
            loss = loss + self.action_l2 * actions.square().mean()
        logs.add("actor_loss", loss)
        descend(self.actor.optimizer, loss)
        if self._n_updates % self.target_update_interval == 0:
            for follower in self._followers:
                follower.update(self.tau)


@show_arguments
class TD3(_DeterministicActor, sb3.TD3):
    """Twin delayed DDPG with the goal-gradient term in the loss of both critics; see :class:`GoalConditioned`.

    For environments with many simultaneous goals, use ``"MultiGoalPolicy"`` (:class:`rl.multi_goal.MultiGoalPolicy`).
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        **sb3.TD3.policy_aliases,
        "MultiGoalPolicy": MultiGoalPolicy,
    }


@show_arguments
class DDPG(_DeterministicActor, sb3.DDPG):
    """Deep deterministic policy gradient with the goal-gradient term (dissertation, Section 8.2); see
    :class:`GoalConditioned`.

    With ``"MultiGoalPolicy"``, for environments with many simultaneous goals, it is Multi-ReenGAGE (dissertation,
    Section 8.5).
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        **sb3.DDPG.policy_aliases,
        "MultiGoalPolicy": MultiGoalPolicy,
    }


@show_arguments
class SAC(_ActorCritic, sb3.SAC):
    """Soft actor-critic with the goal-gradient term (dissertation, Appendix G.5); see :class:`GoalConditioned`.

    The reparametrised next action and its entropy term both depend on the goal, and both are differentiated.
    """

    gradient_scale: ClassVar[float] = 0.5

    def optimizers(self) -> list[torch.optim.Optimizer]:
        own = super().optimizers()
        return own if self.ent_coef_optimizer is None else [*own, self.ent_coef_optimizer]

    def _update(self, batch: Batch, step: int) -> Results:
        waits = self.device.type != "cpu" or self._recorder is not None
        with unchecked_distributions() if waits else nullcontext():
            return super()._update(batch, step)

    def _begin(self, batch: Batch, logs: Logs) -> None:
        if self.use_sde:
            self.actor.reset_noise()
        self._actions, log_prob = self.actor.action_log_prob(batch.observations)
        self._log_prob = log_prob.reshape(-1, 1)
        if self.ent_coef_optimizer is None:
            self._entropy_coef = self.ent_coef_tensor
        else:
            assert self.log_ent_coef is not None
            self._entropy_coef = torch.exp(self.log_ent_coef.detach())
            loss = -(self.log_ent_coef * (self._log_prob + float(self.target_entropy)).detach()).mean()
            logs.add("ent_coef_loss", loss)
            descend(self.ent_coef_optimizer, loss)
        logs.add("ent_coef", self._entropy_coef)

    def _next_value(self, batch: Batch, observation: Observation) -> NextValue:
        actions, log_prob = self.actor.action_log_prob(observation)
        value = _lowest(self.critic_target(observation, actions)) - self._entropy_coef * log_prob.reshape(-1, 1)
        return NextValue(value, value)

    def _kind(self, step: int) -> Hashable:
        return step % self.target_update_interval == 0

    def _finish(self, batch: Batch, step: int, logs: Logs) -> None:
        value = _lowest(self.critic(batch.observations, self._actions))
        loss = (self._entropy_coef * self._log_prob - value).mean()
        logs.add("actor_loss", loss)
        descend(self.actor.optimizer, loss)
        # what is left would keep the graph alive beyond this update, and break deepcopy
        del self._actions, self._log_prob
        if hasattr(self.actor, "action_dist"):
            _detach(self.actor.action_dist)
        if step % self.target_update_interval == 0:
            for follower in self._followers:
                follower.update(self.tau)


def _detach(distribution: SB3Distribution) -> None:
    """Cut what a distribution over actions keeps of its last parameters and samples off from their gradients."""
    for name, value in vars(distribution).items():
        if isinstance(value, Tensor):
            setattr(distribution, name, value.detach())
        elif isinstance(value, Normal):
            setattr(distribution, name, Normal(value.loc.detach(), value.scale.detach(), validate_args=False))


def _lowest(values: tuple[Tensor, ...]) -> Tensor:
    """The smallest of the critics' values, ``[B, 1]``."""
    return values[0] if len(values) == 1 else torch.cat(values, dim=1).min(dim=1, keepdim=True).values
