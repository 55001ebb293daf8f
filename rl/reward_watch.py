"""Checks that a goal-gradient rule fits the rewards: a mismatch would otherwise go unnoticed, to no or wrong effect."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from stable_baselines3.common.type_aliases import DictReplayBufferSamples
from torch import Tensor

from rl.goals import GoalGradient, GradientRule

# Warn after this many timesteps, and this many sampled transitions, without a low reward: enough for several episodes,
# since an episode that happens to begin at its goal may have none.
PATIENCE = 1_000


class RewardWatch:
    """Inspects minibatches until it is settled whether a rule fits the rewards, and warns if it does not.

    Attributes:
        settled: True if nothing is left to check.
        without_low: number of transitions inspected so far, none of which had a low reward.
    """

    def __init__(self) -> None:
        self.settled = False
        self.without_low = 0
        self._subject: tuple[Any, Any] = (None, None)

    def begin(self, rule: GradientRule, env: Any) -> None:
        """Start over if the rule or the environment has been replaced."""
        if (rule, env) != self._subject:
            self._subject, self.settled, self.without_low = (rule, env), False, 0

    def look(
        self,
        batch: DictReplayBufferSamples,
        discount: Tensor | float,
        gamma: float,
        reward_gradient: Tensor | None,
        *,
        steps: int,
    ) -> None:
        """Inspect a minibatch; the first conclusive one settles the check.

        Args:
            discount: gamma to the power of the number of steps, per transition or for all of them.
            reward_gradient: the gradient of the reward on these transitions according to the rule.
            steps: timesteps so far.

        Raises:
            ValueError: the gradient of a reward is not finite.
        """
        rule, rewards = self._subject[0], batch.rewards
        if reward_gradient is not None and not reward_gradient.isfinite().all():
            raise ValueError(
                "goal_gradient: got a reward whose gradient is not finite for all goals of a batch, which would make "
                "all parameters non-finite; for a square root at 0, add a small number under the root, such as 1e-8"
            )
        self._compare(rule.explained(batch.next_observations), rewards)
        dense = isinstance(rule, GoalGradient) and rule.reward is not None
        if not isinstance(rule, GoalGradient) or dense or rule.is_low(rewards, discount, gamma).any():
            self.settled = True
            return
        self.without_low += len(rewards)
        if min(self.without_low, steps) < PATIENCE:
            return
        self.settled = True
        kind = "n-step returns" if isinstance(discount, Tensor) else "rewards"
        warnings.warn(
            f"goal_gradient: got {kind} from {rewards.min():g} to {rewards.max():g} in a batch, and none of "
            f"low_reward={rule.low_reward:g} in {self.without_low} sampled transitions; without any, the goal-gradient "
            "loss is 0 and its coefficient has no effect. Expected low_reward for steps that do not reach the goal; "
            "pass goal_gradient=rl.GoalGradient(low_reward=...), or rl.GoalGradient(reward=...) with the reward "
            "function if rewards are dense",
            UserWarning,
        )

    def _compare(self, explained: Tensor | None, rewards: Tensor) -> None:
        """Warn if the rewards according to the rule are not those in the replay buffer."""
        # tolerate the small number added under a square root to give it a gradient at 0
        near = 1e-4 + 1e-2 * float(rewards.max() - rewards.min())
        if explained is None or torch.allclose(explained.to(rewards), rewards[:, 0], rtol=1e-3, atol=near):
            return
        worst = (explained.to(rewards) - rewards[:, 0]).abs().argmax()
        warnings.warn(
            f"goal_gradient: got a rule that computes a reward of {explained[worst]:g} where the replay buffer has "
            f"{rewards[worst, 0]:g}; expected the same, or the rule differentiates another reward than is learned",
            UserWarning,
        )
