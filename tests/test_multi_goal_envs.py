"""Environments with many goals: sets, item rewards, and what DriveSeek and NoisySeek are by definition."""

import doctest
import math

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from scipy import stats

import envs
from envs import drawing, multi_goal, reference
from envs.geometry import rounded, shortened, wrapped
from envs.multi_goal import item_rewards, pack_goals, total_reward, unpack_goals
from envs.noisy_seek import _first_of_each
from scripts import reference_agents

IDS = ["DriveSeek-v0", "NoisySeek-v0"]
TASKS = [envs.DriveSeek(), envs.NoisySeek()]
both = pytest.mark.parametrize("task", TASKS, ids=IDS)


def starts(task, n, seed=0):
    state, goal = task.start(np.random.default_rng(seed), n)
    return state, goal, goal[..., -1].sum(-1).astype(int)


def uniform_p(counts, bins):
    return stats.chisquare(np.bincount(counts, minlength=bins)).pvalue


# --- sets of goals and their rewards


def test_the_example_in_the_documentation():
    assert doctest.testmod(multi_goal).failed == 0


@given(st.integers(0, 4), st.integers(1, 3), st.data())
def test_packing(k, item, data):
    items = data.draw(hnp.arrays(np.float32, (k, item), elements=st.floats(-100, 100, width=32)))
    desired = pack_goals(items, 4)
    assert desired.dtype == np.float32
    assert desired.shape == (4, item + 1)
    assert (desired[:k, :-1] == items).all()
    assert desired[:, -1].tolist() == [1] * k + [0] * (4 - k)
    assert not desired[k:].any()
    assert (unpack_goals(desired) == items).all()
    assert multi_goal.goal_sets(4, item).contains(desired)


@pytest.mark.parametrize("items", [[1, 2], [[1, 2]] * 4, [[math.inf, 0]]])
def test_what_is_no_set(items):
    with pytest.raises(ValueError, match="items: got"):
        pack_goals(items, 3)
    with pytest.raises(ValueError, match="desired: got shape"):
        unpack_goals(np.zeros((2, 3, 3)))


def random_sets(rng, shape=(7,), goals=6, item=2):
    desired = rng.integers(-1, 2, (*shape, goals, item + 1)).astype(np.float32)
    desired[..., -1] = np.abs(desired[..., -1])
    return rng.integers(-1, 2, (*shape, item)).astype(np.float32), desired * desired[..., -1:]


@pytest.mark.parametrize("item", [1, 2, 3])
def test_item_rewards_by_definition_in_numpy_and_torch(item):
    achieved, desired = random_sets(np.random.default_rng(item), (5, 3), item=item)
    rewards = item_rewards(achieved, desired)
    assert rewards.shape == (5, 3, 6)
    for place in np.ndindex(5, 3, 6):
        row = desired[place]
        assert rewards[place] == float(row[-1] == 1 and (row[:-1] == achieved[place[:2]]).all())
    for kind in (torch.float32, torch.float64):
        tensors = torch.tensor(achieved, dtype=kind), torch.tensor(desired, dtype=kind)
        assert item_rewards(*tensors).dtype == kind
        assert (item_rewards(*tensors).numpy() == rewards).all()
        assert (total_reward(item_rewards(*tensors), tensors[1]).numpy() == (rewards * desired[..., -1]).sum(-1)).all()
    table = item_rewards(achieved[:, None], desired[None])  # every achieved with every desired goal
    assert table.shape == (5, 5, 3, 6)
    assert (table[np.arange(5), np.arange(5)] == rewards).all()


