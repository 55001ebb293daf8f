"""Trying out a task before anything is trained on it: do its functions return what :mod:`envs.task` asks for?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs.task import Task

_NUM_ENVS = 3  # tried together, then the first one by itself
_KEYS = ("observation", "achieved_goal", "desired_goal")


def check_task(task: Task) -> None:
    """Raise ``ValueError``, naming the function, if one of ``task`` breaks the contract.

    A first step of a few environments is computed, from a random generator of its own. Checked are the shapes of all
    results, that values are finite, that arguments are not modified, that a goal without leading dimensions gets a
    single reward, and that the first environment gets the same results by itself as beside others (up to rounding).
    """
    name = type(task).__name__
    space = task.observation_space
    if not isinstance(space, spaces.Dict) or set(space.spaces) != set(_KEYS):
        raise ValueError(f"{name}.observation_space: got {space}, expected a Dict of {', '.join(_KEYS)}")
    given = _arguments(task)
    before = [each.copy() for each in given]
    shapes = {
        "step": task.state_space.shape,
        "observation": space["observation"].shape,
        "achieved": space["achieved_goal"].shape,
    }
    together = {}
    for function, value in _first_step(task, *given):
        _check_array(f"{name}.{function}", value, shapes.get(function, ()), truth=function in ("success", "terminated"))
        together[function] = value
    if not all(map(np.array_equal, given, before)):
        raise ValueError(
            f"{name}: one of its functions changes its arguments, expected new arrays; copy them before writing"
        )
    goal = given[1][0]
    for function in ("reward", "terminated", *(["success"] if task.has_success else [])):
        _check_one_goal(f"{name}.{function}", getattr(task, function), together["achieved"][0], goal)
    alone = dict(_first_step(task, *(each[:1] for each in given)))
    for function, value in together.items():
        _check_own_row(f"{name}.{function}", value, alone[function])


def _arguments(task: Task) -> list[NDArray[Any]]:
    """States, goals, actions and, for a stochastic task, noise for a first step; what the task draws is checked."""
    name, rng = type(task).__name__, np.random.default_rng(0)
    started = task.start(rng, _NUM_ENVS)
    if not isinstance(started, tuple) or len(started) != 2:
        raise ValueError(f"{name}.start: got {type(started).__name__}, expected two arrays, states and goals")
    state, goal = started
    _check_array(f"{name}.start (states)", state, task.state_space.shape)
    _check_array(f"{name}.start (goals)", goal, task.goal_space.shape)
    noise = []
    if task.stochastic:
        noise = [task.noise(rng, _NUM_ENVS)]
        _check_array(f"{name}.noise", noise[0], None)
    return [state.astype(np.float32), goal.astype(np.float32), _legal_actions(task.action_space), *noise]


def _first_step(
    task: Task, state: Any, goal: Any, action: Any, noise: Any = None
) -> Iterator[tuple[str, NDArray[Any]]]:
    """The result of each function for these arguments, in the order of a step."""
    yield "step", (after := task.step(state, action, noise))
    after = after.astype(np.float32, copy=False)
    yield "observation", task.observation(after)
    yield "achieved", (achieved := task.achieved(after))
    if task.has_success:
        yield "success", task.success(achieved, goal)
    yield "terminated", task.terminated(achieved, goal)
    yield "reward", task.reward(achieved, goal)


def _check_array(name: str, value: Any, shape: tuple[int, ...] | None, *, truth: bool = False) -> None:
    """Raise unless ``value`` is an array with a row per environment: of finite numbers, or of booleans (``truth``)."""
    if not isinstance(value, np.ndarray):
        raise ValueError(f"{name}: got {type(value).__name__}, expected an array with a row for each environment")
    expected = None if shape is None else (_NUM_ENVS, *shape)
    if value.shape != expected if expected is not None else len(value.shape) == 0 or len(value) != _NUM_ENVS:
        wanted = expected or f"({_NUM_ENVS}, ...)"
        raise ValueError(f"{name}: got shape {value.shape} for {_NUM_ENVS} environments, expected {wanted}")
    if value.dtype != np.bool_ and (truth or not np.issubdtype(value.dtype, np.number)):
        raise ValueError(f"{name}: got {value.dtype}, expected {'bool' if truth else 'numbers'}")
    if not np.isfinite(value).all():
        raise ValueError(f"{name}: got a number that is not finite, expected finite numbers")


def _check_one_goal(name: str, function: Callable[[Any, Any], Any], achieved: Any, desired: Any) -> None:
    """Raise unless ``function`` returns a single number for a goal without leading dimensions."""
    try:
        shape = np.shape(function(achieved, desired))
    except Exception as error:
        raise ValueError(
            f"{name}: failed for one goal, of shape {desired.shape} ({error}), expected a function that reduces the "
            "last axis, -1, of [..., goal]"
        ) from error
    if shape != ():
        raise ValueError(f"{name}: got shape {shape} for one goal, of shape {desired.shape}, expected one value")


def _check_own_row(name: str, together: NDArray[Any], alone: NDArray[Any]) -> None:
    """Raise unless the first environment gets the same by itself as beside others, up to rounding."""
    if not np.allclose(together[:1], alone, rtol=1e-4, atol=1e-5 * max(1.0, float(np.abs(together).max()))):
        raise ValueError(
            f"{name}: got {alone[0]} for an environment by itself and {together[0]} for the same beside others, "
            "expected each row to depend on its own row alone"
        )


def _legal_actions(space: spaces.Space[Any]) -> NDArray[Any]:
    """The same legal action for each environment."""
    if isinstance(space, spaces.Box):
        one = np.clip(np.zeros(space.shape, space.dtype), space.low, space.high)
    else:
        one = np.zeros(space.shape or (), np.int64)
    return np.repeat(one[None], _NUM_ENVS, axis=0)
