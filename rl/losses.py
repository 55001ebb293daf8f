"""Critic losses as pure functions of values, gradients and targets.

ReenGAGE (Levine and Feizi, "Goal-Conditioned Q-Learning as Knowledge Distillation", AAAI 2023) adds one term to the
critic loss of an off-policy algorithm, which fits the critic's gradient with respect to the goal to the gradient of its
target. Nothing here depends on an algorithm, a network or an environment. Equation and section numbers refer to the
dissertation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def td_target(reward: Tensor, done: Tensor, discount: Tensor | float, next_value: Tensor) -> Tensor:
    """The one-step (or n-step) target ``R + discount * V(s')``, without the bootstrap term where an episode has ended.

    Args:
        reward: ``[B, 1]``; for n-step targets, the discounted sum of n rewards.
        done: ``[B, 1]``, 1 where s' is terminal (truncation by a time limit does not count).
        discount: gamma, or ``[B, 1]``, gamma to the power of the number of steps.
        next_value: ``[B, 1]``.
    """
    return reward + (1 - done) * discount * next_value


def td_target_gradient(
    done: Tensor, discount: Tensor | float, next_gradient: Tensor, reward_gradient: Tensor | None = None
) -> Tensor:
    """The gradient of :func:`td_target` with respect to the goal, ``[B, goal]``.

    Args:
        done: ``[B, 1]``.
        discount: gamma, or ``[B, 1]``.
        next_gradient: ``[B, goal]``, gradient of the next value, through critic *and* actor (Section 8.2).
        reward_gradient: ``[B, goal]``, gradient of the reward (Eq. 8.8); None if it vanishes (Eq. 8.9).
    """
    gradient = (1 - done) * discount * next_gradient
    return gradient if reward_gradient is None else reward_gradient + gradient


def goal_gradient_loss(gradient: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Squared error of the goal gradients, summed over the goal's coordinates and averaged over the batch.

    This is the scale that the published coefficient alpha refers to (Eqs. 8.8 and 8.9). The target is detached: no
    gradient flows into it.

    Args:
        gradient: ``[B, goal]``, gradient of Q(s, a, g), differentiable in the parameters.
        target: ``[B, goal]``, see :func:`td_target_gradient`.
        weight: ``[B, 1]`` or ``[B, goal]``: 1 for transitions that count, else 0, times the weight of the coordinate.
    """
    if gradient.shape != target.shape:
        raise ValueError(
            f"goal gradients: got {tuple(gradient.shape)} from the critic and {tuple(target.shape)} from its target, "
            "expected the same: both are with respect to the variable that the rule's attach() returns"
        )
    error = gradient - target.detach()
    return (weight * error * error).sum() / len(gradient)


def low_return(low_reward: float, discount: Tensor | float, gamma: float) -> Tensor | float:
    """The discounted sum of n consecutive rewards of ``low_reward``, where ``discount`` is gamma to the power of n."""
    if gamma in (0, 1) or not isinstance(discount, Tensor):
        return low_reward  # a single step
    # 1 - discount itself would lose digits for gamma close to 1
    steps = (discount.double().log() / math.log(gamma)).round()
    return low_reward * (1 - gamma**steps) / (1 - gamma)


def soft_value(values: Tensor, temperature: float) -> Tensor:
    """``softmax(Q / temperature) . Q`` over actions, ``[B, A]`` to ``[B, 1]`` (Eq. G.9); the maximum if it is 0."""
    if temperature == 0:
        return values.max(dim=1, keepdim=True).values
    return (torch.softmax(values / temperature, dim=1) * values).sum(dim=1, keepdim=True)
