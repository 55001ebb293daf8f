"""The parts of the OpenAI recipe, each on its own: normalization, random actions, action penalty, clipped targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stable_baselines3 as sb3
import torch
from gymnasium import spaces
from safetensors.torch import load_file
from stable_baselines3.common.noise import NormalActionNoise, VectorizedActionNoise
from stable_baselines3.common.vec_env import VecNormalize

import rl
from rl.goals import GOAL
from rl.noise import VectorizedNormalNoise
from rl.normalization import NormalizedExtractor, RunningStatistics
from rl.reengage import Logs
from rl.training import STATE, Plan
from tests.agents import ALGORITHMS, agent, bits, check_plain_critic, seek


def normalized(**options: Any) -> dict[str, Any]:
    """``policy_kwargs``; a new dictionary each time, since Stable-Baselines3 writes into it."""
    own = {"features_extractor_class": NormalizedExtractor, "net_arch": [16, 16]}
    return {**own, "features_extractor_kwargs": options} if options else own


def test_statistics_are_mean_and_deviation_of_a_zero_and_all_vectors() -> None:
    vectors = np.random.default_rng(0).normal(3, 2, (50, 4)).astype(np.float32)
    vectors[:, 1] = 0
    statistics = RunningStatistics(4, epsilon=0.01)
    for part in np.split(vectors, [7, 30]):
        statistics.update(torch.from_numpy(part))
    everything = np.concatenate([np.zeros((1, 4)), vectors]).astype(np.float64)
    np.testing.assert_allclose(statistics.mean, everything.mean(0), rtol=1e-6)
    np.testing.assert_allclose(1 / statistics.scale, np.maximum(everything.std(0), 0.01), rtol=1e-5)
    assert statistics.scale[1] == pytest.approx(100)


def test_features_are_normalized_and_clipped_twice() -> None:
    env = seek()
    extractor = NormalizedExtractor(env.observation_space, clip=2.0, clip_raw=10.0)  # type: ignore[arg-type]
    extractor.statistics.mean.copy_(torch.tensor([0.0, 1, 0, 0, 0, 9]))
    extractor.statistics.scale.copy_(torch.tensor([1.0, 2, 1, 1, 1, 3]))
    observation = {
        "observation": torch.tensor([[0.5, 1.5, -7]]),
        GOAL: torch.tensor([[0.0, 1.5, 50.0]]),
        "achieved_goal": torch.full((1, 3), torch.nan),
    }
    assert extractor(observation).tolist() == [[0.5, 1.0, -2.0, 0.0, 1.5, 2.0]]
    assert extractor.slope(observation, GOAL).tolist() == [[1, 1, 0]]
    goal = observation[GOAL].requires_grad_()
    (gradient,) = torch.autograd.grad(extractor(observation).sum(), goal)
    assert torch.equal(gradient, extractor.slope(observation, GOAL))


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("clip", [5.0, 0.8])
def test_goal_gradients_are_those_of_the_raw_goal(name: str, clip: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick way through linear layers agrees with differentiating twice, through normalization and clipping."""
    model: Any = agent(name, goal_gradient_coef=0.5, policy_kwargs=normalized(clip=clip)).learn(60)
    batch = model.replay_buffer.sample(64)
    chain = model._plain_critic(batch).chain
    assert (chain.min() == 0) == (clip == 0.8)
    check_plain_critic(model, batch, monkeypatch, atol=1e-5)


def test_all_networks_share_the_statistics_of_the_episodes_that_were_seen() -> None:
    model: Any = agent("DDPG", policy_kwargs=normalized(), env=seek(2), gradient_steps=2).learn(120)
    networks = (model.actor, model.actor_target, model.critic, model.critic_target)
    statistics = {id(network.features_extractor.statistics) for network in networks}
    assert len(statistics) == 1
    seen = model.actor.features_extractor.statistics
    assert seen.count == 1 + 120
    buffer = model.replay_buffer
    states = buffer.observations["observation"][: buffer.pos].reshape(-1, 3)
    np.testing.assert_allclose(seen.mean[:3], states.sum(0) / 121, rtol=1e-4, atol=1e-6)


