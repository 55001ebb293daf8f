"""Multi-ReenGAGE: the gate term of the loss, encoders of goal sets, and what is shared between actor and critic."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import Tensor

import rl
from rl.deep_sets import DeepSets
from rl.gates import GateGradient
from rl.goal_image import GoalImage
from rl.multi_goal import ENCODERS
from rl.reengage import Logs
from rl.set_transformer import gated_attention
from tests.goal_sets import Collect, collector, double_batch, repadded, shuffled

encoders = pytest.mark.parametrize("encoder", ENCODERS)
sharing = pytest.mark.parametrize("share", [True, False])


def trained(**options: Any) -> Any:
    return collector(**{"goal_gradient_coef": 0.3, **options}).learn(40)


def dense_embedding(encoder: DeepSets, observation: dict[str, Tensor], gates: Tensor) -> Tensor:
    """Eq. G.14 over all rows of the goals, padding too."""
    state, items = observation["observation"], observation["desired_goal"][..., :-1]
    inputs = torch.cat([state[:, None].expand(-1, items.shape[1], -1), items], 2)
    embedding = (gates[..., None] ** 2 * encoder.encoder(inputs)).sum(1) / items.shape[1]
    return torch.cat([embedding, state], 1)


def naive_loss(model: Any, batch: Any, alpha: float) -> Tensor:
    """Eq. G.18 for DDPG, written down directly: all goals, each network on its own, differentiated twice."""

    def encoder(network: Any, critic: Any) -> DeepSets:
        return critic.features_extractor if model.policy.share_encoder else network.features_extractor

    def value(critic: Any, observation: Any, actions: Tensor, gates: Tensor) -> Tensor:
        features = dense_embedding(critic.features_extractor, observation, gates)
        return critic.q_networks[0](torch.cat([features, actions], 1))

    after, before = batch.next_observations, batch.observations
    gates = after["desired_goal"][..., -1].clone().requires_grad_()
    own = encoder(model.actor_target, model.critic_target)
    actions = model.actor_target.mu(dense_embedding(own, after, gates))
    next_value = value(model.critic_target, after, actions, gates)
    (next_gradient,) = torch.autograd.grad(next_value.sum(), gates)
    reached = (after["achieved_goal"][:, None] == after["desired_goal"][..., :-1]).all(2) * gates.detach()
    going_on = model.gamma * (1 - batch.dones)

    now = before["desired_goal"][..., -1].clone().requires_grad_()
    current = value(model.critic, before, batch.actions, now)
    (gradient,) = torch.autograd.grad(current.sum(), now, create_graph=True)
    error = gradient - (2 * reached + going_on * next_gradient)
    td = F.mse_loss(current, batch.rewards + going_on * next_value.detach())
    return td + alpha * error.square().sum(1).mean()


@sharing
def test_the_loss_is_equation_g_18(share: bool) -> None:
    """And its gradients are those of differentiating twice, in float64, though the encoder is evaluated once."""
    model = trained(policy_kwargs={"share_encoder": share})
    batch = double_batch(model)
    assert (batch.rewards > 0).any()
    naive, ours = naive_loss(model, batch, 0.3), model._critic_loss(batch, Logs())
    assert ours.item() == pytest.approx(naive.item(), rel=1e-12)
    parameters = list(model.critic.parameters())
    for expected, got in zip(
        torch.autograd.grad(naive, parameters), torch.autograd.grad(ours, parameters), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


@encoders
def test_gradients_of_the_loss_against_finite_differences(encoder: str) -> None:
    model = trained(encoder=encoder, learning_rate=1e-3)
    batch = double_batch(model, 6)
    parameters = list(model.critic.parameters())
    gradients = torch.autograd.grad(model._critic_loss(batch, Logs()), parameters)
    h, generator = 1e-6, np.random.default_rng(0)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        flat = parameter.data.view(-1)
        for i in generator.choice(len(flat), min(3, len(flat)), replace=False):
            kept = flat[i].item()
            flat[i] = kept + h
            above = model._critic_loss(batch, Logs()).item()
            flat[i] = kept - h
            below = model._critic_loss(batch, Logs()).item()
            flat[i] = kept
            assert (above - below) / (2 * h) == pytest.approx(gradient.reshape(-1)[i].item(), rel=1e-4, abs=1e-7)


@encoders
@sharing
def test_target_gradients_against_finite_differences(encoder: str, share: bool) -> None:
    """Of the next value with respect to the gates, through critic and actor."""
    model = trained(encoder=encoder, policy_kwargs={"share_encoder": share})
    observation = double_batch(model, 3).next_observations

    def value(goal: Tensor) -> Tensor:
        seen = model.policy.encode({**observation, "desired_goal": goal}, "target")
        return model.critic_target(seen, model.actor_target(seen))[0]

    attached, gates = model.goal_gradient.attach(observation)
    (gradient,) = torch.autograd.grad(value(attached["desired_goal"]).sum(), gates)
    present = observation["desired_goal"][..., -1] == 1
    assert (gradient[~present] == 0).all()
    assert (gradient[present] != 0).any()
    for i in range(gates.shape[1]):
        step = torch.zeros_like(observation["desired_goal"])
        step[:, i, -1] = 1e-6 * present[:, i]
        numeric = (value(observation["desired_goal"] + step) - value(observation["desired_goal"] - step)) / 2e-6
        torch.testing.assert_close(gradient[:, i], numeric[:, 0], rtol=1e-5, atol=1e-8)


@encoders
def test_padding_counts_for_exactly_nothing(encoder: str) -> None:
    model = trained(encoder=encoder)
    batch = model.replay_buffer.sample(16)
    assert (batch.observations["desired_goal"][..., -1] == 0).any()
    other = batch._replace(
        observations=repadded(batch.observations), next_observations=repadded(batch.next_observations)
    )
    losses = [model._critic_loss(each, Logs()) for each in (batch, other)]
    assert torch.equal(*losses)
    parameters = list(model.critic.parameters())
    for own, others in zip(*(torch.autograd.grad(loss, parameters) for loss in losses), strict=True):
        assert torch.equal(own, others)
    attached, gates = model.goal_gradient.attach(other.observations)
    features = model.critic.features_extractor(attached)
    (gradient,) = torch.autograd.grad(features.sum(), gates)
    assert (gradient[gates == 0] == 0).all()
    assert (gradient[gates != 0] != 0).any()
    actions = [model.actor(each.observations) for each in (batch, other)]
    assert torch.equal(*actions)


@encoders
def test_absent_goals_are_as_good_as_none(encoder: str) -> None:
    """The gate times what a goal would add: turning it off leaves what networks without it say."""
    model = trained(encoder=encoder)
    observation = double_batch(model).observations
    whole = observation["desired_goal"]
    without = whole.clone()
    without[:, 0, -1] = 0
    removed = whole.clone()
    removed[:, 0] = 0
    seen = [model.critic.features_extractor({**observation, "desired_goal": goal}) for goal in (without, removed)]
    assert torch.equal(*seen)
    empty = model.critic.features_extractor({**observation, "desired_goal": torch.zeros_like(whole)})
    assert empty.isfinite().all()


@encoders
def test_the_order_of_goals_changes_nothing(encoder: str) -> None:
    model = trained(encoder=encoder)
    batch = double_batch(model)
    other = batch._replace(
        observations=shuffled(batch.observations, 1), next_observations=shuffled(batch.next_observations, 1)
    )
    losses = [model._critic_loss(each, Logs()) for each in (batch, other)]
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
    parameters = list(model.critic.parameters())
    for own, others in zip(*(torch.autograd.grad(loss, parameters) for loss in losses), strict=True):
        torch.testing.assert_close(own, others, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(model.actor(batch.observations), model.actor(other.observations), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["DDPG", "TD3"])
@sharing
def test_coefficient_zero_is_stable_baselines3_with_this_policy(name: str, share: bool) -> None:
    """Bit for bit, though Stable-Baselines3 evaluates the encoder for each network anew."""
    options: dict[str, Any] = {"policy_kwargs": {"share_encoder": share}}
    stock = collector(name, stock=True, **options).learn(60).policy.state_dict()
    ours = collector(name, **options).learn(60).policy.state_dict()
    assert stock.keys() == ours.keys()
    assert all(torch.equal(value, ours[key]) for key, value in stock.items())


def evaluations(model: Any) -> list[int]:
    """How many times each encoder is evaluated by an update: critic's, its target's, and the actor's own."""
    counts = []
    own = [model.critic, model.critic_target]
    for network in own if model.policy.share_encoder else [*own, model.actor, model.actor_target]:
        counts.append(0)

        def count(*_: Any, i: int = len(counts) - 1) -> None:
            counts[i] += 1

        network.features_extractor.register_forward_hook(count)
    model.train(1, 16)
    return counts


