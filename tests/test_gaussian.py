from __future__ import annotations

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
from scipy.special import ndtr

from certify import L2, GaussianNoise, Smoothed, SplittingNoise, Unproven
from certify.draws import ESTIMATION, Draws


def draws(items=1, copies=range(20)) -> Draws:
    return Draws.of(0, ESTIMATION, torch.arange(items), copies)


@pytest.mark.parametrize("q", [255, 16, 1])
@pytest.mark.parametrize("shape", [(2, 3, 3), (3, 2, 3, 5)], ids=["image", "video"])
def test_copies_are_the_image_plus_noise_on_the_grid(q, shape):
    """Bit by bit: whole numbers, divided once. Videos, floats on the grid and shared noise work alike."""
    scheme = GaussianNoise(0.3, q=q)
    levels = torch.randint(0, q + 1, (3, *shape), generator=torch.Generator().manual_seed(0))
    x = levels.double() / q
    scheme.check(x)
    copies = scheme.sample(x, draws(3))
    noise = scheme.rounded.draw(draws(3), math.prod(shape)).view(3, 20, *shape)
    assert copies.dtype == torch.float32
    assert torch.equal(copies, ((levels[:, None] + noise).double() / q).float())
    if q == 255:
        assert torch.equal(scheme.sample(levels.to(torch.uint8), draws(3)), copies)
    one_noise = scheme.sample(x, draws())
    assert torch.equal(one_noise, ((levels[:, None] + noise[:1]).double() / q).float())


@pytest.mark.parametrize("sound", [True, False])
def test_the_deviation_is_sigma(sound):
    x = torch.full((1, 1, 10, 10), 128, dtype=torch.uint8)
    noise = GaussianNoise(0.25, sound=sound).sample(x, draws(1, range(2000)))[0].double() - 128 / 255
    assert abs(noise.mean()) < 5 * 0.25 / noise.numel() ** 0.5
    assert abs(noise.std() / 0.25 - 1) < 5 / (2 * noise.numel()) ** 0.5 + 2e-5
    assert abs((noise.abs() < 0.25).double().mean() - 0.6827) < 0.01


def exact_radius(sigma: float, p: float, q: float):
    def quantile(p: float):
        return mpmath.sqrt(2) * mpmath.erfinv(2 * mpmath.mpf(p) - 1)

    return mpmath.mpf(sigma) / 2 * (quantile(p) - quantile(q))


@pytest.mark.parametrize("sound", [True, False])
@pytest.mark.parametrize("sigma", [0.12, 0.25, 1.0])
def test_radius_is_that_of_cohen_rounded_down(sigma, sound):
    scheme = GaussianNoise(sigma, sound=sound)
    p = np.concatenate(([0.4, 0.5, 0.5 + 1e-9, 1 - 1e-7], np.linspace(0.501, 0.9999, 60)))
    for rivals in (1 - p, np.minimum(1 - p, 0.2), np.full_like(p, 1e-6)):
        got = scheme.radius(torch.from_numpy(p), torch.from_numpy(rivals), shape=(3, 32, 32)).tolist()
        with mpmath.workdps(50):
            exact = [exact_radius(sigma, a, b) for a, b in zip(p, rivals, strict=True)]
        for found, expected in zip(got, exact, strict=True):
            if expected <= 0:
                assert found == -1
            else:
                # 3,072 features slip with probability 1e-13 together, which moves a quantile at 1e-7 by 1e-7
                assert expected * (1 - 1e-6) - 1e-9 < found < expected


def test_certificates_from_votes():
    """The radius of Cohen et al. from their example: 99,000 of 100,000 votes at sigma 0.5."""
    scheme = GaussianNoise(0.5)
    result = scheme.certify_counts(
        torch.tensor([[1, 99], [50, 50]]),
        torch.tensor([[1000, 99_000], [49_000, 51_000]]),
        0.001,
        n=100_000,
        shape=(3, 32, 32),
    )
    assert result.prediction.tolist() == [1, -1]
    assert result.radius[0] == pytest.approx(0.5 * 2.3099, abs=0.02)
    assert result.radius[1] == -1
    assert result.threat == L2()
    assert result.guaranteed
    assert result.certified_at(1.1).tolist() == [True, False]


@pytest.mark.parametrize("sigma", [0.05, 0.25, 2.0])
def test_the_worst_classifier_on_a_line_keeps_its_class_inside_the_radius_and_not_much_longer(sigma):
    """Half-lines are the worst classifiers; rounding and drawing may only make the radius smaller."""
    scheme = GaussianNoise(sigma)
    weights = np.array([w / 2**64 for w in scheme.rounded.weights()])
    upper = weights[::-1].cumsum()[::-1]  # P(noise >= -reach + i)
    reach = scheme.rounded.reach
    for first in range(1, 40, 3):  # class 0 where a copy is at least -first steps, at the input 0
        p = float(upper[reach - first])
        radius = float(scheme.radius(torch.tensor([p]).double(), torch.tensor([1 - p]).double(), shape=(1, 1, 1))[0])
        steps = math.floor(radius * 255)
        shifts = np.arange(steps + 1)
        assert (upper[reach - first + shifts] > 0.5).all()
        # rounding adds half a step, the grid another
        assert upper[reach - first + steps + 2] < 0.5


