"""Whether a rule of goal gradients fits the rewards: one that does not would train without a word, to no effect."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from stable_baselines3.common.type_aliases import DictReplayBufferSamples
from torch import Tensor

from rl.goals import GoalGradient, GradientRule

# Warn after so many steps and sampled transitions without a low reward: enough for some episodes, since one that
# happens to begin at its goal may have none.
PATIENCE = 1_000


class RewardWatch:
    """Looks at minibatches until it is settled that a rule fits the rewards, or warns that it does not.

    Attributes:
        settled: nothing is left to look for.
        without_low: transitions that were looked at, none of which had a low reward.
    """

    def __init__(self) -> None:
        self.settled = False
        self.without_low = 0
        self._subject: tuple[Any, Any] = (None, None)

    def begin(self, rule: GradientRule, env: Any) -> None:
        """Look again if the rule or the environment is another one than before."""
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
        """The first minibatch that has what it takes settles it.

        Args:
            discount: of each transition, or of all: gamma to the number of steps.
            reward_gradient: what the rule says of these transitions.
            steps: of the environment until now.

        Raises:
            ValueError: the gradient of a reward is not finite.
        """
        rule, rewards = self._subject[0], batch.rewards
        if reward_gradient is not None and not reward_gradient.isfinite().all():
            raise ValueError(
                "goal_gradient: got a reward whose gradient is not finite for all goals of a batch, after which no "
                "parameter would be; a square root of 0 has none: add something small under it, such as 1e-8"
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
            f"goal_gradient: got {kind} from {rewards.min():g} to {rewards.max():g} in a batch, and in "
            f"{self.without_low} sampled transitions none of low_reward={rule.low_reward:g}, without which the "
            "goal-gradient loss is 0: the coefficient has no effect. Expected low_reward for steps that do not reach "
            "the goal; say goal_gradient=rl.GoalGradient(low_reward=...), or rl.GoalGradient(reward=...) with the "
            "function of dense rewards",
            UserWarning,
        )

    def _compare(self, explained: Tensor | None, rewards: Tensor) -> None:
        """Warn if the rule's own rewards are not those in the replay buffer."""
        # what is added under a square root, so that it has a gradient at 0, is no other reward
        near = 1e-4 + 1e-2 * float(rewards.max() - rewards.min())
        if explained is None or torch.allclose(explained.to(rewards), rewards[:, 0], rtol=1e-3, atol=near):
            return
        worst = (explained.to(rewards) - rewards[:, 0]).abs().argmax()
        warnings.warn(
            f"goal_gradient: got a rule by which a reward is {explained[worst]:g} and that in the replay buffer is "
            f"{rewards[worst, 0]:g}, so that it differentiates another reward than is learned; expected the same",
            UserWarning,
        )
