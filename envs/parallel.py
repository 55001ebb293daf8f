"""Environments that step in worker processes, for simulators without a vectorized form.

Each worker steps many environments, and observations are passed through shared memory, so the processes exchange only
one short command and answer per worker and step. Robots of gymnasium-robotics are read in a quicker way
(:mod:`envs.robotics`).
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import pickle
import signal
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from envs.robotics import read_quickly
from envs.task import check_count

Make = Callable[[], gymnasium.Env[Any, Any]]
Rows = dict[str, NDArray[Any]]


class ParallelVectorEnv(VectorEnv[Rows, Any, NDArray[Any]]):
    """``num_envs`` copies of an environment with dictionary observations, stepped by ``workers`` processes.

    Observations that are float64 in the environment become float32: this halves the memory of replay buffers, and the
    agent, the buffer and the relabelling of rewards all use the same numbers. Environments reset in the same step
    (``AutoresetMode.SAME_STEP``); infos are returned only for episodes that ended. ``compute_reward`` and the other
    functions of goals run in the calling process, for all transitions at once.

    After a reset with seed s, environment i runs the same episodes as a single environment reset with seed s + i,
    whatever the number of workers.

    Args:
        env: an id for ``gymnasium.make``, ``"module:id"`` if a module has to be imported first, or a picklable function
            that makes an environment. The environment has to bring its own time limit.
        num_envs: number of environments, at least ``workers``.
        kwargs: keyword arguments for ``gymnasium.make`` or for that function.

    Raises:
        ValueError: if observations are not a dictionary of boxes.
        ChildProcessError: from any method, if a worker has raised, has ended or has been killed.
    """

    def __init__(self, env: str | Make, num_envs: int, workers: int = 1, **kwargs: Any) -> None:
        self.closed = True  # until there is something to close: some releases of gymnasium close what is deleted
        check_count("num_envs", num_envs)
        check_count("workers", workers)
        if workers > num_envs:
            raise ValueError(f"workers: got {workers} for {num_envs} environments, expected at most one for each")
        self._processes: list[Any] = []
        self._connections: list[Connection] = []
        self._local = _make(env, kwargs)
        self.closed = False
        self.spec, self.render_mode = self._local.spec, None
        self.metadata = {**self._local.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}
        self.num_envs = num_envs
        self.single_observation_space = _in_float32(self._local.observation_space)
        self.single_action_space = self._local.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

        # spawn: a fresh interpreter inherits none of this process's threads and locks
        context = multiprocessing.get_context("spawn")
        self._shared = _Shared(context, self.single_observation_space, self.single_action_space, num_envs)
        for rows in np.array_split(np.arange(num_envs), workers):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(theirs, self._shared, rows.tolist(), env, kwargs), daemon=True
            )
            process.start()
            theirs.close()
            self._processes.append(process)
            self._connections.append(ours)
        self._answers()  # raises if a worker could not make its environments

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Rows, dict[str, Any]]:
        """Start new episodes in all environments; i gets seed + i or entry i of a sequence; options are shared."""
        seeds = [None] * self.num_envs if seed is None else seed
        if isinstance(seeds, (int, np.integer)):
            seeds = [int(seeds) + i for i in range(self.num_envs)]
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed: got {len(seeds)} seeds, expected an integer or one for each of {self.num_envs}")
        self._command("reset", (list(seeds), options))
        return self._shared.copies("now"), {}

    def step(
        self, actions: Any
    ) -> tuple[Rows, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        shared, actions = self._shared, np.asarray(actions)
        if actions.shape != shared.actions.shape:  # other shapes would be broadcast silently
            raise ValueError(f"action: got shape {actions.shape}, expected {shared.actions.shape}")
        shared.actions[:] = actions
        ended = {row: info for infos in self._command("step") for row, info in infos.items()}
        return (
            shared.copies("now"),
            shared.rewards.copy(),
            shared.terminated.copy(),
            shared.truncated.copy(),
            self._final(ended),
        )

    def compute_reward(self, achieved_goal: Any, desired_goal: Any, info: Any) -> Any:
        """Reward of a step that arrives at ``achieved_goal`` [..., goal], as computed by the environment."""
        return self._local.get_wrapper_attr("compute_reward")(achieved_goal, desired_goal, info)

    def compute_terminated(self, achieved_goal: Any, desired_goal: Any, info: Any) -> Any:
        """Whether that step ends the episode."""
        return self._local.get_wrapper_attr("compute_terminated")(achieved_goal, desired_goal, info)

    def compute_truncated(self, achieved_goal: Any, desired_goal: Any, info: Any) -> Any:
        """Whether that step truncates the episode, apart from time limits."""
        return self._local.get_wrapper_attr("compute_truncated")(achieved_goal, desired_goal, info)

    def close_extras(self, **kwargs: Any) -> None:
        for connection in self._connections:
            connection.close()  # this ends its worker
        for process in self._processes:
            process.join(timeout=5)
            if process.is_alive():
                process.terminate()
                process.join()
        self._connections.clear()
        self._local.close()

    def _command(self, name: str, argument: Any = None) -> list[dict[int, dict[str, Any]]]:
        """Send a command to all workers and return their answers."""
        if not self._connections:
            raise ValueError("environments: got closed ones; create new ones")
        message = pickle.dumps((name, argument))  # once for all workers
        try:
            for connection in self._connections:
                with contextlib.suppress(OSError):  # a worker that has ended is reported below
                    connection.send_bytes(message)
        except BaseException:
            self.close()
            raise
        return self._answers()

    def _answers(self) -> list[dict[int, dict[str, Any]]]:
        """The workers' answers: infos of the episodes that ended."""
        answers: list[Any] = []
        try:
            for process, connection in zip(self._processes, self._connections, strict=True):
                try:
                    answers.append(connection.recv())
                except (EOFError, OSError):
                    answers.append(_how_it_ended(process))
            failures = [answer for answer in answers if isinstance(answer, str)]
            if failures:
                raise ChildProcessError(f"a worker of {self.num_envs} environments: {failures[0]}")
        except BaseException:
            # even after Ctrl-C: unread answers would be mistaken for those to the next command
            self.close()
            raise
        return answers

    def _final(self, ended: dict[int, dict[str, Any]]) -> dict[str, Any]:
        """``final_obs`` and ``final_info`` as in a SyncVectorEnv."""
        if not ended:
            return {}
        mask = np.zeros(self.num_envs, dtype=np.bool_)
        mask[list(ended)] = True
        last = self._shared.copies("last")
        final_obs = np.full(self.num_envs, None, dtype=object)
        infos: dict[str, Any] = {}
        for row, info in ended.items():
            final_obs[row] = {name: values[row] for name, values in last.items()}
            infos = self._add_info(infos, info, row)
        return {"final_obs": final_obs, "_final_obs": mask, "final_info": infos, "_final_info": mask.copy()}