def test_hindsight_of_new_episodes() -> None:
    model: Any = agent("DDPG", policy_kwargs=normalized(), learning_starts=10_000).learn(12)
    buffer = model.replay_buffer
    fresh = buffer.take_fresh()
    assert len(fresh["observation"]) == 10  # two episodes of five steps; the third is not finished
    assert np.array_equal(fresh["observation"], buffer.observations["observation"][:10, 0])
    reached = [buffer.next_observations["achieved_goal"][i - i % 5 : i - i % 5 + 5, 0] for i in range(10)]
    own = [np.array_equal(fresh[GOAL][i], buffer.observations[GOAL][i, 0]) for i in range(10)]
    later = [(fresh[GOAL][i] == reached[i][i % 5 :]).all(1).any() for i in range(10)]
    assert all(a or b for a, b in zip(own, later, strict=True))
    assert any(later)
    assert len(buffer.take_fresh()["observation"]) == 0


def test_overwritten_episodes_are_not_taken() -> None:
    model: Any = agent("DDPG", policy_kwargs=normalized(), learning_starts=10_000, buffer_size=20).learn(48)
    assert len(model.replay_buffer.take_fresh()["observation"]) <= 20


def test_a_killed_run_with_normalization_resumes_to_the_identical_result(tmp_path: Path) -> None:
    def train(folder: Path, steps: int) -> dict[str, torch.Tensor]:
        options: dict[str, Any] = {"random_action": 0.3, "action_l2": 1.0, "target_update_interval": 4}
        model = agent("DDPG", policy_kwargs=normalized(), goal_gradient_coef=0.3, **options)
        rl.run(model, seek(3), Plan(steps, 50, 3, 52), folder, resume=True)
        return load_file(folder / STATE)

    whole = train(tmp_path / "whole", 180)
    train(tmp_path / "parts", 104)
    parts = train(tmp_path / "parts", 180)
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    assert any("statistics.count" in name for name in whole)


def test_random_actions() -> None:
    options: dict[str, Any] = {"learning_starts": 2, "gradient_steps": 0, "action_noise": None, "buffer_size": 4_000}
    model: Any = agent("DDPG", env=seek(2), random_action=0.3, **options)
    model.learn(2_000)
    buffer = model.replay_buffer
    n = buffer.pos
    observations = {key: torch.from_numpy(own[:n].reshape(2 * n, -1)) for key, own in buffer.observations.items()}
    with torch.no_grad():
        greedy = model.actor(observations).numpy()
    differs = (np.abs(buffer.actions[:n].reshape(2 * n, -1) - greedy) > 1e-5).all(1)
    assert 0.25 < differs.mean() < 0.35
    assert np.abs(buffer.actions[:n].reshape(2 * n, -1)[differs]).max() > 0.99


@pytest.mark.parametrize(("size", "n"), [(20, 38), (3, 3)])
def test_noise_for_many_environments_is_that_of_stable_baselines(size: int, n: int) -> None:
    mean, sigma = np.linspace(-1, 1, size), np.linspace(0.1, 0.3, size)
    drawn = []
    for noise in (VectorizedActionNoise(NormalActionNoise(mean, sigma), n), VectorizedNormalNoise(mean, sigma, n)):
        np.random.seed(5)  # noqa: NPY002
        drawn.append(np.stack([noise() for _ in range(4)]))
        noise.reset([0])
    assert drawn[0].shape == (4, n, size)
    assert drawn[0].dtype == drawn[1].dtype == np.float32
    assert np.array_equal(*drawn)
    assert VectorizedNormalNoise(np.zeros(size), 0.1, n)().shape == (n, size)


def test_the_action_penalty_makes_actions_small() -> None:
    sizes = []
    for coefficient in (0.0, 10.0):
        model: Any = agent("DDPG", action_l2=coefficient).learn(300)
        batch = model.replay_buffer.sample(64)
        sizes.append(model.actor(batch.observations).square().mean().item())
    assert sizes[1] < sizes[0] / 2


def test_targets_are_clipped() -> None:
    model: Any = agent("DDPG", target_range=(-0.5, 0.0), goal_gradient_coef=0.3).learn(60)
    batch = model.replay_buffer.sample(64)
    targets = []
    model._td_loss = lambda values, target: targets.append(target) or values[0].sum()
    model._critic_loss(batch, Logs())
    model.goal_gradient_coef = 0
    model._critic_loss(batch, Logs())
    for target in targets:
        assert target.min() == -0.5
        assert target.max() <= 0


