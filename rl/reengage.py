"""DDPG, TD3, SAC and DQN of Stable-Baselines3 with a goal-gradient term in the critic loss.

There is one training loop, :meth:`GoalConditioned.train`. What differs between the algorithms is in small adapters: how
the next state is valued, which loss the critics have, and what happens around the critic's step. With
``goal_gradient_coef=0`` all parameters equal those of Stable-Baselines3 bit for bit, after any number of updates.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, cast

import numpy as np
import stable_baselines3 as sb3
import torch
import torch.nn.functional as F
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import DictReplayBufferSamples
from torch import Tensor, nn

from rl.goals import GOAL, GoalGradient, GoalStatistics, Observation
from rl.losses import goal_gradient_loss, soft_value, td_target, td_target_gradient
from rl.slopes import PlainCritic, plain_critic, slope
from rl.updates import Follower, descend, make_faster

Batch = DictReplayBufferSamples
Discount = Tensor | float


@dataclass(frozen=True)
class NextValue:
    """The value of the next states, ``[B, 1]`` each.

    Attributes:
        target: goes into the TD target.
        smooth: its gradient with respect to the goal is the target of the critic's; often the same tensor.
    """

    target: Tensor
    smooth: Tensor


class Logs:
    """Values collected during one call of ``train``; they are averaged once, at its end."""

    def __init__(self) -> None:
        self.values: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, name: str, value: Tensor) -> None:
        self.values[name].append(value.detach())

    def means(self) -> dict[str, float]:
        return {
            name: float(torch.stack([v.reshape(()) for v in values]).mean()) for name, values in self.values.items()
        }


class GoalConditioned(OffPolicyAlgorithm):
    """The training loop, to be put in front of an off-policy algorithm of Stable-Baselines3.

    Args:
        goal_gradient_coef: the paper's alpha, which multiplies the squared error of the goal gradients *summed* over
            the goal's coordinates and averaged over the batch. 0 trains as Stable-Baselines3 does.
        goal_gradient: what is differentiated and which transitions count; by default ReenGAGE for sparse rewards with
            -1 for not reaching the goal (Eq. 8.9).

    Everything else is as in Stable-Baselines3.
    """

    goal_gradient_coef: float = 0.0
    goal_gradient: GoalGradient = GoalGradient()
    goal_statistics: GoalStatistics
    loss_name: ClassVar[str] = "critic_loss"
    gradient_scale: ClassVar[float] = 1.0  # of the algorithm's own critic loss, which the new term shares

    def __init__(
        self, *args: Any, goal_gradient_coef: float = 0.0, goal_gradient: GoalGradient | None = None, **kwargs: Any
    ) -> None:
        self.goal_gradient_coef = goal_gradient_coef
        self.goal_gradient = goal_gradient or GoalGradient()
        self.goal_statistics = GoalStatistics()  # stays empty without GoalGradient.normalize
        super().__init__(*args, **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        self._check_goal_gradient()
        self._followers = [Follower(network, target) for network, target in self._targets()]
        for optimizer in self._optimizers():
            make_faster(optimizer, exact=self.goal_gradient_coef == 0)

    def _check_goal_gradient(self) -> None:
        """Raise if the term is switched on, and model or environment do not allow it.

        Coefficient, rule and environment may also come from ``load``, ``set_env`` or an assignment.
        """
        if not (np.isfinite(self.goal_gradient_coef) and self.goal_gradient_coef >= 0):
            raise ValueError(f"goal_gradient_coef: got {self.goal_gradient_coef}, expected a number of at least 0")
        if self.goal_gradient_coef == 0:
            return
        self.goal_gradient.check(self.observation_space, self._vec_normalize_env)
        if getattr(self.policy, "share_features_extractor", False):
            raise ValueError(
                "share_features_extractor: got True, which hides the goal from the critic's gradient; leave it False"
            )

    # The adapters.

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        """Those that follow the learning rate."""
        raise NotImplementedError

    def _targets(self) -> list[tuple[nn.Module, nn.Module]]:
        """Networks, and the target networks that follow them after the critic's step."""
        raise NotImplementedError

    def _begin(self, batch: Batch, logs: Logs) -> None:
        """What comes before the critic's step."""

    def _next_value(self, batch: Batch, observation: Observation) -> NextValue:
        """The value of the next states; ``observation`` stands for ``batch.next_observations``."""
        raise NotImplementedError

    def _values(self, observation: Observation, batch: Batch) -> tuple[Tensor, ...]:
        """What each critic says of the actions taken, ``[B, 1]``; ``observation`` stands for ``batch.observations``."""
        raise NotImplementedError

    def _plain_critic(self, batch: Batch) -> PlainCritic | None:
        """The critics as networks of linear layers and ReLU, if that is what they are."""
        return None

    def _td_loss(self, values: tuple[Tensor, ...], target: Tensor) -> Tensor:
        raise NotImplementedError

    def _descend_critic(self, loss: Tensor) -> None:
        raise NotImplementedError

    def _finish(self, batch: Batch, step: int, logs: Logs) -> None:
        """What comes after the critic's step."""

    # The loop.

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_followers", "_entropy_coef"]

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        assert self.replay_buffer is not None
        self._check_goal_gradient()
        self.policy.set_training_mode(True)
        self._update_learning_rate(self._optimizers())
        logs = Logs()
        for step in range(gradient_steps):
            self._n_updates += 1
            batch = cast(Batch, self.replay_buffer.sample(batch_size, env=self._vec_normalize_env))
            self._begin(batch, logs)
            self._descend_critic(self._critic_loss(batch, logs))
            self._finish(batch, step, logs)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, mean in logs.means().items():
            self.logger.record(f"train/{name}", mean)

    def _critic_loss(self, batch: Batch, logs: Logs) -> Tensor:
        """The TD loss, and the goal-gradient term if it is switched on."""
        # n-step buffers give gamma to the number of steps
        discount: Discount = self.gamma if batch.discounts is None else batch.discounts
        if self.goal_gradient_coef == 0:
            with torch.no_grad():
                target = td_target(
                    batch.rewards, batch.dones, discount, self._next_value(batch, batch.next_observations).target
                )
            loss = self._td_loss(self._values(batch.observations, batch), target)
            logs.add(self.loss_name, loss)
            return loss

        observation, variable = self.goal_gradient.attach(batch.next_observations)
        value = self._next_value(batch, observation)
        next_gradient = slope(value.smooth, variable, differentiable=False)
        target = td_target(batch.rewards, batch.dones, discount, value.target.detach())
        target_gradient = td_target_gradient(
            batch.dones, discount, next_gradient, self.goal_gradient.reward_gradient(batch.next_observations)
        )

        statistics = self.goal_statistics if self.goal_gradient.normalize else None
        if statistics is not None:
            statistics.update(batch.observations[GOAL])
        weight = self.goal_gradient.weight(batch.rewards, discount, self.gamma, statistics)
        values, slopes = self._values_and_slopes(batch)
        td_loss = self._td_loss(values, target)
        term = _sum([goal_gradient_loss(own, target_gradient, weight) for own in slopes])
        term = self.gradient_scale * self.goal_gradient_coef * term
        logs.add(self.loss_name, td_loss)
        logs.add("goal_gradient_loss", term)
        return td_loss + term

    def _values_and_slopes(self, batch: Batch) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Values ``[B, 1]`` of the actions taken and their gradients ``[B, goal]``, of each critic."""
        plain = self._plain_critic(batch) if self.goal_gradient.plain else None
        if plain is not None:
            return plain.values_and_slopes()
        observation, variable = self.goal_gradient.attach(batch.observations)
        values = self._values(observation, batch)
        return values, tuple(slope(value, variable, differentiable=True) for value in values)


class _ActorCritic(GoalConditioned):
    """What the algorithms for continuous actions share: critics of a state and an action."""

    actor: Any
    critic: Any
    critic_target: Any

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.actor.optimizer, self.critic.optimizer]

    def _targets(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.critic, self.critic_target)]

    def _values(self, observation: Observation, batch: Batch) -> tuple[Tensor, ...]:
        return self.critic(observation, batch.actions)

    def _plain_critic(self, batch: Batch) -> PlainCritic | None:
        return plain_critic(self.critic, self.critic.q_networks, batch.observations, batch.actions)

    def _td_loss(self, values: tuple[Tensor, ...], target: Tensor) -> Tensor:
        return self.gradient_scale * _sum([F.mse_loss(value, target) for value in values])

    def _descend_critic(self, loss: Tensor) -> None:
        descend(self.critic.optimizer, loss)


class _DeterministicActor(_ActorCritic):
    """TD3's adapter, and DDPG's, which is TD3 with one critic and without its noise and delay."""

    actor_target: Any
    target_policy_noise: float
    target_noise_clip: float
    policy_delay: int

    def _targets(self) -> list[tuple[nn.Module, nn.Module]]:
        return [*super()._targets(), (self.actor, self.actor_target)]

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
        loss = -self.critic.q1_forward(batch.observations, self.actor(batch.observations)).mean()
        logs.add("actor_loss", loss)
        descend(self.actor.optimizer, loss)
        for follower in self._followers:
            follower.update(self.tau)


def _lowest(values: tuple[Tensor, ...]) -> Tensor:
    """The smallest of the critics' values, ``[B, 1]``."""
    return values[0] if len(values) == 1 else torch.cat(values, dim=1).min(dim=1, keepdim=True).values


