"""The linear environments of Propositions 8.1 and 8.2, and learners of their dynamics from a replay buffer.

An action moves the state by ``U a``, where U is an unknown rotation, and the reward is the inner product of state and
goal. Optimal values and policies are known in closed form (Eqs. G.1 to G.4), so the hypothesis class of the
propositions consists of the ``Q`` of that form with an estimate in place of U. The critic loss, standard (Eq. 8.4) or
ReenGAGE (Eqs. 8.8, 8.9), is then a sum of squared residuals that are affine in the estimate. Minimizing it exactly
shows what a replay buffer of N transitions reveals about U: one number per transition, ``g^T U a``, or d numbers,
``U a``, with the goal gradient.

Values are float64. The last dimension of states, actions and goals holds their coordinates, preceded by any batch
dimension. Equation and section numbers refer to the dissertation.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

Learner: TypeAlias = Callable[[Tensor, Tensor], Tensor]


class Transitions(NamedTuple):
    """A replay buffer: state and next_state ``[N, d]`` or ``[N, 2d]``, action and goal ``[N, d]``."""

    state: Tensor
    action: Tensor
    goal: Tensor
    next_state: Tensor

    def first(self, n: int) -> Transitions:
        """The first n transitions."""
        return Transitions(*(part[:n] for part in self))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1)


def _moved(estimate: Tensor, action: Tensor) -> Tensor:
    return action @ estimate.T


@dataclass(frozen=True)
class LinearTask(ABC):
    """Common base of the two environments. ``estimate`` is an estimate ``[d, d]`` of the rotation U.

    Args:
        gamma: discount factor.
    """

    gamma: float = 0.9
    reward_is_known: ClassVar[bool]  # as a function of the goal, so that its gradient is available (Eq. 8.8, else 8.9)

    def __post_init__(self) -> None:
        if not 0 < self.gamma < 1:
            raise ValueError(f"gamma: got {self.gamma}, expected a number strictly between 0 and 1")

    def policy(self, estimate: Tensor, goal: Tensor) -> Tensor:
        """The optimal action, ``U^T g / ||g||`` in every state (Eqs. G.2, G.4)."""
        return goal @ estimate / goal.norm(dim=-1, keepdim=True)

    @abstractmethod
    def q(self, estimate: Tensor, state: Tensor, action: Tensor, goal: Tensor) -> Tensor:
        """The optimal action value if the rotation is ``estimate``."""

    @abstractmethod
    def reward(self, next_state: Tensor, goal: Tensor) -> Tensor:
        """The reward for arriving in ``next_state``."""

    @abstractmethod
    def step(self, rotation: Tensor, state: Tensor, action: Tensor) -> Tensor:
        """The next state."""

    @abstractmethod
    def random_states(self, n: int, d: int, generator: torch.Generator) -> Tensor:
        """States in general position."""

    def td_error(self, estimate: Tensor, target: Tensor, transition: Transitions, goal: Tensor) -> Tensor:
        """Value minus TD target, which uses the estimate ``target`` (Eq. 8.4), as a function of the goal.

        A reward that is only observed is constant in the goal: it is that of the goal in the buffer.
        """
        state, action, _, next_state = transition
        reward = self.reward(next_state, goal if self.reward_is_known else transition.goal)
        next_value = self.q(target, next_state, self.policy(target, goal), goal)
        return self.q(estimate, state, action, goal) - (reward + self.gamma * next_value)

    def gradient_mask(self, transition: Transitions) -> Tensor:
        """1 where the goal-gradient loss applies, 0 elsewhere: it applies everywhere, or only where R = c_low = 0."""
        reward = self.reward(transition.next_state, transition.goal)
        return torch.ones_like(reward) if self.reward_is_known else (reward == 0).to(reward.dtype)


@dataclass(frozen=True)
class LinearDense(LinearTask):
    """``s' = s + U a`` with reward ``g^T s'``, whose goal gradient is known (Section 8.6.2.1)."""

    reward_is_known = True

    def q(self, estimate: Tensor, state: Tensor, action: Tensor, goal: Tensor) -> Tensor:
        """Eq. G.1: ``g^T (s + U a) / (1 - gamma) + gamma ||g|| / (1 - gamma)^2``."""
        left = 1 - self.gamma
        return _dot(goal, state + _moved(estimate, action)) / left + self.gamma * goal.norm(dim=-1) / left**2

    def reward(self, next_state: Tensor, goal: Tensor) -> Tensor:
        return _dot(goal, next_state)

    def step(self, rotation: Tensor, state: Tensor, action: Tensor) -> Tensor:
        return state + _moved(rotation, action)

    def random_states(self, n: int, d: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, d, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class LinearSparse(LinearTask):
    """``(s1; s2) -> (0; s1 + U a)`` if s1 is not 0, else ``(s2; 0)``, with reward ``g^T s1'`` (Section 8.6.2.2).

    The reward is observed, but its goal gradient is not; c_low = 0. Actions only matter in every other step.
    """

    reward_is_known = False

    def q(self, estimate: Tensor, state: Tensor, action: Tensor, goal: Tensor) -> Tensor:
        """Both cases of Eq. G.3."""
        first, second = state.chunk(2, -1)
        gamma, left, norm = self.gamma, 1 - self.gamma**2, goal.norm(dim=-1)
        acting = gamma * _dot(goal, first + _moved(estimate, action)) / left + gamma**3 * norm / left**2
        waiting = _dot(goal, second) / left + gamma**2 * norm / left**2
        return torch.where((first != 0).any(-1), acting, waiting)

    def reward(self, next_state: Tensor, goal: Tensor) -> Tensor:
        return _dot(goal, next_state.chunk(2, -1)[0])

    def step(self, rotation: Tensor, state: Tensor, action: Tensor) -> Tensor:
        first, second = state.chunk(2, -1)
        zero = torch.zeros_like(first)
        acting = torch.cat([zero, first + _moved(rotation, action)], -1)
        return torch.where((first != 0).any(-1, keepdim=True), acting, torch.cat([second, zero], -1))

    def random_states(self, n: int, d: int, generator: torch.Generator) -> Tensor:
        """``(s1; 0)`` or ``(0; s2)`` with equal probability, the proportions of any long rollout."""
        content = torch.randn(n, d, generator=generator, dtype=torch.float64)
        acting = torch.rand(n, 1, generator=generator, dtype=torch.float64) < 0.5
        return torch.cat([content * acting, content * ~acting], -1)


def random_rotation(d: int, generator: torch.Generator) -> Tensor:
    """A uniformly random rotation, float64 ``[d, d]``."""
    q, r = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))
    return nearest_rotation(q * r.diagonal().sign())


def nearest_rotation(matrix: Tensor) -> Tensor:
    """The rotation (determinant 1) closest to a square matrix, in the Frobenius norm."""
    u, _, vh = torch.linalg.svd(matrix)
    last = torch.ones(len(matrix), dtype=matrix.dtype)
    last[-1] = torch.linalg.det(u @ vh).sign()
    return u * last @ vh


def random_transitions(task: LinearTask, rotation: Tensor, n: int, generator: torch.Generator) -> Transitions:
    """Independent transitions in general position: states and goals normal, actions uniform in the unit ball."""
    d = len(rotation)
    state = task.random_states(n, d, generator)
    direction, goal = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    length = torch.rand(n, 1, generator=generator, dtype=torch.float64) ** (1 / d)
    action = length * direction / direction.norm(dim=-1, keepdim=True)
    return Transitions(state, action, goal, task.step(rotation, state, action))


def residuals(
    task: LinearTask, estimate: Tensor, target: Tensor, transition: Transitions, goal_gradient_coef: float
) -> Tensor:
    """The residuals of a single transition, whose squares the critic loss sums.

    Args:
        estimate, target: current and target parameters ``[d, d]``.
        goal_gradient_coef: alpha of Eqs. 8.8 and 8.9; 0 for the standard loss (Eq. 8.4).

    Returns:
        The TD error, ``[1]``; if the coefficient is not 0, followed by its square root times the error of the goal
        gradient, ``[1 + d]``. The gradient is computed by automatic differentiation, through target critic and target
        policy.
    """
    arguments = (estimate, target, transition, transition.goal)
    error = task.td_error(*arguments)[None]
    if goal_gradient_coef == 0:
        return error
    of_gradient = task.gradient_mask(transition) * grad(task.td_error, argnums=3)(*arguments)
    return torch.cat([error, math.sqrt(goal_gradient_coef) * of_gradient])


def as_least_squares(
    task: LinearTask, transitions: Transitions, goal_gradient_coef: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The critic loss as ``||X vec(estimate) - y||^2``: ``X [rows, d, d]``, ``y [rows]``.

    Residuals are affine in the estimate, so X is their Jacobian at any point. The TD target is the same for every
    rotation used as target parameter (only ``U U^T = I`` enters), so the minimizer is already the fixed point of
    training; the identity is used. Rows that do not depend on the estimate are left out.
    """
    zero = torch.zeros(2 * transitions.goal.shape[-1:], dtype=torch.float64)
    identity = torch.eye(len(zero), dtype=torch.float64)

    def of_one(estimate: Tensor, transition: Transitions) -> Tensor:
        return residuals(task, estimate, identity, transition, goal_gradient_coef)

    x = vmap(jacrev(of_one), in_dims=(None, 0))(zero, transitions).flatten(0, 1)
    y = -vmap(of_one, in_dims=(None, 0))(zero, transitions).flatten()
    informative = x.flatten(1).ne(0).any(1)
    return x[informative], y[informative]