@pytest.mark.parametrize(
    ("options", "fused"),
    [
        ({}, False),
        ({"action_l2": 0.1}, False),
        ({"goal_gradient_coef": 0.1}, True),
        ({"target_range": (-1.0, 0.0)}, True),
        ({"policy_kwargs": normalized()}, True),
    ],
)
def test_optimizers_are_fused_where_nothing_is_to_be_reproduced(options: dict[str, Any], fused: bool) -> None:
    model: Any = agent("DDPG", **options).learn(60)
    groups = [group for optimizer in model.optimizers() for group in optimizer.param_groups]
    assert {bool(group["fused"]) for group in groups} == {fused}


def test_target_networks_follow_now_and_then() -> None:
    model: Any = agent("TD3", target_update_interval=4, policy_delay=2, learning_starts=50)
    before = [p.clone() for p in model.critic_target.parameters()]
    model.learn(53)  # three updates
    assert all(torch.equal(a, b) for a, b in zip(before, model.critic_target.parameters(), strict=True))
    model.learn(1, reset_num_timesteps=False)
    assert not all(torch.equal(a, b) for a, b in zip(before, model.critic_target.parameters(), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"random_action": 1.5}, "random_action: got 1.5"),
        ({"action_l2": -1}, "action_l2: got -1"),
        ({"action_l2": "1"}, "action_l2: got '1', expected a number"),
        ({"random_action": "1"}, "random_action: got '1', expected a probability"),
        ({"target_update_interval": 2.5}, "target_update_interval: got 2.5, expected an integer"),
        ({"target_range": (0, -50)}, "target_range: got"),
        ({"target_update_interval": 0}, "target_update_interval: got 0"),
        ({"policy_kwargs": normalized(keys=["x"])}, "keys: got 'x'"),
        ({"policy_kwargs": normalized(keys=["desired_goal"] * 2)}, "expected each of them once"),
        ({"policy_kwargs": normalized(clip=0)}, "clip: got 0"),
        ({"policy_kwargs": normalized(), "replay_buffer_class": sb3.HerReplayBuffer}, "rl.HerReplayBuffer"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        agent("DDPG", **options)


def test_observations_are_normalized_once() -> None:
    """Statistics are those of the buffer, whose observations VecNormalize has not scaled yet."""
    twice = r"VecNormalize that scales observation and desired_goal, and .*one normalization or the other"
    with pytest.raises(ValueError, match=twice):
        agent("DDPG", env=VecNormalize(seek(), norm_reward=False), policy_kwargs=normalized())
    model: Any = agent("DDPG", policy_kwargs=normalized())
    before = model.env
    with pytest.raises(ValueError, match=twice):
        model.set_env(VecNormalize(seek(), norm_reward=False))
    assert model.env is before
    for options in ({"norm_obs": False}, {"norm_obs_keys": ["achieved_goal"]}):
        model.set_env(VecNormalize(seek(), norm_reward=False, **options))
        model.learn(60)


def test_delays_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="multiple of policy_delay"):
        agent("TD3", policy_delay=2, target_update_interval=3)


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.Box(0, 255, (36, 36, 3), np.uint8)])
def test_what_is_preprocessed_is_not_normalized(space: spaces.Space[Any]) -> None:
    """Statistics are those of numbers in the buffer, not of one-hot vectors, or pixels from 0 to 1."""
    everything = spaces.Dict({"observation": space, GOAL: spaces.Box(-1, 1, (2,))})
    with pytest.raises(ValueError, match="keys: got 'observation' with the space"):
        NormalizedExtractor(everything)


def test_normalization_of_bits_and_saving(tmp_path: Path) -> None:
    model: Any = agent("DQN", policy_kwargs=normalized()).learn(100)
    model.save(tmp_path / "model")
    again = rl.DQN.load(tmp_path / "model", env=bits())
    statistics = again.q_net.features_extractor.statistics
    assert statistics is again.q_net_target.features_extractor.statistics
    assert torch.equal(statistics.mean, model.q_net.features_extractor.statistics.mean)
