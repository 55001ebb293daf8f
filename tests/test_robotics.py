"""Robots of gymnasium-robotics that are read by address: the same episodes, and no other environment touched."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium
import numpy as np
import pytest

from envs.robotics import read_quickly

pytest.importorskip("gymnasium_robotics")

ROBOTS = (
    "HandReach-v3",
    "HandManipulateBlock-v1",
    "HandManipulateEggRotate_ContinuousTouchSensors-v1",
    "FetchReach-v4",
    "FetchPickAndPlace-v4",
)


def make(name: str) -> Any:
    return gymnasium.make(f"gymnasium_robotics:{name}")


@pytest.mark.parametrize("name", ROBOTS)
def test_episodes_are_the_same_bit_for_bit(name: str) -> None:
    slow, quick = make(name), make(name)
    assert read_quickly(quick)
    rng = np.random.default_rng(0)
    pair = [env.reset(seed=3)[0] for env in (slow, quick)]
    for _ in range(60):  # beyond the end of an episode
        for key in pair[0]:
            assert pair[0][key].dtype == pair[1][key].dtype
            assert np.array_equal(pair[0][key], pair[1][key])
        action = rng.uniform(-1, 1, slow.action_space.shape)
        (first, *rest), (second, *others) = (env.step(action) for env in (slow, quick))
        assert rest == others
        pair = [env.reset()[0] for env in (slow, quick)] if rest[2] else [first, second]


def test_observations_are_copies() -> None:
    env = make("HandReach-v3")
    read_quickly(env)
    observation = env.reset(seed=0)[0]["observation"]
    before = observation.copy()
    env.step(np.ones(20))
    assert np.array_equal(observation, before)


@pytest.mark.parametrize("name", ["gymnasium_robotics:PointMaze_UMaze-v3", "envs:ContinuousSeek-v0", "CartPole-v1"])
def test_other_environments_stay_as_they_are(name: str) -> None:
    env = gymnasium.make(name)
    before = getattr(env.unwrapped, "_utils", None)
    assert not read_quickly(env)
    assert getattr(env.unwrapped, "_utils", None) is before


def test_robots_whose_joints_are_read_otherwise_stay_as_they_are() -> None:
    env = make("HandReach-v3").unwrapped
    read = env._utils.robot_get_obs

    class Other:
        @staticmethod
        def robot_get_obs(model: Any, data: Any, names: Any) -> Any:
            positions, velocities = read(model, data, names)
            return positions, velocities[::-1]

    env._utils = Other
    assert not read_quickly(env)
    assert env._utils is Other
    env.model.jnt_type[3] = 1  # a ball joint
    env._utils = copy
    assert not read_quickly(env)


def test_another_model_is_read_by_name() -> None:
    env, other = make("HandReach-v3").unwrapped, make("HandManipulateBlock-v1").unwrapped
    read_quickly(env)
    names = other._model_names.joint_names
    for mine, own in zip(
        env._utils.robot_get_obs(other.model, other.data, names),
        other._utils.robot_get_obs(other.model, other.data, names),
        strict=True,
    ):
        assert np.array_equal(mine, own)
    with pytest.raises(AttributeError, match="_hidden"):
        _ = env._utils._hidden


def test_a_copied_environment_still_works() -> None:
    env = make("HandReach-v3")
    read_quickly(env)
    env.reset(seed=0)
    again = copy.deepcopy(env)  # made anew
    assert np.array_equal(again.reset(seed=1)[0]["observation"], env.reset(seed=1)[0]["observation"])


def test_a_second_call_changes_nothing() -> None:
    env = make("HandReach-v3")
    assert read_quickly(env)
    reader = env.unwrapped._utils
    assert read_quickly(env)
    assert env.unwrapped._utils is reader
