"""What each environment is by definition: moves, rewards, success, distributions, optimal values."""

import gymnasium
import numpy as np
import pytest
from scipy import stats

import envs
from envs.linear import random_rotation
from envs.task import Task

# --- ContinuousSeek


def seek(**kwargs):
    return gymnasium.make("ContinuousSeek-v0", **kwargs)


def test_seek_moves_within_the_box():
    env = seek(d=3, bound=2.0)
    env.reset(options={"state": [1.5, -1.5, 0.0], "goal": [0.0, 0.0, 0.0]})
    observed, reward, *_ = env.step(np.array([1.0, -1.0, 0.25], dtype=np.float32))
    assert observed["observation"].tolist() == [2.0, -2.0, 0.25]
    assert reward == -1
    observed, *_ = env.step(np.array([-7.0, 1e300, 0.0]))  # clipped to [-1, 1]
    assert observed["achieved_goal"].tolist() == [1.0, -1.0, 0.25]


def test_seek_starts_at_zero_with_uniform_goals():
    env = gymnasium.make_vec("ContinuousSeek-v0", 500, "vector_entry_point", d=4)
    goals = []
    for seed in range(3):
        observed, info = env.reset(seed=1000 * seed)
        assert not observed["observation"].any()
        assert not info["is_success"].any()
        goals.append(observed["desired_goal"])
    goals = np.concatenate(goals)
    assert np.abs(goals).max() <= 5
    assert stats.kstest(goals.ravel(), stats.uniform(-5, 10).cdf).pvalue > 0.01
    correlations = np.corrcoef(goals.T)[np.triu_indices(4, 1)]
    assert np.abs(correlations).max() < 0.1


def test_seek_rewards_the_next_state_and_eps_is_inclusive():
    env = seek(d=2)
    env.reset(options={"state": [0.0, 0.0], "goal": [0.1, 0.0]})
    # at the start the goal is near enough already, what counts is where a step arrives
    _, reward, terminated, _, info = env.step(np.array([1.0, 0.0], dtype=np.float32))
    assert (reward, terminated, info["is_success"]) == (-1, False, False)
    _, reward, terminated, _, info = env.step(np.array([-1.0, 0.0], dtype=np.float32))
    assert (reward, terminated, info["is_success"]) == (0, False, True)
    above = np.nextafter(np.float32(0.1), np.float32(1))
    assert env.unwrapped.compute_reward([0, 0], [0.1, -0.1], {}) == 0
    assert env.unwrapped.compute_reward([0, 0], [0.0, above], {}) == -1


def test_seek_success_is_having_been_there():
    env = seek(d=1, steps=4)
    env.reset(options={"goal": [1.0]})
    said = [env.step(np.array([a]))[1:] for a in (0.5, 0.5, 1.0, -0.5)]
    assert [each[0] for each in said] == [-1, 0, -1, -1]
    assert [each[3]["is_success"] for each in said] == [False, True, True, True]
    _, info = env.reset()
    assert info == {"is_success": False}


@pytest.mark.parametrize("bad", [{"bound": 0.0}, {"bound": np.inf}, {"eps": -0.1}, {"eps": np.nan}, {"steps": 0}])
def test_seek_arguments(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))}: got"):
        seek(**bad)
    with pytest.raises(ValueError, match=r"options\['goal'\]: got 5.5, expected finite numbers from -5.0 to 5.0"):
        seek(d=1).reset(options={"goal": [5.5]})


# --- BitFlipping


def test_bits_flip_one_at_a_time_and_a_greedy_agent_succeeds():
    env = gymnasium.make("BitFlipping-v0", d=40)
    observed, _ = env.reset(seed=2)
    rewards, truncated, info = [], False, {}
    while not truncated:
        before = observed["observation"]
        wrong = np.flatnonzero(before != observed["desired_goal"])
        action = int(wrong[0]) if len(wrong) else 0
        observed, reward, terminated, truncated, info = env.step(action)
        assert np.flatnonzero(observed["observation"] != before).tolist() == [action]
        assert reward == (0 if (observed["achieved_goal"] == observed["desired_goal"]).all() else -1)
        assert not terminated
        rewards.append(reward)
    assert len(rewards) == 40  # as many steps as bits
    assert info["is_success"]
    assert 0 in rewards


def test_bits_are_uniform():
    env = gymnasium.make_vec("BitFlipping-v0", 1000, "vector_entry_point", d=8)
    observed, _ = env.reset(seed=0)
    for name in ("observation", "desired_goal"):
        assert set(np.unique(observed[name])) == {0, 1}
        assert np.abs(observed[name].mean(0) - 0.5).max() < 0.07
    assert np.abs((observed["observation"] == observed["desired_goal"]).mean(0) - 0.5).max() < 0.07


def test_bits_may_terminate():
    env = gymnasium.make("BitFlipping-v0", d=3, terminate=True)
    env.reset(options={"state": [0, 0, 0], "goal": [0, 1, 0]})
    assert env.step(0)[1:3] == (-1, False)
    assert env.step(1)[1:3] == (-1, False)
    assert env.step(0)[1:4] == (0, True, True)


def test_bits_bad_input():
    env = gymnasium.make("BitFlipping-v0", d=3)
    with pytest.raises(ValueError, match=r"options\['state'\]: got 0.5, expected zeros and ones"):
        env.reset(options={"state": [0, 0.5, 1]})
    env.reset()
    for bad in (3, -1, 1.0):
        with pytest.raises(ValueError, match="expected integers from 0 to 2"):
            env.unwrapped.step(bad)


# --- the linear environments

