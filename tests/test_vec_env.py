"""The adapter from native vector environments to Stable-Baselines3."""

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorWrapper
from gymnasium.wrappers import RecordEpisodeStatistics
from gymnasium.wrappers.vector import RecordEpisodeStatistics as RecordVectorStatistics
from stable_baselines3 import DDPG, DQN, HerReplayBuffer
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

import envs
import rl
from rl.vec_env import VectorEnvAdapter


def adapted(env_id: str, n: int, **kwargs) -> VectorEnvAdapter:
    return VectorEnvAdapter(
        gymnasium.make_vec(env_id, n, "vector_entry_point", autoreset_mode=AutoresetMode.SAME_STEP, **kwargs)
    )


def assert_same_observations(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [
        ("ContinuousSeek-v0", {"d": 1, "bound": 1.0, "steps": 4}),
        ("BitFlipping-v0", {"d": 3, "terminate": True}),
        ("LinearSparse-v0", {"d": 2}),
    ],
)
def test_it_says_what_monitored_environments_say(env_id, kwargs):
    """As many single environments under Monitor and DummyVecEnv, Stable-Baselines3's own way."""
    n = 4
    ours = adapted(env_id, n, **kwargs)
    theirs = DummyVecEnv([lambda: Monitor(gymnasium.make(env_id, **kwargs))] * n)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert ours.seed(11) == theirs.seed(11)
    assert_same_observations(ours.reset(), theirs.reset())
    theirs.action_space.seed(0)
    ends = 0
    for _ in range(40):
        actions = np.stack([theirs.action_space.sample() for _ in range(n)])
        (obs, rewards, dones, infos), expected = ours.step(actions), theirs.step(actions)
        assert_same_observations(obs, expected[0])
        np.testing.assert_array_equal(rewards, expected[1])
        assert rewards.dtype == expected[1].dtype
        np.testing.assert_array_equal(dones, expected[2])
        for done, info, other in zip(dones, infos, expected[3], strict=True):
            if not done:
                assert info == {}
                continue
            ends += 1
            assert_same_observations(info.pop("terminal_observation"), other.pop("terminal_observation"))
            assert info["episode"].pop("t") >= 0
            del other["episode"]["t"]
            assert info == other
    assert ends > n


def test_terminal_observations_are_of_the_last_state():
    env = adapted("ContinuousSeek-v0", 2, d=1, steps=2)
    env.set_options([{}, {"goal": np.zeros(1)}])
    with pytest.raises(ValueError, match="the same for all"):
        env.reset()
    env.set_options({"goal": np.array([1.5], dtype=np.float32)})
    env.reset()
    env.step(np.array([[1.0], [0.5]]))
    observed, rewards, dones, infos = env.step(np.array([[0.5], [0.0]]))
    assert dones.all()
    assert rewards.tolist() == [0, -1]
    assert [info["terminal_observation"]["observation"].tolist() for info in infos] == [[1.5], [0.5]]
    assert [info["terminal_observation"]["desired_goal"].tolist() for info in infos] == [[1.5], [1.5]]
    assert not observed["observation"].any()  # of the next episode
    assert (observed["desired_goal"] != 1.5).all()
    assert [info["is_success"] for info in infos] == [True, False]
    assert all(info["TimeLimit.truncated"] is True for info in infos)
    assert [(info["episode"]["r"], info["episode"]["l"]) for info in infos] == [(-1, 2), (-2, 2)]


def test_methods_and_attributes():
    env = adapted("ContinuousSeek-v0", 3, d=2, render_mode="rgb_array")
    env.reset()
    rewards = env.env_method("compute_reward", np.zeros((7, 2)), np.zeros((7, 2)), [{}] * 7, indices=[0])
    assert len(rewards) == 1
    assert rewards[0].tolist() == [0] * 7
    assert env.get_attr("task") == [envs.ContinuousSeek(d=2)] * 3
    assert not env.has_attr("tasks")
    assert env.env_is_wrapped(Monitor, indices=[0, 1]) == [True, True]
    assert env.env_is_wrapped(gymnasium.wrappers.TimeLimit) == [False] * 3
    env.set_attr("note", 1)
    assert env.get_attr("note", indices=2) == [1]
    with pytest.raises(ValueError, match="expected all environments"):
        env.set_attr("note", 2, indices=[1])
    assert env.render().ndim == 3  # one picture, tiled
    env.close()


