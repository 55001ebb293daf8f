"""Many goals at a time: padded sets, presence flags, and a reward with one term per goal (dissertation, Section 8.5).

A desired goal is a set of goal items, stored as a table ``[max_goals, item + 1]``: each row is an item followed by its
presence, 1; the rows after the last item are padding, all zeros. The order of the rows is irrelevant. An achieved goal
is a single item, ``[item]``. The reward is a sum over the goals (Equation G.16),

    R(s', g) = sum_i b_i^2 R_item(s', g_i)

with the presences as gates b_i. Goals are not used up: a goal counts again at every step that achieves it.

    >>> desired = pack_goals([[3, 4], [0, -1]], max_goals=3)
    >>> desired.tolist()
    [[3.0, 4.0, 1.0], [0.0, -1.0, 1.0], [0.0, 0.0, 0.0]]
    >>> unpack_goals(desired).tolist()
    [[3.0, 4.0], [0.0, -1.0]]
    >>> item_rewards(np.float32([0, -1]), desired).tolist()
    [0.0, 1.0, 0.0]
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from envs.task import Array, Task, check_count


def item_rewards(achieved: Any, desired: Any) -> Any:
    """R_item of goals that have to be met exactly: 1 for each present row that equals the achieved goal, else 0.

    Uses operators only, so it works on NumPy arrays and on tensors.

    Args:
        achieved: ``[..., item]``, with leading dimensions that broadcast with those of ``desired``.
        desired: ``[..., goals, item + 1]``, floating point.

    Returns:
        ``[..., goals]``, of the type of ``desired``.
    """
    return _met(achieved, desired) + 0 * desired[..., -1]  # converts to the type of the goals


def _met(achieved: Any, desired: Any) -> Any:
    """Which present rows equal the achieved goal: bool [..., goals]."""
    met = desired[..., -1] != 0
    for i in range(desired.shape[-1] - 1):  # column by column: .all() over a few columns is many times slower
        met = met & (achieved[..., i, None] == desired[..., i])
    return met


def total_reward(rewards: Any, desired: Any) -> Any:
    """Equation G.16: the sum of item rewards ``[..., goals]``, weighted by squared presence: ``[...]``.

    Uses operators only; for tensors, the gradient with respect to the presence is Equation G.17, with
    the factor 2 that is missing there.
    """
    return (desired[..., -1] ** 2 * rewards).sum(-1)


def _total_reward_of_met(achieved: Array, desired: Array) -> NDArray[np.float64]:
    """:func:`total_reward` of :func:`item_rewards`: the same numbers in half the time, since few terms are nonzero."""
    met = _met(achieved, desired)
    sets = np.flatnonzero(met) // met.shape[-1]
    if (sets[1:] == sets[:-1]).any():  # a set has the same goal twice, and the order of summation matters
        return total_reward(item_rewards(achieved, desired), desired).astype(np.float64)
    total = np.zeros(met.shape[:-1])
    total.reshape(-1)[sets] = np.broadcast_to(desired[..., -1], met.shape)[met] ** 2
    return total[()]  # a scalar for a single set


def pack_goals(items: ArrayLike, max_goals: int) -> Array:
    """A set of at most ``max_goals`` goal items ``[k, item]`` as a desired goal ``[max_goals, item + 1]``."""
    check_count("max_goals", max_goals)
    rows = np.asarray(items, dtype=np.float32)
    if rows.ndim != 2 or len(rows) > max_goals:
        raise ValueError(f"items: got shape {rows.shape}, expected [k, item] with k at most {max_goals}")
    if not np.isfinite(rows).all():
        raise ValueError("items: got a number that is not finite, expected finite numbers")
    return pack_sets(rows, np.zeros(len(rows), np.intp), 1, max_goals)[0]


def pack_sets(items: NDArray[Any], sets: NDArray[np.intp], n: int, max_goals: int) -> Array:
    """n sets of goals at once, as desired goals [n, max_goals, item + 1].

    Args:
        items: the items of all sets, one set after the other: [total, item].
        sets: index of the set that each item belongs to: [total], ascending.
    """
    desired = np.zeros((n, max_goals, items.shape[-1] + 1), dtype=np.float32)
    place = np.arange(len(sets)) - np.searchsorted(sets, np.arange(n))[sets]
    desired[sets, place, :-1] = items
    desired[sets, place, -1] = 1
    return desired


def unpack_goals(desired: ArrayLike) -> Array:
    """The goal items [k, item] that are present in a desired goal [goals, item + 1]."""
    rows = np.asarray(desired, dtype=np.float32)
    if rows.ndim != 2:
        raise ValueError(f"desired: got shape {rows.shape}, expected one set, [goals, item + 1]")
    return rows[rows[:, -1] != 0, :-1]


def goal_sets(max_goals: int, item: int, bound: float = np.inf) -> spaces.Box:
    """The space of desired goals with items in [-bound, bound]^item."""
    high = np.full((max_goals, item + 1), bound, dtype=np.float32)
    low = -high
    low[:, -1], high[:, -1] = 0, 1
    return spaces.Box(low, high, dtype=np.float32)


class MultiGoalTask(Task):
    """A task whose goals are sets, as described in the docstring of this module.

    Like every task, your own environment defines its spaces, ``start`` and ``step``; rewards are defined here.
    ``start`` returns goals made by :func:`pack_sets` or :func:`pack_goals`, the space of ``desired_goal`` is
    :func:`goal_sets`, and ``achieved`` returns the item that a state achieves. Override :meth:`item_rewards` if goals
    need not be met exactly. Success is undefined: performance is measured by the return of an episode.

    Attributes:
        max_goals: rows of a desired goal.
    """

    max_goals: int
    goal_axes = 2
    has_success = False

    def item_rewards(self, achieved: Any, desired: Any) -> Any:
        """R_item of each row [..., goals], of the type of ``desired``; 0 for absent rows.

        If it uses operators only, it also works on tensors, for a gate-gradient loss with rewards known a priori.
        """
        return item_rewards(achieved, desired)

    def reward(self, achieved: Array, desired: Array) -> NDArray[np.float64]:
        if type(self).item_rewards is MultiGoalTask.item_rewards:
            return _total_reward_of_met(achieved, desired)
        return total_reward(self.item_rewards(achieved, desired), desired).astype(np.float64)
