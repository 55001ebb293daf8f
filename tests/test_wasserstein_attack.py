"""The Wasserstein attack: the projection against exact solutions, where steps may go, and against certificates."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.special import wrightomega
from torch import Tensor, nn

from certify import RandomizedAblation, Smoothed, Undefended, Wasserstein, WassersteinNoise
from certify.attacks import wasserstein_attack
from certify.attacks.gradient import check_samples_differentiable, gradient_of_samples
from certify.attacks.sinkhorn import Plan, _wright_omega, project, window_costs
from certify.attacks.wasserstein import Growth, _with_totals, check_attackable, default_metric, in_steps
from certify.data import load
from certify.draws import ATTACK, Draws
from certify.images import to_float
from certify.models import ModelSpec
from certify.threats import normalized
from certify.training import Trainer, TrainingConfig
from certify.transport import flow_distance, path_distance, pixel_distances, transport_distance
from scripts import attack as attack_script
from scripts.parts import cli

FAST = Growth(steps=30, start=0.005, factor=1.2, every=1, samples=32)


def random_masses(count: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalized(torch.rand((count, *shape), generator=generator, dtype=torch.float64) ** 3 + 1e-3)


# -- the projection ----------------------------------------------------------------------------------------------------


def test_wright_omega():
    y = torch.cat((torch.linspace(-650, 5000, 20_001), torch.linspace(-3, 3, 1_001))).double()
    expected = torch.from_numpy(wrightomega(y.numpy()).real)
    assert ((_wright_omega(y) / expected - 1).abs() < 1e-12).all()


def gap(x: np.ndarray, w: np.ndarray, z: np.ndarray, eps: float, metric: Any) -> float:
    """How far ``|w - z|^2 / 2`` is above the least value in the ball, at most: ``max <w - z, y - z>`` over y in it.

    A linear program over all plans, by convexity; z is then within ``sqrt(2 gap)`` of the exact projection.
    """
    places, n = np.argwhere(np.ones(x.shape)), x.size
    costs = pixel_distances(places[:, None], places[None], metric).ravel()
    rows, columns = np.kron(np.eye(n), np.ones(n)), np.kron(np.ones(n), np.eye(n))
    away = (w - z).ravel()
    result = linprog(-columns.T @ away, A_ub=costs[None], b_ub=[eps], A_eq=rows, b_eq=x.ravel(), bounds=(0, None))
    assert result.success
    return -result.fun - away @ z.ravel()


@pytest.mark.parametrize("metric", ["l1", "l2"])
@pytest.mark.parametrize("eps", [0.01, 0.1, 0.4])
def test_projection_is_near_the_exact_one(metric, eps):
    for seed in range(3):
        x = random_masses(1, (1, 2, 3), seed)
        w = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        radius = torch.tensor([eps]).double()

        def gap_of(lam: float, iterations: int, x=x, w=w, radius=radius) -> float:
            z = project(x, w, radius, metric, regularization=lam, iterations=iterations).arrived()
            return gap(*(image[0, 0].numpy() for image in (x, w, z)), eps, metric)

        assert -1e-9 <= gap_of(1000, 500) <= 0.003  # of the order of the entropy over lam
        assert gap_of(3000, 30) <= 0.02  # as in the attack


@settings(max_examples=20)
@given(
    shape=st.sampled_from([(1, 1, 1), (1, 2, 3), (3, 4, 3), (1, 6, 7)]),
    seed=st.integers(0, 999),
    size=st.sampled_from([0.001, 0.1, 3.0]),
    metric=st.sampled_from(["l1", "l2"]),
    window=st.sampled_from([1, 3, 5]),
)
def test_projections_are_inside_the_ball_and_below_the_limit(shape, seed, size, metric, window):
    x = random_masses(3, shape, seed)
    w = x + size * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    eps, limit = torch.tensor([0.003, 0.1, 2.0]).double(), x.amax((1, 2, 3)) * torch.tensor([1.0, 1.2, 1.0])
    plan = project(x, w, eps, metric, limit=limit, window=window, iterations=10)
    z, cost = plan.arrived(), plan.cost()
    assert (plan.moved >= 0).all()
    assert torch.allclose(plan.moved.sum(2), x, rtol=1e-12)  # what leaves each pixel
    assert torch.allclose(z.sum((2, 3)), x.sum((2, 3)), rtol=1e-12)  # mass stays in its channel
    assert (cost <= eps * (1 + 1e-12)).all()
    assert (z <= limit.view(-1, 1, 1, 1) * (1 + 1e-12)).all()
    for before, after, paid in zip(x.numpy(), z.numpy(), cost.tolist(), strict=True):
        assert transport_distance(before, after, metric) <= paid * (1 + 1e-6) + 1e-9
    alone = project(x[1:2], w[1:2], eps[1:2], metric, limit=limit[1:2], window=window, iterations=10)
    assert torch.equal(alone.arrived()[0], z[1])


def test_a_point_inside_the_ball_stays():
    x = random_masses(1, (1, 4, 4))
    z = project(x, x, torch.ones(1).double(), "l2", regularization=1e5, iterations=500).arrived()
    assert (z - x).abs().max() < 1e-4


def test_plans():
    costs = window_costs(3, "l2", torch.device("cpu"))
    moved = torch.zeros(1, 1, 9, 2, 2, dtype=torch.float64)
    moved[0, 0, 4] = torch.tensor([[0.4, 0.0], [0.3, 0.0]], dtype=torch.float64)
    moved[0, 0, 8, 0, 0] = 0.3  # down and to the right
    plan = Plan(moved, costs)
    assert plan.arrived()[0, 0].tolist() == [[0.4, 0.0], [0.3, 0.3]]
    assert plan.cost().item() == pytest.approx(0.3 * math.sqrt(2))
    half = plan.kept(torch.tensor(0.5))
    assert half.arrived()[0, 0].tolist() == pytest.approx(np.array([[0.55, 0.0], [0.3, 0.15]]))
    assert half.cost().item() == pytest.approx(plan.cost().item() / 2)
    with pytest.raises(ValueError, match="window: got 4"):
        project(moved[:, :, 4], moved[:, :, 4], torch.ones(1), "l2", window=4)


@given(seed=st.integers(0, 99))
def test_path_distance_is_an_upper_bound(seed):
    x, y = random_masses(2, (1, 3, 4), seed).split(1)
    assert path_distance(x, y).item() >= flow_distance(x[0].numpy(), y[0].numpy()) * (1 - 1e-6)


# -- the attack --------------------------------------------------------------------------------------------------------


class Planes(nn.Module):
    """Scores that are linear in the normalized image, whatever scales it: the class is the side of a plane."""

    def __init__(self, size: int, scale: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.plane = nn.Parameter(torch.randn(size, generator=generator, dtype=torch.float64))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1).double()
        side = (x / x.sum(1, keepdim=True) @ self.plane - self.plane.mean()) * self.scale
        return torch.stack((side, -side), 1)

    def distance(self, x: Tensor) -> Tensor:
        """A lower bound of the l1 Wasserstein distance to the plane: all along the steepest edge."""
        grid = self.plane.detach().view(x.shape[1:])
        steepest = max(grid.diff(dim=1).abs().max(), grid.diff(dim=2).abs().max())
        side = normalized(x).flatten(1) @ self.plane.detach() - self.plane.detach().mean()
        return side.abs() / steepest


def plane_images(count: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randint(20, 236, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("metric", ["l1", "l2"])
def test_attack_on_a_plane(metric):
    """Every image is broken, not before the plane, and not far behind it."""
    x, model = plane_images(8, (1, 5, 5)), Planes(25, 50.0)
    labels = model(x).argmax(1)
    labels[0] = 1 - labels[0]
    smoothed = Smoothed(model, Undefended(), 2)
    result = wasserstein_attack(smoothed, x, labels, growth=FAST, metric=metric)
    assert result.magnitude[0] == 0
    assert result.threat == Wasserstein(metric)
    assert result.success.all()
    adversarial = result.adversarial
    assert adversarial.dtype == torch.float32
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert torch.equal(smoothed.predict(adversarial), result.prediction)
    assert (result.prediction != labels).all()
    true = Wasserstein(metric).distance(in_steps(x), adversarial)
    assert (true[1:] <= result.magnitude[1:] * (1 + 1e-6)).all()
    nearest = model.distance(x) / (math.sqrt(2) if metric == "l2" else 1)
    assert (true[1:] >= nearest[1:] * (1 - 1e-6)).all()
    assert (result.magnitude[1:] < 4 * nearest[1:] + 0.01).all()
    assert torch.equal(result.verified, result.magnitude)
    alone = wasserstein_attack(smoothed, x[3:4], labels[3:4], growth=FAST, metric=metric)
    assert torch.equal(alone.adversarial[0], adversarial[3])


def test_colours_keep_their_shares_exactly():
    """An adversarial image of another share of red is in no ball at all."""
    x, model = plane_images(6, (3, 4, 4)), Planes(48, 50.0)
    labels = model(x).argmax(1)
    labels[0] = 1 - labels[0]
    result = wasserstein_attack(Smoothed(model, Undefended(), 2), x, labels, growth=FAST)
    assert result.success[1:].any()
    moved = result.success & (result.magnitude > 0)
    true = Wasserstein().distance(in_steps(x)[moved], result.adversarial[moved])
    assert (true <= result.magnitude[moved] * (1 + 1e-6)).all()
    assert torch.equal(result.adversarial[~moved], to_float(x)[~moved])


def test_totals_are_restored():
    top = 2.0**24
    steps = torch.tensor([[[[0.0, 1, 2], [top, top, 5]], [[top - 1, 0, 0], [0, 0, 0]]]]).double()
    for change in ([0.0, 0.0], [7.0, -3.0], [-9.0, 3.0]):
        totals = steps.sum((2, 3)) + torch.tensor([change])
        repaired = _with_totals(steps, totals)
        assert torch.equal(repaired.sum((2, 3)), totals)
        assert repaired.min() >= 0
        assert repaired.max() <= top
        assert (repaired - steps).abs().sum() == sum(map(abs, change))


def test_attack_on_a_smoothed_classifier_respects_the_certificate():
    x = plane_images(6, (2, 4, 4))
    model = Planes(32, 50.0)
    labels = model(x).argmax(1)
    smoothed = Smoothed(model, WassersteinNoise(0.002, metric="l1"), 2, n0=100, n=400)
    certified = smoothed.certify(x)
    result = wasserstein_attack(smoothed, x, labels, growth=FAST)
    assert result.threat == Wasserstein("l1")
    assert result.success.all()
    assert (result.clean == smoothed.predict(x)).all()
    assert torch.equal(smoothed.predict(result.adversarial), result.prediction)
    flipped = (result.prediction >= 0) & (result.magnitude > 0)
    assert (result.magnitude > certified.radius)[flipped & (certified.radius >= 0)].all()
    assert (result.verified >= result.magnitude).all()
    again = wasserstein_attack(smoothed, x[2:3], labels[2:3], growth=FAST, index=torch.tensor([2]))
    assert torch.equal(again.adversarial[0], result.adversarial[2])
    # channels keep their mass, up to the rounding of the adversarial image
    before, after = (normalized(image).sum((2, 3)) for image in (x, result.adversarial))
    assert torch.allclose(before, after, atol=1e-6)


def test_gradient_through_samples():
    """Against the sum of soft-max scores over the same copies, by differences in the normalized image."""
    x, labels, items = plane_images(3, (1, 3, 4)).double() / 255, torch.tensor([0, 1, 0]), torch.tensor([5, 0, 7])
    scheme, model = WassersteinNoise(0.01), Planes(12, 3.0)
    smoothed = Smoothed(model, scheme, 2, batch_size=16)
    check_samples_differentiable(smoothed, x.float())
    slope = gradient_of_samples(smoothed, x.float(), labels, items, samples=20, seed=3)
    copies = scheme.sample(x.float(), Draws(3, ATTACK, items[:, None], torch.arange(20)[None]))
    noise = copies.double() - scheme.expected(x.float())[:, None]

    def total(image: Tensor) -> Tensor:
        scores = model((scheme.expected(image)[:, None] + noise).flatten(0, 1)).softmax(1).view(3, 20, 2)
        return scores.gather(2, labels[:, None, None].expand(-1, 20, 1)).sum((1, 2))

    for feature in range(12):
        step = torch.zeros(12, dtype=torch.float64)
        step[feature] = 1e-5
        rise = (total(x + step.view(1, 3, 4)) - total(x - step.view(1, 3, 4))) / 2e-5
        assert torch.allclose(slope.flatten(1)[:, feature].double(), rise, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps: got -1"),
        ({"step_size": 0}, "step_size: got 0"),
        ({"start": 0}, "start: got 0"),
        ({"factor": 0.9}, "factor: got 0.9"),
        ({"every": 0}, "every"),
        ({"samples": 0}, "samples"),
    ],
)
def test_bad_growth(options, message):
    with pytest.raises(ValueError, match=message):
        Growth(**options)


def test_bad_input():
    x, labels = plane_images(2, (1, 3, 3)), torch.tensor([0, 1])
    assert default_metric(Smoothed(Planes(9), WassersteinNoise(0.1, metric="l1"), 2)) == "l1"
    assert default_metric(Smoothed(Planes(9), Undefended(), 2)) == "l2"
    with pytest.raises(ValueError, match="whose copies are random"):
        wasserstein_attack(Smoothed(Planes(18), RandomizedAblation(2), 2), x, labels)
    with pytest.raises(ValueError, match="scores without a gradient"):
        check_attackable(Smoothed(lambda c: Planes(9)(c).detach(), WassersteinNoise(0.1), 2), x.float() / 255)
    with pytest.raises(ValueError, match="all zeros for image 0"):
        wasserstein_attack(Smoothed(Planes(9), Undefended(), 2), x * 0, labels)


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("flows")
    config = TrainingConfig(epochs=1, batch_size=128, lr=0.05)
    Trainer(
        load("digits", "train"), WassersteinNoise(0.002), ModelSpec("mnist_cnn", 1, 10, (8, 8)), config, folder
    ).run()
    return folder


def test_command(tmp_path, checkpoint, capsys):
    def run(out: str, *options: str) -> list[list[str]]:
        arguments = [str(tmp_path / out), "--checkpoint", str(checkpoint), "--attack", "wasserstein", "--n", "50"]
        arguments += ["--max", "4", "--steps", "3", "--samples", "8", "--start", "0.2", *options]
        cli.run(attack_script.main, attack_script.Args, "scripts.attack", arguments)
        rows = [path.read_text().splitlines()[1:] for path in (tmp_path / out).glob("rows*.tsv")]
        cells = [line.split("\t") for lines in rows for line in lines]
        return sorted([*row[:7], row[8]] for row in cells)  # without the time

    whole = run("whole")
    assert len(whole) == 4
    assert "4 images: median attack magnitude" in capsys.readouterr().out
    run("parts", "--shard", "0/2", "--images-per-step", "1")
    assert run("parts", "--shard", "1/2") == whole
    with pytest.raises(SystemExit):
        run("bad", "--factor", "0.5")
    assert not (tmp_path / "bad").exists()
