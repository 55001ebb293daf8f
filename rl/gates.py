"""Multi-ReenGAGE: many simultaneous goals, each with a gate that says whether it is present.

Source: dissertation, Section 8.5 and Appendix G.6, whose equation numbers are used here.

The contract of a multi-goal observation: ``desired_goal`` is float ``[n_max, item + 1]``, one goal per row. The last
column is the gate b, 1 if the goal is present, else 0; the other columns are the goal itself, and are ignored where b
is 0. The order of the rows is irrelevant. The reward is the sum of ``b_i^2 R_item(s', g_i)`` over the rows (Eq. G.16).

Networks, too, use b squared, so that an absent goal has no influence and no gradient: ``d(b^2)/db = 0`` at 0.
:class:`rl.multi_goal.MultiGoalPolicy` is built from such networks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from rl.goals import ACHIEVED, GOAL, GoalStatistics, Observation

ItemReward = Callable[[Tensor, Tensor], Tensor]


def equal(achieved: Tensor, items: Tensor) -> Tensor:
    """Item reward for goals that must be reached exactly: ``[B, item]`` and ``[B, n, item]`` to bool ``[B, n]``."""
    return (achieved[:, None] == items).all(dim=2)


def check_goal_set(space: spaces.Space[Any], name: str) -> tuple[int, int]:
    """``n_max`` and the size of a goal; raises a ``ValueError`` naming ``name`` if ``space`` breaks the contract."""
    goal = space.spaces.get(GOAL) if isinstance(space, spaces.Dict) else None
    if not isinstance(goal, spaces.Box) or len(goal.shape) != 2 or goal.shape[1] < 2:
        raise ValueError(
            f"{name}: got the observation space {space}, expected a dictionary with 'desired_goal', a Box "
            "[goals, item + 1] whose last column says which goals are present"
        )
    return goal.shape[0], goal.shape[1] - 1


@dataclass(frozen=True)
class GateGradient:
    """Multi-ReenGAGE: differentiates with respect to the gate of each goal (Eqs. 8.19, G.18).

    All transitions count. The gradient of the reward is ``2 b_i R_item(s', g_i)`` (the factor 2 is missing on the left
    of Eq. G.17), where item rewards are either known or observed.

    Attributes:
        item_reward: R_item as a function of the next achieved goal ``[B, ...]`` and the goals ``[B, n_max, item]``,
            returning ``[B, n_max]``. By default, 1 if the achieved goal equals the goal exactly, else 0.
        item_rewards: if item rewards are observed, the observation key that holds those of the preceding step,
            ``[n_max]``; ``item_reward`` is then ignored.
    """

    item_reward: ItemReward = equal
    item_rewards: str | None = None

    plain: ClassVar[bool] = False

    @property
    def normalize(self) -> bool:
        """False: all gates have the same scale."""
        return False

    def check(self, space: spaces.Space[Any], normalization: VecNormalize | None = None) -> None:
        """Raise unless ``space`` has goal sets and whatever the item rewards are computed from."""
        n_max, _ = check_goal_set(space, "goal_gradient_coef")
        assert isinstance(space, spaces.Dict)
        key = ACHIEVED if self.item_rewards is None else self.item_rewards
        shape = space[key].shape if key in space.spaces else None
        if shape is None or (self.item_rewards is not None and shape != (n_max,)):
            expected = "one" if self.item_rewards is None else f"a Box of shape ({n_max},)"
            raise ValueError(f"{key}: got {shape} in the observation, expected {expected}, for the item rewards")
        if normalization is not None and (
            normalization.norm_reward
            or (normalization.norm_obs and {GOAL, key} & set(normalization.norm_obs_keys or ()))
        ):
            raise ValueError(
                f"env: got a VecNormalize that scales rewards, 'desired_goal' or '{key}', which invalidates the reward "
                "gradient; create it with norm_reward=False and other norm_obs_keys"
            )

    def attach(self, observation: Observation) -> tuple[Observation, Tensor]:
        """The observation as a function of the gates ``[B, n_max]``."""
        goal = observation[GOAL].detach()
        goal = goal if goal.is_floating_point() else goal.float()
        gates = goal[..., -1].clone().requires_grad_()
        return {**observation, GOAL: torch.cat([goal[..., :-1], gates[..., None]], dim=-1)}, gates

    def reward_gradient(self, next_observation: Observation) -> Tensor:
        """``2 b_i r_i`` for each open gate, 0 for padding: ``[B, goals]``."""
        return self._gated_rewards(next_observation, lambda gates: 2 * gates)

    def explained(self, next_observation: Observation) -> Tensor:
        """The reward according to this rule, ``sum_i b_i^2 r_i``: ``[B]``."""
        return self._gated_rewards(next_observation, torch.square).sum(dim=1)

    def _gated_rewards(self, next_observation: Observation, factor: Callable[[Tensor], Tensor]) -> Tensor:
        """``factor(b_i) r_i`` for each open gate, 0 for padding: ``[B, goals]``."""
        goal = next_observation[GOAL].detach()
        goal = goal if goal.is_floating_point() else goal.float()
        if self.item_rewards is not None:
            rewards = next_observation[self.item_rewards]
        else:
            rewards = self.item_reward(next_observation[ACHIEVED].detach(), goal[..., :-1])
        gates = goal[..., -1]
        # not a product with 0: a reward function may return anything for padding, even NaN or infinity
        return torch.where(gates == 0, 0.0, factor(gates) * rewards.detach().to(gates))

    def weight(
        self, reward: Tensor, discount: Tensor | float, gamma: float, statistics: GoalStatistics | None
    ) -> Tensor:
        """1 for every transition, ``[B, 1]``: the gradient of the reward is known on all of them."""
        if isinstance(discount, Tensor):
            raise ValueError(
                "replay buffer: got n-step returns, but item rewards are per step; expected one-step transitions"
            )
        return torch.ones_like(reward)
