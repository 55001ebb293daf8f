"""Goal-conditioned environments: one family of tests over every registered id."""

import contextlib
import dataclasses
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
from stable_baselines3.common.env_checker import check_env as check_env_sb3

import envs
from envs.core import GoalEnv, GoalVectorEnv
from envs.multi_goal import MultiGoalTask, goal_sets, pack_sets
from envs.task import box

IDS = sorted(spec.id for spec in gymnasium.registry.values() if str(spec.entry_point).startswith("envs."))
MODES = [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP]
# the same ids with other arguments: another size, and episodes that end at different times
VARIANTS = [(i, {}) for i in IDS] + [
    ("ContinuousSeek-v0", {"d": 1, "bound": 1.0, "eps": 0.5, "steps": 3}),
    ("BitFlipping-v0", {"d": 3, "terminate": True}),
    ("LinearDense-v0", {"d": 1, "steps": 2, "rotation": [[-1.0]]}),
    ("LinearSparse-v0", {"d": 33, "rotation_seed": 5}),
    ("DriveSeek-v0", {"max_goals": 3, "half_width": 1, "max_turn": 2.0, "steps": 7}),
    ("DriveSeek-v0", {"max_goals": 5, "half_width": 2, "margin": 0.5, "max_turn": 2.0, "steps": 7}),
    ("NoisySeek-v0", {"max_goals": 1, "cluster_probability": 1.0, "noise_std": 0.1, "max_speed": 3.0, "steps": 5}),
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
    names = ["BitFlipping", "ContinuousSeek", "DriveSeek", "LinearDense", "LinearSparse", "NoisySeek"]
    assert [f"{name}-v0" for name in names] == IDS


def test_import_is_light():
    heavy = ["torch", "stable_baselines3", "mujoco", "gymnasium_robotics", "certify", "rl", "pygame", "matplotlib"]
    code = f"import sys, envs; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@all_variants
def test_checkers_of_gymnasium_and_stable_baselines3(env_id, kwargs, capsys):
    with warnings.catch_warnings():
        # linear environments have no bounds: their states are sums of normal vectors and moves; so has NoisySeek
        warnings.filterwarnings("ignore", message=".*A Box observation space m.* value is -?infinity.*")
        # sets of goals are tables, and turns are measured in radians
        warnings.filterwarnings("ignore", message=".*desired_goal.* has an unconventional shape.*")
        warnings.filterwarnings("ignore", message="(?i).*recommend.*symmetric and normalized.*")
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
    env.reset()
    next_one, _ = env.reset()
    env.reset(seed=5)
    state, goal = (rows[0] for rows in env.task.start(np.random.default_rng(6), 1))
    start = {"state": state, "goal": goal}
    told, _ = env.reset(options=start)
    assert (told["observation"] == env.task.observation(state[None])[0]).all()
    assert (told["desired_goal"] == goal).all()
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
    goal, states = observed["desired_goal"], env.task.state_space.shape
    with pytest.raises(ValueError, match="options: got target"):
        env.reset(options={"target": goal})
    with pytest.raises(ValueError, match=r"options\['goal'\]: got shape"):
        env.reset(options={"goal": goal[:-1]})
    with pytest.raises(ValueError, match=r"options\['state'\]: got nan"):
        env.reset(options={"state": np.full(states, np.nan)})
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
    first = dataclasses.fields(env.task)[0].name  # a number of dimensions, or of goals
    for bad in (0, -1, 2.5, True, "3"):
        with pytest.raises(ValueError, match=f"{first}: got"):
            gymnasium.make(env_id, **{first: bad})
    with pytest.raises(TypeError, match="unexpected keyword argument 'size'"):
        gymnasium.make(env_id, size=3)


@pytest.mark.parametrize("env_id", [i for i in IDS if i != "BitFlipping-v0"])
def test_actions_have_to_be_finite(env_id):
    env = gymnasium.make(env_id).unwrapped
    env.reset()
    with pytest.raises(ValueError, match="not finite"):
        env.step(np.full(env.action_space.shape, np.nan))


# --- a task as tests want it: with noise, and with a set of goals


@dataclass(frozen=True)
class Walk(MultiGoalTask):
    """A random walk among a set of up to five points, each worth 1 to whoever is near; any of them is success."""

    max_goals: int = 5
    steps: int = 4

    stochastic = True
    has_success = True

    @property
    def observation_space(self):
        return spaces.Dict({"observation": box(2), "achieved_goal": box(2), "desired_goal": goal_sets(5, 2)})

    @property
    def action_space(self):
        return box(2, 1.0)

    def start(self, rng, n):
        sets, _ = np.nonzero(rng.random((n, 5)) < 0.5)  # how many, from none to all
        return np.zeros((n, 2), np.float32), pack_sets(rng.integers(-2, 3, (len(sets), 2)), sets, n, self.max_goals)

    def noise(self, rng, n):
        return rng.standard_normal((n, 2), np.float32)

    def step(self, state, action, noise):
        return (state + action + noise).astype(np.float32)

    def item_rewards(self, achieved, desired):
        way = achieved[..., None, :] - desired[..., :-1]
        return ((way * way).sum(-1) < 1) * desired[..., -1]

    def success(self, achieved, desired):
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
    for _ in range(300):  # more steps than noise is drawn ahead
        actions = singles.action_space.sample()
        mine = vector.step(actions)
        rewards.append(mine[1])
        assert_same_step(mine, singles.step(actions))
    assert np.ptp(np.stack(rewards), axis=0).min() > 0
    observed = mine[0]
    assert vector.compute_truncated(observed["achieved_goal"], observed["desired_goal"], {}).shape == (3,)


def test_what_tasks_do_not_have():
    with pytest.raises(NotImplementedError, match="deterministic"):
        envs.ContinuousSeek().noise(np.random.default_rng(0), 1)
    with pytest.raises(NotImplementedError, match="no success"):
        envs.LinearDense().success(np.zeros(10, np.float32), np.zeros(10, np.float32))
    with pytest.raises(NotImplementedError, match="one goal at a time"):
        gymnasium.make("ContinuousSeek-v0").unwrapped.compute_item_rewards(np.zeros(20), np.zeros(20))


@dataclass(frozen=True)
class Precise(envs.ContinuousSeek):
    """Moves in double precision."""

    def step(self, state, action, noise):
        return np.clip(state.astype(np.float64) + action.astype(np.float64) / 3, -self.bound, self.bound)


def test_rewards_are_those_of_what_is_observed():
    """Hindsight computes them again from observations, which have single precision."""
    env = GoalVectorEnv(Precise(d=1, bound=1.0, eps=1 / 3, steps=40), 200)
    env.reset(seed=0)
    for step in range(40):
        action = np.full((200, 1), np.float32(1 - 2 * (step % 2)))
        observation, reward, *_ = env.step(action)
        assert observation["achieved_goal"].dtype == np.float32
        again = env.compute_reward(observation["achieved_goal"], observation["desired_goal"], {})
        if step < 39:  # the last one ends the episodes
            assert (again == reward).all()