def test_the_gradient_of_the_reward_in_the_presence():
    """Equation G.17: 2 b R_item; nothing for padding, though a state at 0 equals its items."""
    desired = torch.tensor([[0.0, 0, 1], [2, 0, 1], [0, 0, 0]], requires_grad=True)
    achieved = torch.zeros(2)
    total_reward(item_rewards(achieved, desired), desired).backward()
    assert desired.grad is not None
    assert desired.grad.tolist() == [[0, 0, 2], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("shapes", [((), ()), ((9,), (9,)), ((4, 1), (3,)), ((0,), (0,))])
@pytest.mark.parametrize("goals", [1, 6])
def test_the_quick_reward_is_the_sum_of_item_rewards(shapes, goals):
    """Bit for bit: goals that are there several times, and presences between 0 and 1."""
    rng = np.random.default_rng(goals)
    for gates in (False, True):
        achieved, desired = random_sets(rng, shapes[0])[0], random_sets(rng, shapes[1], goals=goals)[1]
        if gates:
            desired[..., -1] *= rng.uniform(size=desired.shape[:-1]).astype(np.float32)
        rewards = envs.DriveSeek().reward(achieved, desired)
        expected = total_reward(item_rewards(achieved, desired), desired).astype(np.float64)
        assert type(rewards) is type(expected)
        assert rewards.dtype == np.float64
        assert np.array_equal(rewards, expected)


def test_a_task_with_item_rewards_of_its_own():
    class Near(envs.DriveSeek):
        def item_rewards(self, achieved, desired):
            return 0.5 * item_rewards(achieved, desired)

    achieved, desired = random_sets(np.random.default_rng(0))
    assert np.array_equal(Near().reward(achieved, desired), envs.DriveSeek().reward(achieved, desired) / 2)


@pytest.mark.parametrize("env_id", IDS)
def test_rewards_of_both_kinds_of_environments(env_id):
    vector = gymnasium.make_vec(env_id, 4, "vector_entry_point", max_goals=3)
    one = gymnasium.make(env_id, max_goals=3).unwrapped
    achieved, desired = random_sets(np.random.default_rng(0), (4,), goals=3)
    for env in (vector, one):
        items = env.compute_item_rewards(achieved.tolist(), desired.tolist())
        assert items.dtype == np.float64
        assert (items == item_rewards(achieved, desired)).all()
        rewards = env.compute_reward(achieved, desired, {})
        assert rewards.dtype == np.float64
        assert (rewards == (desired[..., -1] ** 2 * items).sum(-1)).all()
        desired[0, 0] = [*achieved[0], 0.5]  # halfway between absent and present
        assert env.compute_reward(achieved, desired, {})[0] == rewards[0] - items[0, 0] + 0.25
        desired[0, 0] = 0


# --- moves


def test_rounding_wrapping_and_shortening():
    assert rounded(np.float32([0.5, 1.5, -0.5, 9.5, 2.51])).tolist() == [0, 2, 0, 10, 3]
    assert not np.signbit(rounded(np.float32([-0.3, -0.0]))).any()
    assert wrapped(np.array([10.0, -10.0, 10.5, -11.0, 3.0, 29.0]), 20).tolist() == [10, -10, -9.5, 9, 3, 9]
    assert shortened(np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])).tolist() == [[0.6, 0.8], [0.3, 0.4], [0, 0]]
    assert shortened(np.array([[3.0, 4.0]]), 2.5).tolist() == [[1.5, 2.0]]
    assert np.isfinite(shortened(np.array([[1e300, -1e308]]))).all()


def drive(state, *actions, goals=((0, 0),), **kwargs):
    env = gymnasium.make("DriveSeek-v0", **kwargs)
    env.reset(options={"state": state, "goal": pack_goals(goals, kwargs.get("max_goals", 200))})
    return [env.step(np.array([action]))[:2] for action in actions]


def test_drive_turns_and_then_moves():
    (first, _), (second, _), (third, _) = drive([0, 0, 0], 0.5, -7.0, 1e300)
    angles = [0.5, 0.0, 0.5]  # clipped
    x, y = np.cumsum(np.cos(angles)), np.cumsum(np.sin(angles))
    for t, (observed, angle) in enumerate(zip((first, second, third), angles, strict=True)):
        expected = [x[t], y[t], round(x[t]), round(y[t]), math.sin(angle), math.cos(angle)]
        np.testing.assert_allclose(observed["observation"], expected, atol=1e-6)
        assert observed["achieved_goal"].tolist() == [round(x[t]), round(y[t])]