@encoders
def test_encoders_are_evaluated_once_where_they_can_be(encoder: str) -> None:
    """By the target networks once; by the critic in its loss, and after its step once for the loss of the actor."""
    for coefficient in (0, 0.3):
        model = collector(encoder=encoder, goal_gradient_coef=coefficient).learn(40)
        assert evaluations(model) == [2, 1]
    assert evaluations(trained(encoder=encoder, policy_kwargs={"share_encoder": False})) == [2, 1, 1, 1]


def test_one_backward_pass_through_the_encoder() -> None:
    model = trained()
    calls: list[int] = []
    last = model.critic.features_extractor.encoder[-1]
    last.register_full_backward_hook(lambda *_: calls.append(1))
    loss = model._critic_loss(model.replay_buffer.sample(16), Logs())
    assert calls == []  # the gradients with respect to the gates took none
    loss.backward()
    assert calls == [1]


def test_a_shared_encoder_is_trained_by_the_critic_alone() -> None:
    model = trained()
    encoder = dict(model.critic.features_extractor.named_parameters())
    of_actor = {id(p) for group in model.actor.optimizer.param_groups for p in group["params"]}
    of_critic = {id(p) for group in model.critic.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in encoder.values()} <= of_critic
    assert of_actor == {id(p) for p in model.actor.mu.parameters()}
    before = {name: p.detach().clone() for name, p in encoder.items()}
    for parameter in encoder.values():
        parameter.grad = None
    for group in model.critic.optimizer.param_groups:  # so that only the actor's loss could change anything
        group["lr"] = 0.0
    head = model.actor.mu[0].weight.detach().clone()
    model._finish(model.replay_buffer.sample(16), 0, Logs())
    assert all(p.grad is None for p in encoder.values())
    assert all(torch.equal(p, before[name]) for name, p in encoder.items())
    assert not torch.equal(model.actor.mu[0].weight, head)
    assert model.actor.features_extractor._encoder[0] is model.critic.features_extractor
    assert model.actor_target.features_extractor._encoder[0] is model.critic_target.features_extractor
    assert not [key for key in model.policy.state_dict() if key.startswith("actor.features")]