def test_it_needs_autoreset_in_the_same_step():
    with pytest.raises(ValueError, match=r"NEXT_STEP, expected SAME_STEP"):
        VectorEnvAdapter(gymnasium.make_vec("ContinuousSeek-v0", 2, "vector_entry_point"))


def test_it_needs_a_vector_environment():
    with pytest.raises(ValueError, match="expected a VectorEnv; pass"):
        VectorEnvAdapter(gymnasium.make("ContinuousSeek-v0"))


def test_other_vector_environments():
    cart_pole = gymnasium.make_vec("CartPole-v1", 2, "sync", vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP})
    env = VectorEnvAdapter(cart_pole)
    env.seed(0)
    env.reset()
    said = [env.step(np.ones(2, dtype=int)) for _ in range(30)]
    ended = [info for _, _, dones, infos in said for done, info in zip(dones, infos, strict=True) if done]
    assert len(ended) > 2
    assert all(info["terminal_observation"].shape == (4,) and info["episode"]["l"] < 30 for info in ended)


class Touching(gymnasium.Wrapper):
    """Its infos hold infos, some of which are not there in each episode."""

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        contact = {"force": 1.5, "where": {"finger": 2}} if action[0] > 0 else {"force": 0.5}
        return observation, reward, terminated, truncated, {**info, "contact": contact, "name": "touching"}


def seek():
    return RecordEpisodeStatistics(Touching(gymnasium.make("ContinuousSeek-v0", d=2, steps=3)))


def test_infos_within_infos():
    env = VectorEnvAdapter(SyncVectorEnv([seek] * 2, autoreset_mode=AutoresetMode.SAME_STEP))
    env.reset()
    for _ in range(3):
        *_, dones, infos = env.step(np.array([[1.0, 0.0], [-1.0, 0.0]], dtype=np.float32))
    assert dones.all()
    assert [info["contact"] for info in infos] == [{"force": 1.5, "where": {"finger": 2}}, {"force": 0.5}]
    assert type(infos[0]["contact"]["force"]) is float
    assert [info["name"] for info in infos] == ["touching"] * 2
    assert [info["episode"]["l"] for info in infos] == [3, 3]  # as a Monitor writes it


def wrapped(n):
    return RecordVectorStatistics(
        gymnasium.make_vec("ContinuousSeek-v0", n, "vector_entry_point", autoreset_mode=AutoresetMode.SAME_STEP, d=2)
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: SyncVectorEnv([seek] * 2, autoreset_mode=AutoresetMode.SAME_STEP),
        lambda: AsyncVectorEnv([seek] * 2, autoreset_mode=AutoresetMode.SAME_STEP),
        lambda: wrapped(2),
    ],
    ids=["sync", "async", "wrapped"],
)
def test_functions_of_goals_are_found(make):
    env = VectorEnvAdapter(make())
    goals = np.zeros((7, 2), np.float32)
    rewards = env.env_method("compute_reward", goals, goals, [{}] * 7, indices=[1])
    assert [each.tolist() for each in rewards] == [[0] * 7]
    assert len(env.env_method("compute_reward", goals, goals, [{}] * 7)) == 2
    assert env.has_attr("compute_reward")
    assert not env.has_attr("compute_nothing")
    (function,) = env.get_attr("compute_reward", indices=0)
    assert np.array_equal(np.ravel(function(goals, goals, [{}] * 7)), np.zeros(7))
    agent = rl.DDPG(
        "MultiInputPolicy", env, replay_buffer_class=rl.HerReplayBuffer, learning_starts=30, batch_size=32, seed=0,
        buffer_size=2000, policy_kwargs={"net_arch": [16]}, goal_gradient_coef=0.1,
    )  # fmt: skip
    agent.learn(60)
    assert agent._n_updates > 0
    env.close()