def test_drive_wraps_and_both_sides_of_an_edge_are_different_goals():
    ahead = [0.0] * 11
    said = drive([0, 0, 0], *ahead, goals=[(10, 0), (-9, 0)])
    assert [reward for _, reward in said] == [0] * 9 + [1, 1]
    assert said[9][0]["observation"][:4].tolist() == [10, 0, 10, 0]  # on the edge, where it came from
    assert said[10][0]["observation"][:2].tolist() == [-9, 0]
    assert [reward for _, reward in drive([0, 0, 0], *ahead, goals=[(-10, 0)])] == [0] * 11
    ((observed, reward),) = drive([8.75, 0, 0], 0.0, goals=[(10, 0)])
    assert (observed["observation"][0], reward) == (9.75, 1)
    ((observed, reward),) = drive([9.25, 0, 0], 0.0, goals=[(-10, 0)])
    assert (observed["observation"][0], reward) == (-9.75, 1)
    ((observed, reward),) = drive([3, -9.5, -math.pi / 2], 0.0, goals=[(3, 10)])  # down, and in again on top
    np.testing.assert_allclose(observed["observation"][:2], [3, 9.5], atol=1e-6)


def test_drive_has_one_speed_and_angles_stay_small():
    rng = np.random.default_rng(0)
    task, state = envs.DriveSeek(), np.zeros((50, 3), np.float32)
    for _ in range(200):
        after = task.step(state, rng.uniform(0, 0.5, (50, 1)), None)
        moved = wrapped((after - state)[:, :2].astype(float), 20)
        np.testing.assert_allclose(np.hypot(*moved.T), 1, atol=1e-5)
        np.testing.assert_allclose(np.cos(np.arctan2(moved[:, 1], moved[:, 0]) - after[:, 2]), 1, atol=1e-5)
        state = after
        assert np.abs(state[:, :2]).max() <= 10
        assert all(task.state_space.contains(row) for row in state)
    assert np.abs(state[:, 2]).max() > 2


def test_noisy_moves_and_a_goal_counts_each_time():
    env = gymnasium.make("NoisySeek-v0", noise_std=0.0)
    env.reset(options={"goal": pack_goals([[1, 1], [5, 5]], 200)})
    assert env.step(np.array([3.0, 4.0]))[0]["observation"] == pytest.approx([0.6, 0.8, 1, 1])
    assert env.step(np.array([0.3, -0.3]))[0]["observation"] == pytest.approx([0.9, 0.5, 1, 0])
    assert [env.step(np.array([0.0, 0.1]))[1] for _ in range(3)] == [1, 1, 1]


def test_noise_is_standard_normal():
    env = gymnasium.make_vec("NoisySeek-v0", 200, "vector_entry_point")
    env.reset(seed=1000)
    states = np.stack([env.step(np.tile([1.0, 0.0], (200, 1)))[0]["observation"][:, :2] for _ in range(30)])
    noise = np.diff(states, axis=0) - [1, 0]
    for coordinate in (0, 1):
        assert stats.kstest(noise[..., coordinate].ravel(), stats.norm.cdf).pvalue > 0.01
    assert abs(np.corrcoef(noise.reshape(-1, 2).T)[0, 1]) < 0.05
    assert abs(np.corrcoef(noise[1:].ravel(), noise[:-1].ravel())[0, 1]) < 0.05


@both
def test_each_row_is_computed_the_same_whatever_their_number(task):
    """Bit for bit: sines, above all, have routines for many numbers at a time."""
    rng = np.random.default_rng(0)
    n = 300
    state = rng.uniform(-3, 3, (n, *task.state_space.shape)).astype(np.float32)
    action = rng.uniform(-1, 1, (n, *task.action_space.shape)).astype(np.float32)
    noise = task.noise(rng, n) if task.stochastic else None
    _, goal = task.start(rng, n)

    def everything(rows):
        after = task.step(state[rows], action[rows], None if noise is None else noise[rows])
        seen = {"observation": task.observation(after), "desired_goal": goal[rows]}
        return after, seen["observation"], task.reward(task.achieved(after), goal[rows]), reference.greedy(task)(seen)

    alone = [np.concatenate(each) for each in zip(*(everything(slice(i, i + 1)) for i in range(n)), strict=True)]
    for low, high in ((0, n), *((i, i + m) for m in range(2, 40) for i in (0, 3))):
        for mine, one in zip(everything(slice(low, high)), alone, strict=True):
            assert mine.tobytes() == one[low:high].tobytes()


