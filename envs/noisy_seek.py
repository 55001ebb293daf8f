"""NoisySeek: a noisy walk among clusters of goals (dissertation, Section 8.5.1, App. G.6.4.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from PIL import Image

from envs import drawing
from envs.geometry import rounded, shortened
from envs.multi_goal import MultiGoalTask, goal_sets, pack_sets, unpack_goals
from envs.task import Array, Episode, box, check_count, check_positive

_LARGEST = 1e5  # largest standard deviation: integers of that size are exact in float32


@dataclass(frozen=True)
class NoisySeek(MultiGoalTask):
    """``s' ~ N(s + a, noise_std^2 I)`` in the plane; a step has reward 1 if it ends on a goal.

    A goal is reached if the position, rounded to integers (halves to even), equals it. Episodes start at (0, 0).
    Actions longer than ``max_speed`` are projected onto the disc of that radius.

    Goals come in clusters. The number of clusters is geometric on 1, 2, ... with parameter ``cluster_probability``. The
    cluster centers are normal around 0 with standard deviation ``center_std`` in both coordinates; the cluster weights
    are uniform on the simplex (Dirichlet with parameters 1). Then n' goals are drawn, n' uniform in 1, ..., max_goals:
    for each, a cluster is chosen by weight, and the goal is normal around its center with standard deviation
    ``goal_std``, rounded. Goals drawn twice count once, so there may be fewer than n'.

    Attributes:
        max_goals: largest number of goals of an episode.
        steps: time limit.
    """

    max_goals: int = 200
    cluster_probability: float = 0.15
    center_std: float = 10.0
    goal_std: float = 2.0
    noise_std: float = 1.0
    max_speed: float = 1.0
    steps: int = 40

    stochastic = True

    def __post_init__(self) -> None:
        check_count("max_goals", self.max_goals)
        check_count("steps", self.steps)
        check_positive("cluster_probability", self.cluster_probability)
        if self.cluster_probability > 1:
            raise ValueError(f"cluster_probability: got {self.cluster_probability}, expected at most 1")
        check_positive("max_speed", self.max_speed)
        for name in ("center_std", "goal_std", "noise_std"):
            value = getattr(self, name)
            if isinstance(value, bool) or not (isinstance(value, (int, float, np.number)) and 0 <= value <= _LARGEST):
                raise ValueError(f"{name}: got {value!r}, expected a number from 0 to {_LARGEST:g}")

    @property
    def observation_space(self) -> spaces.Dict:
        return spaces.Dict(
            {"observation": box(4), "achieved_goal": box(2), "desired_goal": goal_sets(self.max_goals, 2)}
        )

    @property
    def state_space(self) -> spaces.Box:
        return box(2)

    @property
    def action_space(self) -> spaces.Box:
        return box(2, self.max_speed)

    def start(self, rng: np.random.Generator, n: int) -> tuple[Array, Array]:
        clusters = rng.geometric(self.cluster_probability, n)
        sets = np.repeat(np.arange(n), rng.integers(1, self.max_goals + 1, n))
        center = self.center_std * rng.standard_normal((2, clusters.sum()))
        chosen = _choose(rng, clusters, sets)
        items = rounded(center[:, chosen] + self.goal_std * rng.standard_normal((2, len(sets))))
        first = _first_of_each(items, sets)
        return np.zeros((n, 2), dtype=np.float32), pack_sets(items[:, first].T, sets[first], n, self.max_goals)

    def noise(self, rng: np.random.Generator, n: int) -> Array:
        return np.float32(self.noise_std) * rng.standard_normal((n, 2), dtype=np.float32)

    def step(self, state: Array, action: NDArray[np.floating], noise: Array | None) -> Array:
        assert noise is not None
        return (state + shortened(action, self.max_speed) + noise).astype(np.float32)

    def observation(self, state: Array) -> Array:
        return np.concatenate([state, rounded(state)], -1)

    def achieved(self, state: Array) -> Array:
        return rounded(state)

    def draw(self, episode: Episode) -> Image.Image:
        states = np.stack(episode.states)
        view = drawing.View.around(np.concatenate([unpack_goals(episode.goal), states[:1]]))
        return drawing.goal_map(episode, states, self.achieved(states), view, self.steps)


def _choose(rng: np.random.Generator, clusters: NDArray[np.int64], sets: NDArray[np.intp]) -> NDArray[np.intp]:
    """A cluster for each goal, among those of its set: indices [goals] into the concatenated clusters of all sets.

    Args:
        clusters: number of clusters of each set.
        sets: index of the set of each goal.
    """
    # Independent exponentials divided by their sum are Dirichlet with parameters 1. So lay the exponentials of a set
    # end to end, draw a uniform point on that line for each goal, and take the cluster in which it falls.
    weight = rng.standard_exponential(clusters.sum())
    border, last = np.cumsum(weight), np.cumsum(clusters) - 1
    end = border[last]
    begin = np.concatenate([[0.0], end[:-1]])
    point = begin[sets] + rng.random(len(sets)) * (end - begin)[sets]
    # rounding may move a point to the end of its line, where the next set begins
    return np.minimum(np.searchsorted(border, point, side="right"), last[sets])


def _first_of_each(items: NDArray[np.float64], sets: NDArray[np.intp]) -> NDArray[np.intp]:
    """Ascending indices of the integer items [2, total] that are the first of their value in their set [total]."""
    x, y = (items - items.min(-1, keepdims=True)).astype(np.int64)
    return np.sort(np.unique((sets * (x.max() + 1) + x) * (y.max() + 1) + y, return_index=True)[1])