def learn_matrix(x: Tensor, y: Tensor) -> Tensor:
    """The minimizer of the loss over all matrices, the one of least norm if there are several.

    Args:
        x, y: as returned by :func:`as_least_squares`.
    """
    d = x.shape[-1]
    if len(y) == 0:
        return torch.zeros(d, d, dtype=torch.float64)
    return torch.linalg.lstsq(x.flatten(1), y[:, None], driver="gelsy").solution.reshape(d, d)


def learn_rotation(x: Tensor, y: Tensor, *, max_steps: int = 100) -> Tensor:
    """A minimizer of the loss over rotations, the hypothesis class of the propositions, with d (d - 1) / 2 unknowns.

    Takes Levenberg-Marquardt steps along ``W U`` for skew-symmetric W, with the Cayley transform as retraction,
    starting from the rotation nearest to the result of :func:`learn_matrix`. The loss is not convex over rotations:
    with barely enough transitions to determine U, it may end in a local minimum.

    Args:
        x, y: as returned by :func:`as_least_squares`.
    """
    d = x.shape[-1]
    estimate = nearest_rotation(learn_matrix(x, y))
    rows, columns = torch.triu_indices(d, d, 1)
    identity, damping = torch.eye(d, dtype=torch.float64), 1e-2
    flat = x.flatten(1)
    error = flat @ estimate.flatten() - y
    small = 1e-24 * float(y.square().sum())
    for _ in range(max_steps):
        loss = float(error.square().sum())
        if loss <= small or damping > 1e8:
            break
        turned = x @ estimate.T  # derivative of x . (W estimate) with respect to W, before the restriction to W = -W^T
        jacobian = turned[:, rows, columns] - turned[:, columns, rows]
        normal = jacobian.T @ jacobian
        normal.diagonal().add_(damping * float(normal.diagonal().mean()))
        w = torch.zeros(d, d, dtype=torch.float64)
        w[rows, columns] = -torch.linalg.solve(normal, jacobian.T @ error) / 2
        w = w - w.T
        candidate = torch.linalg.solve(identity - w, (identity + w) @ estimate)
        new_error = flat @ candidate.flatten() - y
        gain = loss - float(new_error.square().sum())
        if gain > 0:
            estimate, error, damping = candidate, new_error, damping / 4
        else:
            damping *= 4
        if 0 < gain < 1e-6 * loss:  # settled in a local minimum
            break
    return estimate