def test_encoders_of_their_own_are_trained_by_their_own_losses() -> None:
    model = trained(policy_kwargs={"share_encoder": False})
    first = [network.features_extractor.encoder[0].weight for network in (model.actor, model.critic)]
    before = [weight.detach().clone() for weight in first]
    model._finish(model.replay_buffer.sample(16), 0, Logs())
    assert not torch.equal(first[0], before[0])
    assert torch.equal(first[1], before[1])


@sharing
def test_targets_follow_once(share: bool) -> None:
    model = trained(policy_kwargs={"share_encoder": share})
    old = {key: value.clone() for key, value in model.policy.state_dict().items()}
    model.train(1, 16)
    new = model.policy.state_dict()
    for key, value in old.items():
        if "target" in key:
            expected = (1 - model.tau) * value + model.tau * new[key.replace("_target", "")]
            torch.testing.assert_close(new[key], expected)


def test_observed_item_rewards_train_as_known_ones() -> None:
    rules = {"known": GateGradient(), "observed": GateGradient(item_rewards="reached")}
    states = [
        collector(env=Collect(item_rewards=True), goal_gradient_coef=0.3, goal_gradient=rule).learn(60)
        for rule in rules.values()
    ]
    first, second = (model.policy.state_dict() for model in states)
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_item_rewards_by_hand() -> None:
    goal = torch.tensor([[[1.0, 2.0, 1.0], [1.0, 2.0, 0.0], [3.0, 2.0, 1.0]]])
    observation = {"achieved_goal": torch.tensor([[1.0, 2.0]]), "desired_goal": goal}
    assert GateGradient().reward_gradient(observation).tolist() == [[2.0, 0.0, 0.0]]
    near = GateGradient(item_reward=lambda achieved, items: 1 / (achieved[:, None] - items).abs().sum(2))
    assert near.reward_gradient({**observation, "achieved_goal": torch.tensor([[1.0, 1.0]])}).tolist() == [
        [2.0, 0.0, pytest.approx(2 / 3)]
    ]
    observed = GateGradient(item_rewards="reached")
    assert observed.reward_gradient({**observation, "reached": torch.tensor([[0.5, 9.0, 0.0]])}).tolist() == [
        [1.0, 0.0, 0.0]
    ]
    assert GateGradient().weight(torch.zeros(3, 1), 0.9, 0.9, None).tolist() == [[1.0]] * 3


