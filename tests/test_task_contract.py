"""A task that breaks the contract is refused when an environment of it is made, by the name of what is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import envs
from envs.core import GoalEnv, GoalVectorEnv
from envs.task import Episode


@dataclass(frozen=True)
class Walk(envs.Task):
    """A walk in the plane; tests replace parts of it by wrong ones."""

    steps: int = 5

    @property
    def observation_space(self) -> spaces.Dict:
        plane = spaces.Box(-10, 10, (2,), np.float32)
        return spaces.Dict({"observation": plane, "achieved_goal": plane, "desired_goal": plane})

    @property
    def action_space(self) -> spaces.Space[Any]:
        return spaces.Box(0.5, 1, (2,), np.float32)

    def start(self, rng: np.random.Generator, n: int) -> Any:
        return rng.uniform(-1, 1, (n, 2)).astype(np.float32), np.zeros((n, 2), np.float32)

    def step(self, state: Any, action: Any, noise: Any) -> Any:
        return state + action

    def success(self, achieved: Any, desired: Any) -> Any:
        return np.abs(achieved - desired).max(-1) < 0.5

    def reward(self, achieved: Any, desired: Any) -> Any:
        return self.success(achieved, desired).astype(np.float64) - 1


def in_place(self: Any, state: Any, action: Any, noise: Any) -> Any:
    state += action
    return state


WRONG = [
    ("reward", lambda self, a, d: -1.0, r"Walk\.reward: got float, expected an array"),
    ("reward", lambda self, a, d: -abs(a - d), r"Walk\.reward: got shape \(3, 2\) for 3 environments, expected \(3,\)"),
    ("reward", lambda self, a, d: -abs(a - d).sum(1), r"Walk\.reward: failed for one goal, .*last axis, -1"),
    ("reward", lambda self, a, d: -abs(a - a.mean(0)).sum(-1), r"Walk\.reward: got -0\.0 .* by itself and"),
    ("reward", lambda self, a, d: np.log(a[..., 0] * 0 - 1), r"Walk\.reward: got a number that is not finite"),
    ("success", lambda self, a, d: (a == d).all(-1).astype(float), r"Walk\.success: got float64, expected bool"),
    ("success", lambda self, a, d: bool((a == d).all()), r"Walk\.success: got bool, expected an array"),
    ("terminated", lambda self, a, d: np.zeros(len(a), bool), r"Walk\.terminated: got shape \(2,\) for one goal"),
    ("step", in_place, "changes its arguments"),
    ("step", lambda self, s, a, n: s[:, :1], r"Walk\.step: got shape \(3, 1\) for 3 environments, expected \(3, 2\)"),
    ("observation", lambda self, s: s[0], r"Walk\.observation: got shape \(2,\)"),
    ("achieved", lambda self, s: s[:, 0], r"Walk\.achieved: got shape \(3,\)"),
    ("start", lambda self, rng, n: np.zeros((n, 2)), r"Walk\.start: got ndarray, expected two arrays"),
    ("start", lambda self, rng, n: (np.zeros(2), np.zeros(2)), r"Walk\.start \(states\): got shape \(2,\)"),
    ("start", lambda self, rng, n: (np.zeros((n, 2)), np.zeros((n, 3))), r"Walk\.start \(goals\): got shape \(3, 3\)"),
    ("stochastic", True, "has no noise"),
    ("observation_space", spaces.Dict({"observation": spaces.Discrete(2)}), "expected a Dict of observation, achieved"),
]


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize(("name", "wrong", "message"), WRONG)
def test_what_is_wrong_is_named(name: str, wrong: Any, message: str) -> None:
    task = type("Walk", (Walk,), {name: wrong})()
    with pytest.raises((ValueError, NotImplementedError), match=message):
        GoalEnv(task)
    with pytest.raises((ValueError, NotImplementedError), match=message):
        GoalVectorEnv(task, 2)


def test_a_task_needs_no_pictures() -> None:
    assert GoalEnv(Walk()).render_mode is None
    for make in (GoalEnv, GoalVectorEnv):
        with pytest.raises(ValueError, match=r"got 'rgb_array', but Walk defines no pictures; add a method draw"):
            make(Walk(), render_mode="rgb_array")
    with pytest.raises(NotImplementedError, match="Walk: defines no pictures"):
        Walk().draw(Episode(np.zeros(2, np.float32)))


def test_noise_has_a_row_for_each_environment() -> None:
    task = type("Walk", (Walk,), {"stochastic": True, "noise": lambda self, rng, n: rng.normal(size=2)})()
    with pytest.raises(ValueError, match=r"Walk\.noise: got shape \(2,\) for 3 environments, expected \(3, \.\.\.\)"):
        GoalEnv(task)


def test_bits_may_be_truth_values() -> None:
    """They are stored as numbers, as rewards of 0 and 1 are."""
    parts = {
        "start": lambda self, rng, n: (rng.random((n, 2)) < 0.5, rng.random((n, 2)) < 0.5),
        "step": lambda self, state, action, noise: state > 0,
        "reward": lambda self, achieved, desired: self.success(achieved, desired),
    }
    env = GoalEnv(type("Walk", (Walk,), parts)())
    env.reset(seed=0)
    assert env.step(np.ones(2, np.float32))[1] in (0, 1)


def test_rounding_may_depend_on_the_number_of_environments() -> None:
    weights = np.random.default_rng(0).normal(size=(1024, 2)).astype(np.float32)

    def product(self: Any, state: Any, action: Any, noise: Any) -> Any:
        return np.clip((100 * np.repeat(state, 512, axis=1)) @ weights, -10, 10)

    GoalEnv(type("Walk", (Walk,), {"step": product})())


def test_a_task_that_keeps_the_contract() -> None:
    env = GoalEnv(Walk())
    env.reset(seed=0)
    assert env.step(np.ones(2, np.float32))[1] == -1


def test_ids_belong_to_classes(recwarn: pytest.WarningsRecorder) -> None:
    """A class of the same name as another does not take its place, nor does another class take an id."""
    other = type("ContinuousSeek", (Walk,), {"__module__": __name__})
    envs.register("ContinuousSeekOfMine-v0", other)
    assert isinstance(gymnasium.make("ContinuousSeek-v0").unwrapped.task, envs.ContinuousSeek)  # type: ignore[attr-defined]
    assert isinstance(gymnasium.make("ContinuousSeekOfMine-v0").unwrapped.task, other)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="expected an unused id; this one belongs to ContinuousSeek of envs"):
        envs.register("ContinuousSeek-v0", other)
    again = type("ContinuousSeek", (Walk,), {"__module__": __name__})  # a notebook's cell, run again
    envs.register("ContinuousSeekOfMine-v0", again)
    assert isinstance(gymnasium.make("ContinuousSeekOfMine-v0").unwrapped.task, again)  # type: ignore[attr-defined]
    run = type("ContinuousSeek", (Walk,), {"__module__": "__main__"})  # python -m, and a module that imports it
    envs.register("ContinuousSeekOfMine-v0", run)
    gymnasium.registry.pop("ContinuousSeekOfMine-v0")
