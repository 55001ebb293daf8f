"""Linear environments with an unknown rotation, for which ReenGAGE provably needs fewer transitions (Section 8.6.2).

An action a is rotated to ``U a`` before it is added to the state, so acting well amounts to knowing U. The optimal
action is ``U^T g / ||g||`` in both environments, and the optimal values have closed forms, Equations G.1 and G.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from PIL import Image

from envs import drawing
from envs.geometry import shortened
from envs.task import Array, Episode, Task, box, check_count


def random_rotation(d: int, seed: int) -> NDArray[np.float64]:
    """A uniformly distributed (Haar) rotation matrix [d, d]: orthogonal, with determinant 1."""
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))
    q *= np.sign(np.diag(r))  # the signs that make the distribution uniform
    if np.linalg.det(q) < 0:
        q[:, 0] *= -1
    return q


@dataclass(frozen=True, eq=False)
class _Linear(Task):
    """Base of both environments: reward ``g . x`` for the achieved goal x, and moves ``U a`` with ``||a||_2 <= 1``.

    Longer actions are scaled to length 1. Goals and initial states are standard normal. Episodes never terminate, and
    success is undefined.

    Attributes:
        d: dimension of actions and goals.
        steps: time limit.
        rotation_seed: seed of a random rotation U. U is part of the environment and stays the same across resets.
        rotation: U itself [d, d], any orthogonal matrix, instead of a random one.
    """

    d: int = 10
    steps: int = 10
    rotation_seed: int = 0
    rotation: Sequence[Sequence[float]] | NDArray[np.floating] | None = None

    has_success = False

    def __post_init__(self) -> None:
        check_count("d", self.d)
        check_count("steps", self.steps)
        if isinstance(self.rotation_seed, bool) or not isinstance(self.rotation_seed, int) or self.rotation_seed < 0:
            raise ValueError(f"rotation_seed: got {self.rotation_seed!r}, expected an integer, at least 0")
        if self.matrix.shape != (self.d, self.d):
            raise ValueError(f"rotation: got shape {self.matrix.shape}, expected {(self.d, self.d)}")
        error = np.abs(self.matrix @ self.matrix.T - np.eye(self.d)).max()
        if not error < 1e-5:
            raise ValueError(
                f"rotation: got a matrix with U U^T off by {error:.2g} from I, expected an orthogonal matrix"
            )

    @cached_property
    def matrix(self) -> NDArray[np.float64]:
        """U, float64 [d, d]."""
        given = self.rotation is not None
        return np.array(self.rotation, dtype=np.float64) if given else random_rotation(self.d, self.rotation_seed)

    @property
    def action_space(self) -> spaces.Box:
        return box(self.d, 1.0)

    def move(self, action: NDArray[np.floating]) -> NDArray[np.float64]:
        """U a, for actions [n, d] scaled into the unit ball."""
        # one matrix-vector product per row: a matrix product may round a row differently for each batch size
        return (self.matrix @ shortened(action)[..., None])[..., 0]

    def reward(self, achieved: Array, desired: Array) -> NDArray[np.float64]:
        # order="C": rows are summed in the same order whatever the memory layout of the input
        return np.multiply(achieved, desired, dtype=np.float64, order="C").sum(-1)

    def draw(self, episode: Episode) -> Image.Image:
        return drawing.projections(episode, self.d, self.steps)


@dataclass(frozen=True, eq=False)
class LinearDense(_Linear):
    """s, g in R^d; ``s' = s + U a``; reward ``g . s'`` at every step. Attributes as in :class:`_Linear`."""

    @property
    def observation_space(self) -> spaces.Dict:
        return spaces.Dict({name: box(self.d) for name in ("observation", "achieved_goal", "desired_goal")})

    def start(self, rng: np.random.Generator, n: int) -> tuple[Array, Array]:
        drawn = rng.standard_normal((2, n, self.d), dtype=np.float32)
        return drawn[0], drawn[1]

    def step(self, state: Array, action: NDArray[np.floating], noise: Array | None) -> Array:
        return (state + self.move(action)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class LinearSparse(_Linear):
    """s = (s1; s2) in R^2d, g in R^d; reward ``g . s1'``, which is 0 at every other step.

    If s1 is not 0, the result of the move is stored, ``s' = (0; s1 + U a)``; otherwise the stored result is shown,
    ``s' = (s2; 0)``, and the action has no effect. The achieved goal is s1. Episodes start with s1 standard normal and
    s2 = 0. Attributes as in :class:`_Linear`.
    """

    @property
    def observation_space(self) -> spaces.Dict:
        goal = {name: box(self.d) for name in ("achieved_goal", "desired_goal")}
        return spaces.Dict({"observation": box(2 * self.d), **goal})

    def start(self, rng: np.random.Generator, n: int) -> tuple[Array, Array]:
        drawn = rng.standard_normal((2, n, self.d), dtype=np.float32)
        return np.concatenate([drawn[0], np.zeros_like(drawn[0])], -1), drawn[1]

    def achieved(self, state: Array) -> Array:
        return state[..., : self.d]

    def step(self, state: Array, action: NDArray[np.floating], noise: Array | None) -> Array:
        shown, stored = state[:, : self.d], state[:, self.d :]
        nothing = np.zeros_like(shown)
        moved = (shown + self.move(action)).astype(np.float32)
        to_store = (shown != 0).any(-1, keepdims=True)
        return np.where(to_store, np.concatenate([nothing, moved], -1), np.concatenate([stored, nothing], -1))