def transitions_needed(
    task: LinearTask,
    rotation: Tensor,
    pool: Transitions,
    learner: Learner,
    *,
    goal_gradient_coef: float = 0.0,
    tolerance: float = 1e-2,
) -> int:
    """A minimal N such that the first N transitions of ``pool`` suffice to learn the rotation.

    Learned means a relative error ``||estimate - U||_F / ||U||_F`` of at most ``tolerance``. N is found by doubling and
    bisection, so that N transitions suffice and N - 1 do not. For :func:`learn_matrix`, more transitions never hurt, so
    N is the smallest such number; :func:`learn_rotation` may also fail at larger numbers.

    Raises:
        ValueError: not even all of ``pool`` suffices.
    """

    def learned(n: int) -> bool:
        estimate = learner(*as_least_squares(task, pool.first(n), goal_gradient_coef))
        return float((estimate - rotation).norm() / rotation.norm()) <= tolerance

    enough, size = 1, len(pool.goal)
    while not learned(enough):
        if enough == size:
            raise ValueError(f"pool: got {size} transitions, which do not determine the rotation; give more")
        enough = min(2 * enough, size)
    too_few = enough // 2 if enough > 1 else 0
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        enough, too_few = (middle, too_few) if learned(middle) else (enough, middle)
    return enough
