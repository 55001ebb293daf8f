"""The algorithms: what they are without the goal-gradient term, and what the term is."""

from __future__ import annotations

import inspect
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import stable_baselines3 as sb3
import torch
import torch.nn.functional as F
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor, nn
from torch.nn.utils import prune

import rl
from rl.checks import check_samples_apart
from rl.goals import GOAL, GoalGradient, Observation
from rl.losses import goal_gradient_loss, td_target_gradient
from rl.reengage import GoalConditioned, Logs
from rl.reward_watch import RewardWatch
from rl.slopes import slope
from tests.agents import ALGORITHMS, OURS, STOCK, Mute, agent, bits, check_plain_critic, seek


def parameters(model: Any) -> dict[str, Tensor]:
    return model.policy.state_dict()


class Centered(CombinedExtractor):
    """A features extractor with a buffer that follows what it sees while it is trained."""

    def __init__(self, space: spaces.Dict) -> None:
        super().__init__(space)
        self.register_buffer("mean", torch.zeros(self.features_dim))
        self.register_buffer("running_scale", torch.ones(self.features_dim))
        self.register_buffer("running_size", torch.ones(()), persistent=False)

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        features = super().forward(observation)
        if self.training:
            with torch.no_grad():
                self.mean += 0.1 * (features.mean(0) - self.mean)
                self.running_scale += 0.1 * (features.abs().mean(0) - self.running_scale)
                self.running_size += 0.1 * (features.abs().mean() - self.running_size)
        return (features - self.mean) * self.running_scale / self.running_size


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("stock_buffer", [True, False])
def test_coefficient_zero_is_stable_baselines3_bit_for_bit(name: str, stock_buffer: bool) -> None:
    """After 200 updates, all parameters, of target networks too."""
    stock = agent(name, stock=True).learn(251)
    options = {"replay_buffer_class": type(stock.replay_buffer)} if stock_buffer else {}
    ours = agent(name, goal_gradient_coef=0, **options).learn(251)
    assert ours._n_updates == stock._n_updates >= 200
    for key, value in parameters(stock).items():
        assert torch.equal(parameters(ours)[key], value), key
    if name == "SAC":
        assert torch.equal(ours.log_ent_coef, stock.log_ent_coef)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("TD3", {"policy_kwargs": {"net_arch": [16], "n_critics": 3}, "policy_delay": 3}),
        ("SAC", {"ent_coef": 0.1, "target_update_interval": 2, "gradient_steps": 3}),
        ("SAC", {"use_sde": True}),
        ("DQN", {"max_grad_norm": 0.01}),
        *((name, {"policy_kwargs": {"net_arch": [16], "features_extractor_class": Centered}}) for name in ALGORITHMS),
    ],
)
def test_coefficient_zero_with_other_options(name: str, options: dict[str, Any]) -> None:
    stock, ours = (agent(name, stock=which, **options).learn(120) for which in (True, False))
    for key, value in parameters(stock).items():
        assert torch.equal(parameters(ours)[key], value), key


def naive_loss(model: Any, batch: Any, alpha: float, noise: Tensor | None = None) -> Tensor:
    """Eq. 8.9 for DDPG, written down directly and differentiated twice."""
    goal = batch.next_observations[GOAL].clone().requires_grad_()
    observation = {**batch.next_observations, GOAL: goal}
    (next_value,) = model.critic_target(observation, model.actor_target(observation))
    (next_gradient,) = torch.autograd.grad(next_value.sum(), goal)
    going_on = 1 - batch.dones
    target = batch.rewards + going_on * model.gamma * next_value.detach()
    goal = batch.observations[GOAL].clone().requires_grad_()
    (value,) = model.critic({**batch.observations, GOAL: goal}, batch.actions)
    (gradient,) = torch.autograd.grad(value.sum(), goal, create_graph=True)
    error = (gradient - going_on * model.gamma * next_gradient).square().sum(1)
    return F.mse_loss(value, target) + alpha * (error * (batch.rewards[:, 0] == -1)).mean()


def gradients(model: Any, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.critic.parameters())))


def test_the_loss_of_ddpg_is_equation_8_9() -> None:
    model: Any = agent("DDPG", goal_gradient_coef=0.3).learn(60)
    batch = model.replay_buffer.sample(64)
    batch = batch._replace(dones=(torch.arange(64) % 7 == 0).float()[:, None])
    assert 0 < (batch.rewards == -1).float().mean() < 1
    naive, ours = naive_loss(model, batch, 0.3), model._critic_loss(batch, Logs())
    assert torch.allclose(naive, ours, rtol=1e-5)
    for expected, got in zip(gradients(model, naive), gradients(model, ours), strict=True):
        assert torch.allclose(expected, got, rtol=1e-4, atol=1e-6)


@dataclass(frozen=True)
class FirstCoordinate(GoalGradient):
    """A rule of one's own: only the first coordinate of the goal is differentiated."""

    def attach(self, observation: Observation) -> tuple[Observation, torch.Tensor]:
        goal = observation[GOAL].detach()
        first = goal[:, :1].clone().requires_grad_()
        return {**observation, GOAL: torch.cat((first, goal[:, 1:]), 1)}, first


class Halves:
    def attach(self, observation: Observation) -> tuple[Observation, torch.Tensor]:
        raise NotImplementedError


def test_rules_that_override_attach_are_not_plain() -> None:
    class Mixed(Halves, GoalGradient):
        pass

    class Stated(GoalGradient):
        plain = True
        attach = Halves.attach  # type: ignore[assignment]

    class Further(Stated):
        pass

    class Same(GoalGradient):
        pass

    assert [rule.plain for rule in (GoalGradient, Mixed, Stated, Further, Same)] == [True, False, True, True, True]