def leaking(b: float):
    """A base classifier that recognizes the last digits of sums with b: class 1 if nearly all features are such sums.

    In real numbers every copy of any image is one, and the classifier is constant.
    """

    def classify(copies: torch.Tensor) -> torch.Tensor:
        other = torch.tensor(b, dtype=torch.float32)
        fails = (((copies - other) + other) != copies).flatten(1).sum(1)
        return torch.stack((fails > 2, fails <= 2), 1).float()

    return classify


def test_floating_point_noise_certifies_a_radius_with_an_adversarial_example_inside():
    """The known failure (arXiv 2207.07209) for a black image: a slightly grey one is classified otherwise."""
    black, grey = torch.zeros(1, 1, 28, 28, dtype=torch.uint8), torch.full((1, 1, 28, 28), 10, dtype=torch.uint8)
    images, distance = torch.cat((black, grey)), float(L2().distance(black, grey)[0])
    assert distance == pytest.approx(28 * 10 / 255)
    options = {"num_classes": 2, "n0": 100, "n": 3_000, "alpha": 0.001}
    naive = Smoothed(leaking(10 / 255), GaussianNoise(0.5, sound=False), **options)
    result = naive.certify(images)
    assert result.prediction.tolist() == [0, 1]
    assert naive.predict(images).tolist() == [0, 1]
    assert result.radius[0] > distance + 0.2
    assert not result.guaranteed
    assert "NOT certified" in str(result.threat)
    with pytest.raises(ValueError, match="nothing is certified"):
        result.certified_at(1.0)

    sound = Smoothed(leaking(10 / 255), GaussianNoise(0.5), **options)
    result = sound.certify(images)
    assert result.guaranteed
    assert result.prediction[0] == result.prediction[1]  # with radii like these, they must agree
    assert (result.radius > distance).all()
    assert sound.predict(images).unique().numel() == 1


def test_probabilities_of_neighbours_obey_the_theorem_for_arbitrary_classifiers():
    """Two pixels, every input of a small grid, classifiers of all kinds: no probability moves by more than
    ``Phi(Phi^-1(p) + r / sigma) - p``; by the exact distribution of the noise that is drawn."""
    scheme, q = GaussianNoise(0.6, q=2), 2
    weights = np.array([w / 2**64 for w in scheme.rounded.weights()])
    reach, generator = scheme.rounded.reach, np.random.default_rng(0)
    size = 2 * reach + 1 + q
    a, b = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    tables = [generator.random((size, size)) < share for share in (0.1, 0.5, 0.9)]
    tables += [a + b > size, a > size / 2 + 1, (a - b) % 3 == 0, (a - size / 2) ** 2 + (b - size / 2) ** 2 < 6]
    joint = np.outer(weights, weights)
    levels = list(itertools.product(range(q + 1), repeat=2))
    for table in tables:
        p = {x: (joint * table[x[0] : x[0] + 2 * reach + 1, x[1] : x[1] + 2 * reach + 1]).sum() for x in levels}
        for x, y in itertools.product(levels, levels):
            distance = math.dist(x, y) / q / scheme.sigma
            with np.errstate(divide="ignore"):
                quantile = math.sqrt(2) * float(mpmath.erfinv(2 * min(max(p[x], 1e-15), 1 - 1e-15) - 1))
            assert p[y] >= ndtr(quantile - distance) - 1e-12


def test_inputs_off_the_grid_are_refused_or_not_certified():
    x = torch.rand(2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"away from the grid.*sound=False"):
        GaussianNoise(0.25).check(x)
    scheme = GaussianNoise(0.25, sound=False)
    scheme.check(x)
    assert scheme.threat == Unproven(L2(), "floating-point noise")
    assert scheme.slip((1, 4, 4)) == 0
    with pytest.raises(ValueError, match="videos"):
        SplittingNoise(0.5).check(torch.zeros(1, 1, 2, 4, 4, dtype=torch.uint8))


@pytest.mark.parametrize("sigma", [0, -1, math.nan, math.inf, 100.0])
def test_sigma_out_of_range(sigma):
    with pytest.raises(ValueError, match="sigma"):
        GaussianNoise(sigma)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_gives_the_same_copies():
    x = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    cuda = Draws.of(0, ESTIMATION, torch.arange(3, device="cuda"), range(50))
    scheme = GaussianNoise(0.25)
    assert torch.equal(scheme.sample(x.cuda(), cuda).cpu(), scheme.sample(x, draws(3, range(50))))
