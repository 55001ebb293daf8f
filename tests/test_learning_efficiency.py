"""Closed forms of the linear environments against Bellman's equation, losses against algebra, learners, exponents."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from rl.linear import (
    LinearDense,
    LinearSparse,
    LinearTask,
    Transitions,
    as_least_squares,
    learn_matrix,
    learn_rotation,
    nearest_rotation,
    random_rotation,
    random_transitions,
    residuals,
    transitions_needed,
)
from scripts import learning_efficiency as script
from scripts.parts import cli

TASKS = [LinearDense(0.9), LinearSparse(0.8)]
COEF = 0.3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample(task: LinearTask, d: int = 5, n: int = 40, seed: int = 0) -> tuple[Tensor, Transitions]:
    rotation = random_rotation(d, generator(seed))
    return rotation, random_transitions(task, rotation, n, generator(seed + 1))


def acting(task: LinearTask, transitions: Transitions) -> Tensor:
    """Whether the action of each transition matters."""
    d = transitions.goal.shape[1]
    return (transitions.state[:, :d] != 0).any(1) | isinstance(task, LinearDense)


def scale(task: LinearTask) -> float:
    """The factor of ``g^T U a`` in Q."""
    return 1 / (1 - task.gamma) if isinstance(task, LinearDense) else task.gamma / (1 - task.gamma**2)


# --- the environments


@pytest.mark.parametrize("task", TASKS)
def test_closed_form_satisfies_the_bellman_optimality_equation(task):
    rotation, (state, action, goal, next_state) = sample(task)
    best = task.policy(rotation, goal)
    value = task.reward(next_state, goal) + task.gamma * task.q(rotation, next_state, best, goal)
    torch.testing.assert_close(task.q(rotation, state, action, goal), value)
    # no action in the unit ball is better than the policy's
    assert best.norm(dim=1) == pytest.approx(1)
    others = torch.randn(200, *goal.shape, generator=generator(), dtype=torch.float64)
    others = others / others.norm(dim=-1, keepdim=True).clamp(min=1)
    of_others = task.q(rotation, next_state, others, goal)
    assert (of_others <= task.q(rotation, next_state, best, goal) + 1e-9).all()


@pytest.mark.parametrize("task", TASKS)
def test_closed_form_is_the_return_of_a_rollout(task):
    rotation, (state, action, goal, _) = sample(task)
    q, total = task.q(rotation, state, action, goal), torch.zeros(len(goal), dtype=torch.float64)
    for step in range(400):
        state = task.step(rotation, state, action)
        total += task.gamma**step * task.reward(state, goal)
        action = task.policy(rotation, goal)
    torch.testing.assert_close(total, q)


def test_transitions_are_as_described():
    rotation, (state, action, _, next_state) = sample(LinearSparse(), d=4, n=2_000)
    first, second = state.chunk(2, 1)
    moves = (first != 0).any(1)
    assert 0.45 < moves.double().mean() < 0.55
    assert ((second != 0).any(1) ^ moves).all()
    assert (action.norm(dim=1) <= 1).all()
    assert (next_state[moves, :4] == 0).all()
    torch.testing.assert_close(next_state[moves, 4:], first[moves] + action[moves] @ rotation.T)
    assert torch.equal(next_state[~moves], torch.cat([second[~moves], torch.zeros(len(second[~moves]), 4)], 1))


@pytest.mark.parametrize("d", [2, 3, 7])
def test_rotations(d):
    rotation = random_rotation(d, generator(d))
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(d, dtype=torch.float64))
    assert torch.linalg.det(rotation).item() == pytest.approx(1)
    noise = torch.randn(d, d, generator=generator(), dtype=torch.float64)
    torch.testing.assert_close(nearest_rotation(rotation + 1e-6 * noise), rotation, atol=1e-5, rtol=0)
    mirrored = nearest_rotation(-rotation) if d % 2 else nearest_rotation(rotation.flip(0))
    assert torch.linalg.det(mirrored).item() == pytest.approx(1)


# --- the losses


@pytest.mark.parametrize("task", TASKS)
def test_residuals_are_what_the_proofs_simplify_them_to(task):
    """Up to its factor, the TD error is ``g^T (E - U) a``, and the error of its goal gradient is ``(E - U) a``."""
    rotation, transitions = sample(task)
    estimate, target = random_rotation(5, generator(8)), random_rotation(5, generator(9))
    got = vmap(lambda t: residuals(task, estimate, target, t, COEF))(transitions)
    moved = transitions.action @ (estimate - rotation).T * acting(task, transitions)[:, None]
    torch.testing.assert_close(got[:, 0], scale(task) * (transitions.goal * moved).sum(1))
    torch.testing.assert_close(got[:, 1:], math.sqrt(COEF) * scale(task) * moved)


@pytest.mark.parametrize("task", TASKS)
def test_residuals_are_the_published_loss_by_plain_autograd(task):
    """Equations 8.8 and 8.9 as they are written, on a batch, with detached targets."""
    _, transitions = sample(task)
    estimate = random_rotation(5, generator(8)).requires_grad_()
    target = random_rotation(5, generator(9))
    state, action, goal, next_state = transitions
    goal = goal.clone().requires_grad_()

    value = task.q(estimate, state, action, goal)
    reward = task.reward(next_state, goal)
    next_value = task.q(target, next_state, task.policy(target, goal), goal)
    (value_gradient,) = torch.autograd.grad(value.sum(), goal, create_graph=True)
    (reward_gradient,) = torch.autograd.grad(reward.sum(), goal, retain_graph=True)
    (next_gradient,) = torch.autograd.grad(next_value.sum(), goal, retain_graph=True)
    td = (value - (reward + task.gamma * next_value).detach()).square()
    if isinstance(task, LinearDense):
        of_gradient = (value_gradient - (reward_gradient + task.gamma * next_gradient)).square().sum(1)
    else:
        of_gradient = (reward == 0) * (value_gradient - task.gamma * next_gradient).square().sum(1)
    loss = (td + COEF * of_gradient).sum()
    (expected,) = torch.autograd.grad(loss, estimate)

    x, y = as_least_squares(task, transitions, COEF)
    error = torch.einsum("nij,ij->n", x, estimate.detach()) - y
    torch.testing.assert_close(error.square().sum(), loss.detach())
    torch.testing.assert_close(2 * torch.einsum("nij,n->ij", x, error), expected)


@pytest.mark.parametrize("task", TASKS)
def test_target_parameter_does_not_matter(task):
    _, transitions = sample(task)
    estimate = torch.randn(5, 5, generator=generator(), dtype=torch.float64)
    a, b = (
        vmap(lambda t, target=target: residuals(task, estimate, target, t, COEF))(transitions)
        for target in (random_rotation(5, generator(1)), torch.eye(5, dtype=torch.float64))
    )
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("task", TASKS)
def test_one_number_or_d_of_them_from_each_transition_that_informs(task):
    _, transitions = sample(task, d=4, n=6)
    informs = int(acting(task, transitions).sum())
    standard, _ = as_least_squares(task, transitions)
    reengage, _ = as_least_squares(task, transitions, COEF)
    assert len(standard) == informs
    assert torch.linalg.matrix_rank(standard.flatten(1)) == informs
    assert len(reengage) == 5 * informs
    assert torch.linalg.matrix_rank(reengage.flatten(1)) == 4 * min(informs, 4)


# --- the learners


@pytest.mark.parametrize("task", TASKS)
def test_learned_exactly_from_as_many_transitions_as_the_propositions_say(task):
    d = 6
    rotation, pool = sample(task, d=d, n=200)
    order = acting(task, pool).to(torch.int64).argsort(descending=True, stable=True)
    pool = Transitions(*(part[order] for part in pool))  # those that inform come first
    assert transitions_needed(task, rotation, pool, learn_matrix) == d**2
    assert transitions_needed(task, rotation, pool, learn_matrix, goal_gradient_coef=COEF) == d
    assert d * (d - 1) // 2 <= transitions_needed(task, rotation, pool, learn_rotation) <= d**2
    assert transitions_needed(task, rotation, pool, learn_rotation, goal_gradient_coef=COEF) == d - 1


@pytest.mark.parametrize("learner", [learn_matrix, learn_rotation])
@pytest.mark.parametrize("coef", [0.0, COEF])
def test_learners_fit_what_they_are_given(learner, coef):
    task = LinearDense()
    rotation, transitions = sample(task, n=8)
    x, y = as_least_squares(task, transitions, coef)
    estimate = learner(x, y)
    torch.testing.assert_close(torch.einsum("nij,ij->n", x, estimate), y, atol=1e-6, rtol=0)
    if learner is learn_rotation:
        torch.testing.assert_close(estimate @ estimate.T, torch.eye(5, dtype=torch.float64))
    if coef:
        torch.testing.assert_close(estimate, rotation)


def test_nothing_is_learned_from_transitions_without_information():
    task = LinearSparse()
    _, pool = sample(task, d=3, n=30)
    waiting = Transitions(*(part[~acting(task, pool)] for part in pool))
    x, y = as_least_squares(task, waiting, COEF)
    assert len(x) == len(y) == 0
    assert torch.equal(learn_matrix(x, y), torch.zeros(3, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="which do not determine the rotation"):
        transitions_needed(task, random_rotation(3, generator()), waiting, learn_rotation, goal_gradient_coef=COEF)


@pytest.mark.parametrize("gamma", [0, 1, -0.5, math.nan])
def test_discounts_out_of_range(gamma):
    with pytest.raises(ValueError, match=f"gamma: got {gamma}, expected"):
        LinearSparse(gamma)


# --- the experiment


@pytest.mark.parametrize(("learner", "tolerance"), [("matrix", 0.1), ("rotation", 0.3)])
def test_exponents(tmp_path, capsys, learner, tolerance):
    """Rotations have d (d - 1) / 2 and d - 1 unknowns, so that small d give more than the limits 2 and 1."""
    script.main(script.Args(out=tmp_path, dims=[4, 8, 16], seeds=4, learner=learner))
    printed = capsys.readouterr().out
    assert "exponent" in printed
    curves = json.loads((tmp_path / "efficiency.json").read_text())["curves"]
    assert [(c["environment"], c["loss"]) for c in curves] == [
        (environment, loss) for environment in ("dense", "sparse") for loss in ("standard", "ReenGAGE")
    ]
    for curve in curves:
        limit = 2 if curve["loss"] == "standard" else 1
        assert abs(curve["exponent"] - limit) < tolerance + 2 * curve["exponent_standard_error"]
        assert [len(row) for row in curve["needed"].values()] == [4, 4, 4]
    assert (tmp_path / "efficiency.png").read_bytes().startswith(b"\x89PNG")


def test_same_seeds_same_numbers():
    args = script.Args(out=Path("unused"), dims=[2, 5], seeds=2)
    assert script.measure(args) == script.measure(args)


def test_fit_of_an_exact_power():
    exponent, error, factor = script.Curve("dense", "standard", (2, 4, 8), ((12,), (48,), (192,))).fit()
    assert (exponent, error, factor) == pytest.approx((2, 0, 3), abs=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dims", "4"], "dims: got [4], expected at least two different"),
        (["--dims", "4", "4"], "dims: got [4, 4]"),
        (["--dims", "1", "4"], "each at least 2"),
        (["--seeds", "0"], "seeds: got 0"),
        (["--tolerance", "1"], "tolerance: got 1.0"),
        (["--coef", "nan"], "coef: got nan"),
        (["--gamma", "1"], "gamma: got 1.0"),
    ],
)
def test_bad_arguments_fail_before_any_work(tmp_path, capsys, words, message):
    with pytest.raises(SystemExit):
        cli.run(script.main, script.Args, "scripts.learning_efficiency", [str(tmp_path / "out"), *words])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