def test_a_rule_that_differentiates_something_else_does_so_on_both_sides() -> None:
    model: Any = agent("DDPG", goal_gradient_coef=0.3, goal_gradient=FirstCoordinate()).learn(60)
    batch, logs = model.replay_buffer.sample(32), Logs()
    model._critic_loss(batch, logs)
    values, slopes = {}, {}
    for name, rule in (("first", FirstCoordinate()), ("all", GoalGradient())):
        model.goal_gradient = rule
        observation, variable = rule.attach(batch.next_observations)
        target = slope(model._next_value(batch, observation).smooth, variable, differentiable=False)
        values[name] = td_target_gradient(batch.dones, model.gamma, target)
        slopes[name] = model._values_and_slopes(batch)[1][0]
    assert slopes["first"].shape == (32, 1)
    assert torch.allclose(slopes["first"], slopes["all"][:, :1], rtol=1e-4, atol=1e-6)
    weight = (batch.rewards == -1).float()
    expected = 0.3 * goal_gradient_loss(slopes["all"][:, :1], values["all"][:, :1], weight)
    assert float(logs.last()["goal_gradient_loss"]) == pytest.approx(expected.item(), rel=1e-4)
    with pytest.raises(ValueError, match=r"got \(32, 3\) from the critic and \(32, 1\) from its target"):
        goal_gradient_loss(slopes["all"], values["first"], weight)
    with pytest.raises(ValueError, match="expected what is differentiated, such as"):
        agent("DDPG", goal_gradient_coef=0.3, goal_gradient=GoalGradient)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_plain_critics_and_double_differentiation_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = agent(name, goal_gradient_coef=0.5).learn(60)
    check_plain_critic(model, model.replay_buffer.sample(64), monkeypatch, atol=1e-6)


def test_the_term_of_sac_has_its_scale_and_its_entropy() -> None:
    model: Any = agent("SAC", goal_gradient_coef=0.5, ent_coef=0.7).learn(60)
    batch = model.replay_buffer.sample(64)
    model._begin(batch, Logs())
    logs = Logs()
    torch.manual_seed(1)
    model._critic_loss(batch, logs)

    torch.manual_seed(1)
    goal = batch.next_observations[GOAL].clone().requires_grad_()
    observation = {**batch.next_observations, GOAL: goal}
    actions, log_prob = model.actor.action_log_prob(observation)
    value = torch.cat(model.critic_target(observation, actions), 1).min(1).values - 0.7 * log_prob
    (next_gradient,) = torch.autograd.grad(value.sum(), goal)
    goal = batch.observations[GOAL].clone().requires_grad_()
    term = 0.0
    for own in model.critic({**batch.observations, GOAL: goal}, batch.actions):
        (gradient,) = torch.autograd.grad(own.sum(), goal, retain_graph=True)
        error = (gradient - model.gamma * next_gradient).square().sum(1)
        term += 0.5 * 0.5 * (error * (batch.rewards[:, 0] == -1)).mean()
    assert logs.means()["goal_gradient_loss"] == pytest.approx(float(term), rel=1e-4)


def test_td3_takes_the_gradient_of_the_lower_critic_and_shares_the_noise() -> None:
    model: Any = agent("TD3", goal_gradient_coef=0.5).learn(60)
    batch = model.replay_buffer.sample(64)
    torch.manual_seed(3)
    observation, variable = model.goal_gradient.attach(batch.next_observations)
    value = model._next_value(batch, observation)
    torch.manual_seed(3)
    noise = torch.randn_like(batch.actions).mul(0.2).clamp(-0.5, 0.5)
    actions = (model.actor_target(observation) + noise).clamp(-1, 1)
    first, second = model.critic_target(observation, actions)
    assert torch.allclose(value.target, torch.minimum(first, second))
    lower = torch.where(first <= second, first, second)
    ours, direct = (torch.autograd.grad(v.sum(), variable)[0] for v in (value.smooth, lower))
    assert torch.allclose(ours, direct, atol=1e-6)


@pytest.mark.parametrize("soft_target", ["gradient", "both", "behaviour"])
@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_soft_targets_of_dqn(soft_target: Any, temperature: float) -> None:
    model: Any = agent("DQN", goal_gradient_coef=0.5, soft_target=soft_target, temperature=temperature).learn(60)
    batch = model.replay_buffer.sample(64)
    value = model._next_value(batch, batch.next_observations)
    q = model.q_net_target(batch.next_observations)
    hard = q.max(1).values
    soft = hard if temperature == 0 else (torch.softmax(q / temperature, 1) * q).sum(1)
    assert torch.allclose(value.smooth[:, 0], soft)
    assert torch.allclose(value.target[:, 0], hard if soft_target == "gradient" else soft)


def test_the_loss_of_dqn_discounts_once() -> None:
    """G.9 to G.11, without the second gamma that is printed, and only where the reward is low (Eq. 8.9)."""
    model: Any = agent("DQN", goal_gradient_coef=0.3, temperature=0.5).learn(60)
    batch = model.replay_buffer.sample(64)
    batch = batch._replace(dones=(torch.arange(64) % 7 == 0).float()[:, None])
    low = batch.rewards[:, 0] == -1
    assert 0 < low.float().mean() < 1
    goal = batch.next_observations[GOAL].float().requires_grad_()
    q = model.q_net_target({**batch.next_observations, GOAL: goal})
    (next_gradient,) = torch.autograd.grad(((q / 0.5).softmax(1) * q).sum(), goal)
    hard = q.max(1, keepdim=True).values.detach()
    going_on = 1 - batch.dones
    goal = batch.observations[GOAL].float().requires_grad_()
    value = model.q_net({**batch.observations, GOAL: goal}).gather(1, batch.actions.long())
    (gradient,) = torch.autograd.grad(value.sum(), goal, create_graph=True)
    error = (gradient - going_on * model.gamma * next_gradient).square().sum(1)
    plain = F.smooth_l1_loss(value, batch.rewards + going_on * model.gamma * hard)  # as in Stable-Baselines3
    expected, ours = plain + 0.3 * (error * low).mean(), model._critic_loss(batch, Logs())
    assert torch.allclose(expected, ours, rtol=1e-5)


