"""Wasserstein smoothing: the noise, its certificates on toy grids with exact probabilities, and the distance itself."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from certify import DeterministicSplittingNoise, Smoothed, Wasserstein, WassersteinNoise, spec, transport
from certify.confidence import lower_bound
from certify.draws import ESTIMATION, Draws
from certify.generators import splitmix64
from certify.splitting import cell_centres
from certify.threats import normalized
from certify.transport import edges, flow_distance, shortest_flow, transport_distance
from certify.wasserstein import _SLIP, _edges, _laplace, _moved, _on_grid, _uniform

VARIANTS: list[dict[str, Any]] = [
    {},
    {"bound": "published"},
    {"noise": "uniform"},
    {"on": "pixels"},
    {"on": "pixels", "bound": "published"},
    {"on": "pixels", "noise": "uniform"},
]
SHAPES = [(1, 1, 2), (1, 2, 2), (1, 1, 4), (1, 3, 2), (2, 1, 3)]


def draws_of(images: int, copies: int) -> Draws:
    return Draws.of(0, ESTIMATION, torch.arange(images), range(copies))


def random_images(count: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def on_edges(flows: Tensor) -> Tensor:
    """Flows ``[B, n, 2, C, H, W]``, down and to the right out of each pixel, as flows ``[B, n, edges]``."""
    return torch.cat((flows[:, :, 0, :, :-1].flatten(2), flows[:, :, 1, :, :, :-1].flatten(2)), 2)


def divergence(shape: tuple[int, ...]) -> np.ndarray:
    """What unit flows along all edges, channel by channel, add to the features: ``[features, edges]``."""
    ends = edges(*shape[1:])
    one = np.zeros((shape[1] * shape[2], len(ends)))
    one[ends[:, 0], np.arange(len(ends))] = -1
    one[ends[:, 1], np.arange(len(ends))] = 1
    return np.kron(np.eye(shape[0]), one)


# -- the distance ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["l1", "l2"])
def test_many_tiny_masses_beside_a_large_one_are_not_left_out(metric):
    """The distance is at least what a potential gains that grows by at most 1 per pixel (Kantorovich, Rubinstein)."""
    tiny = 2.0**-24
    x, y = np.zeros((1, 28, 28)), np.zeros((1, 28, 28))
    x[0, 27, 0] = y[0, 27, 1] = 1
    x[0, :14] += tiny
    y[0, 14:] += tiny
    total = x.sum()
    potential = np.minimum(np.add.outer(np.arange(28.0), np.zeros(28)), 26.0)
    potential[27, :2] = 25.5, 26.5
    places = np.argwhere(np.ones((28, 28)))
    between = np.linalg.norm(places[:, None] - places[None], ord=1 if metric == "l1" else 2, axis=-1)
    assert (np.abs(potential.ravel()[:, None] - potential.ravel()) <= between + 1e-12).all()
    bound = float((potential * (y - x)[0]).sum() / total)
    for distance in (transport_distance(x / total, y / total, metric), flow_distance(x / total, y / total)):
        assert bound <= distance <= bound * (1.001 if metric == "l1" else 1.5)


def test_what_a_solver_leaves_out_is_added(monkeypatch):
    """As if it had moved nothing: no mass is farther away than the opposite corner."""
    x, y = np.zeros((1, 3, 4)), np.zeros((1, 3, 4))
    x[0, 0, 0] = y[0, 2, 3] = 1
    monkeypatch.setattr(transport, "_solve", lambda costs, *_: np.zeros(len(costs)))
    assert flow_distance(x, y) >= 5
    assert transport_distance(x, y, "l1") >= 5
    assert transport_distance(x, y, "l2") >= math.sqrt(13)


@settings(max_examples=30)
@given(
    size=st.sampled_from([(1, 1), (1, 2), (2, 2), (3, 3), (4, 5)]), channels=st.integers(1, 3), seed=st.integers(0, 999)
)
def test_flow_form_and_transport_form_agree_and_the_metrics_are_within_sqrt_2(size, channels, seed):
    """Lemma 5.1; Corollaries D.1 and D.3."""
    generator = np.random.default_rng(seed)
    bytes_x = (generator.random((channels, *size)) ** 3 * 255).round().astype(np.uint8)
    bytes_x[:, 0, 0] += bytes_x.sum() == 0
    bytes_y = generator.permuted(bytes_x.reshape(channels, -1), axis=1).reshape(bytes_x.shape)
    x, y = bytes_x / bytes_x.sum(dtype=float), bytes_y / bytes_x.sum(dtype=float)
    flow, l1, l2 = flow_distance(x, y), transport_distance(x, y, "l1"), transport_distance(x, y, "l2")
    assert flow == pytest.approx(l1, rel=1e-6, abs=1e-9)
    plan = shortest_flow(x, y)
    assert np.abs(plan).sum() == pytest.approx(flow)
    assert np.allclose(divergence(x.shape) @ plan.ravel(), (y - x).ravel(), atol=1e-9)
    assert l2 <= l1 * (1 + 1e-6)
    assert l1 <= math.sqrt(2) * l2 * (1 + 1e-6)
    assert np.abs(x - y).sum() <= 2 * l2 * (1 + 1e-6) + 1e-12
    threats = [Wasserstein("l1"), Wasserstein("l2")]
    a, b = torch.from_numpy(bytes_x)[None], torch.from_numpy(bytes_y)[None]
    assert [threat.distance(a, b).item() for threat in threats] == pytest.approx([l1, l2], rel=1e-6, abs=1e-9)


def test_distances_that_are_known():
    x = torch.zeros((1, 1, 3, 4), dtype=torch.uint8)
    y = x.clone()
    x[0, 0, 0, 0], y[0, 0, 2, 3] = 200, 10  # all of the mass, whatever the brightness
    assert Wasserstein("l1").distance(x, y).item() == pytest.approx(5)
    assert Wasserstein("l2").distance(x, y).item() == pytest.approx(math.sqrt(13))
    assert Wasserstein().distance(x, x).item() == 0
    in_one_line = torch.tensor([[3.0, 0, 1, 2], [1, 1, 1, 3]]).view(2, 1, 1, 4) / 6
    expected = (in_one_line[0] - in_one_line[1]).cumsum(-1).abs().sum().item()  # Eq. 5.14
    assert Wasserstein("l1").distance(in_one_line[:1], in_one_line[1:]).item() == pytest.approx(expected)
    colours = torch.zeros((2, 2, 1, 2))
    colours[0, 0, 0, 0] = colours[1, 1, 0, 0] = 1  # no mass moves between channels
    with pytest.raises(ValueError, match="channels whose mass differs"):
        shortest_flow(*colours.double().numpy())
    for metric in ("l1", "l2"):
        assert Wasserstein(metric).distance(colours[:1], colours[1:]).item() == math.inf
        large = torch.randint(200, 255, (1, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        other = large.clone()
        other[0, 0, 5, 5] += 1  # a level of red for one of green: another share by less than 1e-5
        other[0, 1, 5, 5] -= 1
        assert Wasserstein(metric).distance(large, other).item() == math.inf
        assert Wasserstein(metric).distance(large.double() / 256, other.double() / 256).item() == math.inf
    with pytest.raises(ValueError, match="all zeros for image 1"):
        Wasserstein().distance(colours, colours * torch.tensor([1.0, 0.0]).view(2, 1, 1, 1))
    with pytest.raises(ValueError, match="metric: got 'l3'"):
        Wasserstein("l3")  # pyright: ignore[reportArgumentType]
    assert str(Wasserstein()) == "Wasserstein (l2 between pixels)"


# -- the noise ---------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 99), shape=st.sampled_from(SHAPES), sigma=st.sampled_from([1e-6, 0.01, 1e3]))
def test_images_on_the_grid(seed, shape, sigma):
    """Whole steps, at most one half from the image by flows along a path; the same for every brightness."""
    x = random_images(3, shape, seed).clamp(min=1) // 2
    for noise in ("laplace", "uniform"):
        scheme = WassersteinNoise(sigma, noise=noise)
        whole = _on_grid(x, scheme.steps, path=True)
        assert torch.equal(whole, whole.round())
        assert torch.equal(whole, _on_grid(2 * x, scheme.steps, path=True))
        assert torch.equal(_on_grid(x, scheme.steps, path=False), _on_grid(2 * x, scheme.steps, path=False))
        error = (whole - normalized(x) * scheme.steps).clone()
        error[..., 1::2, :] = error[..., 1::2, :].flip(-1)
        bound = 0.5 + scheme.steps * 2.0**-51
        assert (error.flatten(1).cumsum(1).abs() <= bound).all()
        assert (whole.sum((1, 2, 3)) == round(scheme.steps)).all()


def test_totals_of_channels_are_those_of_the_shares():
    """Equal shares of the channels from different sums, and channels whose mass differs."""
    x = torch.tensor([[[30, 0, 21]], [[7, 7, 0]]], dtype=torch.uint8)[None]
    y = torch.tensor([[[51, 51, 0]], [[0, 14, 14]]], dtype=torch.uint8)[None]
    steps = WassersteinNoise(0.0123).steps
    assert torch.equal(*(_on_grid(image, steps, path=True).sum((2, 3)) for image in (x, y)))


def test_flows_are_those_of_equation_5_5():
    generator = torch.Generator().manual_seed(0)
    image, flows = torch.randint(0, 99, (2, 1, 2, 3, 4), generator=generator).double(), torch.zeros(2, 5, 2, 2, 3, 4)
    flows = torch.randint(-9, 9, flows.shape, generator=generator).double()
    expected = image.expand(2, 5, 2, 3, 4).clone()
    for i, j in itertools.product(range(3), range(4)):
        if i < 2:
            expected[..., i, j] -= flows[:, :, 0, :, i, j]
            expected[..., i + 1, j] += flows[:, :, 0, :, i, j]
        if j < 3:
            expected[..., i, j] -= flows[:, :, 1, :, i, j]
            expected[..., i, j + 1] += flows[:, :, 1, :, i, j]
    assert torch.equal(_moved(image, on_edges(flows)), expected)
    assert torch.equal(_moved(image, on_edges(flows)[:1]), _moved(image, on_edges(flows)[:1].expand(2, -1, -1)))


def test_laplace_and_uniform_noise():
    draws = draws_of(2, 50_000)
    laplace, uniform = _laplace(draws.keys(), 4), _uniform(draws.keys(), 4)
    for noise, scale, distribution in (
        (laplace, 2.0**19, torch.distributions.Laplace(0.0, 1.0)),
        (uniform, 2.0**31, torch.distributions.Uniform(-1.0, 1.0)),
    ):
        assert torch.equal(noise, noise.round())
        samples = (noise / scale).flatten(0, 1)
        for column in samples.T:
            order = distribution.cdf(column.clamp(-40, 40).float()).double().sort().values
            expected = (torch.arange(len(order)) + 0.5) / len(order)
            assert (order - expected).abs().max() < 2.2 / math.sqrt(len(order))  # Kolmogorov: one in 30,000
        assert torch.corrcoef(samples.T).fill_diagonal_(0).abs().max() < 0.015
    longs = splitmix64(draws.keys(), 2)  # two of 32 bits are in each
    assert torch.equal(uniform[..., 1::2], (longs >> 32).double())
    assert torch.equal(uniform[..., ::2] % 2**32, (longs & 0xFFFFFFFF).double())
    assert torch.equal(_uniform(draws.keys(), 3), uniform[..., :3])


def test_laplace_noise_is_rounded_exactly():
    """Against 50 digits; the probability of another value is 2^-30."""
    mpmath = pytest.importorskip("mpmath")
    draws = draws_of(1, 40)
    longs, noise = splitmix64(draws.keys(), 5).flatten().tolist(), _laplace(draws.keys(), 5).flatten().tolist()
    with mpmath.workdps(50):
        for long, value in zip(longs, noise, strict=True):
            exact = -mpmath.log((mpmath.mpf(long % 2**63) + 0.5) / 2**63) * 2**19
            assert value == mpmath.nint(exact) * (-1 if long < 0 else 1)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [(1, 4, 5), (3, 3, 2)])
def test_copies(variant, shape):
    """Standard deviation sigma for every edge or pixel, mean, scale, and mass that flows only move."""
    scheme, x = WassersteinNoise(0.02, **variant), random_images(2, shape)
    copies = scheme.sample(x, draws_of(2, 8_000))
    assert copies.dtype == torch.float32
    assert copies.shape == (2, 8_000, *shape)
    image = scheme.expected(x)[:, None]
    assert image.mean() == pytest.approx(1 / 8)
    noise = (copies - image) / scheme.brightness(shape)
    on_flows = scheme.on == "flows"
    degree = torch.from_numpy(np.abs(divergence(shape)).sum(1)) if on_flows else torch.ones(math.prod(shape)).double()
    spread = noise.flatten(2).std(1).mean(0)
    assert torch.allclose(spread, 0.02 * degree.sqrt(), rtol=0.05)
    assert noise.mean((0, 1)).abs().max() < 0.02 * 2 * 5 / math.sqrt(16_000)
    assert (noise.sum((3, 4)).abs().max() < 1e-5) == on_flows
    brighter = scheme.sample((x // 2) * 2, draws_of(2, 3))
    assert torch.equal(brighter, scheme.sample(x // 2, draws_of(2, 3)))  # only the shares count
    one_noise = scheme.sample(x, draws_of(1, 3))
    assert torch.allclose(one_noise - image, (copies - image)[:1, :3].expand(2, -1, -1, -1, -1), atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_copies_do_not_depend_on_the_batch(variant):
    scheme, x = WassersteinNoise(0.02, **variant), random_images(2, (1, 24, 24))  # made in groups of 113
    together = scheme.sample(x, draws_of(2, 230))
    for item, copy in ((0, 0), (1, 112), (0, 113), (1, 229)):
        draws = Draws.of(0, ESTIMATION, torch.tensor([item]), range(copy, copy + 1))
        assert torch.equal(scheme.sample(x[item : item + 1], draws)[0, 0], together[item, copy])


def test_floats_are_rounded_to_2_24():
    scheme, draws = WassersteinNoise(0.01), draws_of(2, 3)
    x = torch.rand((2, 1, 3, 3), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rounded = (x * 2**24).round() / 2**24
    assert torch.equal(scheme.sample(x, draws), scheme.sample(rounded, draws))
    assert torch.equal(scheme.sample(rounded.float(), draws), scheme.sample(rounded, draws))


# -- certificates ------------------------------------------------------------------------------------------------------


def unrounded(scheme: WassersteinNoise, p: float) -> float:
    """The formulas of the paper and of the docstring, without any allowance."""
    b, lam = scheme.sigma / math.sqrt(2), scheme.sigma * math.sqrt(3)
    q = 1 - p
    moved = b / 2 * math.log(p / q) if scheme.bound == "published" else -b * math.log(2 * q)
    if scheme.noise == "uniform":
        moved = 2 * lam * (p - 0.5)
    return moved / (2 if scheme.on == "pixels" else {"l1": 1, "l2": math.sqrt(2)}[scheme.metric])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("metric", ["l1", "l2"])
@settings(max_examples=20)
@given(sigma=st.sampled_from([1e-5, 0.01, 1.0]), p=st.floats(0.51, 0.9997))
def test_radius_is_just_below_the_formula(variant, metric, sigma, p):
    scheme = WassersteinNoise(sigma, metric=metric, **variant)
    lower = torch.tensor([p], dtype=torch.float64)
    radius, formula = scheme.radius(lower, 1 - lower, shape=(1, 28, 28)).item(), unrounded(scheme, p)
    assert 0 <= radius < formula
    slack = 0.002 * sigma + 0.004 * formula
    assert radius > formula - slack


@pytest.mark.parametrize("on", ["flows", "pixels"])
@pytest.mark.parametrize("bound", ["tight", "published"])
def test_radius_of_nearly_unanimous_votes(on, bound):
    """With all its allowances, the formula is evaluated in doubles, and never rounded up."""
    mpmath = pytest.importorskip("mpmath")
    for shape, missing, n in itertools.product([(1, 1, 2), (1, 28, 28)], range(8), [10**4, 10**6, 10**8]):
        scheme = WassersteinNoise(0.01, metric="l1", on=on, bound=bound)
        lower = lower_bound(torch.tensor([n - missing]), n, 0.001)
        radius = scheme.radius(lower, 1 - lower, shape=shape).item()
        with mpmath.workdps(50):
            numbers = math.prod(shape) if on == "pixels" else _edges(shape)
            p, q = mpmath.mpf(lower.item()), mpmath.mpf((1 - lower).item()) + 4 * numbers * mpmath.mpf(_SLIP)
            moved = -mpmath.log(1 - p + q) if bound == "tight" else mpmath.log(p / q) / 2
            steps = 2**19 * mpmath.sqrt(2) / mpmath.mpf(0.01)  # in the unit of mass
            moved = (moved * 2**19 - math.prod(shape) * (1 + steps * mpmath.mpf(2) ** -51)) / steps
            assert radius <= moved / (2 if on == "pixels" else 1)


def test_published_equations():
    """Eqs. 5.20 and 5.21, the published median of sigma = 0.01, and what the tight bound makes of it."""
    scheme, p = WassersteinNoise(0.01, bound="published"), 0.9949
    assert unrounded(scheme, p) == pytest.approx(0.01 / 4 * math.log(p / (1 - p)))
    pixels = WassersteinNoise(0.01, bound="published", on="pixels")
    assert unrounded(pixels, p) == pytest.approx(0.01 / (4 * math.sqrt(2)) * math.log(p / (1 - p)))
    lower = torch.tensor([p], dtype=torch.float64)
    assert scheme.radius(lower, 1 - lower, shape=(1, 28, 28)).item() == pytest.approx(0.0132, abs=5e-5)
    assert WassersteinNoise(0.01).radius(lower, 1 - lower, shape=(1, 28, 28)).item() == pytest.approx(0.0229, abs=5e-5)


def half_lines_meet(p: float, q: float) -> float:
    """How far exact Laplace noise with b = 1 has to move until {noise <= a} is no likelier than {noise >= c}, where
    their probabilities were p and q. By the lemma of Neyman and Pearson, no sets are worse in one dimension."""
    one, width = WassersteinNoise(math.sqrt(2)), np.ones(1)
    a = -math.log(2 * (1 - p)) if p >= 0.5 else math.log(2 * p)
    c = -math.log(2 * q) if q < 0.5 else math.log(2 * (1 - q))
    low, high = 0.0, 800.0
    for _ in range(200):
        moved = (low + high) / 2
        class_, rival = half_plane_probability(one, width, a - moved), half_plane_probability(one, width, moved - c)
        low, high = (moved, high) if class_ > rival else (low, moved)
    return high


@settings(max_examples=300)
@given(p=st.floats(0.01, 1 - 1e-6), share=st.floats(1e-6, 1))
def test_two_sided_laplace_radius_is_tight_in_one_dimension(p, share):
    q = min(p, 1 - p) * share
    lower, upper = (torch.tensor([value], dtype=torch.float64) for value in (p, q))
    radius = WassersteinNoise(math.sqrt(2), metric="l1").radius(lower, upper, shape=(1, 1, 2)).item()
    meet = half_lines_meet(p, q)
    assert radius <= meet * (1 + 1e-12)
    assert max(radius, 0) > meet - 2e-5 - 2.0**-28 / q


@given(p=st.floats(0, 1), q=st.floats(0, 1), variant=st.sampled_from(VARIANTS))
def test_radius_for_all_bounds(p, q, variant):
    """Never above the certificate for exact noise with two-sided bounds, -1 where the class does not lead."""
    p, q = max(p, q), min(p, q)
    scheme = WassersteinNoise(1.0, metric="l1", **variant)
    lower, upper = torch.tensor([p], dtype=torch.float64), torch.tensor([min(q, 1 - p)], dtype=torch.float64)
    radius = scheme.radius(lower, upper, shape=(1, 2, 2)).item()
    lead = lower.item() - upper.item()
    if lead <= 0:
        assert radius == -1
    elif lead > 1e-15:
        assert radius >= 0
        b, upper = math.sqrt(0.5), max(upper.item(), 1e-300)
        exact = b / 2 * math.log(p / upper)
        if scheme.bound == "tight":
            exact = b * half_lines_meet(p, upper) if p < 1 else math.inf
        exact = math.sqrt(3) * lead if scheme.noise == "uniform" else exact
        assert radius <= exact / (2 if scheme.on == "pixels" else 1)


def half_plane_probability(scheme: WassersteinNoise, weights: np.ndarray, level: float) -> float:
    """P(weights . noise <= level) for exact, independent noise and different weights."""
    weights = np.abs(weights[weights != 0])
    if scheme.noise == "laplace":  # partial fractions of the product of 1 / (1 + (b t)^2)
        b = weights * scheme.sigma / math.sqrt(2)
        shares = [np.prod([c * c / (c * c - other * other) for other in b if other != c]) for c in b]
        return float(np.dot(shares, np.where(level < 0, 0.5 * np.exp(level / b), 1 - 0.5 * np.exp(-level / b))))
    reach = weights * scheme.sigma * math.sqrt(3)  # volume of a box on one side of a plane, by its corners
    signs = np.array(list(itertools.product((-1, 1), repeat=len(reach))))
    powers = np.maximum(level + signs @ reach, 0) ** len(reach)
    return float((signs.prod(1) * powers).sum() / np.prod(2 * reach) / math.factorial(len(reach)))


def extreme_images(x: np.ndarray, metric: str, distance: float) -> list[np.ndarray]:
    """Mass moved from one pixel to another, at this distance: corners of the ball, where linear functions peak."""
    found, (channels, height, width) = [], x.shape
    places = list(itertools.product(range(height), range(width)))
    for c, a, b in itertools.product(range(channels), places, places):
        step = abs(a[0] - b[0]) + abs(a[1] - b[1]) if metric == "l1" else math.dist(a, b)
        if a != b and x[c, *a] * step > distance:
            y = x.copy()
            y[c, *a] -= distance / step
            y[c, *b] += distance / step
            found.append(y)
    return found


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("metric", ["l1", "l2"])
@pytest.mark.parametrize("shape", SHAPES)
def test_certificates_of_half_planes_hold(variant, metric, shape):
    """Exact probabilities at adversarial images at the certified distance: no class below one half."""
    scheme = WassersteinNoise(0.05, metric=metric, **variant)
    generator, attacked = np.random.default_rng(0), 0
    for _ in range(3):
        x = generator.random(shape) + 0.2
        x /= x.sum()
        plane = generator.normal(size=math.prod(shape))
        along = plane @ divergence(shape) if scheme.on == "flows" else plane
        level = plane @ x.ravel() + generator.uniform(0.2, 2) * scheme.sigma * np.linalg.norm(along)

        def probability(y: np.ndarray, plane=plane, along=along, level=level) -> float:
            return half_plane_probability(scheme, along, level - plane @ y.ravel())

        lower = torch.tensor([probability(x)], dtype=torch.float64)
        radius = scheme.radius(lower, 1 - lower, shape=shape).item()
        for y in extreme_images(x, metric, radius):
            attacked += 1
            assert probability(y) > 0.5
    assert attacked > 0 or math.prod(shape) > 4


@pytest.mark.parametrize("variant", [{}, {"noise": "uniform"}])
@pytest.mark.parametrize("metric", ["l1", "l2"])
def test_certificates_are_tight_on_two_pixels(variant, metric):
    """A half-line of the only flow: one half is crossed just outside. l2 pays its sqrt(2) although it gains nothing."""
    scheme = WassersteinNoise(0.05, metric=metric, **variant)
    for p in (0.55, 0.7, 0.9):
        lower = torch.tensor([p], dtype=torch.float64)
        radius = scheme.radius(lower, 1 - lower, shape=(1, 1, 2)).item()
        b, lam = 0.05 / math.sqrt(2), 0.05 * math.sqrt(3)
        level = -b * math.log(2 * (1 - p)) if scheme.noise == "laplace" else 2 * lam * (p - 0.5)
        assert half_plane_probability(scheme, np.ones(1), level) == pytest.approx(p, abs=1e-12)
        # the class is "flow to the right below level"; mass moved to the right takes its share of the level
        true_radius = level / (math.sqrt(2) if metric == "l2" else 1)
        assert true_radius * (1 - 1e-3) < radius < true_radius


def test_pixel_noise_certifies_less_for_the_same_probability():
    """Corollary D.1 is tight: half of the mass of one pixel moved to its neighbour."""
    x, y = torch.tensor([[1.0, 0.0], [0.5, 0.5]]).view(2, 1, 1, 2)
    assert Wasserstein().distance(x[None], y[None]).item() == pytest.approx(0.5)
    assert (x - y).abs().sum() == 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_sampled_votes_give_the_exact_probability(variant):
    """The whole path, from 8-bit images to a certificate, on two pixels."""
    scheme, x = WassersteinNoise(0.1, metric="l1", **variant), torch.tensor([[[[150, 50]]]], dtype=torch.uint8)
    cut = 0.6 * scheme.brightness((1, 1, 2))
    smoothed = Smoothed(lambda c: torch.stack((c[:, 0, 0, 0] - cut, cut - c[:, 0, 0, 0]), 1), scheme, 2, n=40_000)
    votes = smoothed.votes(x)
    weights = np.ones(1)
    p = half_plane_probability(scheme, weights, 0.75 - 0.6)
    assert votes.counts[0, 0].item() / 40_000 == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / 40_000))
    result = smoothed.certificate(votes)
    assert result.prediction.item() == 0
    assert result.threat == Wasserstein("l1")
    # the prediction changes at 120 : 80, where the cut is: a distance of 0.15, and l1 distance of 0.3
    assert 0 < result.radius.item() < 0.15


def test_dssn_noise_cannot_replace_additive_noise():
    """Appendix D.4: two flow plans for the same image, and splitting noise that tells them apart."""
    q = 128  # flows in [-1, 1], as values in [0, 1]; one split for all edges, lam = 1/2 of the range
    scheme = DeterministicSplittingNoise(0.5, q=q)
    none, circle = torch.zeros((2, 3, 3)), torch.zeros((2, 3, 3))  # down and to the right out of each pixel
    circle[0, 1, 1] = circle[1, 2, 1] = 1  # down from the middle, right, and back
    circle[0, 1, 2] = circle[1, 1, 1] = -1
    image = torch.full((1, 1, 1, 3, 3), 9.0, dtype=torch.float64)

    def moved(flows: Tensor) -> Tensor:
        return _moved(image, on_edges(flows.double()[None, None, :, None]))

    assert torch.equal(moved(none), moved(circle))  # the same image
    smoothed = []
    for plan in (none, circle):
        levels = ((plan + 1) / 2 * q).round().long()
        noised = [cell_centres(levels, torch.tensor(split), scheme.period, q) * 2 - 1 for split in range(scheme.period)]
        smoothed.append(torch.stack([moved(flows)[0, 0, 0] for flows in noised]))
    assert (smoothed[0][:, 1, 1] == 9).all()
    assert (smoothed[1][:, 1, 1] != 9).double().mean() > 0.9
    # additive noise moves both plans to the same images, for every draw
    draws = draws_of(1, 10)
    flows = _laplace(draws.keys(), _edges((1, 3, 3)))
    both = [flows + on_edges(plan.double()[None, None, :, None]) for plan in (none, circle)]
    assert torch.equal(_moved(image, both[0]), _moved(image, both[1]))


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shapes", [((1, 2, 2), (1, 2, 3)), ((1, 2, 2), (2, 2, 2)), ((2, 2), (2, 2))])
def test_distances_of_images_of_different_shapes(shapes):
    x, y = (np.full(shape, 1.0) for shape in shapes)
    message = r"images to compare: got shapes .*, expected the same \[C, H, W\]"
    with pytest.raises(ValueError, match=message):
        flow_distance(x, y)
    with pytest.raises(ValueError, match=message):
        transport_distance(x, y, "l1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma": 0}, "sigma: got 0"),
        ({"sigma": math.inf}, "sigma: got inf"),
        ({"sigma": 0.1, "noise": "gaussian"}, "noise: got 'gaussian', expected one of laplace, uniform"),
        ({"sigma": 0.1, "metric": "l3"}, "metric: got 'l3'"),
        ({"sigma": 0.1, "bound": "best"}, "bound: got 'best'"),
        ({"sigma": 0.1, "on": "edges"}, "on: got 'edges'"),
        ({"sigma": 0.1, "noise": "uniform", "bound": "published"}, "bound: got 'published'"),
    ],
)
def test_bad_parameters(arguments, message):
    with pytest.raises(ValueError, match=message):
        WassersteinNoise(**arguments)


def test_bad_images():
    scheme, x = WassersteinNoise(0.01), torch.rand((3, 1, 4, 4))
    x[2] = 1e-9  # nothing is left on the grid of 2^-24
    for images in (x, torch.zeros((3, 1, 4, 4), dtype=torch.uint8)):
        with pytest.raises(ValueError, match="all zeros for image"):
            scheme.check(images)
        with pytest.raises(ValueError, match="all zeros for image"):
            scheme.sample(images, draws_of(3, 1))
    with pytest.raises(ValueError, match="WassersteinNoise needs the image shape"):
        scheme.radius(torch.ones(1), torch.zeros(1))


def test_text():
    scheme = WassersteinNoise(0.01, bound="published")
    assert spec.to_text(scheme) == "WassersteinNoise(sigma=0.01, bound='published')"
    assert spec.parse_scheme(spec.to_text(scheme)) == scheme
    assert spec.parse_scheme("WassersteinNoise(sigma=0.01, on='pixels', metric='l1')").threat == Wasserstein("l1")