def test_gated_attention_by_hand() -> None:
    """As softmax over the tokens that are there, and one of logit and value 0."""
    torch.manual_seed(0)
    queries, keys, values = torch.randn(3, 2, 5, 4, dtype=torch.float64)
    weights = torch.tensor([[1.0, 0, 1, 1, 0], [0, 0, 0, 0, 0]], dtype=torch.float64)
    got = gated_attention(100 * queries, keys, values, weights)
    there = weights[0] == 1
    logits = torch.cat([100 * queries[0] @ keys[0][there].T / 2, torch.zeros(5, 1)], 1)
    expected = torch.softmax(logits, 1)[:, :-1] @ values[0][there]
    torch.testing.assert_close(got[0], expected)
    assert (got[1] == 0).all()


# --- the picture


BOUND = 3


def picture(goals: list[tuple[float, float, float]], position: tuple[float, float], angle: float = 0.0) -> Tensor:
    encoder = GoalImage(Collect(n_max=len(goals)).observation_space, bound=BOUND)  # type: ignore[arg-type]
    state = torch.tensor([[*position, *np.round(position), np.sin(angle), np.cos(angle)]], dtype=torch.float32)
    observation = {"observation": state, "desired_goal": torch.tensor([goals])}
    return encoder.paint(encoder.read(observation))[0]


def test_a_goal_overlaps_with_the_position_that_rounds_to_it() -> None:
    side = 8 * (2 * BOUND + 1)
    for position in np.random.default_rng(0).uniform(-BOUND, BOUND, (200, 2)):
        image = picture([(1.0, -2.0, 1.0)], (float(position[0]), float(position[1])))
        assert image.shape == (3, side, side)
        assert [int(channel.sum()) for channel in image] == [16, 16, 16]
        reached = bool((np.round(position) == [1, -2]).all())
        overlap = bool((image[0] * image[1]).any())
        inside = (np.abs(position - [1, -2]) < 0.5 - 0.126).all()
        outside = (np.abs(position - [1, -2]) > 0.5 + 0.126).any()
        assert overlap == reached or not (inside or outside)


def test_squares_of_the_picture() -> None:
    image = picture([(0.0, 1.0, 1.0), (2.0, 2.0, 0.0), (-3.0, 3.0, 1.0), (9.0, 0.0, 1.0)], (0.0, 0.0), np.pi / 2)
    red, green, blue = (set(map(tuple, (channel > 0).nonzero().tolist())) for channel in image)
    square = lambda x, y: {(x + i, y + j) for i in range(4) for j in range(4)}  # noqa: E731
    assert red == square(26, 34) | square(2, 50)
    assert green == square(26, 26)
    assert blue == square(26, 34)  # one unit along the second coordinate
    edge = picture([(0.0, 0.0, 0.0)], (2.5, 0.0), 0.0)
    assert set(edge[1].nonzero()[:, 0].tolist()) == {46, 47, 48, 49}
    assert set(edge[2].nonzero()[:, 0].tolist()) == {6, 7, 8, 9}  # 3.5 is -2.5
    assert edge[0].sum() == 0


# --- use


@encoders
def test_saving_loading_and_copying(encoder: str, tmp_path: Any) -> None:
    model = trained(encoder=encoder)
    model.save(tmp_path / "model")
    loaded: Any = rl.DDPG.load(tmp_path / "model", env=model.env)
    assert loaded.goal_gradient == GateGradient()
    state = model.policy.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.policy.state_dict().items())
    policy = type(model.policy)(**{**model.policy._get_constructor_parameters(), "lr_schedule": lambda _: 0.1})
    policy.load_state_dict(state)
    copied = deepcopy(model)
    assert copied.actor.features_extractor._encoder[0] is copied.critic.features_extractor
    before = {key: value.clone() for key, value in state.items()}
    copied.train(1, 16)
    assert all(torch.equal(value, before[key]) for key, value in model.policy.state_dict().items())
    observation = Collect().reset(seed=0)[0]
    for other in (loaded, policy):
        assert np.array_equal(model.predict(observation)[0], other.predict(observation)[0])


class KillAt(BaseCallback):
    def _on_step(self) -> bool:
        if self.num_timesteps >= 70:
            raise KeyboardInterrupt
        return True


