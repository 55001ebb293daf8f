"""Multi-ReenGAGE: many goals at a time, each with a gate that says whether it is there.

Source: dissertation, Section 8.5 and Appendix G.6, whose numbers are used here.

The contract of a multi-goal observation: ``desired_goal`` is float ``[n_max, item + 1]``, one goal per row. The last
column is the presence b of the goal, 1 or 0; the others are the goal, and count for nothing where b is 0. The order of
the rows means nothing. The reward is the sum of ``b_i^2 R_item(s', g_i)`` over the rows (Eq. G.16).

Networks use b squared, too, so that a goal that is absent has no influence and no gradient: ``d(b^2)/db = 0`` at 0.
:class:`rl.multi_goal.MultiGoalPolicy` is made of such networks.
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
    """The item reward of goals to be reached exactly: of ``[B, item]`` and ``[B, n, item]``, bool ``[B, n]``."""
    return (achieved[:, None] == items).all(dim=2)


def check_goal_set(space: spaces.Space[Any], name: str) -> tuple[int, int]:
    """``n_max`` and the size of a goal; ``ValueError`` that blames ``name`` unless ``space`` follows the contract."""
    goal = space.spaces.get(GOAL) if isinstance(space, spaces.Dict) else None
    if not isinstance(goal, spaces.Box) or len(goal.shape) != 2 or goal.shape[1] < 2:
        raise ValueError(
            f"{name}: got the observation space {space}, expected a dictionary with 'desired_goal', a Box "
            "[goals, item + 1] whose last column says which goals are there"
        )
    return goal.shape[0], goal.shape[1] - 1


@dataclass(frozen=True)
class GateGradient:
    """Multi-ReenGAGE: the presence of each goal is differentiated (Eqs. 8.19, G.18).

    All transitions count. The reward has the gradient ``2 b_i R_item(s', g_i)`` (the factor 2 is missing on the left of
    Eq. G.17), with item rewards that are known or observed.

    Attributes:
        item_reward: R_item as a function of the next achieved goal ``[B, ...]`` and the goals ``[B, n_max, item]``,
            giving ``[B, n_max]``. By default 1 for exactly the goal, else 0.
        item_rewards: key of the observation that holds the item rewards ``[n_max]`` of the step that led to it, where
            they are observed; ``item_reward`` plays no part then.
    """

    item_reward: ItemReward = equal
    item_rewards: str | None = None

    plain: ClassVar[bool] = False

    @property
    def normalize(self) -> bool:
        """Never: all gates have the same scale."""
        return False

    def check(self, space: spaces.Space[Any], normalization: VecNormalize | None = None) -> None:
        """Raise unless ``space`` has sets of goals and what item rewards follow from."""
        n_max, _ = check_goal_set(space, "goal_gradient_coef")
        assert isinstance(space, spaces.Dict)
        key = ACHIEVED if self.item_rewards is None else self.item_rewards
        shape = space[key].shape if key in space.spaces else None
        if shape is None or (self.item_rewards is not None and shape != (n_max,)):
            expected = "one" if self.item_rewards is None else f"a Box of shape ({n_max},)"
            raise ValueError(f"{key}: got {shape} in the observation, expected {expected}: item rewards follow from it")
        if normalization is not None and (
            normalization.norm_reward
            or (normalization.norm_obs and {GOAL, key} & set(normalization.norm_obs_keys or ()))
        ):
            raise ValueError(
                f"env: got a VecNormalize that scales rewards, 'desired_goal' or '{key}', for which the gradient of "
                "the reward does not hold; make it with norm_reward=False and other norm_obs_keys"
            )

    def attach(self, observation: Observation) -> tuple[Observation, Tensor]:
        """The observation as a function of the gates ``[B, n_max]``."""
        goal = observation[GOAL].detach()
        goal = goal if goal.is_floating_point() else goal.float()
        gates = goal[..., -1].clone().requires_grad_()
        return {**observation, GOAL: torch.cat([goal[..., :-1], gates[..., None]], dim=-1)}, gates

    def reward_gradient(self, next_observation: Observation) -> Tensor:
        """``2 b_i r_i`` for each gate that is open, 0 for padding: ``[B, goals]``."""
        return self._of_gates(next_observation, lambda gates: 2 * gates)

    def explained(self, next_observation: Observation) -> Tensor:
        """The reward as this rule knows it, ``sum_i b_i^2 r_i``: ``[B]``."""
        return self._of_gates(next_observation, torch.square).sum(dim=1)

    def _of_gates(self, next_observation: Observation, factor: Callable[[Tensor], Tensor]) -> Tensor:
        """``factor(b_i) r_i`` for each gate that is open, 0 for padding: ``[B, goals]``."""
        goal = next_observation[GOAL].detach()
        goal = goal if goal.is_floating_point() else goal.float()
        if self.item_rewards is not None:
            rewards = next_observation[self.item_rewards]
        else:
            rewards = self.item_reward(next_observation[ACHIEVED].detach(), goal[..., :-1])
        gates = goal[..., -1]
        # not the product with 0: what a reward function says of padding is not to matter, even if it is not finite
        return torch.where(gates == 0, 0.0, factor(gates) * rewards.detach().to(gates))

    def weight(
        self, reward: Tensor, discount: Tensor | float, gamma: float, statistics: GoalStatistics | None
    ) -> Tensor:
        """1 for every transition, ``[B, 1]``: the gradient of the reward is known on all of them."""
        if isinstance(discount, Tensor):
            raise ValueError(
                "replay buffer: got n-step returns, but item rewards are of one step; expected one-step transitions"
            )
        return torch.ones_like(reward)
