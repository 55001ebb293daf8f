"""Goal-conditioned environments: one family of tests over every registered id, then the definitions one by one."""

import contextlib
import inspect
import io
import itertools
import pickle
import subprocess
import sys
import warnings
from dataclasses import dataclass

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.utils.env_checker import data_equivalence as same
from gymnasium.vector import AutoresetMode
from PIL import Image
from scipy import stats
from stable_baselines3.common.env_checker import check_env as check_env_sb3

import envs
from envs.core import GoalEnv, GoalVectorEnv
from envs.linear import random_rotation
from envs.task import Array, Task, box

IDS = sorted(spec.id for spec in gymnasium.registry.values() if str(spec.entry_point).startswith("envs."))
MODES = [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP]
# the same ids with other arguments: another size, and episodes that end at different times
VARIANTS = [(i, {}) for i in IDS] + [
    ("ContinuousSeek-v0", {"d": 1, "bound": 1.0, "eps": 0.5, "steps": 3}),
    ("BitFlipping-v0", {"d": 3, "terminate": True}),
    ("LinearDense-v0", {"d": 1, "steps": 2, "rotation": [[-1.0]]}),
    ("LinearSparse-v0", {"d": 33, "rotation_seed": 5}),
]
NAMES = [f"{i}, {kwargs}" if kwargs else i for i, kwargs in VARIANTS]
all_ids = pytest.mark.parametrize("env_id", IDS)
all_variants = pytest.mark.parametrize(("env_id", "kwargs"), VARIANTS, ids=NAMES)
in_both_modes = pytest.mark.parametrize("mode", MODES, ids=["same step", "next step"])


def trajectory(env, seed: int, steps: int = 30) -> list:
    """Everything that an environment, single or vector, says in some steps with random actions."""
    env.action_space.seed(seed)
    said: list = [env.reset(seed=seed)]
    for _ in range(steps):
        said.append(env.step(env.action_space.sample()))
        if not isinstance(env, gymnasium.vector.VectorEnv) and (said[-1][2] or said[-1][3]):
            said.append(env.reset())
    return said


def test_the_ids_are_registered():
    assert IDS == ["BitFlipping-v0", "ContinuousSeek-v0", "LinearDense-v0", "LinearSparse-v0"]


def test_import_is_light():
    heavy = ["torch", "stable_baselines3", "mujoco", "gymnasium_robotics", "certify", "rl", "pygame", "matplotlib"]
    code = f"import sys, envs; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@all_variants
def test_checkers_of_gymnasium_and_stable_baselines3(env_id, kwargs, capsys):
    with warnings.catch_warnings():
        # linear environments have no bounds: their states are sums of normal vectors and moves
        warnings.filterwarnings("ignore", message=".*A Box observation space m.* value is -?infinity.*")
        env = gymnasium.make(env_id, render_mode="rgb_array", **kwargs)
        check_env(env.unwrapped)
        check_env_sb3(env.unwrapped)


@all_variants
def test_seeds_determine_everything(env_id, kwargs):
    env = gymnasium.make(env_id, **kwargs)
    first, again, other = trajectory(env, 3), trajectory(env, 3), trajectory(env, 4)
    assert same(first, again, exact=True)
    assert not same(first, other)
    assert same(first, trajectory(gymnasium.make(env_id, **kwargs), 3), exact=True)


@all_variants
def test_pickled_in_mid_episode_it_goes_on(env_id, kwargs):
    vector = gymnasium.make_vec(env_id, 3, "vector_entry_point", **kwargs)
    for env in (gymnasium.make(env_id, **kwargs), vector):
        env.reset(seed=1)
        env.action_space.seed(1)
        env.step(env.action_space.sample())
        copy = pickle.loads(pickle.dumps(env))
        actions = [env.action_space.sample() for _ in range(3)]
        first = [env.reset(), *(env.step(a) for a in actions)]
        assert same(first, [copy.reset(), *(copy.step(a) for a in actions)], exact=True)