@pytest.mark.parametrize("share", [True, False])
def test_a_killed_run_resumes_to_the_identical_result(tmp_path: Any, share: bool) -> None:
    plan = rl.Plan(steps=96, eval_every=32, eval_episodes=2, checkpoint_every=48)

    def go_on(folder: Any, callback: Any = None) -> Any:
        model = collector(goal_gradient_coef=0.3, policy_kwargs={"share_encoder": share})
        rl.run(model, DummyVecEnv([Collect]), plan, folder, resume=True, callback=callback)
        return model.policy.state_dict()

    whole = go_on(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        go_on(tmp_path / "killed", KillAt())
    resumed = go_on(tmp_path / "killed")
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    with np.load(tmp_path / "whole/evaluations.npz") as one, np.load(tmp_path / "killed/evaluations.npz") as other:
        assert all(np.array_equal(one[name], other[name]) for name in one.files)


def test_goals_are_stored_once() -> None:
    model = trained()
    buffer = model.replay_buffer
    assert buffer.next_observations["desired_goal"] is buffer.observations["desired_goal"]
    other = collector(goal_gradient_coef=0.3, replay_buffer_class=None).learn(40)
    np.random.seed(0)  # noqa: NPY002
    first = buffer.sample(30)
    np.random.seed(0)  # noqa: NPY002
    second = other.replay_buffer.sample(30)
    for key in first.observations:
        assert torch.equal(first.observations[key], second.observations[key])
        assert torch.equal(first.next_observations[key], second.next_observations[key])


def test_td3_learns_with_gates() -> None:
    model = collector("TD3", goal_gradient_coef=0.3).learn(60)
    assert model.logger.name_to_value["train/goal_gradient_loss"] > 0
    assert len(model.critic.q_networks) == 2


def test_several_environments() -> None:
    model = collector(env=DummyVecEnv([Collect] * 3), goal_gradient_coef=0.3, gradient_steps=-1).learn(90)
    assert model._n_updates > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "mlp"}, "encoder: got 'mlp', expected one of deep-sets, cnn, attention"),
        ({"share_features_extractor": True}, "share_features_extractor: got True"),
        ({"encoder_kwargs": {"layers": [4, 0]}}, r"layers: got \[4, 0\]"),
        ({"encoder_kwargs": {"embedding_dim": 0}}, r"embedding_dim: got \[0\]"),
        ({"encoder": "attention", "encoder_kwargs": {"width": 6, "heads": 4}}, "heads: got 4, expected a divisor"),
        ({"encoder": "cnn", "encoder_kwargs": {"bound": 1}}, "bound: got 1"),
    ],
)
def test_bad_arguments_of_policies(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collector(policy_kwargs=options)


def test_environments_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="expected a dictionary with 'desired_goal'"):
        rl.DDPG("MultiGoalPolicy", "Pendulum-v1")
    with pytest.raises(ValueError, match="expected a dictionary with 'desired_goal'"):
        rl.DDPG("MlpPolicy", "Pendulum-v1", goal_gradient_coef=1.0, goal_gradient=GateGradient())
    with pytest.raises(ValueError, match=r"reached: got None in the observation, expected a Box of shape \(5,\)"):
        collector(goal_gradient_coef=1.0, goal_gradient=GateGradient(item_rewards="reached"))
    parts = {key: spaces.Box(-1, 1, (3,)) for key in ("observation", "achieved_goal")}
    parts["desired_goal"] = spaces.Box(-1, 1, (5, 4))
    with pytest.raises(ValueError, match="got goals of 3 and states of 3 numbers"):
        GoalImage(spaces.Dict(parts))  # type: ignore[arg-type]


def test_an_encoder_may_be_a_class(tmp_path) -> None:
    class Own(DeepSets):
        pass

    named, own = trained(), trained(policy_kwargs={"encoder": Own})
    assert type(own.critic.features_extractor) is Own
    ours, theirs = own.policy.state_dict(), named.policy.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    own.save(tmp_path / "agent")
    loaded = rl.DDPG.load(tmp_path / "agent", device="cpu")
    assert all(torch.equal(value, ours[name]) for name, value in loaded.policy.state_dict().items())


def test_what_would_falsify_item_rewards_is_refused() -> None:
    vector = DummyVecEnv([Collect])
    with pytest.raises(ValueError, match="norm_reward=False"):
        collector(env=VecNormalize(vector), goal_gradient_coef=0.1)
    with pytest.raises(ValueError, match="other norm_obs_keys"):
        collector(env=VecNormalize(vector, norm_reward=False), goal_gradient_coef=0.1)
    normalized = VecNormalize(vector, norm_reward=False, norm_obs_keys=["observation"])
    assert collector(env=normalized, goal_gradient_coef=0.1).learn(30)._n_updates > 0
    with pytest.raises(ValueError, match="n-step returns"):
        GateGradient().weight(torch.zeros(3, 1), torch.full((3, 1), 0.81), 0.9, None)