# --- distributions of goals


@both
def test_sets_are_as_they_should_be(task):
    state, goal, count = starts(task, 300)
    assert not state.any()
    assert (goal[..., -1] == (np.arange(200) < count[:, None])).all()
    assert not goal[goal[..., -1] == 0].any()
    assert not np.signbit(goal[goal == 0]).any()
    assert (goal == np.rint(goal)).all()
    assert count.min() >= 1
    for each, k in zip(goal, count, strict=True):
        assert len({tuple(items) for items in unpack_goals(each).tolist()}) == k


def test_drive_goals_are_uniform():
    _, goal, count = starts(envs.DriveSeek(), 4000)
    assert uniform_p(count - 1, 200) > 0.01
    x, y = goal[goal[..., -1] == 1, :2].astype(int).T + 10
    assert uniform_p(21 * x + y, 441) > 0.01
    x, y = goal[:, 0, :2].astype(int).T + 10  # the first of each, on its own
    assert uniform_p(21 * x + y, 441) > 0.01
    few = envs.DriveSeek(max_goals=9, half_width=1)
    _, goal, count = starts(few, 200)
    assert set(count) == set(range(1, 10))
    assert {tuple(items) for items in unpack_goals(goal[count == 9][0]).tolist()} == {
        (x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)
    }


def test_noisy_goals_are_normal_around_normal_centers():
    _, goal, count = starts(envs.NoisySeek(max_goals=1, center_std=3, goal_std=2), 4000)
    assert (count == 1).all()
    edges = np.concatenate([[-np.inf], np.arange(-9.5, 10), [np.inf]])
    expected = np.diff(stats.norm(0, math.sqrt(13)).cdf(edges)) * 4000
    for values in goal[:, 0, :2].T:
        assert stats.chisquare(np.histogram(values, edges)[0], expected).pvalue > 0.01
    assert abs(np.corrcoef(goal[:, 0, :2].T)[0, 1]) < 0.05


def test_noisy_goals_within_a_cluster_and_their_number():
    _, goal, count = starts(envs.NoisySeek(cluster_probability=1, center_std=5e4, goal_std=2e4), 2000)
    assert uniform_p(count - 1, 200) > 0.01  # so wide that no goal is drawn twice
    sets = [unpack_goals(each).astype(float) for each in goal]
    within = np.concatenate([items - items.mean(0) for items in sets])
    assert np.sqrt((within**2).sum() / (2 * (count - 1).sum())) == pytest.approx(2e4, rel=0.01)
    centers = np.array([items.mean(0) for items in sets if len(items) > 50])
    assert stats.kstest(centers.ravel(), stats.norm(0, math.hypot(5e4, 2e4 / 11)).cdf).pvalue > 0.01


def test_noisy_clusters_are_geometric_and_their_shares_uniform():
    """Clusters that got a goal, against their exact distribution.

    Counts of m goals in k clusters with Dirichlet(1, ..., 1) shares are uniform over all compositions of m into k parts
    of at least 0; of these, C(k, j) C(m - 1, j - 1) have j parts above 0.
    """
    most, p, n = 12, 0.15, 8000
    _, _, count = starts(envs.NoisySeek(max_goals=most, cluster_probability=p, center_std=1e5, goal_std=0), n)
    expected = np.zeros(most + 1)
    for m in range(1, most + 1):
        for k in range(1, 200):
            weight = p * (1 - p) ** (k - 1) / most / math.comb(k + m - 1, m)
            for j in range(1, min(k, m) + 1):
                expected[j] += weight * math.comb(k, j) * math.comb(m - 1, j - 1)
    assert expected.sum() == pytest.approx(1)
    observed = np.bincount(count, minlength=most + 1)
    assert stats.chisquare(observed[1:], n * expected[1:] / expected.sum()).pvalue > 0.01


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(-1, 1), st.integers(-1, 1)), min_size=1, max_size=20))
def test_goals_drawn_twice_count_once(rows):
    rows = sorted(rows, key=lambda row: row[0])
    sets, x, y = np.array(rows).T
    first = _first_of_each(np.stack([x, y]).astype(float), sets)
    assert first.tolist() == [i for i, row in enumerate(rows) if row not in rows[:i]]