LINEAR = [envs.LinearDense(d=5, rotation_seed=3), envs.LinearSparse(d=5, rotation_seed=3)]
GAMMA = 0.9


def optimal_value(task: Task, state: np.ndarray, action: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Equations G.1 and G.3, for actions of length at most 1."""
    norm, moved = np.linalg.norm(goal, axis=-1), action @ task.matrix.T
    if isinstance(task, envs.LinearDense):
        return ((state + moved) * goal).sum(-1) / (1 - GAMMA) + GAMMA * norm / (1 - GAMMA) ** 2
    shown, stored, square = state[:, : task.d], state[:, task.d :], 1 - GAMMA**2
    acting = GAMMA * ((shown + moved) * goal).sum(-1) / square + GAMMA**3 * norm / square**2
    waiting = (stored * goal).sum(-1) / square + GAMMA**2 * norm / square**2
    return np.where((shown != 0).any(-1), acting, waiting)


def rollout(task: Task, state: np.ndarray, action: np.ndarray, goal: np.ndarray, policy, steps: int = 400):
    """Discounted return of an action and then a policy."""
    total = np.zeros(len(state))
    for t in range(steps):
        state = task.step(state, action, None)
        total += GAMMA**t * task.reward(task.achieved(state), goal)
        action = policy(state)
    return total


@pytest.mark.parametrize("task", LINEAR, ids=["dense", "sparse"])
def test_the_optimal_policy_attains_the_optimal_value(task):
    rng = np.random.default_rng(0)
    state, goal = task.start(rng, 40)
    if isinstance(task, envs.LinearSparse):
        state[::2] = np.concatenate([state[::2, 5:], state[::2, :5]], -1)  # half of them begin with s1 = 0
    action = rng.standard_normal((40, 5))
    action /= np.maximum(1, np.linalg.norm(action, axis=-1, keepdims=True))
    best = goal @ task.matrix / np.linalg.norm(goal, axis=-1, keepdims=True)  # rows of U^T g / ||g||
    values = optimal_value(task, state, action, goal)
    np.testing.assert_allclose(rollout(task, state, action, goal, lambda state: best), values, rtol=1e-5, atol=1e-4)
    wrong = rng.standard_normal((40, 5))
    assert (rollout(task, state, action, goal, lambda state: wrong) < values).all()
    if isinstance(task, envs.LinearDense):
        assert (values <= optimal_value(task, state, best, goal)).all()


@pytest.mark.parametrize("task", LINEAR, ids=["dense", "sparse"])
def test_long_actions_are_scaled(task):
    state, _ = task.start(np.random.default_rng(0), 1)
    action = np.array([[3.0, 0, 4.0, 0, 0]])
    assert (task.step(state, action, None) == task.step(state, action / 5, None)).all()
    assert (task.step(state, action / 10, None) != task.step(state, action / 5, None)).any()
    moved = task.step(state, action, None)[:, -5:] - state[:, :5]
    np.testing.assert_allclose(moved, action @ task.matrix.T / 5, atol=1e-6)


def test_the_sparse_one_shows_every_other_state():
    env = gymnasium.make("LinearSparse-v0", d=2, rotation=[[0.0, -1.0], [1.0, 0.0]])
    env.reset(options={"state": [1, 1, 0, 0], "goal": [2, 0]})
    observed, reward, *_ = env.step(np.array([1.0, 0.0]))
    assert (observed["observation"].tolist(), reward) == ([0, 0, 1, 2], 0)
    observed, reward, *_ = env.step(np.array([1.0, 0.0]))  # does nothing
    assert (observed["observation"].tolist(), reward) == ([1, 2, 0, 0], 2)
    assert observed["achieved_goal"].tolist() == [1, 2]


def test_starts_of_linear_environments_are_normal():
    for task in LINEAR:
        state, goal = task.start(np.random.default_rng(1), 400)
        for values in (state[:, :5], goal):
            assert stats.kstest(values.ravel(), stats.norm.cdf).pvalue > 0.01
        assert not state[:, 5:].any()


@pytest.mark.parametrize("d", [1, 2, 7])
def test_random_rotations(d):
    rotation = random_rotation(d, 4)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(d), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)
    assert (rotation == random_rotation(d, 4)).all()
    assert d == 1 or (rotation != random_rotation(d, 5)).any()


def test_random_rotations_are_uniform():
    """The angle of a rotation of the plane is uniform, and the columns of one of space have no direction."""
    turns = np.array([random_rotation(2, seed) for seed in range(500)])
    angles = np.arctan2(turns[:, 1, 0], turns[:, 0, 0])
    assert stats.kstest(angles, stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue > 0.01
    columns = np.array([random_rotation(3, seed)[:, 0] for seed in range(500)])
    for coordinate in columns.T:  # Archimedes: uniform on [-1, 1]
        assert stats.kstest(coordinate, stats.uniform(-1, 2).cdf).pvalue > 0.01


def test_rotations_are_checked():
    flip = np.diag([1.0, -1.0])  # orthogonal will do
    assert (envs.LinearDense(d=2, rotation=flip).matrix == flip).all()
    with pytest.raises(ValueError, match=r"rotation: got shape \(2, 2\), expected \(3, 3\)"):
        envs.LinearDense(d=3, rotation=flip)
    with pytest.raises(ValueError, match="expected an orthogonal matrix"):
        envs.LinearSparse(d=2, rotation=2 * flip)
    with pytest.raises(ValueError, match="expected an orthogonal matrix"):
        envs.LinearSparse(d=2, rotation=np.nan * flip)
    with pytest.raises(ValueError, match="rotation_seed: got -1"):
        envs.LinearSparse(rotation_seed=-1)