def test_behaviour_follows_the_soft_policy() -> None:
    model: Any = agent(
        "DQN",
        env=bits(2_000),
        goal_gradient_coef=0.5,
        soft_target="behaviour",
        temperature=0.2,
        target_update_interval=2_000,
    )
    observation = model.env.reset()
    one = {key: np.repeat(value[:1], 2_000, axis=0) for key, value in observation.items()}
    actions, _ = model.predict(one, deterministic=False)
    q = model.q_net_target(model.policy.obs_to_tensor(one)[0])[0]
    expected = torch.softmax(q / 0.2, 0).detach().numpy()
    assert np.abs(np.bincount(actions, minlength=4) / 2_000 - expected).max() < 0.05
    best, _ = model.predict(one, deterministic=True)
    assert (best == int(model.q_net(model.policy.obs_to_tensor(one)[0])[0].argmax())).all()
    single, _ = model.predict({key: value[0] for key, value in observation.items()}, deterministic=False)
    assert np.ndim(single) == 0
    model.exploration_rate = 0.5  # then half of the steps are uniform, and the others still follow the soft policy
    steps = [np.bincount(model.predict(one)[0], minlength=4) / 2_000 for _ in range(40)]
    soft, uniform = ([np.abs(step - shares).max() < 0.05 for step in steps] for shares in (expected, np.full(4, 0.25)))
    assert all(np.logical_or(soft, uniform))
    assert 5 <= sum(soft) <= 35


ANOTHER = "ignore:goal_gradient.*differentiates another reward:UserWarning"  # the environment's are -1 and 0


@pytest.mark.filterwarnings(ANOTHER)
def test_dense_rewards() -> None:
    """Eq. 8.8: all transitions count, and the reward's gradient is part of the target."""
    rule = GoalGradient(reward=lambda achieved, goal: -(achieved - goal).square().sum(1))
    model: Any = agent("DDPG", goal_gradient_coef=0.5, goal_gradient=rule).learn(60)
    batch = model.replay_buffer.sample(64)
    expected = 2 * (batch.next_observations["achieved_goal"] - batch.next_observations[GOAL])
    assert torch.allclose(rule.reward_gradient(batch.next_observations), expected)  # type: ignore[arg-type]
    assert (rule.weight(batch.rewards, 0.9, 0.9, None) == 1).all()