@pytest.mark.parametrize(
    ("task", "bad"),
    [
        *((envs.DriveSeek, bad) for bad in ({"max_goals": 442}, {"half_width": 1.5}, {"max_turn": 0}, {"steps": 0})),
        *((envs.NoisySeek, {name: -1.0}) for name in ("goal_std", "noise_std", "max_speed", "cluster_probability")),
        *((envs.NoisySeek, bad) for bad in ({"center_std": 2e5}, {"cluster_probability": 1.1}, {"noise_std": True})),
    ],
)
def test_arguments(task, bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))}: got"):
        task(**bad)


# --- reference agents


def seen(position, goals, angle=0.0):
    observed = [*position, *np.rint(position), math.sin(angle), math.cos(angle)]
    return {"observation": np.float32(observed), "desired_goal": pack_goals(np.reshape(goals, (-1, 2)), 4)}


def test_greedy_on_noisy_seek():
    act = reference.greedy(envs.NoisySeek())
    assert act(seen([0, 0], [[9, 9], [-3, -4]])) == pytest.approx([-0.6, -0.8])
    assert act(seen([0.25, 0.5], [[9, 9], [0, 0]])) == pytest.approx([-0.25, -0.5])  # exactly there
    assert act(seen([0, 0], [[0, 2], [2, 0], [-2, 0]])).tolist() == [0, 1]  # of equals the first
    assert act(seen([1, 1], [])).tolist() == [0, 0]
    assert reference.greedy_noisy_seek(seen([0, 0], [[0, 5]]), max_speed=3).tolist() == [0, 3]


def test_greedy_on_drive_seek():
    act = reference.greedy(envs.DriveSeek())
    assert act(seen([0, 0], [[9, 9], [3, 1]])) == pytest.approx([math.atan2(1, 3)])
    assert act(seen([0, 0], [[0, 2], [2, -3]])).tolist() == [0.5]
    assert act(seen([9.5, 0], [[5, 0], [-9, 0]])).tolist() == [0]  # ahead, across the edge
    assert act(seen([0, 9.5], [[0, 5], [0, -9]], angle=1.5)) == pytest.approx([math.pi / 2 - 1.5], abs=1e-6)
    assert act(seen([0, 0], [[-3, -0.25]], angle=3.0)) == pytest.approx([math.pi - 3 + math.atan(1 / 12)], abs=1e-6)
    assert act(seen([1, 1], [], angle=1.0)).tolist() == [0]
    with pytest.raises(TypeError, match="task: got ContinuousSeek"):
        reference.greedy(envs.ContinuousSeek())


def test_random_agents_are_uniform():
    for task in (envs.DriveSeek(max_turn=0.3), envs.NoisySeek(max_speed=2.0), envs.BitFlipping(d=4)):
        act = reference.random(task, np.random.default_rng(0))
        actions = act({"observation": np.zeros((2, 1000, 3), np.float32)}).reshape(2000, -1)
        assert all(task.action_space.contains(a if a.size > 1 or a.dtype != int else a[0]) for a in actions)
        if actions.dtype == np.float32:
            high = float(task.action_space.high.max())
            assert stats.kstest(actions.ravel(), stats.uniform(-high, 2 * high).cdf).pvalue > 0.01
        else:
            assert uniform_p(actions[:, 0], 4) > 0.01


@pytest.mark.parametrize("env_id", IDS)
def test_the_script_of_reference_agents(env_id, capsys):
    means = {}
    for agent in ("greedy", "random"):
        said = []
        for _ in range(2):
            reference_agents.main(reference_agents.Args(env_id, agent, episodes=100))
            said.append(capsys.readouterr().out)
        assert said[0] == said[1]
        assert said[0].startswith(f"{env_id}, up to 200 goals, {agent}: mean return ")
        means[agent] = float(said[0].split("mean return ")[1].split(",")[0])
    assert means["greedy"] > means["random"] + 1


