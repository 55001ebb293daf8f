"""DQN as an adapter of the training loop in :mod:`rl.reengage` (dissertation, Appendix G.2)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import stable_baselines3 as sb3
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rl.checks import is_number
from rl.goals import Observation
from rl.losses import soft_value
from rl.reengage import Batch, GoalConditioned, NextValue, show_arguments
from rl.slopes import PlainCritic, plain_critic
from rl.updates import descend

SoftTarget = Literal["gradient", "both", "behaviour"]


@show_arguments
class DQN(GoalConditioned, sb3.DQN):
    """DQN with the goal-gradient term (dissertation, Appendix G.2); see :class:`GoalConditioned`.

    The gradient of a maximum over actions treats the greedy action as fixed, so the gradient term uses a soft target.

    Args:
        temperature: softmax temperature of the soft target; 0 gives the maximum. Without a goal-gradient term, this and
            ``soft_target`` are ignored.
        soft_target: where the soft target is used: in the ``gradient`` term only (Eq. G.10, the variant that works), in
            ``both`` terms of the loss (Eq. G.11), or in both and in ``behaviour``, where non-deterministic actions are
            drawn from softmax(Q' / temperature) of the target network. As printed, both equations discount twice and
            lack Eq. 8.9's restriction to low rewards.
    """

    loss_name: ClassVar[str] = "loss"
    temperature: float = 0.5
    soft_target: SoftTarget = "gradient"

    def __init__(
        self, *args: Any, temperature: float = 0.5, soft_target: SoftTarget = "gradient", **kwargs: Any
    ) -> None:
        if not (is_number(temperature) and temperature >= 0):
            raise ValueError(f"temperature: got {temperature!r}, expected a number of at least 0")
        if soft_target not in ("gradient", "both", "behaviour"):
            raise ValueError(f"soft_target: got {soft_target!r}, expected gradient, both or behaviour")
        self.temperature, self.soft_target = float(temperature), soft_target
        super().__init__(*args, **kwargs)

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.policy.optimizer]

    def _targets(self) -> list[tuple[nn.Module, nn.Module]]:
        return []  # Stable-Baselines3 updates the target network between environment steps

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
        chosen = torch.zeros_like(plain.select).scatter_(1, batch.actions.long(), 1.0)
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
            values = torch.zeros_like(values)  # uniform over all actions
        actions = torch.multinomial(torch.softmax(values, dim=1), 1)[:, 0].cpu().numpy()
        return (actions if batched else actions[0]), state
