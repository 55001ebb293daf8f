"""Registration of tasks with Gymnasium: entry points for ``make`` and ``make_vec``, and time limits."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import gymnasium
from gymnasium.error import DependencyNotInstalled
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import HumanRendering, TimeLimit

from envs.core import GoalEnv, GoalVectorEnv
from envs.task import Task

_RUN = {"__main__", "__mp_main__"}  # the name of the script that is run, in itself and in its worker processes
_TASKS: dict[str, type[Task]] = {}  # by registered id


def register(env_id: str, task: type[Task]) -> None:
    """Register a task with Gymnasium. Its fields become keyword arguments, its ``steps`` the time limit.

    The limit is not registered as Gymnasium's ``max_episode_steps``, since it can depend on the other arguments (such
    as the number of bits); ``max_episode_steps`` can shorten it.

    Raises:
        ValueError: if the id belongs to another class. Redefining the same class, as notebooks do, replaces it.
    """
    known = _TASKS.get(env_id)
    if known is not None and not _same_class(known, task):
        raise ValueError(
            f"env_id: got {env_id!r} for {task.__qualname__} of {task.__module__}, expected an unused id; this one "
            f"belongs to {known.__qualname__} of {known.__module__}"
        )
    _TASKS[env_id] = task
    gymnasium.register(
        env_id,
        entry_point="envs.registration:make_env",
        vector_entry_point="envs.registration:make_vector_env",
        kwargs={"task": env_id},
    )


def _same_class(known: type[Task], task: type[Task]) -> bool:
    """Whether ``task`` redefines ``known``; a script that is run may also be imported, under its other name."""
    modules = {known.__module__, task.__module__}
    return known.__qualname__ == task.__qualname__ and (len(modules) == 1 or not modules.isdisjoint(_RUN))


def make_env(task: str, render_mode: str | None = None, **kwargs: Any) -> gymnasium.Env[Any, Any]:
    """One environment of the task, with its time limit; ``render_mode="human"`` opens a window and needs pygame."""
    definition = _TASKS[task](**kwargs)
    if render_mode == "human" and find_spec("pygame") is None:
        raise DependencyNotInstalled(
            'render_mode: got "human", which needs pygame; install it with "pip install pygame", '
            'or render images with render_mode="rgb_array"'
        )
    env = GoalEnv(definition, "rgb_array" if render_mode == "human" else render_mode)
    limited = TimeLimit(env, definition.steps)
    return HumanRendering(limited) if render_mode == "human" else limited


def make_vector_env(
    task: str,
    num_envs: int = 1,
    max_episode_steps: int | None = None,
    autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    render_mode: str | None = None,
    **kwargs: Any,
) -> GoalVectorEnv:
    """``num_envs`` environments of the task that step together."""
    return GoalVectorEnv(
        _TASKS[task](**kwargs),
        num_envs,
        max_episode_steps=max_episode_steps,
        autoreset_mode=autoreset_mode,
        render_mode=render_mode,
    )
