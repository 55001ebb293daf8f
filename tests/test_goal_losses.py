"""Critic losses as functions: hand-computed cases, finite differences, and two ways to the same gradients."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from rl.goals import GoalGradient, GoalStatistics
from rl.losses import goal_gradient_loss, low_return, soft_value, td_target, td_target_gradient
from rl.slopes import relu_layers, relu_value_and_slope
from rl.updates import Follower, descend, make_faster


def test_a_linear_critic_by_hand() -> None:
    """Q = w . g with w = (1, 2), a target gradient of (0, 1) in one transition that counts and one that does not."""
    w = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    gradient = w.expand(2, 2)
    target, weight = torch.tensor([[0.0, 1.0], [5.0, 5.0]]), torch.tensor([[1.0], [0.0]])
    loss = goal_gradient_loss(gradient, target, weight)
    assert loss.item() == (1**2 + 1**2) / 2  # summed over coordinates, averaged over the batch
    loss.backward()
    assert w.grad is not None
    assert w.grad.tolist() == [1.0, 1.0]  # 2 (w - target) / 2


def test_targets_by_hand() -> None:
    reward, done = torch.tensor([[-1.0], [0.0]]), torch.tensor([[0.0], [1.0]])
    assert td_target(reward, done, 0.5, torch.tensor([[4.0], [8.0]])).flatten().tolist() == [1.0, 0.0]
    slope = torch.tensor([[2.0, 4.0], [6.0, 8.0]])
    assert td_target_gradient(done, 0.5, slope).tolist() == [[1.0, 2.0], [0.0, 0.0]]
    assert td_target_gradient(done, 0.5, slope, torch.ones(2, 2)).tolist() == [[2.0, 3.0], [1.0, 1.0]]
    steps = torch.tensor([[0.25], [0.5]])
    assert td_target_gradient(torch.zeros(2, 1), steps, slope).tolist() == [[0.5, 1.0], [3.0, 4.0]]


def test_no_gradient_flows_into_the_target() -> None:
    target = torch.ones(3, 2, requires_grad=True)
    loss = goal_gradient_loss(torch.zeros(3, 2, requires_grad=True), target, torch.ones(3, 1))
    assert torch.autograd.grad(loss, target, allow_unused=True)[0] is None


def test_sparse_targets_are_biased_only_where_transitions_are_random() -> None:
    """Sec. 8.6.1: what the term fits is the mean target gradient of the transitions that miss the goal (Eq. 8.20)."""
    gamma, goal = 0.9, torch.tensor([0.3, -0.2], dtype=torch.float64)

    def mean_target(ends: Tensor, goal: Tensor) -> Tensor:  # of equally likely ends of one transition
        value = -(ends - goal).pow(2).sum(1, keepdim=True)
        return td_target(_sparse(ends, goal), torch.zeros(len(ends), 1), gamma, value).mean()

    def fitted(ends: Tensor) -> Tensor:
        goals = goal.expand(len(ends), -1).clone().requires_grad_()
        slope = torch.autograd.grad(-(ends - goals).pow(2).sum(), goals)[0]
        target = td_target_gradient(torch.zeros(len(ends), 1), gamma, slope)
        weight = GoalGradient().weight(_sparse(ends, goal), gamma, gamma, None)
        own = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        for _ in range(2000):  # the minimum of the term alone
            (grown,) = torch.autograd.grad(goal_gradient_loss(own.expand(len(ends), -1), target, weight), own)
            own = (own - 0.1 * grown).detach().requires_grad_()
        return own.detach()

    hit, miss = goal + 0.05, torch.tensor([1.0, 1.0], dtype=torch.float64)
    for ends, biased in ((torch.stack((hit, miss)), True), (torch.stack((miss, miss)), False)):
        point = goal.clone().requires_grad_()
        (true,) = torch.autograd.grad(mean_target(ends, point), point)
        assert torch.allclose(fitted(ends), true, atol=1e-9) != biased
        assert torch.allclose(fitted(ends), gamma * 2 * (miss - goal), atol=1e-9)


def _sparse(ends: Tensor, goal: Tensor) -> Tensor:
    """0 within 0.1 of the goal, else -1."""
    return ((ends - goal).abs().amax(1, keepdim=True) <= 0.1).to(torch.float64) - 1


@given(st.floats(0, 1), st.integers(1, 6), st.floats(-2, 2))
def test_low_returns(gamma: float, steps: int, reward: float) -> None:
    expected = sum(gamma**i for i in range(steps)) * reward if gamma < 1 else reward
    got = low_return(reward, torch.tensor([gamma**steps], dtype=torch.float64), gamma)
    assert float(got) == pytest.approx(expected, abs=1e-6)
    assert low_return(reward, gamma, gamma) == reward


def test_soft_values() -> None:
    values = torch.tensor([[0.0, 1.0]])
    share = 1 / (1 + np.exp(-2))
    assert soft_value(values, 0.5).item() == pytest.approx(share)
    assert soft_value(values, 0).item() == 1
    assert soft_value(values, 1e-3).item() == pytest.approx(1)


def network(sizes: tuple[int, ...], seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise(sizes)):
        layers += [nn.Linear(before, after), nn.ReLU()] if i < len(sizes) - 2 else [nn.Linear(before, after)]
    return nn.Sequential(*layers).double()


SIZES = [(5, 1), (5, 7, 1), (5, 8, 6, 1), (5, 8, 6, 7, 3)]


def loss_of(value: Tensor, slope: Tensor) -> Tensor:
    """Some function of both, with a curvature in both."""
    return (value - 1).square().mean() + 0.3 * goal_gradient_loss(slope, torch.full_like(slope, 0.5), value.detach())


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("columns", [slice(0, 5), slice(1, 3), slice(4, 5)])
def test_relu_networks_share_a_pass(sizes: tuple[int, ...], columns: slice) -> None:
    """Values, slopes and the gradients of a loss of both equal those of differentiating twice, in float64."""
    net, x = network(sizes), torch.randn(9, 5, dtype=torch.float64)
    layers = relu_layers(net)
    assert layers is not None
    select = torch.eye(sizes[-1], dtype=torch.float64)[torch.arange(9) % sizes[-1]]
    value, slope = relu_value_and_slope(layers, x, select, columns)

    moving = x[:, columns].clone().requires_grad_()
    whole = torch.cat([x[:, : columns.start], moving, x[:, columns.stop :]], 1)
    direct = (net(whole) * select).sum(1, keepdim=True)
    (twice,) = torch.autograd.grad(direct.sum(), moving, create_graph=True)
    assert torch.allclose(value, direct, rtol=1e-12)
    assert torch.allclose(slope, twice, rtol=1e-12)
    ours = torch.autograd.grad(loss_of(value, slope), list(net.parameters()))
    theirs = torch.autograd.grad(loss_of(direct, twice), list(net.parameters()), allow_unused=True)
    for own, other in zip(ours, theirs, strict=True):
        assert torch.allclose(own, torch.zeros_like(own) if other is None else other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("sizes", SIZES[1:])
def test_the_gradient_of_the_loss_against_finite_differences(sizes: tuple[int, ...]) -> None:
    net, x = network(sizes, seed=1), torch.randn(6, 5, dtype=torch.float64)
    layers, select = relu_layers(net), torch.ones(6, sizes[-1], dtype=torch.float64)
    assert layers is not None

    def loss() -> Tensor:
        value, slope = relu_value_and_slope(layers, x, select, slice(1, 4))
        return value.square().mean() + 0.3 * goal_gradient_loss(slope, torch.ones_like(slope), torch.ones(6, 1))

    gradients = torch.autograd.grad(loss(), list(net.parameters()))
    h = 1e-6
    for parameter, gradient in zip(net.parameters(), gradients, strict=True):
        flat = parameter.data.view(-1)
        for i in range(0, len(flat), max(1, len(flat) // 7)):
            kept = flat[i].item()
            flat[i] = kept + h
            above = loss().item()
            flat[i] = kept - h
            below = loss().item()
            flat[i] = kept
            assert (above - below) / (2 * h) == pytest.approx(gradient.view(-1)[i].item(), rel=1e-5, abs=1e-7)


def test_other_networks_are_not_taken_for_relu_networks() -> None:
    for layers in (
        [nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)],
        [nn.Linear(2, 2), nn.ReLU()],
        [nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 1)],
        [nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1)],
    ):
        assert relu_layers(nn.Sequential(*layers)) is None
    assert relu_layers(nn.Linear(2, 1)) is None


def test_statistics_of_goals() -> None:
    statistics, goals = GoalStatistics(), torch.randn(100, 3, dtype=torch.float64) * 5 + 2
    for part in goals.split(7):
        statistics.update(part)
    assert np.allclose(statistics.mean, goals.mean(0).numpy())
    assert np.allclose(statistics.variance, goals.var(0, unbiased=False).numpy())


def test_descending_leaves_no_gradient_elsewhere() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 1)
    before = first.weight.clone()
    descend(torch.optim.SGD(first.parameters(), lr=0.1), second(first(torch.ones(1, 2))).sum())
    assert second.weight.grad is None
    assert not torch.equal(first.weight, before)


def test_descending_with_a_largest_norm() -> None:
    layer = nn.Linear(3, 1, bias=False)
    before = layer.weight.detach().clone()
    descend(torch.optim.SGD(layer.parameters(), lr=1.0), 100 * layer(torch.ones(1, 3)).sum(), max_norm=0.5)
    assert torch.linalg.vector_norm(layer.weight.detach() - before).item() == pytest.approx(0.5, rel=1e-4)


def test_following() -> None:
    source, target = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    nn.init.constant_(source.weight, 3.0)
    source.running_mean.fill_(7.0)  # type: ignore[union-attr]
    Follower(source, target).update(0.25)
    assert target.weight.tolist() == [1.5, 1.5]
    assert target.running_mean.tolist() == [7.0, 7.0]  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop])
@pytest.mark.parametrize("exact", [True, False])
def test_faster_optimizers(kind: type[torch.optim.Optimizer], exact: bool) -> None:
    results = []
    for fast in (False, True):
        net = network((5, 8, 1)).float()
        optimizer = kind(net.parameters(), lr=0.01)  # type: ignore[call-arg]
        if fast:
            make_faster(optimizer, exact=exact)
        for i in range(20):
            torch.manual_seed(i)
            descend(optimizer, net(torch.randn(4, 5)).square().mean())
        results.append([p.detach() for p in net.parameters()])
    for slow, fast in zip(*results, strict=True):
        assert torch.equal(slow, fast) if exact else torch.allclose(slow, fast, rtol=1e-4, atol=1e-6)
