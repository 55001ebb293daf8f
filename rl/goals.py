"""What a goal-gradient loss differentiates with respect to, and how much each transition counts.

Pass a rule to an algorithm of :mod:`rl.reengage` as ``goal_gradient=``; ``goal_gradient_coef`` switches it on.
Equation numbers refer to the dissertation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from rl.losses import low_return

GOAL, ACHIEVED = "desired_goal", "achieved_goal"

Observation = dict[str, Tensor]
Reward = Callable[[Tensor, Tensor], Tensor]


class GoalStatistics:
    """Running per-coordinate mean and variance of the goals trained on (Chan et al.'s update).

    The statistics live on the device of the goals and are updated in place, so that no update waits for the device.

    Attributes:
        count: number of goals so far, float64 ``[]``.
        mean: float64 ``[goal]``; ``[0]`` before the first goal.
        squares: sum of squared deviations from the mean, float64 ``[goal]``.
    """

    def __init__(self) -> None:
        self.count, self.mean, self.squares = (torch.zeros(size, dtype=torch.float64) for size in ((), 0, 0))

    @torch.no_grad()
    def update(self, goals: Tensor) -> None:
        """Add goals ``[N, ...]`` to the statistics."""
        batch = goals.flatten(1).double()
        if len(self.mean) == 0:
            self.mean, self.squares = batch.new_zeros(batch.shape[1]), batch.new_zeros(batch.shape[1])
        if self.count.device != batch.device:  # they are new or were loaded
            self.count, self.mean, self.squares = (own.to(batch) for own in (self.count, self.mean, self.squares))
        mean = batch.mean(dim=0)
        shift, total = mean - self.mean, self.count + len(batch)
        self.squares += (batch - mean).square().sum(dim=0) + shift.square() * (self.count * len(batch) / total)
        self.mean += shift * (len(batch) / total)
        self.count.copy_(total)

    @property
    def variance(self) -> Tensor:
        """Variance per coordinate, float64 ``[goal]``."""
        return self.squares / self.count.clamp(min=1)

    def state(self) -> dict[str, Any]:
        """The statistics as lists and numbers, for JSON."""
        return {name: getattr(self, name).tolist() for name in ("count", "mean", "squares")}

    @classmethod
    def of(cls, state: dict[str, Any]) -> GoalStatistics:
        """Restore statistics from their :meth:`state`."""
        own = cls.__new__(cls)
        own.__setstate__(state)
        return own

    __getstate__ = state  # so that pickles also load on machines without a GPU

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.count, self.mean, self.squares = (
            torch.as_tensor(state[name], dtype=torch.float64) for name in ("count", "mean", "squares")
        )


class GradientRule(Protocol):
    """The interface of a rule to the training loop; ``GoalGradient`` and :class:`rl.gates.GateGradient` implement it.

    For a rule of your own, pass an object with these methods as ``goal_gradient=``, or subclass ``GoalGradient`` and
    override ``attach``: the critic and its target are both differentiated with respect to the variable it returns.
    """

    plain: ClassVar[bool]  # whether the variable is the goal exactly as observed

    @property
    def normalize(self) -> bool:
        """Whether coordinates are weighted by the running variance of the goals."""
        ...

    def check(self, space: spaces.Space[Any], normalization: VecNormalize | None = None) -> None:
        """Raise unless ``space`` has the variable to differentiate, and minibatches contain what this rule reads.

        Args:
            normalization: the ``VecNormalize`` applied to the observations and rewards of minibatches, if any.
        """
        ...

    def attach(self, observation: Observation) -> tuple[Observation, Tensor]:
        """The observation as a function of the variable ``[B, ...]`` to differentiate, and that variable."""
        ...

    def reward_gradient(self, next_observation: Observation) -> Tensor | None:
        """Gradient of the reward, ``[B, variables]``; None if it vanishes on all transitions that count."""
        ...

    def explained(self, next_observation: Observation) -> Tensor | None:
        """The reward according to this rule, ``[B]``, which should match the environment's; None if unknown."""
        ...

    def weight(
        self, reward: Tensor, discount: Tensor | float, gamma: float, statistics: GoalStatistics | None
    ) -> Tensor:
        """How much each transition and coordinate counts, ``[B, 1]`` or ``[B, variables]``."""
        ...


@dataclass(frozen=True)
class GoalGradient:
    """ReenGAGE: differentiates with respect to the goal itself.

    Attributes:
        low_reward: c_low of Eq. 8.9, the reward for not reaching the goal. Only transitions with this reward count,
            since the gradient of their reward is zero almost everywhere.
        reward: for dense rewards (Eq. 8.8), the reward as a differentiable function of the next achieved goal
            ``[B, ...]`` and the desired goal ``[B, ...]``, returning ``[B]``. All transitions then count, and
            ``low_reward`` is ignored.
        normalize: weight each coordinate by the running variance of the goals in that coordinate (Appendix G.4), which
            makes the term independent of the coordinates' units.
    """

    low_reward: float = -1.0
    reward: Reward | None = None
    normalize: bool = False

    plain: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        stated = any("plain" in vars(base) for base in cls.__mro__[: cls.__mro__.index(GoalGradient)])
        if cls.attach is not GoalGradient.attach and not stated:  # it differentiates with respect to something else
            cls.plain = False

    def __post_init__(self) -> None:
        if not (isinstance(self.low_reward, int | float | np.number) and math.isfinite(self.low_reward)):
            raise ValueError(f"low_reward: got {self.low_reward!r}, expected a finite number")
        if self.reward is not None and not callable(self.reward):
            raise ValueError(f"reward: got {self.reward!r}, expected a function of the next achieved goal and the goal")

    def check(self, space: spaces.Space[Any], normalization: VecNormalize | None = None) -> None:
        """Raise unless ``space`` has a differentiable goal, and minibatches contain the raw rewards and goals."""
        if not isinstance(space, spaces.Dict) or GOAL not in space.spaces:
            raise ValueError(
                f"goal_gradient_coef: got a positive value with the observation space {space}, expected a "
                "goal-conditioned environment, whose observations are a dictionary with 'desired_goal'"
            )
        if isinstance(space[GOAL], spaces.Discrete | spaces.MultiDiscrete):
            raise ValueError(
                f"desired_goal: got {space[GOAL]}, which is one-hot encoded and has no gradient; use a Box"
            )
        if is_image_space(space[GOAL]):
            raise ValueError(
                f"desired_goal: got 8-bit images ({space[GOAL]}), which the policy divides by 255 after the point of "
                "differentiation, so that the goal-gradient term nearly vanishes; expected a float Box, such as images "
                "in [0, 1], or goal_gradient_coef=0"
            )
        if normalization is not None and normalization.norm_reward:
            raise ValueError(
                "env: got a VecNormalize that scales rewards, which then match neither low_reward nor a dense reward "
                "function; create it with norm_reward=False"
            )
        scaled = (
            set(normalization.norm_obs_keys or ()) if normalization is not None and normalization.norm_obs else set()
        )
        if self.reward is not None and scaled & {GOAL, ACHIEVED}:
            raise ValueError(
                "env: got a VecNormalize that scales achieved and desired goals separately, which invalidates a dense "
                "reward function; create it with norm_obs_keys=['observation']"
            )

    def attach(self, observation: Observation) -> tuple[Observation, Tensor]:
        """The observation as a function of the goal."""
        goal = observation[GOAL].detach()
        goal = (goal if goal.is_floating_point() else goal.float()).requires_grad_()
        return {**observation, GOAL: goal}, goal

    def reward_gradient(self, next_observation: Observation) -> Tensor | None:
        """The gradient of a dense reward (Eq. 8.8); None for a sparse one, whose gradient vanishes where it is low."""
        if self.reward is None:
            return None
        goal = next_observation[GOAL].detach().float().requires_grad_()
        try:
            with torch.enable_grad():
                rewards = self.reward(next_observation[ACHIEVED].detach().float(), goal)
        except (RuntimeError, TypeError) as error:
            if "numpy" not in str(error):
                raise
            raise ValueError(
                f"reward: got a function that converts tensors to NumPy ({error}), expected one in differentiable "
                "PyTorch operations on tensors [N, ...], such as (achieved - goal).norm(dim=1)"
            ) from error
        if not (isinstance(rewards, Tensor) and rewards.shape == goal.shape[:1] and rewards.requires_grad):
            got = f"shape {tuple(rewards.shape)}" if isinstance(rewards, Tensor) else type(rewards).__name__
            got += ", without a gradient" if isinstance(rewards, Tensor) and not rewards.requires_grad else ""
            raise ValueError(
                f"reward: got {got}, expected rewards [{len(goal)}], one per goal, that depend on the goal in a "
                "differentiable way, such as (achieved - goal).norm(dim=1); sparse rewards are described by low_reward "
                "alone"
            )
        return torch.autograd.grad(rewards.sum(), goal)[0].flatten(1)

    def explained(self, next_observation: Observation) -> Tensor | None:
        """The dense reward according to this rule, ``[B]``; None if it only knows the low reward."""
        if self.reward is None:
            return None
        return self.reward(next_observation[ACHIEVED].detach().float(), next_observation[GOAL].detach().float())

    def is_low(self, reward: Tensor, discount: Tensor | float, gamma: float) -> Tensor:
        """Which rewards equal ``low_reward`` (n-step returns: consist only of it), bool ``[B, 1]``."""
        low = low_return(self.low_reward, discount, gamma)
        return (reward - low).abs() <= 1e-6 + 1e-5 * abs(self.low_reward)

    def weight(
        self, reward: Tensor, discount: Tensor | float, gamma: float, statistics: GoalStatistics | None
    ) -> Tensor:
        """How much each transition and coordinate counts, ``[B, 1]`` or ``[B, goal]``."""
        if isinstance(discount, Tensor) and gamma == 1:
            raise ValueError(
                "gamma: got 1 with n-step returns, which then do not reveal how many rewards they sum; expected less"
            )
        if self.reward is None:
            counts = self.is_low(reward, discount, gamma).to(reward.dtype)
        elif isinstance(discount, Tensor):
            raise ValueError(
                "replay buffer: got n-step returns with a dense reward, whose gradient is known for one step only; "
                "expected one-step transitions"
            )
        else:
            counts = torch.ones_like(reward)
        if statistics is None:
            return counts
        return counts * statistics.variance.to(reward.dtype)
