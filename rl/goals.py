"""What a goal-gradient loss differentiates, and how much each transition counts.

A rule is given to an algorithm of :mod:`rl.reengage` as ``goal_gradient=``; ``goal_gradient_coef`` switches it on.
Numbers are those of the dissertation.
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
    """Running mean and variance of the goals that were trained on, per coordinate (Chan et al.'s update).

    They are kept where the goals are, and change in place, so that no update waits for the device.

    Attributes:
        count: goals so far, float64 ``[]``.
        mean: float64 ``[goal]``; ``[0]`` before the first goal.
        squares: summed squares of the distances to the mean, float64 ``[goal]``.
    """

    def __init__(self) -> None:
        self.count, self.mean, self.squares = (torch.zeros(size, dtype=torch.float64) for size in ((), 0, 0))

    @torch.no_grad()
    def update(self, goals: Tensor) -> None:
        """Take in goals ``[N, ...]``."""
        batch = goals.flatten(1).double()
        if len(self.mean) == 0:
            self.mean, self.squares = batch.new_zeros(batch.shape[1]), batch.new_zeros(batch.shape[1])
        if self.count.device != batch.device:  # they are new, or were loaded
            self.count, self.mean, self.squares = (own.to(batch) for own in (self.count, self.mean, self.squares))
        mean = batch.mean(dim=0)
        shift, total = mean - self.mean, self.count + len(batch)
        self.squares += (batch - mean).square().sum(dim=0) + shift.square() * (self.count * len(batch) / total)
        self.mean += shift * (len(batch) / total)
        self.count.copy_(total)

    @property
    def variance(self) -> Tensor:
        """Float64 ``[goal]``."""
        return self.squares / self.count.clamp(min=1)

    def state(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {name: getattr(self, name).tolist() for name in ("count", "mean", "squares")}

    @classmethod
    def of(cls, state: dict[str, Any]) -> GoalStatistics:
        """Those whose :meth:`state` this is."""
        own = cls.__new__(cls)
        own.__setstate__(state)
        return own

    __getstate__ = state  # a pickle loads where there is no GPU, too

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.count, self.mean, self.squares = (
            torch.as_tensor(state[name], dtype=torch.float64) for name in ("count", "mean", "squares")
        )


class GradientRule(Protocol):
    """What the training loop asks of a rule; ``GoalGradient`` and :class:`rl.gates.GateGradient` are the two.

    For one of your own, give ``goal_gradient=`` an object with these methods, or inherit from ``GoalGradient`` and
    override ``attach``: both the critic and its target are differentiated with respect to what it returns.
    """

    plain: ClassVar[bool]  # whether the goal as it is observed is what is differentiated

    @property
    def normalize(self) -> bool:
        """Whether coordinates are weighed by the running variance of the goals."""
        ...

    def check(self, space: spaces.Space[Any], normalization: VecNormalize | None = None) -> None:
        """Raise unless ``space`` has what is differentiated, and minibatches hold what this rule reads.

        Args:
            normalization: what the observations and rewards of minibatches go through, if anything.
        """
        ...

    def attach(self, observation: Observation) -> tuple[Observation, Tensor]:
        """The observation as a function of the variable ``[B, ...]`` that is differentiated, and that variable."""
        ...

    def reward_gradient(self, next_observation: Observation) -> Tensor | None:
        """Gradient of the reward, ``[B, variables]``; None where it vanishes on all transitions that count."""
        ...

    def explained(self, next_observation: Observation) -> Tensor | None:
        """The reward as this rule knows it, ``[B]``, which should be the environment's; None if it does not know."""
        ...

    def weight(
        self, reward: Tensor, discount: Tensor | float, gamma: float, statistics: GoalStatistics | None
    ) -> Tensor:
        """How much each transition and coordinate counts, ``[B, 1]`` or ``[B, variables]``."""
        ...


@dataclass(frozen=True)
class GoalGradient:
    """ReenGAGE: the goal itself is differentiated.

    Attributes:
        low_reward: c_low of Eq. 8.9, the reward of not reaching the goal. Transitions with this reward count, since
            their reward has no gradient almost everywhere; the others are left out.
        reward: for dense rewards (Eq. 8.8): the reward as a differentiable function of the next achieved goal
            ``[B, ...]`` and the desired goal ``[B, ...]``, giving ``[B]``. All transitions count then, ``low_reward``
            plays no part.
        normalize: weigh coordinate i by the running variance of the goals in it (Appendix G.4), which makes the term
            independent of the units of the coordinates.
    """

    low_reward: float = -1.0
    reward: Reward | None = None
    normalize: bool = False

    plain: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        stated = any("plain" in vars(base) for base in cls.__mro__[: cls.__mro__.index(GoalGradient)])
        if cls.attach is not GoalGradient.attach and not stated:  # it differentiates something else
            cls.plain = False

    def __post_init__(self) -> None:
        if not (isinstance(self.low_reward, int | float | np.number) and math.isfinite(self.low_reward)):
            raise ValueError(f"low_reward: got {self.low_reward!r}, expected a finite number")
        if self.reward is not None and not callable(self.reward):
            raise ValueError(f"reward: got {self.reward!r}, expected a function of the next achieved goal and the goal")

    def check(self, space: spaces.Space[Any], normalization: VecNormalize | None = None) -> None:
        """Raise unless ``space`` has a goal to differentiate, and rewards and goals are what this rule reads."""
        if not isinstance(space, spaces.Dict) or GOAL not in space.spaces:
            raise ValueError(
                f"goal_gradient_coef: got a positive one with the observation space {space}, expected a "
                "goal-conditioned environment, whose observations are a dictionary with 'desired_goal'"
            )
        if isinstance(space[GOAL], spaces.Discrete | spaces.MultiDiscrete):
            raise ValueError(
                f"desired_goal: got {space[GOAL]}, which is one-hot encoded and has no gradient; use a Box"
            )
        if is_image_space(space[GOAL]):
            raise ValueError(
                f"desired_goal: got images of grey levels ({space[GOAL]}), which the policy divides by 255 after they "
                "are differentiated, so that the term is next to nothing; expected a float Box, such as images in "
                "[0, 1], or goal_gradient_coef=0"
            )
        if normalization is not None and normalization.norm_reward:
            raise ValueError(
                "env: got a VecNormalize that scales rewards, so that none equals low_reward and no known reward "
                "function is the one trained on; make it with norm_reward=False"
            )
        scaled = (
            set(normalization.norm_obs_keys or ()) if normalization is not None and normalization.norm_obs else set()
        )
        if self.reward is not None and scaled & {GOAL, ACHIEVED}:
            raise ValueError(
                "env: got a VecNormalize that scales achieved and desired goals apart, for which a dense reward "
                "function does not hold; make it with norm_obs_keys=['observation']"
            )

    def attach(self, observation: Observation) -> tuple[Observation, Tensor]:
        """The observation as a function of the goal."""
        goal = observation[GOAL].detach()
        goal = (goal if goal.is_floating_point() else goal.float()).requires_grad_()
        return {**observation, GOAL: goal}, goal

    def reward_gradient(self, next_observation: Observation) -> Tensor | None:
        """That of a dense reward (Eq. 8.8); a sparse one has none where it is low."""
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
                f"reward: got a function that leaves PyTorch for NumPy ({error}), expected one in torch, which can be "
                "differentiated: (achieved - goal).norm(dim=1), say, for tensors [N, ...]"
            ) from error
        if not (isinstance(rewards, Tensor) and rewards.shape == goal.shape[:1] and rewards.requires_grad):
            got = f"shape {tuple(rewards.shape)}" if isinstance(rewards, Tensor) else type(rewards).__name__
            raise ValueError(
                f"reward: got {got}, expected rewards [{len(goal)}], one for each of as many goals, that depend on the "
                "goal in a differentiable way: (achieved - goal).norm(dim=1), say"
            )
        return torch.autograd.grad(rewards.sum(), goal)[0].flatten(1)

    def explained(self, next_observation: Observation) -> Tensor | None:
        """The reward as this rule knows it, ``[B]``; None if it knows only which are low."""
        if self.reward is None:
            return None
        return self.reward(next_observation[ACHIEVED].detach().float(), next_observation[GOAL].detach().float())

    def is_low(self, reward: Tensor, discount: Tensor | float, gamma: float) -> Tensor:
        """Which rewards are ``low_reward`` (of n-step returns: sums of nothing else), bool ``[B, 1]``."""
        low = low_return(self.low_reward, discount, gamma)
        return (reward - low).abs() <= 1e-6 + 1e-5 * abs(self.low_reward)

    def weight(
        self, reward: Tensor, discount: Tensor | float, gamma: float, statistics: GoalStatistics | None
    ) -> Tensor:
        """How much each transition and coordinate counts, ``[B, 1]`` or ``[B, goal]``."""
        if isinstance(discount, Tensor) and gamma == 1:
            raise ValueError(
                "gamma: got 1 with n-step returns, which do not tell then how many rewards they sum; expected less"
            )
        if self.reward is None:
            counts = self.is_low(reward, discount, gamma).to(reward.dtype)
        elif isinstance(discount, Tensor):
            raise ValueError(
                "replay buffer: got n-step returns with a dense reward, whose gradient is that of one step; expected "
                "one-step transitions"
            )
        else:
            counts = torch.ones_like(reward)
        if statistics is None:
            return counts
        return counts * statistics.variance.to(reward.dtype)