@pytest.mark.filterwarnings("ignore")  # of the worker that ends
@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
def test_functions_that_nobody_has(kind):
    env = VectorEnvAdapter(kind([lambda: gymnasium.make("CartPole-v1")] * 2, autoreset_mode=AutoresetMode.SAME_STEP))
    with pytest.raises(
        ValueError, match=r"compute_reward: neither \w+VectorEnv nor its .*DummyVecEnv or SubprocVecEnv"
    ):
        env.env_method("compute_reward", None, None, None)
    env.env.close()


class Tenfold(VectorWrapper):
    def compute_reward(self, *goals):
        return np.full(2, -10.0)


def test_the_outermost_wrapper_that_has_a_function_is_asked():
    inner = SyncVectorEnv([seek] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    goals = np.zeros((2, 2), np.float32)
    for env in (Tenfold(inner), RecordVectorStatistics(Tenfold(inner))):
        assert VectorEnvAdapter(env).env_method("compute_reward", goals, goals, [{}] * 2)[0].tolist() == [-10, -10]


@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
def test_attributes_are_set_where_they_are_read(kind):
    env = VectorEnvAdapter(kind([seek] * 2, autoreset_mode=AutoresetMode.SAME_STEP))
    env.set_attr("tolerance", 5.0)
    assert list(env.env.call("get_wrapper_attr", "tolerance")) == [5.0, 5.0]
    env.env.close()


def test_environments_in_workers_that_lack_a_function_live_on():
    env = VectorEnvAdapter(
        AsyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    )
    assert not env.has_attr("compute_reward")
    with pytest.raises(ValueError, match="compute_reward: neither"):
        env.env_method("compute_reward", None, None, None)
    assert env.reset().shape == (2, 4)
    env.env.close()


def test_ddpg_with_hindsight():
    env = adapted("ContinuousSeek-v0", 8, d=2, steps=5)
    agent = DDPG(
        "MultiInputPolicy", env, replay_buffer_class=HerReplayBuffer, learning_starts=80, batch_size=32, seed=0,
        buffer_size=2000, policy_kwargs={"net_arch": [16]},
    )  # fmt: skip
    agent.learn(640)
    assert agent.num_timesteps == 640
    assert len(agent.ep_success_buffer) == 100  # 128 episodes, of which it keeps 100
    assert {episode["l"] for episode in agent.ep_info_buffer} == {5}
    buffer = agent.replay_buffer
    assert buffer.timeouts[:80].sum() == buffer.dones[:80].sum() == 8 * 16
    for t in range(79):  # what follows a state is what comes next, or the last state of the episode
        ends = buffer.dones[t].astype(bool)
        following = buffer.next_observations["observation"][t] == buffer.observations["observation"][t + 1]
        assert following[~ends].all()
        assert not following[ends].all(-1).any()
    batch = buffer.sample(200)  # relabelled rewards are those of the environment
    goals = (batch.next_observations["achieved_goal"], batch.next_observations["desired_goal"])
    expected = env.env_method("compute_reward", *(goal.numpy() for goal in goals), None)[0]
    assert (batch.rewards.numpy()[:, 0] == expected).all()
    assert 0 in expected
    returns, _ = evaluate_policy(agent, env, 16)
    assert -5 <= returns <= 0


def test_dqn_with_hindsight():
    env = adapted("BitFlipping-v0", 4, d=4)
    agent = DQN(
        "MultiInputPolicy", env, replay_buffer_class=HerReplayBuffer, learning_starts=80, batch_size=32, seed=0,
        buffer_size=2000, policy_kwargs={"net_arch": [16]},
    )  # fmt: skip
    agent.learn(400)
    assert len(agent.ep_success_buffer) == 100
