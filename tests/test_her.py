"""The hindsight buffer against Stable-Baselines3's: the same minibatches from the same random numbers."""

from __future__ import annotations

import functools
import pickle
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import stable_baselines3 as sb3
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecNormalize

import rl
from rl.checks import check_goal_function
from rl.her import end_open_episodes
from tests.agents import Mute, agent, bits, seek


def both(env: VecEnv, size: int, **options: Any) -> tuple[sb3.HerReplayBuffer, rl.HerReplayBuffer]:
    spaces: Any = (env.observation_space, env.action_space)
    made = [
        kind(size, *spaces, env=env, device="cpu", n_envs=env.num_envs, **options)
        for kind in (sb3.HerReplayBuffer, rl.HerReplayBuffer)
    ]
    return made[0], made[1]  # type: ignore[return-value]


def ours_only(env: VecEnv, **options: Any) -> rl.HerReplayBuffer:
    spaces: Any = (env.observation_space, env.action_space)
    return rl.HerReplayBuffer(100, *spaces, env=env, **options)


def singles(n: int, wrap: Any = lambda env: env) -> DummyVecEnv:
    return DummyVecEnv([lambda: wrap(gymnasium.make("BitFlipping-v0", d=4))] * n)


def fill(env: VecEnv, buffers: Any, steps: int) -> None:
    env.seed(0)
    env.action_space.seed(0)
    observation: Any = env.reset()
    for _ in range(steps):
        actions = np.array([env.action_space.sample() for _ in range(env.num_envs)])
        following, rewards, dones, infos = env.step(actions)
        arrived = {key: value.copy() for key, value in following.items()}  # type: ignore[union-attr]
        for i in np.flatnonzero(dones):
            for key in arrived:
                arrived[key][i] = infos[i]["terminal_observation"][key]
        for buffer in buffers:
            buffer.add(observation, arrived, actions, rewards, dones, infos)
        observation = following


def equal(first: Any, second: Any) -> bool:
    for a, b in zip(first, second, strict=True):
        if isinstance(a, dict):
            if not all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a):
                return False
        elif a is not None and not (torch.equal(a, b) and a.dtype == b.dtype):
            return False
    return True


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("steps", [23, 90, 137])  # the buffer has 60 or 20 places per environment: also when it is full
@pytest.mark.parametrize("strategy", ["future", "final", "episode"])
def test_the_same_minibatches(num_envs: int, steps: int, strategy: str) -> None:
    env = seek(num_envs)
    stock, ours = both(env, 60, goal_selection_strategy=strategy)
    fill(env, (stock, ours), steps)
    for seed in range(5):
        samples = []
        for buffer in (stock, ours):
            np.random.seed(seed)  # noqa: NPY002
            samples.append(buffer.sample(40))
        assert equal(*samples)


@pytest.mark.parametrize("options", [{"n_sampled_goal": 0}, {"n_sampled_goal": 1}, {"copy_info_dict": True}])
def test_the_same_minibatches_with_other_options(options: dict[str, Any]) -> None:
    env = singles(2) if "copy_info_dict" in options else bits(2)
    stock, ours = both(env, 100, **options)
    fill(env, (stock, ours), 60)
    samples = []
    for buffer in (stock, ours):
        np.random.seed(1)  # noqa: NPY002
        samples.append(buffer.sample(32))
    assert equal(*samples)


@pytest.mark.filterwarnings("ignore:replay buffer. got a reward")  # an algorithm would add the original ones
def test_the_same_minibatches_with_normalization() -> None:
    env = VecNormalize(seek(2))
    stock, ours = both(env, 200)
    fill(env, (stock, ours), 60)
    samples = []
    for buffer in (stock, ours):
        np.random.seed(1)  # noqa: NPY002
        samples.append(buffer.sample(32, env))
    assert equal(*samples)


def test_new_episodes_are_drawn_as_soon_as_they_are_finished() -> None:
    env = seek()
    _, ours = both(env, 100)
    fill(env, (ours,), 5)
    assert ours.drawable().tolist() == list(range(5))
    fill(env, (ours,), 4)
    assert len(ours.drawable()) == 5
    fill(env, (ours,), 5)
    assert len(ours.drawable()) > 5