@pytest.mark.filterwarnings(ANOTHER)
def test_dense_rewards_are_equation_8_8() -> None:
    """Written down directly: the target's gradient is that of the reward plus that of the discounted next value."""
    rule = GoalGradient(reward=lambda achieved, goal: -(achieved - goal).square().sum(1))
    model: Any = agent("DDPG", goal_gradient_coef=0.3, goal_gradient=rule).learn(60)
    batch = model.replay_buffer.sample(64)
    batch = batch._replace(dones=(torch.arange(64) % 7 == 0).float()[:, None])
    goal = batch.next_observations[GOAL].clone().requires_grad_()
    observation = {**batch.next_observations, GOAL: goal}
    (next_value,) = model.critic_target(observation, model.actor_target(observation))
    reward = -(batch.next_observations["achieved_goal"] - goal).square().sum(1, keepdim=True)
    target = reward + (1 - batch.dones) * model.gamma * next_value
    (target_gradient,) = torch.autograd.grad(target.sum(), goal)
    goal = batch.observations[GOAL].clone().requires_grad_()
    (value,) = model.critic({**batch.observations, GOAL: goal}, batch.actions)
    (gradient,) = torch.autograd.grad(value.sum(), goal, create_graph=True)
    plain = batch.rewards + (1 - batch.dones) * model.gamma * next_value.detach()
    expected = F.mse_loss(value, plain) + 0.3 * (gradient - target_gradient).square().sum(1).mean()
    ours = model._critic_loss(batch, Logs())
    assert torch.allclose(expected, ours, rtol=1e-5)
    for one, other in zip(gradients(model, expected), gradients(model, ours), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_only_low_rewards_count() -> None:
    rewards = torch.tensor([[-1.0], [0.0], [-1.0], [-0.5]])
    assert GoalGradient().weight(rewards, 0.9, 0.9, None).flatten().tolist() == [1, 0, 1, 0]
    assert GoalGradient(low_reward=0).weight(rewards, 0.9, 0.9, None).flatten().tolist() == [0, 1, 0, 0]
    # two steps of -1 with gamma = 0.9: -1.9; a single one, after which the episode ended, has discount 0.9
    returns, discounts = torch.tensor([[-1.9], [-1.0], [-1.0], [-0.9]]), torch.tensor([[0.81], [0.9], [0.81], [0.81]])
    assert GoalGradient().weight(returns, discounts, 0.9, None).flatten().tolist() == [1, 1, 0, 0]
    gamma = 0.9995
    returns = torch.tensor([[-1 - gamma - gamma**2], [-1 - gamma]], dtype=torch.float32)
    discounts = torch.tensor([[gamma**3]] * 2, dtype=torch.float32)
    assert GoalGradient().weight(returns, discounts, gamma, None).flatten().tolist() == [1, 0]


class Shifted(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Rewards of 0 and 1 in place of -1 and 0."""

    def step(self, action: Any) -> Any:
        observation, reward, *others = self.env.step(action)
        return observation, float(reward) + 1, *others

    def compute_reward(self, *goals: Any) -> Any:
        return self.env.unwrapped.compute_reward(*goals) + 1  # type: ignore[attr-defined]


def shifted() -> gymnasium.Env[Any, Any]:
    return Shifted(gymnasium.make("ContinuousSeek-v0", d=3, bound=1.0, eps=0.3, steps=5))


def test_rewards_without_a_low_one_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The term is 0 with them, which would otherwise show only in the logs."""
    monkeypatch.setattr("rl.reward_watch.PATIENCE", 100)
    model: Any = agent("DDPG", env=shifted(), goal_gradient_coef=0.3).learn(99)
    with pytest.warns(UserWarning, match=r"rewards from 0 to 1 in a batch.* none of low_reward=-1") as told:
        model.learn(100, reset_num_timesteps=False)
    assert len(told) == 1
    assert "rl.GoalGradient(low_reward=...)" in str(told[0].message)


@pytest.mark.filterwarnings(ANOTHER)
@pytest.mark.parametrize(
    "options",
    [
        {"goal_gradient_coef": 0},
        {"goal_gradient": GoalGradient(low_reward=0)},
        {"goal_gradient": GoalGradient(reward=lambda achieved, goal: -(achieved - goal).square().sum(1))},
    ],
)
def test_other_rewards_that_are_told_of_are_fine(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl.reward_watch.PATIENCE", 1)
    agent("DDPG", env=shifted(), **{"goal_gradient_coef": 0.3, **options}).learn(80)  # warnings are errors


def test_another_rule_or_environment_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl.reward_watch.PATIENCE", 50)
    model: Any = agent("DDPG", goal_gradient_coef=0.3).learn(80)
    model.goal_gradient = GoalGradient(low_reward=5.0)
    with pytest.warns(UserWarning, match="none of low_reward=5"):
        model.learn(60, reset_num_timesteps=False)
    model: Any = agent("DDPG", goal_gradient_coef=0.3).learn(80)
    model.set_env(rl.VectorEnvAdapter(model.env.env))
    model.learn(60, reset_num_timesteps=False)
    assert model._reward_watch.settled
    assert model._reward_watch._subject == (model.goal_gradient, model.env)


def test_something_small_under_a_root_is_no_other_reward() -> None:
    """It is what an error advises."""

    class Dense(gymnasium.Wrapper[Any, Any, Any, Any]):
        def step(self, action: Any) -> Any:
            observation, _, *others = self.env.step(action)
            return (
                observation,
                float(self.compute_reward(observation["achieved_goal"], observation["desired_goal"])),
                *others,
            )

        def compute_reward(self, achieved: Any, goal: Any, info: Any = None) -> Any:
            return -np.sqrt(np.square(achieved - goal).sum(-1))

    rule = GoalGradient(reward=lambda achieved, goal: -((achieved - goal).square().sum(1) + 1e-8).sqrt())
    env = Dense(gymnasium.make("ContinuousSeek-v0", d=3, bound=1.0, eps=0.3, steps=5))
    agent("DDPG", env=env, goal_gradient_coef=0.3, goal_gradient=rule).learn(80)  # warnings are errors


class Strict(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Another environment with the same spaces: nothing reaches a goal."""

    def step(self, action: Any) -> Any:
        observation, _, *others = self.env.step(action)
        return observation, -1.0, *others

    def compute_reward(self, achieved: Any, goal: Any, info: Any) -> Any:
        return -np.ones(len(achieved))


def strict() -> gymnasium.Env[Any, Any]:
    return Strict(gymnasium.make("ContinuousSeek-v0", d=3, bound=1.0, eps=0.3, steps=5))


def lengths(model: Any) -> list[int]:
    """Of the episodes that the replay buffer knows, in order."""
    buffer = model.replay_buffer
    starts = np.flatnonzero(np.diff(buffer.ep_start[: buffer.pos, 0], prepend=-1))
    return buffer.ep_length[starts, 0].tolist()


@pytest.mark.parametrize("stock_buffer", [True, False])
def test_another_environment_rewards_what_is_relabelled(stock_buffer: bool) -> None:
    options = {"replay_buffer_class": sb3.HerReplayBuffer} if stock_buffer else {}
    model: Any = agent("DDPG", goal_gradient_coef=0.3, **options).learn(63)
    assert (model.replay_buffer.sample(200).rewards == 0).any()
    model.set_env(strict())
    assert lengths(model) == [5] * 12 + [3]
    assert model.replay_buffer.env is model.env
    batch = model.replay_buffer.sample(1_000) if stock_buffer else told(model.replay_buffer)
    assert (batch.rewards[200:] == -1).all()  # the relabelled ones
    model.learn(12, reset_num_timesteps=False)
    assert lengths(model) == [5] * 12 + [3, 5, 5, 0]


def told(buffer: Any) -> Any:
    """A minibatch, which shows that real transitions were rewarded otherwise."""
    with pytest.warns(UserWarning, match="real and relabelled transitions have different rewards"):
        return buffer.sample(1_000)


def test_the_same_environment_may_go_on_within_an_episode() -> None:
    model: Any = agent("DDPG").learn(63)
    model.set_env(model.env, force_reset=False)
    model.learn(2, reset_num_timesteps=False)
    assert lengths(model) == [5] * 13


def test_another_environment_is_looked_at_as_the_first_one() -> None:
    model: Any = agent("DQN", env=bits(d=2)).learn(60)
    with pytest.raises(ValueError, match="has no compute_reward"):
        model.set_env(Mute(gymnasium.make("BitFlipping-v0", d=2)))
    assert model.replay_buffer.env is model.env
    model.set_env(bits(d=2, terminate=True))
    with pytest.warns(UserWarning, match="an episode that terminates"):
        model.learn(60)


def test_models_without_an_environment_or_hindsight_may_get_one(tmp_path: Any) -> None:
    plain: Any = agent("DDPG", replay_buffer_class=None).learn(60)
    plain.set_env(strict())
    plain.save(tmp_path / "plain")
    loaded: Any = rl.DDPG.load(tmp_path / "plain")
    loaded.set_env(strict())
    loaded.learn(60)
    agent("DDPG").save(tmp_path / "model")
    loaded = rl.DDPG.load(tmp_path / "model", env=strict())
    assert loaded.replay_buffer.env is loaded.env
    loaded.learn(60)
    bare: Any = rl.DDPG("MultiInputPolicy", seek(), _init_setup_model=False)
    bare.set_env(strict())  # before there is a buffer


@pytest.mark.parametrize("stock_buffer", [True, False])
def test_episodes_end_where_the_environment_is_reset(stock_buffer: bool) -> None:
    options = {"replay_buffer_class": sb3.HerReplayBuffer} if stock_buffer else {}
    model: Any = agent("DDPG", goal_gradient_coef=0.3, **options).learn(63)
    model.learn(7)
    assert lengths(model) == [5] * 12 + [3, 5, 0]
    assert model.replay_buffer.timeouts[62] == model.replay_buffer.dones[62] == 1
    model.learn(3, reset_num_timesteps=False)  # goes on within the episode
    assert lengths(model) == [5] * 12 + [3, 5, 5]


@pytest.mark.parametrize("rule", [GoalGradient(), GoalGradient(normalize=True)])
def test_the_share_of_transitions_that_count_is_logged(rule: GoalGradient) -> None:
    model: Any = agent("DDPG", goal_gradient_coef=0.3, goal_gradient=rule, gradient_steps=7)
    shares, update = [], model._update

    def recorded(batch: Any, step: int) -> Any:
        shares.append((batch.rewards == -1).float().mean().item())
        return update(batch, step)

    model._update = recorded
    model.learn(51)
    assert len(shares) == 7
    assert 0 < np.mean(shares) < 1
    assert model.logger.name_to_value["train/goal_gradient_share"] == pytest.approx(np.mean(shares))


def test_no_share_is_logged_without_the_term() -> None:
    model: Any = agent("DDPG").learn(60)
    assert not any("goal_gradient" in name for name in model.logger.name_to_value)


def test_options_of_the_caller_are_left_alone() -> None:
    options: dict[str, Any] = {"net_arch": [8]}
    for name in ("SAC", "DDPG"):
        agent(name, policy_kwargs=options)
    assert options == {"net_arch": [8]}


def test_ranges_of_returns_are_two_numbers() -> None:
    for wrong in (5, (1, 0), (0, 1, 2)):
        with pytest.raises(ValueError, match=r"target_range: got .*, expected the smallest and the largest return"):
            agent("DDPG", target_range=wrong)


def test_dense_rewards_beside_normalized_observations() -> None:
    """Goals are left as they are."""
    rule = GoalGradient(reward=lambda achieved, goal: -(achieved - goal).square().sum(1))
    env = VecNormalize(seek(), norm_reward=False, norm_obs_keys=["observation"])
    agent("DDPG", env=env, goal_gradient_coef=0.1, goal_gradient=rule)


def test_looking_for_low_rewards_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    looking: Any = agent("TD3", goal_gradient_coef=0.3).learn(120)
    monkeypatch.setattr(RewardWatch, "look", lambda *args, **kwargs: None)
    blind: Any = agent("TD3", goal_gradient_coef=0.3).learn(120)
    assert looking._reward_watch.settled
    assert not blind._reward_watch.settled
    assert all(torch.equal(value, parameters(blind)[key]) for key, value in parameters(looking).items())


def test_normalized_gradients_do_not_depend_on_the_units_of_a_goal() -> None:
    model: Any = agent("DDPG", goal_gradient_coef=0.5, goal_gradient=GoalGradient(normalize=True)).learn(80)
    goals = []
    sample = model.replay_buffer.sample

    def recorded(*args: Any, **kwargs: Any) -> Any:
        goals.append(sample(*args, **kwargs))
        return goals[-1]

    model.replay_buffer.sample = recorded
    model.goal_statistics = type(model.goal_statistics)()
    model.train(5, 32)
    seen = torch.cat([batch.observations[GOAL] for batch in goals]).double()
    assert np.allclose(model.goal_statistics.variance, seen.var(0, unbiased=False).numpy())
    weight = model.goal_gradient.weight(goals[0].rewards, 0.9, 0.9, model.goal_statistics)
    assert torch.allclose(weight[goals[0].rewards[:, 0] == -1][0].double(), seen.var(0, unbiased=False))


class Learned(BaseFeaturesExtractor):
    """A features extractor with parameters."""

    def __init__(self, space: spaces.Dict) -> None:
        super().__init__(space, 8)
        self.inner = CombinedExtractor(space)
        self.layer = nn.Linear(9, 8)

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        return torch.tanh(self.layer(self.inner(observation)))


class BatchNormed(Learned):
    """A features extractor in which the samples of a minibatch depend on one another."""

    def __init__(self, space: spaces.Dict) -> None:
        super().__init__(space)
        self.layer = nn.Sequential(nn.Linear(9, 8), nn.BatchNorm1d(8))  # type: ignore[assignment]


@pytest.mark.parametrize("name", ["DDPG", "TD3", "SAC", "DQN"])
def test_critics_that_mix_samples_have_no_goal_gradients(name: str) -> None:
    """The derivative of the sum of all values is that of each value only if none depends on other samples."""
    env = bits() if name == "DQN" else seek()
    policy = {"net_arch": [8], "features_extractor_class": BatchNormed} if name != "DQN" else {"net_arch": [8]}
    if name == "DQN":
        model: Any = agent(name, env=env, policy_kwargs=policy)
        model.policy.q_net.q_net = nn.Sequential(*model.policy.q_net.q_net, nn.BatchNorm1d(3))
    else:
        model = agent(name, env=env, policy_kwargs=policy)
        model.learn(60)  # without goal gradients, it is Stable-Baselines3's business
        with pytest.raises(ValueError, match="got BatchNorm1d in the critic, in which each value depends"):
            agent(name, env=env, policy_kwargs=policy, goal_gradient_coef=0.3)
    model.goal_gradient_coef = 0.3
    with pytest.raises(ValueError, match="got BatchNorm1d in the critic"):
        model.train(1, 8)
    model.policy.set_training_mode(False)
    check_samples_apart(model.policy)  # frozen


def test_an_agent_with_batch_normalization_can_be_loaded_to_act(tmp_path: Path) -> None:
    env, policy = seek(), {"net_arch": [8], "features_extractor_class": BatchNormed}
    model: Any = agent("DDPG", env=env, policy_kwargs=policy).learn(60)
    model.goal_gradient_coef = 0.3  # as an earlier version allowed
    model.save(tmp_path / "model")
    loaded: Any = rl.DDPG.load(tmp_path / "model", env=env)
    assert loaded.goal_gradient_coef == 0.3
    loaded.predict(env.reset())
    with pytest.raises(ValueError, match="got BatchNorm1d in the critic"):
        loaded.train(1, 8)


def test_actors_may_mix_samples_where_their_target_is_differentiated() -> None:
    ddpg: Any = agent("DDPG", goal_gradient_coef=0.3)
    ddpg.actor.mu = nn.Sequential(ddpg.actor.mu, nn.BatchNorm1d(3))
    check_samples_apart(ddpg.policy)
    sac: Any = agent("SAC", goal_gradient_coef=0.3)
    sac.actor.latent_pi = nn.Sequential(sac.actor.latent_pi, nn.BatchNorm1d(16))
    with pytest.raises(ValueError, match="got BatchNorm1d in the actor"):
        check_samples_apart(sac.policy)


class Blind(BaseFeaturesExtractor):
    """A features extractor that does not look at the goal."""

    def __init__(self, space: spaces.Dict) -> None:
        super().__init__(space, 3)

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        return observation["observation"]


@pytest.mark.parametrize(
    "policy", [{"features_extractor_class": Learned}, {"activation_fn": nn.Tanh}, {"net_arch": []}]
)
def test_other_critics_are_differentiated_twice(policy: dict[str, Any]) -> None:
    model: Any = agent("DDPG", goal_gradient_coef=0.3, policy_kwargs={"net_arch": [16], **policy}).learn(60)
    batch = model.replay_buffer.sample(64)
    assert (model._plain_critic(batch) is None) == ("net_arch" not in policy)
    naive, ours = naive_loss(model, batch, 0.3), model._critic_loss(batch, Logs())
    assert torch.allclose(naive, ours, rtol=1e-5)
    for expected, got in zip(gradients(model, naive), gradients(model, ours), strict=True):
        assert torch.allclose(expected, got, rtol=1e-4, atol=1e-6)


class FlatEnv(gymnasium.Env[Any, Any]):
    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    action_space = spaces.Box(-1, 1, (3,), np.float32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"goal_gradient_coef": -1}, "goal_gradient_coef: got -1, expected a number of at least 0"),
        ({"goal_gradient_coef": float("nan")}, "goal_gradient_coef: got nan"),
        ({"goal_gradient_coef": "0.2"}, "goal_gradient_coef: got '0.2', expected a number"),
        ({"goal_gradient_coef": None}, "goal_gradient_coef: got None"),
        (
            {"goal_gradient_coef": lambda left: 0.2 * left},
            r"goal_gradient_coef: got .*lambda.*it cannot follow a schedule",
        ),
        ({"goal_gradient": 0.2}, "goal_gradient: got 0.2, expected what is differentiated"),
        ({"policy_kwargs": {"share_features_extractor": True}}, "share_features_extractor: got True"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        agent("DDPG", **{"goal_gradient_coef": 0.1, **options})


def test_bad_options_of_dqn() -> None:
    with pytest.raises(ValueError, match="temperature: got -1"):
        agent("DQN", temperature=-1)
    with pytest.raises(ValueError, match="temperature: got 'warm', expected a number"):
        agent("DQN", temperature="warm")
    with pytest.raises(ValueError, match="soft_target: got 'hard'"):
        agent("DQN", soft_target="hard")


@pytest.mark.parametrize("name", ["SAC", "DQN"])
def test_policies_for_many_goals_are_of_two_algorithms(name: str) -> None:
    env = gymnasium.make("DriveSeek-v0", max_goals=5)
    with pytest.raises(
        ValueError, match=rf"policy: got 'MultiGoalPolicy' with {name}, expected it with rl.DDPG or rl.T"
    ):
        getattr(rl, name)("MultiGoalPolicy", env)


def test_an_environment_without_goals() -> None:
    with pytest.raises(ValueError, match="expected a goal-conditioned environment"):
        rl.DDPG("MlpPolicy", FlatEnv(), goal_gradient_coef=0.1)


def test_normalized_rewards_are_refused() -> None:
    """They never equal low_reward: the term would vanish without a word."""
    with pytest.raises(ValueError, match="norm_reward=False"):
        agent("DDPG", env=VecNormalize(seek()), goal_gradient_coef=0.1)
    agent("DDPG", env=VecNormalize(seek())).learn(60)
    model: Any = agent("DDPG", env=VecNormalize(seek(), norm_reward=False), goal_gradient_coef=0.1).learn(80)
    assert model.logger.name_to_value["train/goal_gradient_loss"] > 0
    rule = GoalGradient(reward=lambda achieved, goal: -(achieved - goal).square().sum(1))
    with pytest.raises(ValueError, match="norm_obs_keys="):
        agent("DDPG", env=VecNormalize(seek(), norm_reward=False), goal_gradient_coef=0.1, goal_gradient=rule)


def test_dense_rewards_with_n_step_returns_are_refused() -> None:
    rule = GoalGradient(reward=lambda achieved, goal: -(achieved - goal).square().sum(1))
    with pytest.raises(ValueError, match="n-step returns"):
        rule.weight(torch.zeros(3, 1), torch.full((3, 1), 0.81), 0.9, None)


def test_options_that_change_later_are_checked(tmp_path: Any) -> None:
    model: Any = agent("DDPG", policy_kwargs={"share_features_extractor": True}).learn(60)
    model.goal_gradient_coef = 0.1
    with pytest.raises(ValueError, match="share_features_extractor"):
        model.learn(10, reset_num_timesteps=False)
    agent("DDPG").save(tmp_path / "model")
    with pytest.raises(ValueError, match="goal_gradient_coef: got -1"):
        rl.DDPG.load(tmp_path / "model", env=seek(), goal_gradient_coef=-1)
    with pytest.raises(ValueError, match=r"target_range: got \(0, -1\)"):
        rl.DDPG.load(tmp_path / "model", env=seek(), target_range=(0, -1))


def test_a_rule_that_changes_later_is_followed(tmp_path: Any) -> None:
    model: Any = agent("DDPG", goal_gradient_coef=0.1).learn(60)
    assert model.goal_statistics.count == 0
    model.save(tmp_path / "model")
    loaded: Any = rl.DDPG.load(tmp_path / "model", env=seek(), goal_gradient=GoalGradient(normalize=True))
    loaded.learn(60)
    assert loaded.goal_statistics.count > 0


def test_goals_without_gradients() -> None:
    goals = spaces.Dict({"observation": FlatEnv.observation_space, "desired_goal": spaces.Discrete(5)})
    with pytest.raises(ValueError, match="one-hot"):
        GoalGradient().check(goals)


def test_images_as_goals() -> None:
    """Stable-Baselines3 divides bytes by 255 after they are differentiated."""
    levels, share = spaces.Box(0, 255, (36, 36, 1), np.uint8), spaces.Box(0, 1, (1, 36, 36), np.float32)
    with pytest.raises(ValueError, match="desired_goal: got 8-bit images"):
        GoalGradient().check(spaces.Dict({"observation": levels, "desired_goal": levels}))
    GoalGradient().check(spaces.Dict({"observation": levels, "desired_goal": share}))


def test_a_critic_that_does_not_see_the_goal() -> None:
    model = agent("DDPG", goal_gradient_coef=0.1, policy_kwargs={"features_extractor_class": Blind})
    with pytest.raises(ValueError, match="does not depend on the goal"):
        model.learn(60)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_saving_and_loading_as_stable_baselines3(name: str, tmp_path: Any) -> None:
    model: Any = agent(name, goal_gradient_coef=0.3).learn(80)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded: Any = type(model).load(tmp_path / "model", env=model.env)
    loaded.load_replay_buffer(tmp_path / "buffer", truncate_last_traj=False)
    assert loaded.goal_gradient_coef == 0.3
    assert loaded.goal_gradient == model.goal_gradient
    assert all(torch.equal(value, parameters(model)[key]) for key, value in parameters(loaded).items())
    loaded.learn(20, reset_num_timesteps=False)
    assert any(not torch.equal(value, parameters(model)[key]) for key, value in parameters(loaded).items())


@pytest.mark.parametrize("name", ALGORITHMS)
def test_trained_models_can_be_copied(name: str) -> None:
    model: Any = agent(name, goal_gradient_coef=0.3).learn(60)
    copied = deepcopy(model)  # after an update, and not only where callbacks run: SAC's actor keeps its distribution
    copied.replay_buffer.set_env(copied.env)  # as with Stable-Baselines3, copies of buffers have no environment
    before = {key: value.clone() for key, value in parameters(model).items()}
    copied.train(3, 32)
    assert all(torch.equal(value, before[key]) for key, value in parameters(model).items())
    assert any(not torch.equal(value, before[key]) for key, value in parameters(copied).items())
    assert name == "DQN" or any(
        not torch.equal(value, before[key]) for key, value in parameters(copied).items() if "target" in key
    )


class Doubled(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def double_a_layer(layer: nn.Linear) -> None:
    weight, bias = layer.weight, layer.bias
    layer.forward = lambda x: 2 * F.linear(x, weight, bias)  # type: ignore[method-assign]


def halved(output: Any) -> Any:
    return tuple(map(halved, output)) if isinstance(output, tuple) else 0.5 * output


def hooked(module: nn.Module) -> None:
    module.register_forward_hook(lambda module, inputs, output: halved(output))


CHANGES: dict[str, Any] = {
    "hook on a layer": lambda critic: hooked(critic.qf0[0]),
    "hook on an activation": lambda critic: hooked(critic.qf0[1]),
    "hook on the network": lambda critic: hooked(critic.qf0),
    "hook on the critic": hooked,
    "hook on the features": lambda critic: hooked(critic.features_extractor),
    "hook on an entry": lambda critic: hooked(critic.features_extractor.extractors[GOAL]),
    "hook before a layer": lambda critic: critic.qf0[2].register_forward_pre_hook(lambda module, x: (2 * x[0],)),
    "another forward": lambda critic: double_a_layer(critic.qf0[0]),
    "a subclass": lambda critic: critic.q_networks.__setitem__(0, Doubled(*critic.qf0)),
    "spectral norm": lambda critic: nn.utils.spectral_norm(critic.qf0[0]).eval(),
    "weight norm": lambda critic: nn.utils.parametrizations.weight_norm(critic.qf0[0]),
    "pruned": lambda critic: prune.l1_unstructured(critic.qf0[0], "weight", amount=0.5),
}


@pytest.mark.parametrize("change", CHANGES)
def test_critics_that_were_changed_are_trained_as_they_are(change: str) -> None:
    model: Any = agent("DDPG", goal_gradient_coef=0.3).learn(60)
    batch = model.replay_buffer.sample(64)
    assert model._plain_critic(batch) is not None
    before = model._critic_loss(batch, Logs())
    CHANGES[change](model.critic)
    assert model._plain_critic(batch) is None
    naive, ours = naive_loss(model, batch, 0.3), model._critic_loss(batch, Logs())
    assert torch.allclose(naive, ours, rtol=1e-5)
    for expected, got in zip(gradients(model, naive), gradients(model, ours), strict=True):
        assert torch.allclose(expected, got, rtol=1e-4, atol=1e-6)
    assert change in ("weight norm", "hook on an activation") or not torch.allclose(ours, before, rtol=1e-4)


def test_hooks_of_all_modules_are_not_bypassed() -> None:
    model: Any = agent("DDPG", goal_gradient_coef=0.3).learn(60)
    batch = model.replay_buffer.sample(64)
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: 0.5 * output if isinstance(module, nn.Linear) else None
    )
    try:
        assert model._plain_critic(batch) is None
    finally:
        hook.remove()
    assert model._plain_critic(batch) is not None


@pytest.mark.parametrize("name", ["DDPG", "TD3", "SAC"])
@pytest.mark.parametrize("coef", [0.0, 0.3])
def test_critics_with_spectral_norm_can_be_trained(name: str, coef: float) -> None:
    class Policy(STOCK[name].policy_aliases["MultiInputPolicy"]):
        def make_critic(self, features_extractor: Any = None) -> Any:
            critic = super().make_critic(features_extractor)
            for network in critic.q_networks:
                nn.utils.spectral_norm(network[0])
            return critic

    model: Any = OURS[name](
        Policy,
        seek(),
        goal_gradient_coef=coef,
        learning_starts=50,
        batch_size=16,
        policy_kwargs={"net_arch": [16, 16]},
        replay_buffer_class=rl.HerReplayBuffer,
    )
    assert model.learn(80)._n_updates > 20


def test_several_environments() -> None:
    model = agent("SAC", env=seek(4), goal_gradient_coef=0.3, gradient_steps=-1).learn(120)
    assert isinstance(model, GoalConditioned)
    assert model._n_updates > 0


def test_losses_are_logged() -> None:
    model: Any = agent("DDPG", goal_gradient_coef=0.3).learn(60)
    names = set(model.logger.name_to_value)
    ours = {"train/goal_gradient_loss", "train/goal_gradient_share"}
    assert {"train/critic_loss", "train/actor_loss", "train/n_updates", *ours} <= names


def test_rules_are_values() -> None:
    assert replace(GoalGradient(), low_reward=0.0) == GoalGradient(low_reward=0.0)


class Frozen(Learned):
    """An extractor of which a part is not trained."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        next(self.parameters()).requires_grad_(False)


@pytest.mark.parametrize("coef", [0.0, 0.3])
def test_frozen_parameters(coef: float) -> None:
    model: Any = agent("DDPG", goal_gradient_coef=coef, policy_kwargs={"features_extractor_class": Frozen}).learn(60)
    for network in (model.actor, model.critic):
        assert next(network.features_extractor.parameters()).grad is None
    if coef == 0:
        stock: Any = agent("DDPG", stock=True, policy_kwargs={"features_extractor_class": Frozen}).learn(60)
        for own, other in zip(model.policy.parameters(), stock.policy.parameters(), strict=True):
            assert torch.equal(own, other)


def distance(achieved: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
    return -((achieved - goal).square().sum(1) + 1e-12).sqrt()


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda achieved, goal: -(achieved - goal).norm(), r"reward: got shape \(\), expected rewards \[32\]"),
        (lambda achieved, goal: achieved.sum(1), "that depend on the goal"),
        (lambda achieved, goal: -(((achieved - goal).abs() > 0.1).float().sum(1)), "in a differentiable way"),
        (lambda achieved, goal: -(achieved - goal).square().sum(1).sqrt(), "for a square root at 0"),
        (
            lambda achieved, goal: -np.linalg.norm(achieved - goal, axis=1),
            "converts tensors to NumPy .*differentiable PyTorch",
        ),
    ],
)
def test_reward_functions_that_cannot_be_differentiated(reward: Any, message: str) -> None:
    model: Any = agent("DDPG", goal_gradient_coef=0.1, goal_gradient=GoalGradient(reward=reward))
    with pytest.raises(ValueError, match=message):
        model.learn(60)


def test_a_reward_function_of_another_reward_is_told() -> None:
    model: Any = agent("DDPG", goal_gradient_coef=0.1, goal_gradient=GoalGradient(reward=distance))
    with pytest.warns(UserWarning, match="differentiates another reward than is learned"):
        model.learn(60)


@pytest.mark.parametrize("low", ["a", float("nan"), None])
def test_low_rewards_are_numbers(low: Any) -> None:
    with pytest.raises(ValueError, match=r"low_reward: got .*, expected a finite number"):
        GoalGradient(low_reward=low)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_help_shows_all_arguments(name: str) -> None:
    own = {"DQN": {"temperature", "soft_target"}}.get(name, {"random_action"})
    shown = inspect.signature(getattr(rl, name)).parameters
    assert {"policy", "env", "gamma", "goal_gradient_coef", "goal_gradient", "target_range", "cuda_graphs", *own} <= {
        *shown
    }
    assert shown["goal_gradient_coef"].default == 0
    assert shown["goal_gradient_coef"].kind is inspect.Parameter.KEYWORD_ONLY


def test_subclasses_show_theirs() -> None:
    class Mine(rl.DDPG):
        def __init__(self, env: Any, policy: str = "MultiInputPolicy", **kwargs: Any) -> None:
            super().__init__(policy, env, **kwargs)

    class Silent(rl.TD3):
        pass

    assert [*inspect.signature(Mine).parameters] == ["env", "policy", "kwargs"]
    assert inspect.signature(Silent) == inspect.signature(rl.TD3)
    assert Mine(seek(), goal_gradient_coef=0.1).goal_gradient_coef == 0.1


def test_buffers_that_do_not_keep_new_episodes_are_named() -> None:
    options: dict[str, Any] = {"policy_kwargs": {"net_arch": [8], "features_extractor_class": rl.NormalizedExtractor}}
    model: Any = agent("DDPG", **options).learn(60)
    model.replay_buffer = agent("DDPG", stock=True).replay_buffer
    with pytest.raises(ValueError, match=r"got HerReplayBuffer for NormalizedExtractor, expected rl\.Her"):
        model.update_statistics()


class Masked(GoalGradient):
    """Its weights are truth values."""

    def weight(self, rewards: Tensor, *others: Any) -> Tensor:
        return self.is_low(rewards, *others[:2])


def test_weights_may_be_truth_values() -> None:
    model: Any = agent("DDPG", goal_gradient_coef=0.3, goal_gradient=Masked()).learn(60)
    assert 0 < model.logger.name_to_value["train/goal_gradient_share"] <= 1