@all_variants
def test_pictures(env_id, kwargs):
    env = gymnasium.make(env_id, render_mode="rgb_array", **kwargs)
    env.reset(seed=0)
    env.action_space.seed(0)
    frames, ended = [env.render()], False
    while not ended:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        frames.append(env.render())
        ended = terminated or truncated
    assert all(frame.shape == frames[0].shape and frame.dtype == np.uint8 for frame in frames)
    assert all((a != b).any() for a, b in itertools.pairwise(frames))
    animation = io.BytesIO()
    images = [Image.fromarray(frame) for frame in frames]
    images[0].save(animation, "GIF", save_all=True, append_images=images[1:], duration=250)
    with Image.open(animation) as gif:
        assert gif.n_frames == len(frames)
    vector = gymnasium.make_vec(env_id, 2, "vector_entry_point", render_mode="rgb_array", **kwargs)
    vector.reset(seed=0)
    assert (vector.render()[0] == frames[0]).all()
    assert vector.render()[1].shape == frames[0].shape


@all_ids
def test_pictures_are_asked_for(env_id):
    with pytest.raises(ValueError, match="render_mode: got 'ansi'"):
        gymnasium.make(env_id, render_mode="ansi")
    for env in (gymnasium.make(env_id), gymnasium.make_vec(env_id, 2, "vector_entry_point")):
        env.reset()
        with pytest.warns(UserWarning, match="render_mode"):
            assert env.unwrapped.render() is None


def test_a_window_needs_pygame(monkeypatch):
    monkeypatch.setattr("envs.registration.find_spec", lambda name: None)
    with pytest.raises(gymnasium.error.DependencyNotInstalled, match="pip install pygame"):
        gymnasium.make(IDS[0], render_mode="human")


@all_ids
def test_a_window(env_id, monkeypatch):
    pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = gymnasium.make(env_id, render_mode="human")
    env.reset(seed=0)
    env.step(env.action_space.sample())
    assert env.render() is None
    env.close()


@in_both_modes
@all_variants
def test_many_equal_one_by_one(env_id, kwargs, mode):
    """Gymnasium's own vector environment of single ones says the same, bit for bit, over several episodes."""
    ours = gymnasium.make_vec(env_id, 5, "vector_entry_point", autoreset_mode=mode, **kwargs)
    theirs = gymnasium.make_vec(env_id, 5, "sync", vector_kwargs={"autoreset_mode": mode}, **kwargs)
    assert ours.metadata["autoreset_mode"] is mode
    for space in ("observation_space", "action_space", "single_observation_space", "single_action_space"):
        assert getattr(ours, space) == getattr(theirs, space)
    theirs.action_space.seed(7)
    assert_same_reset(ours, theirs, seed=7)
    for _ in range(60):
        actions = theirs.action_space.sample()
        assert_same_step(ours.step(actions), theirs.step(actions))
    assert_same_reset(ours, theirs)
    assert_same_reset(ours, theirs, seed=[1, None, 2, None, 3])
    assert_same_reset(ours, theirs)


def assert_same_reset(ours, theirs, **kwargs):
    a, b = ours.reset(**kwargs), theirs.reset(**kwargs)
    assert same(a, b, exact=True)


def assert_same_step(ours, theirs):
    for mine, other in zip(ours[:4], theirs[:4], strict=True):
        assert same(mine, other, exact=True)
    mine, other = dict(ours[4]), dict(theirs[4])
    final, expected = mine.pop("final_obs", None), other.pop("final_obs", None)  # object arrays compare one by one
    assert (final is None) == (expected is None)
    if final is not None:
        assert all(same(a, b, exact=True) for a, b in zip(final, expected, strict=True))
    # with nothing to say, Gymnasium's leaves the empty final_info of environments without infos as it is
    assert same(mine, other, exact=True)