@pytest.mark.filterwarnings("ignore:replay buffer. got a reward")  # made up here
@pytest.mark.parametrize("num_envs", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_what_may_be_drawn_is_known_without_a_look_at_everything(num_envs: int, seed: int) -> None:
    """After any history: overwritten and truncated episodes, ones as long as the buffer, saving and loading."""
    env, rng = seek(num_envs), np.random.default_rng(seed)
    size = int(rng.integers(12, 60))
    buffers: list[Any] = list(both(env, size * num_envs))
    observation: Any = env.reset()
    for _ in range(400):
        for key in observation:
            observation[key][:] = rng.normal(size=observation[key].shape)
        dones = rng.random(num_envs) < rng.choice([0.02, 0.2])
        action, rewards = rng.normal(size=(num_envs, 3)), np.full(num_envs, -1.0)
        infos = [{"TimeLimit.truncated": True} for _ in range(num_envs)]
        event = rng.random()
        if event < 0.02:
            buffers = [pickle.loads(pickle.dumps(buffer)) for buffer in buffers]
            for buffer in buffers:
                buffer.set_env(env)
        for buffer in buffers:
            buffer.add(observation, observation, action, rewards, dones, infos)
            if 0.02 < event < 0.05:
                end_open_episodes(buffer)
        stock, ours = buffers
        expected = np.flatnonzero(stock.ep_length)
        if event < 0.3 or len(expected) == 0:
            continue  # not every step is followed by a draw
        assert np.array_equal(ours.drawable(), expected)
        samples = []
        for buffer in buffers:
            np.random.seed(7)  # noqa: NPY002
            samples.append(buffer.sample(10))
        assert equal(*samples)


def test_what_may_be_drawn_when_nothing_was_drawn_for_long() -> None:
    env = seek()
    _, ours = both(env, 50)
    fill(env, (ours,), 60)
    ours.drawable()
    fill(env, (ours,), 1_203)
    assert np.array_equal(ours.drawable(), np.flatnonzero(ours.ep_length))


def test_changing_a_minibatch_does_not_change_the_buffer() -> None:
    env = seek()
    _, ours = both(env, 100)
    fill(env, (ours,), 20)
    before = {key: value.copy() for key, value in ours.observations.items()}
    batch = ours.sample(32)
    for value in [*batch.observations.values(), batch.actions, batch.rewards]:
        value.fill_(9.0)
    assert all(np.array_equal(before[key], value) for key, value in ours.observations.items())


def test_errors() -> None:
    env = seek()
    _, ours = both(env, 100)
    with pytest.raises(RuntimeError, match="no finished episode"):
        ours.sample(4)
    fill(env, (ours,), 20)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(env, "env_method", lambda *args, **kwargs: [np.float64(-1.0)])
        with pytest.raises(ValueError, match=r"compute_reward: got rewards of shape \(\) for 3 goals at a time"):
            ours.sample(4)
    ours.env = None
    with pytest.raises(RuntimeError, match="set_env"):
        ours.sample(4)
    with pytest.raises(ValueError, match="expected one of future, final, episode"):
        ours_only(env, goal_selection_strategy="past")
    with pytest.raises(ValueError, match="n_sampled_goal: got -1"):
        ours_only(env, n_sampled_goal=-1)


def test_buffers_without_a_whole_episode_say_what_is_wrong() -> None:
    env = seek(2)
    _, ours = both(env, 100)
    fill(env, (ours,), 4)
    with pytest.raises(RuntimeError, match=r"in 4 steps of each.*learning_starts has to be.*, here 2; .*TimeLimit"):
        ours.sample(4)
    _, ours = both(env, 8)  # episodes have 5 steps
    fill(env, (ours,), 29)
    with pytest.raises(RuntimeError, match=r"the last 4 steps.*buffer_size // n_envs, with n_envs=2.*at least two ep"):
        ours.sample(4)


class Two(gymnasium.Wrapper[Any, Any, Any, Any]):
    def compute_reward(self, achieved: Any, goal: Any) -> Any:
        return np.zeros(len(achieved))


class OneByOne(gymnasium.Wrapper[Any, Any, Any, Any]):
    def compute_reward(self, achieved: Any, goal: Any, info: Any) -> Any:
        return float(np.abs(achieved - goal).max(-1)) - 1


def test_what_hindsight_needs_is_asked_for_at_once() -> None:
    with pytest.raises(ValueError, match=r"has no compute_reward\(achieved, goal, info\), which hindsight calls"):
        ours_only(singles(1, Mute))
    ours_only(singles(1, Mute), n_sampled_goal=0)
    with pytest.raises(
        ValueError, match=r"a function compute_reward\(achieved.*expected compute_reward\(achieved, goal, i"
    ):
        ours_only(singles(1, Two))
    with pytest.raises(ValueError, match=r"copy_info_dict: got True with a VectorEnvAdapter.*expected DummyVecEnv or"):
        ours_only(bits(), copy_info_dict=True)
    with pytest.raises(ValueError, match="goal_selection_strategy: got 3, expected one of future, final, episode"):
        ours_only(bits(), goal_selection_strategy=3)
    flat: Any = spaces.Box(-1, 1, (3,))
    with pytest.raises(ValueError, match=r"observation space: got Box.*expected a Dict with 'observation'"):
        rl.HerReplayBuffer(100, flat, flat, bits())
    env = singles(1, OneByOne)
    ours = ours_only(env)
    fill(env, (ours,), 20)
    with pytest.raises(
        ValueError, match=r"compute_reward: got TypeError \(.*\) for .* goals at a time, expected a function"
    ):
        ours.sample(32)


def test_the_stock_buffer_works_as_well() -> None:
    agent("DDPG", goal_gradient_coef=0.1, replay_buffer_class=sb3.HerReplayBuffer).learn(60)


def test_episodes_that_end_are_pointed_out() -> None:
    env = bits(2, terminate=True)
    ours = ours_only(env, n_envs=2)
    with pytest.warns(UserWarning, match=r"an episode that terminates\. .*relabel_terminations=True") as seen:
        fill(env, (ours,), 40)
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fill(env, (ours_only(env, n_envs=2, relabel_terminations=False),), 40)
        fill(env, (ours_only(env, n_envs=2, n_sampled_goal=0),), 40)


def test_relabelled_transitions_end_where_their_goal_is_reached() -> None:
    env = bits(2, terminate=True)
    ours = ours_only(env, n_envs=2, relabel_terminations=True)
    fill(env, (ours,), 40)
    batch = ours.sample(500)
    reached = (batch.next_observations["achieved_goal"] == batch.next_observations["desired_goal"]).all(1)
    assert torch.equal(batch.dones[:, 0] > 0, reached)
    assert torch.equal(batch.rewards[:, 0] == 0, reached)
    own = (ours.dones - ours.timeouts).sum() / len(ours.drawable())
    assert reached.float().mean() > 2 * own  # hindsight has more to say


def test_goals_of_before_do_not_end_what_is_relabelled() -> None:
    """With goals from anywhere in an episode, its last transition need not reach the new one."""
    env = bits(2, terminate=True)
    ours = ours_only(env, n_envs=2, relabel_terminations=True, goal_selection_strategy="episode")
    fill(env, (ours,), 40)
    batch = ours.sample(500)
    reached = (batch.next_observations["achieved_goal"] == batch.next_observations["desired_goal"]).all(1)
    assert torch.equal(batch.dones[:, 0] > 0, reached)


def test_terminations_have_to_be_answered_one_by_one() -> None:
    env = bits(2, terminate=True)
    ours = ours_only(env, n_envs=2, relabel_terminations=True)
    fill(env, (ours,), 40)
    asked = env.env_method

    def at_once(name: str, *args: Any, **kwargs: Any) -> Any:
        (answer,) = asked(name, *args, **kwargs)
        return [bool(np.all(answer))] if name == "compute_terminated" else [answer]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(env, "env_method", at_once)
        with pytest.raises(ValueError, match=r"compute_terminated: got one answer for \d+ goals at a time"):
            ours.sample(64)
        patched.setattr(env, "env_method", lambda name, *a, **k: [False] if "term" in name else asked(name, *a, **k))
        ours.sample(64)  # as the environments of gymnasium-robotics say
        patched.setattr(env, "get_attr", lambda *args, **kwargs: getattr(object(), args[0]))
        with pytest.raises(ValueError, match="the environment has no compute_terminated"):
            ours_only(env, n_envs=2, relabel_terminations=True)


def test_buffers_that_were_pickled_before(tmp_path: Any) -> None:
    env = seek()
    ours = ours_only(env)
    fill(env, (ours,), 20)
    for name in ("relabel_terminations", "_looked_at_ends", "_looked_at_rewards"):
        del vars(ours)[name]
    fill(env, (pickle.loads(pickle.dumps(ours)), ours), 5)
    ours.sample(16)


def test_ends_for_other_reasons_stay_ends() -> None:
    env = seek(2)
    ours = ours_only(env, n_envs=2, relabel_terminations=True)
    fill(env, (ours,), 50)
    ended = ours.drawable()[ours.ep_length.reshape(-1)[ours.drawable()] > 0]
    steps, which = np.divmod(ended, 2)
    ours.dones[steps, which], ours.timeouts[steps, which] = 1, 0  # the environment's compute_terminated says never
    assert (ours.sample(100).dones == 1).all()


def test_other_rewards_of_steps_are_pointed_out() -> None:
    """Of relabelled transitions, compute_reward has the say: real ones should be rewarded alike."""
    env = seek()

    class Penalized:
        def add(self, observation: Any, following: Any, actions: Any, rewards: Any, *rest: Any) -> None:
            ours.add(observation, following, actions, rewards - 0.3, *rest)

    ours = ours_only(env)
    fill(env, (Penalized(),), 40)
    with pytest.warns(UserWarning, match=r"a reward of -1\.3 from a step, for which compute_reward gives -1 \("):
        ours.sample(32)
    ours.sample(32)  # said once


def test_infos_and_shapes_that_are_missing() -> None:
    env = seek()
    ours = ours_only(env)
    fill(env, (ours,), 20)

    def looks_up(*_: Any, **__: Any) -> Any:
        raise KeyError("threshold")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(env, "env_method", looks_up)
        with pytest.raises(ValueError, match=r"looked for 'threshold' in the info, .* copy_info_dict=True"):
            ours.sample(4)
    space = spaces.Dict({**env.observation_space.spaces, "achieved_goal": spaces.Box(-1, 1, (2,))})  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"got achieved_goal \(2,\) and desired_goal \(3,\), expected the same shape"):
        rl.HerReplayBuffer(100, space, env.action_space, env)


def test_functions_are_judged_by_what_is_called() -> None:
    """A decorator may take more than what it decorates."""

    def without_info(function: Any) -> Any:
        @functools.wraps(function)
        def taken(achieved: Any, goal: Any, info: Any) -> Any:
            return function(achieved, goal)

        return taken

    class Decorated(gymnasium.Wrapper[Any, Any, Any, Any]):
        @property
        def compute_reward(self) -> Any:
            return without_info(lambda achieved, goal: self.env.unwrapped.compute_reward(achieved, goal, {}))  # type: ignore[attr-defined]

    class Answering(VecEnvWrapper):
        def env_method(self, name: str, *args: Any, **kwargs: Any) -> list[Any]:
            return [np.zeros(len(args[0]), np.float32)] if name == "compute_reward" else []

        def reset(self) -> Any:
            return self.venv.reset()

        def step_wait(self) -> Any:
            return self.venv.step_wait()

    plain = gymnasium.make("ContinuousSeek-v0", d=2, steps=5)
    for env in (DummyVecEnv([lambda: Decorated(plain)]), Answering(DummyVecEnv([lambda: plain]))):
        check_goal_function(env, "compute_reward", "replay buffer")