class _Shared:
    """Arrays for all environments, in memory shared by all processes."""

    def __init__(self, context: Any, observations: spaces.Dict, actions: spaces.Space[Any], n: int) -> None:
        self._blocks: dict[str, tuple[Any, tuple[int, ...], Any]] = {}
        layout: dict[str, tuple[tuple[int, ...], Any]] = {
            "actions": (actions.shape or (), actions.dtype),
            "rewards": ((), np.float64),
            "terminated": ((), np.bool_),
            "truncated": ((), np.bool_),
        }
        self.names = list(observations.spaces)
        for kind in ("now", "last"):
            for name, space in observations.items():
                layout[f"{kind}.{name}"] = (space.shape or (), space.dtype)
        for name, (shape, dtype) in layout.items():
            size = int(np.prod((n, *shape))) * np.dtype(dtype).itemsize
            self._blocks[name] = (context.RawArray("b", max(size, 1)), (n, *shape), np.dtype(dtype))
        self.open()

    def open(self) -> None:
        """Create arrays that view the shared memory; has to be called again in each process."""
        arrays: dict[str, NDArray[Any]] = {
            name: np.frombuffer(block, dtype, int(np.prod(shape))).reshape(shape)
            for name, (block, shape, dtype) in self._blocks.items()
        }
        self.actions, self.rewards = arrays["actions"], arrays["rewards"]
        self.terminated, self.truncated = arrays["terminated"], arrays["truncated"]
        self.observations = {kind: {name: arrays[f"{kind}.{name}"] for name in self.names} for kind in ("now", "last")}

    def __getstate__(self) -> dict[str, Any]:
        return {"_blocks": self._blocks, "names": self.names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.open()

    def write(self, kind: str, row: int, observation: dict[str, Any]) -> None:
        for name, values in self.observations[kind].items():
            values[row] = observation[name]

    def copies(self, kind: str) -> Rows:
        return {name: values.copy() for name, values in self.observations[kind].items()}


def _how_it_ended(process: Any) -> str:
    """Description of why a worker ended without an answer."""
    process.join(1)
    if process.exitcode in (-signal.SIGKILL, -signal.SIGTERM):
        return "was killed from outside, perhaps for lack of memory; use fewer environments or workers"
    if process.exitcode == 1:
        return (
            "ended, for the reason printed above; in a script, the code that makes environments may need to be inside "
            "'if __name__ == \"__main__\":', since workers import the script"
        )
    return f"ended with exit code {process.exitcode} (a negative code is a signal), perhaps in the simulator"


def _work(connection: Connection, shared: _Shared, rows: list[int], env: str | Make, kwargs: dict[str, Any]) -> None:
    """A worker: makes its environments, then serves commands until the connection is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    try:
        if isinstance(env, str) and ":" in env:
            with contextlib.redirect_stderr(io.StringIO()):  # the parent has already printed the module's notices
                import_module(env.rpartition(":")[0])
        envs = {row: _make(env, kwargs) for row in rows}
        connection.send({})
        while True:
            command, argument = connection.recv()
            connection.send(_reset(envs, shared, *argument) if command == "reset" else _step(envs, shared))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except BaseException:
        connection.send(f"raised\n{traceback.format_exc()}")


def _reset(
    envs: dict[int, gymnasium.Env[Any, Any]], shared: _Shared, seeds: list[int | None], options: dict[str, Any] | None
) -> dict[int, dict[str, Any]]:
    for row, env in envs.items():
        shared.write("now", row, env.reset(seed=seeds[row], options=options)[0])
    return {}


def _step(envs: dict[int, gymnasium.Env[Any, Any]], shared: _Shared) -> dict[int, dict[str, Any]]:
    """Step each environment; returns the infos of those whose episode ended."""
    ended: dict[int, dict[str, Any]] = {}
    for row, env in envs.items():
        observation, reward, terminated, truncated, info = env.step(shared.actions[row])
        if terminated or truncated:
            ended[row] = info
            shared.write("last", row, observation)
            observation, _ = env.reset()
        shared.write("now", row, observation)
        shared.rewards[row], shared.terminated[row], shared.truncated[row] = float(reward), terminated, truncated
    return ended


def _make(env: str | Make, kwargs: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    made = gymnasium.make(env, **kwargs) if isinstance(env, str) else env(**kwargs)
    read_quickly(made)
    return made


def _in_float32(space: spaces.Space[Any]) -> spaces.Dict:
    if not isinstance(space, spaces.Dict) or not all(isinstance(own, spaces.Box) for own in space.values()):
        raise ValueError(f"env: got the observation space {space}, expected a dictionary of boxes")
    return spaces.Dict(
        {
            name: spaces.Box(own.low.astype(np.float32), own.high.astype(np.float32), own.shape, np.float32)
            if own.dtype == np.float64
            else own
            for name, own in space.items()
            if isinstance(own, spaces.Box)
        }
    )