def test_pictures_of_reference_agents(tmp_path, capsys):
    gif = tmp_path / "new/greedy.gif"
    reference_agents.main(reference_agents.Args("DriveSeek-v0", episodes=2, gif=gif, gif_episodes=1))
    assert f"wrote {gif}; returns " in capsys.readouterr().out
    with Image.open(gif) as animation:
        assert animation.n_frames == 41


@pytest.mark.parametrize(
    "bad", [{"episodes": 1}, {"seed": -1}, {"gif": "a.png"}, {"gif_episodes": 0}, {"fps": 0.0}], ids=str
)
def test_the_script_with_bad_arguments(bad, tmp_path):
    name = next(iter(bad))
    if name == "gif":
        bad = {"gif": tmp_path / bad["gif"]}
    with pytest.raises(ValueError, match=f"{name.replace('_', '-')}: got"):
        reference_agents.main(reference_agents.Args("NoisySeek-v0", **bad))
    assert not list(tmp_path.iterdir())


# --- pictures


def color_at(frame, place, view):
    x, y = drawing._Map(view, drawing.WIDTH - 2 * drawing.MARGIN).place(*place)
    return tuple(frame[drawing.HEADER + round(y), drawing.MARGIN + round(x)].tolist())


def test_maps_show_goals_reached_goals_and_other_places():
    env = gymnasium.make("DriveSeek-v0", render_mode="rgb_array")
    env.reset(options={"goal": pack_goals([[1, 0], [-6, 7], [2, 3]], 200)})
    off = (0.3, 0.3)  # of the middle, where the path may be
    view = drawing.View((0.0, 0.0), 10.5, 20.0)

    def color(x, y):
        return color_at(env.render(), (x + off[0], y + off[1]), view)

    assert color(1, 0) == color(-6, 7) == color(2, 3) == drawing.CYAN
    env.step(np.zeros(1))
    assert color(1, 0) == drawing.BLUE
    env.step(np.zeros(1))
    env.step(np.zeros(1))
    assert color(2, 0) == drawing.MAGENTA
    assert color(0, 0) == drawing.PAPER  # where it started counts for nothing
    assert color(-6, 7) == color(2, 3) == drawing.CYAN


def test_maps_of_the_plane_show_all_goals_and_keep_still():
    env = gymnasium.make("NoisySeek-v0", render_mode="rgb_array", noise_std=30.0)
    goals = np.array([[40, -20], [-3, 5], [38, 2]])
    env.reset(seed=0, options={"goal": pack_goals(goals, 200)})
    view = drawing.View.around(np.concatenate([goals, [[0, 0]]]))
    assert view.half == 43 / 2 + 4
    for _ in range(6):  # far outside of the picture at times
        frame = env.render()
        env.step(np.zeros(2))
    for goal in goals:
        assert color_at(frame, goal, view) == drawing.CYAN


def test_a_torus_with_a_margin():
    """With half a unit beyond the outermost goals, all goals have cells of one size."""
    task = envs.DriveSeek(max_goals=9, half_width=1, margin=0.5)
    states = np.array([[1.4, 0.0, 0.0], [-1.5, 0.2, np.pi]], dtype=np.float32)
    moved = task.step(states, np.zeros((2, 1), dtype=np.float32), None)
    np.testing.assert_allclose(moved[:, :2], [[-0.6, 0.0], [0.5, 0.2]], atol=1e-6)
    assert task.observation_space["observation"].high[:4].tolist() == [1.5, 1.5, 1, 1]  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    places = rng.uniform(-1.5, 1.5, (30_000, 3)).astype(np.float32)
    share = np.unique(task.achieved(places), axis=0, return_counts=True)[1] / 30_000
    np.testing.assert_allclose(share, 1 / 9, atol=0.01)
    with pytest.raises(ValueError, match=r"margin: got 0\.6, expected a number from 0 to 0\.5"):
        envs.DriveSeek(margin=0.6)
