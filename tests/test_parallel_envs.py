"""Environments in worker processes: the same episodes as in one process, and failures that are told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import envs  # noqa: F401
from envs.parallel import ParallelVectorEnv
from rl import VectorEnvAdapter

ROOT = str(Path(__file__).parents[1])
SEEK = "envs:ContinuousSeek-v0"
HAND = "gymnasium_robotics:HandReach-v3"


class Failing(gymnasium.Env[Any, Any]):
    """Raises on a second step."""

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Dict({"x": gymnasium.spaces.Box(-1, 1, (1,))})
        self.action_space = gymnasium.spaces.Box(-1, 1, (1,))
        self.steps = 0

    def reset(self, **kwargs: Any) -> Any:
        return {"x": np.zeros(1)}, {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.steps == 2:
            raise RuntimeError("the simulation has exploded")
        return {"x": np.zeros(1)}, 0.0, False, False, {}


def episodes(env: Any, steps: int, shape: tuple[int, ...]) -> list[Any]:
    rng = np.random.default_rng(0)
    observation, _ = env.reset(seed=5)
    return [observation, *(env.step(rng.uniform(-1, 1, shape).astype(np.float32)) for _ in range(steps))]


@pytest.mark.parametrize(
    ("env", "kwargs", "steps", "workers"), [(SEEK, {"d": 3}, 25, 1), (SEEK, {"d": 3}, 25, 2), (HAND, {}, 52, 2)]
)
def test_the_same_as_one_process(env: str, kwargs: dict[str, Any], steps: int, workers: int) -> None:
    parallel = ParallelVectorEnv(env, 3, workers, **kwargs)
    make = lambda: gymnasium.make(env, **kwargs)  # noqa: E731
    single = SyncVectorEnv([make] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    shape = (3, *(parallel.single_action_space.shape or ()))
    ours, theirs = episodes(parallel, steps, shape), episodes(single, steps, shape)
    parallel.close()
    assert all(np.array_equal(ours[0][name], theirs[0][name].astype(np.float32)) for name in ours[0])
    ended = 0
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        assert all(np.array_equal(mine[0][name], other[0][name].astype(np.float32)) for name in mine[0])
        assert all(np.array_equal(mine[i], other[i]) for i in (1, 2, 3))
        if not mine[3].any():
            assert mine[4] == {}
            continue
        ended += 1
        assert np.array_equal(mine[4]["_final_obs"], other[4]["_final_obs"])
        assert np.array_equal(mine[4]["final_info"]["is_success"], other[4]["final_info"]["is_success"])
        for own, last in zip(mine[4]["final_obs"], other[4]["final_obs"], strict=True):
            assert all(np.array_equal(own[name], last[name].astype(np.float32)) for name in own)
    assert ended == steps // (10 if env == SEEK else 50)


def test_spaces_are_float32_and_rewards_are_computed_here() -> None:
    env = ParallelVectorEnv(HAND, 2, 1)
    assert {own.dtype for own in env.single_observation_space.values()} == {np.dtype(np.float32)}
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    achieved = np.repeat(observation["achieved_goal"], 2, axis=0)
    desired = achieved + np.float32([[0.02], [0.0], [0.02], [0.0]])
    assert env.compute_reward(achieved, desired, {}).tolist() == [-1, 0, -1, 0]
    env.close()


def test_goes_into_stable_baselines() -> None:
    adapter = VectorEnvAdapter(ParallelVectorEnv(SEEK, 2, 2, d=2))
    adapter.seed(3)
    adapter.reset()
    for _ in range(10):
        _, _, dones, infos = adapter.step(np.zeros((2, 2), np.float32))
    assert dones.all()
    assert infos[1]["TimeLimit.truncated"]
    assert infos[1]["episode"]["l"] == 10
    assert infos[0]["is_success"] in (True, False)
    adapter.close()


class Touching(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Infos within infos."""

    def __init__(self) -> None:
        super().__init__(gymnasium.make("ContinuousSeek-v0", d=2, steps=3))

    def step(self, action: Any) -> Any:
        *others, info = self.env.step(action)
        return *others, {**info, "contact": {"force": float(action[0])}}


def test_infos_within_infos() -> None:
    env = ParallelVectorEnv(Touching, 3, 2)
    adapter = VectorEnvAdapter(env)
    adapter.reset()
    for _ in range(3):
        *_, infos = adapter.step(np.array([[0.5, 0], [1, 0], [0.25, 0]], np.float32))
    assert [info["contact"] for info in infos] == [{"force": 0.5}, {"force": 1.0}, {"force": 0.25}]
    adapter.close()


def test_a_worker_that_raises_is_told() -> None:
    env = ParallelVectorEnv(Failing, 2, 1)
    env.reset()
    env.step(np.zeros((2, 1), np.float32))
    with pytest.raises(ChildProcessError, match="the simulation has exploded"):
        env.step(np.zeros((2, 1), np.float32))
    with pytest.raises(ValueError, match="closed"):
        env.reset()


def test_a_worker_that_is_killed_is_told() -> None:
    env = ParallelVectorEnv(SEEK, 2, 2, d=2)
    env.reset(seed=0)
    os.kill(env._processes[1].pid, signal.SIGKILL)
    env._processes[1].join()
    with pytest.raises(ChildProcessError, match="killed from outside"):
        env.step(np.zeros((2, 2), np.float32))


def test_a_script_without_a_guard_is_told(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"from envs.parallel import ParallelVectorEnv\nParallelVectorEnv({SEEK!r}, 2, 1, d=2)\n")
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": ROOT}
    )
    assert done.returncode == 1
    assert done.stderr.rstrip().splitlines()[-1].startswith("ChildProcessError: a worker of 2 environments: ended")
    assert "__main__" in done.stderr.splitlines()[-1]


def test_what_was_interrupted_is_closed() -> None:
    """Answers that nobody read would be taken for those to the next command."""
    env = ParallelVectorEnv(SEEK, 4, 2, d=2)
    env.reset(seed=0)
    processes, first = env._processes, env._connections[0]

    class Interrupted:
        send_bytes, close = first.send_bytes, first.close

        def recv(self) -> Any:
            raise KeyboardInterrupt

    env._connections[0] = Interrupted()  # type: ignore[call-overload]
    with pytest.raises(KeyboardInterrupt):
        env.step(np.zeros((4, 2), np.float32))
    assert not any(process.is_alive() for process in processes)
    with pytest.raises(ValueError, match="closed"):
        env.step(np.zeros((4, 2), np.float32))


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="workers: got 3 for 2"):
        ParallelVectorEnv(SEEK, 2, 3)
    with pytest.raises(ValueError, match="expected a dictionary of boxes"):
        ParallelVectorEnv("CartPole-v1", 2, 1)
    env = ParallelVectorEnv(SEEK, 2, 1, d=2)
    with pytest.raises(ValueError, match="seed: got 3 seeds"):
        env.reset(seed=[1, 2, 3])
    env.reset(seed=0)
    with pytest.raises(ValueError, match="action: got shape"):  # and is not broadcast
        env.step(np.zeros(2, np.float32))
    env.close()