@all_variants
def test_the_goal_contract(env_id, kwargs):
    """The methods and keys of gymnasium-robotics, and what it promises of them for each step."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        from gymnasium_robotics.core import GoalEnv as Contract
    env = gymnasium.make(env_id, **kwargs).unwrapped
    assert isinstance(env.observation_space, spaces.Dict)
    assert set(env.observation_space) == {"observation", "achieved_goal", "desired_goal"}
    for name in ("compute_reward", "compute_terminated", "compute_truncated"):
        ours, theirs = (inspect.signature(getattr(kind, name)) for kind in (type(env), Contract))
        assert list(ours.parameters) == list(theirs.parameters)
    said = [each for each in trajectory(env, 0) if len(each) == 5]
    for observed, reward, terminated, truncated, info in said:
        goals = observed["achieved_goal"], observed["desired_goal"]
        assert reward == env.compute_reward(*goals, info)
        assert terminated == env.compute_terminated(*goals, info)
        assert truncated == env.compute_truncated(*goals, info)
    achieved, desired = (np.stack([s[0][name] for s in said]) for name in ("achieved_goal", "desired_goal"))
    rewards = env.compute_reward(achieved, desired, None)
    assert rewards.tolist() == [s[1] for s in said]
    assert env.compute_terminated(achieved, desired, None).tolist() == [s[2] for s in said]
    table = env.compute_reward(achieved[:, None], desired[None], None)  # every achieved with every desired goal
    assert table.shape == (len(said), len(said))
    assert (table.diagonal() == rewards).all()
    assert env.compute_terminated(achieved[:, None], desired[None], None).shape == table.shape
    assert env.compute_truncated(achieved[:, None], desired[None], None).shape == table.shape
    # any layout and width of the input
    assert (env.compute_reward(np.asfortranarray(achieved), desired.astype(np.float64), None) == rewards).all()


@all_variants
def test_observations_are_float32_and_not_shared(env_id, kwargs):
    env = gymnasium.make_vec(env_id, 3, "vector_entry_point", **kwargs)
    observed, _ = env.reset(seed=0)
    before = {name: values.copy() for name, values in observed.items()}
    env.step(env.action_space.sample())
    for name, values in observed.items():
        assert values.dtype == np.float32
        assert (values == before[name]).all()
        values += 1  # does not reach the environment
    assert env.single_observation_space.contains({name: values[0] for name, values in env.reset()[0].items()})


@all_ids
def test_time_limits(env_id):
    for kwargs, expected in (({}, None), ({"max_episode_steps": 4}, 4), ({"max_episode_steps": 400}, None)):
        env = gymnasium.make(env_id, **kwargs)
        vector = gymnasium.make_vec(env_id, 2, "vector_entry_point", **kwargs)
        expected = expected or env.unwrapped.task.steps
        env.reset(seed=0)
        vector.reset(seed=0)
        for step in range(1, expected + 1):
            assert env.step(env.action_space.sample())[3] == (step == expected)
            assert vector.step(vector.action_space.sample())[3].tolist() == [step == expected] * 2
        assert env.unwrapped.step(env.action_space.sample())[3] is False
    assert gymnasium.make(env_id).spec.max_episode_steps == gymnasium.make(env_id).unwrapped.task.steps


@all_ids
def test_episodes_start_where_they_are_told(env_id):
    env = gymnasium.make(env_id).unwrapped
    env.reset(seed=5)
    told, _ = env.reset()
    next_one, _ = env.reset()
    env.reset(seed=5)
    start = {"state": told["observation"], "goal": told["desired_goal"]}
    assert same(env.reset(options=start)[0], told, exact=True)
    assert same(env.reset()[0], next_one, exact=True)  # options leave the random stream alone
    vector = gymnasium.make_vec(env_id, 2, "vector_entry_point")
    many, _ = vector.reset(options={name: np.stack([value, value]) for name, value in start.items()})
    assert (many["observation"] == told["observation"]).all()


@all_ids
def test_bad_input(env_id):
    env = gymnasium.make(env_id).unwrapped
    vector = gymnasium.make_vec(env_id, 2, "vector_entry_point")
    action = vector.action_space.sample()
    for each in (env, vector):
        with pytest.raises(gymnasium.error.ResetNeeded):
            each.step(action)
    with pytest.raises(gymnasium.error.ResetNeeded):
        gymnasium.make(env_id, render_mode="rgb_array").unwrapped.render()
    observed, _ = env.reset()
    vector.reset()
    goal = observed["desired_goal"]
    with pytest.raises(ValueError, match="options: got target"):
        env.reset(options={"target": goal})
    with pytest.raises(ValueError, match=r"options\['goal'\]: got shape"):
        env.reset(options={"goal": goal[:-1]})
    with pytest.raises(ValueError, match=r"options\['state'\]: got nan"):
        env.reset(options={"state": np.full_like(observed["observation"], np.nan)})
    with pytest.raises(ValueError, match="action: got shape"):
        vector.step(action[:1])
    with pytest.raises(ValueError, match="seed: got 3 seeds"):
        vector.reset(seed=[1, 2, 3])
    with pytest.raises(ValueError, match="num_envs: got 0"):
        gymnasium.make_vec(env_id, 0, "vector_entry_point")
    with pytest.raises(ValueError, match="max_episode_steps: got 0"):
        gymnasium.make_vec(env_id, 2, "vector_entry_point", max_episode_steps=0)
    with pytest.raises(ValueError, match="autoreset_mode: got DISABLED"):
        gymnasium.make_vec(env_id, 2, "vector_entry_point", autoreset_mode=AutoresetMode.DISABLED)
    for bad in (0, -1, 2.5, True, "3"):
        with pytest.raises(ValueError, match="d: got"):
            gymnasium.make(env_id, d=bad)
    with pytest.raises(TypeError, match="unexpected keyword argument 'size'"):
        gymnasium.make(env_id, size=3)


@pytest.mark.parametrize("env_id", ["ContinuousSeek-v0", "LinearDense-v0", "LinearSparse-v0"])
def test_actions_have_to_be_finite(env_id):
    env = gymnasium.make(env_id, d=2).unwrapped
    env.reset()
    with pytest.raises(ValueError, match="not finite"):
        env.step(np.array([0.0, np.nan]))


# --- a task as tests want it: with noise, and with a set of goals


@dataclass(frozen=True)
class Walk(Task):
    """A random walk among a set of goals (x, y, present), of which any will do."""

    steps: int = 4

    stochastic = True
    goal_axes = 2

    @property
    def observation_space(self):
        goals = spaces.Box(-np.inf, np.inf, (5, 3), np.float32)
        return spaces.Dict({"observation": box(2), "achieved_goal": box(2), "desired_goal": goals})

    @property
    def action_space(self):
        return box(2, 1.0)

    def start(self, rng, n):
        goals = rng.integers(-2, 3, (n, 5, 3)).astype(np.float32)
        goals[..., 2] = rng.random((n, 5)) < 0.5
        return np.zeros((n, 2), np.float32), goals

    def noise(self, rng, n):
        return rng.standard_normal((n, 2), np.float32)

    def step(self, state, action, noise):
        return (state + action + noise).astype(np.float32)

    def achieved(self, state):
        return np.rint(state)

    def reward(self, achieved: Array, desired: Array):
        at = (achieved[..., None, :] == desired[..., :2]).all(-1)
        return (at * desired[..., 2]).sum(-1).astype(np.float64)

    def success(self, achieved: Array, desired: Array):
        return self.reward(achieved, desired) > 0

    def draw(self, episode):
        return Image.new("RGB", (4, 4), (len(episode.states), 0, 0))


@in_both_modes
def test_noise_and_goal_sets_too_are_the_same_one_by_one(mode):
    vector = GoalVectorEnv(Walk(), 3, autoreset_mode=mode)
    singles = gymnasium.vector.SyncVectorEnv(
        [lambda: gymnasium.wrappers.TimeLimit(GoalEnv(Walk()), 4) for _ in range(3)], autoreset_mode=mode
    )
    singles.action_space.seed(0)
    assert_same_reset(vector, singles, seed=0)
    rewards = []
    for _ in range(100):  # more steps than noise is drawn ahead
        actions = singles.action_space.sample()
        mine = vector.step(actions)
        rewards.append(mine[1])
        assert_same_step(mine, singles.step(actions))
    assert np.ptp(np.stack(rewards), axis=0).min() > 0
    observed = mine[0]
    assert vector.compute_truncated(observed["achieved_goal"], observed["desired_goal"], {}).shape == (3,)


def test_deterministic_tasks_have_no_noise_and_linear_ones_no_success():
    with pytest.raises(NotImplementedError, match="deterministic"):
        envs.ContinuousSeek().noise(np.random.default_rng(0), 1)
    with pytest.raises(NotImplementedError, match="no success"):
        envs.LinearDense().success(np.zeros(10, np.float32), np.zeros(10, np.float32))


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
