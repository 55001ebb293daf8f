"""Critic losses as pure functions of values, gradients and targets.

ReenGAGE (Levine and Feizi, "Goal-Conditioned Q-Learning as Knowledge Distillation", AAAI 2023) adds one term to the
critic loss of an off-policy algorithm: the gradient of the critic with respect to the goal is fitted to the gradient of
its target. Nothing here knows an algorithm, a network or an environment. Numbers are those of the dissertation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def td_target(reward: Tensor, done: Tensor, discount: Tensor | float, next_value: Tensor) -> Tensor:
    """The one-step (or n-step) target ``R + discount * V(s')``, without the second term where an episode has ended.

    Args:
        reward: ``[B, 1]``; the discounted sum of the rewards of n steps for n-step targets.
        done: ``[B, 1]``, 1 where s' is terminal (a time limit is not).
        discount: gamma, or ``[B, 1]`` with gamma to the number of steps.
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
        next_gradient: ``[B, goal]``, of the next value, through critic *and* actor (Section 8.2).
        reward_gradient: ``[B, goal]``, of the reward (Eq. 8.8); None where it vanishes (Eq. 8.9).
    """
    gradient = (1 - done) * discount * next_gradient
    return gradient if reward_gradient is None else reward_gradient + gradient


def goal_gradient_loss(gradient: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Squared error of the goal gradients: summed over the coordinates of the goal, averaged over the batch.

    The published coefficient alpha multiplies this scale (Eqs. 8.8 and 8.9). The target is a constant: no gradient
    flows into it.

    Args:
        gradient: ``[B, goal]``, of Q(s, a, g), differentiable in the parameters.
        target: ``[B, goal]``, see :func:`td_target_gradient`.
        weight: ``[B, 1]`` or ``[B, goal]``: 1 or 0 for transitions that count or not, times the weight of a coordinate.
    """
    if gradient.shape != target.shape:
        raise ValueError(
            f"goal gradients: got {tuple(gradient.shape)} of the critic and {tuple(target.shape)} of its target, "
            "expected the same: both are with respect to what the rule's attach() returns"
        )
    error = gradient - target.detach()
    return (weight * error * error).sum() / len(gradient)


def low_return(low_reward: float, discount: Tensor | float, gamma: float) -> Tensor | float:
    """What ``n`` rewards of ``low_reward`` in a row sum up to, discounted, where ``discount`` is gamma to the n."""
    if gamma in (0, 1) or not isinstance(discount, Tensor):
        return low_reward  # of one step
    # 1 - discount itself loses its digits where gamma is close to 1
    steps = (discount.double().log() / math.log(gamma)).round()
    return low_reward * (1 - gamma**steps) / (1 - gamma)


def soft_value(values: Tensor, temperature: float) -> Tensor:
    """``softmax(Q / temperature) . Q`` over the actions, ``[B, A]`` to ``[B, 1]`` (Eq. G.9); the maximum at 0."""
    if temperature == 0:
        return values.max(dim=1, keepdim=True).values
    return (torch.softmax(values / temperature, dim=1) * values).sum(dim=1, keepdim=True)