def _sum(losses: list[Tensor]) -> Tensor:
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    return total


class TD3(_DeterministicActor, sb3.TD3):
    """Twin delayed DDPG with the goal-gradient term in the loss of both critics; see :class:`GoalConditioned`."""


class DDPG(_DeterministicActor, sb3.DDPG):
    """Deep deterministic policy gradient with the goal-gradient term (Section 8.2); see :class:`GoalConditioned`."""


class SAC(_ActorCritic, sb3.SAC):
    """Soft actor-critic with the goal-gradient term (Appendix G.5); see :class:`GoalConditioned`.

    The next action is reparametrised and depends on the goal, and so does its entropy: both are differentiated.
    """

    gradient_scale: ClassVar[float] = 0.5

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        own = super()._optimizers()
        return own if self.ent_coef_optimizer is None else [*own, self.ent_coef_optimizer]

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

    def _finish(self, batch: Batch, step: int, logs: Logs) -> None:
        value = _lowest(self.critic(batch.observations, self._actions))
        loss = (self._entropy_coef * self._log_prob - value).mean()
        del self._actions, self._log_prob  # their graph would outlive the update, and forbid deepcopy
        logs.add("actor_loss", loss)
        descend(self.actor.optimizer, loss)
        if step % self.target_update_interval == 0:
            for follower in self._followers:
                follower.update(self.tau)


SoftTarget = Literal["gradient", "both", "behaviour"]


class DQN(GoalConditioned, sb3.DQN):
    """DQN with the goal-gradient term (Appendix G.2); see :class:`GoalConditioned`.

    The gradient of a maximum over actions treats the best action as fixed, so the target of the gradient is soft.

    Args:
        temperature: of the soft target; 0 is the maximum.
        soft_target: what the soft target is used for: the ``gradient`` term only (Eq. G.10, the variant that works),
            ``both`` terms of the loss (Eq. G.11), or also the ``behaviour``: then actions that are not deterministic
            are drawn from softmax(Q' / temperature) of the target network.
    """

    loss_name: ClassVar[str] = "loss"
    temperature: float = 0.5
    soft_target: SoftTarget = "gradient"

    def __init__(
        self, *args: Any, temperature: float = 0.5, soft_target: SoftTarget = "gradient", **kwargs: Any
    ) -> None:
        if not (np.isfinite(temperature) and temperature >= 0):
            raise ValueError(f"temperature: got {temperature}, expected a number of at least 0")
        if soft_target not in ("gradient", "both", "behaviour"):
            raise ValueError(f"soft_target: got {soft_target!r}, expected gradient, both or behaviour")
        self.temperature, self.soft_target = float(temperature), soft_target
        super().__init__(*args, **kwargs)

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.policy.optimizer]

    def _targets(self) -> list[tuple[nn.Module, nn.Module]]:
        return []  # Stable-Baselines3 updates the target network between steps of the environment

    def _next_value(self, batch: Batch, observation: Observation) -> NextValue:
        values = self.q_net_target(observation)
        hard = values.max(dim=1, keepdim=True).values
        if self.goal_gradient_coef == 0:
            return NextValue(hard, hard)
        soft = soft_value(values, self.temperature)
        return NextValue(hard if self.soft_target == "gradient" else soft, soft)

    def _values(self, observation: Observation, batch: Batch) -> tuple[Tensor, ...]:
        return (self.q_net(observation).gather(1, batch.actions.long()),)

    def _plain_critic(self, batch: Batch) -> PlainCritic | None:
        plain = plain_critic(self.q_net, [self.q_net.q_net], batch.observations)
        if plain is None:
            return None
        chosen = F.one_hot(batch.actions[:, 0].long(), plain.select.shape[1]).to(plain.select)
        return replace(plain, select=chosen)

    def _td_loss(self, values: tuple[Tensor, ...], target: Tensor) -> Tensor:
        return F.smooth_l1_loss(values[0], target)

    def _descend_critic(self, loss: Tensor) -> None:
        descend(self.policy.optimizer, loss, max_norm=self.max_grad_norm)

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        random = self.goal_gradient_coef > 0 and self.soft_target == "behaviour" and self.temperature > 0
        if deterministic or not random:
            return super().predict(observation, state, episode_start, deterministic)
        self.policy.set_training_mode(False)
        tensors, batched = self.policy.obs_to_tensor(observation)
        with torch.no_grad():
            values = self.q_net_target(tensors) / self.temperature
        if np.random.rand() < self.exploration_rate:  # noqa: NPY002 - as the base class
            values = torch.zeros_like(values)  # all actions alike
        actions = torch.multinomial(torch.softmax(values, dim=1), 1)[:, 0].cpu().numpy()
        return (actions if batched else actions[0]), state
