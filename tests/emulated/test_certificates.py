"""Votes and certificates of models and images on an accelerator."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from certify import (
    BandAblation,
    ConcaveSmoothing,
    DoubleMasking,
    GaussianNoise,
    MultiBlockAblation,
    RandomizedAblation,
    RandomizedVariableLambda,
    SampledScheme,
    Scheme,
    Smoothed,
    SmoothReduce,
    ThresholdVote,
    VariableLambda,
    WassersteinNoise,
)
from certify.data import load
from tests.emulated.device import GPU, reads
from tests.soundness.table import TOYS
from tests.test_votes import SCHEMES

IMAGES = load("digits", "test").batch(range(3))[0]


class Exact(nn.Module):
    """Scores in integers, the same on all devices."""

    def __init__(self, inputs: int, classes: int = 10) -> None:
        super().__init__()
        weight = torch.randint(-8, 9, (classes, inputs), generator=torch.Generator().manual_seed(2))
        self.register_buffer("weight", weight.double())

    def forward(self, copies: Tensor) -> Tensor:
        return (copies.flatten(1) * 510).round().double() @ self.weight.T


def both(scheme: Scheme, shape: tuple[int, ...], **options: object) -> tuple[Smoothed, Smoothed]:
    """A classifier on the CPU, and on the accelerator."""
    channels, *size = scheme.input_shape(shape)
    inputs = channels * size[0] * size[1]
    made = [Smoothed(Exact(inputs).to(device), scheme, 10, n0=40, n=120, **options) for device in ("cpu", GPU)]  # type: ignore[arg-type]
    return made[0], made[1]


MORE = [
    VariableLambda(0.5, alpha=2, budget=40),
    VariableLambda(0.5, budget=20, coupling="permuted"),
    VariableLambda(0.5, budget=20, coupling="global"),
    ConcaveSmoothing(tuple(tuple(k / 255 / i for k in range(1, 256)) for i in range(1, 9)), by="row", budget=20),
    RandomizedVariableLambda(0.5, alpha=2),
    WassersteinNoise(sigma=0.01),
    WassersteinNoise(sigma=0.01, noise="uniform"),
    WassersteinNoise(sigma=0.01, on="pixels"),
    GaussianNoise(0.25, sound=False),
    SmoothReduce(0.25, 4, resize=12, stride=4),
    SmoothReduce(0.25, 4, count=2),
    DoubleMasking(2, masks=2),
]


@pytest.mark.parametrize("scheme", [*SCHEMES, *MORE], ids=str)
def test_votes_and_certificates(scheme):
    cpu, gpu = both(scheme, (1, 8, 8))
    expected = cpu.certify(IMAGES)
    for images in (IMAGES, IMAGES.to(GPU)):
        result = gpu.certify(images)
        assert result.radius.device == result.prediction.device == images.device
        assert torch.equal(result.radius.cpu(), expected.radius)
        assert torch.equal(result.prediction.cpu(), expected.prediction)
    assert torch.equal(gpu.predict(IMAGES.to(GPU)).cpu(), cpu.predict(IMAGES))


@pytest.mark.parametrize("toy", TOYS, ids=lambda toy: f"{type(toy.scheme).__name__}, {toy.name}")
def test_copies_of_toys(toy):
    cpu, gpu = both(toy.scheme, toy.shape)
    x = toy.images()[-3:]
    assert torch.equal(gpu.votes(x.to(GPU)).counts.cpu(), cpu.votes(x).counts)


@pytest.mark.parametrize("scheme", [RandomizedAblation(20), GaussianNoise(0.25)], ids=str)
def test_top_k_and_sequential(scheme):
    cpu, gpu = both(scheme, (1, 8, 8))
    remote = IMAGES.to(GPU)
    assert torch.equal(gpu.certify_top_k(remote, 3).radius.cpu(), cpu.certify_top_k(IMAGES, 3).radius)
    for ask in (
        lambda smoothed, x: smoothed.certify_at(x, 1.0, max_n=400),
        lambda smoothed, x: smoothed.certify_within(x, 1.5, max_n=400),
    ):
        expected, result = ask(cpu, IMAGES), ask(gpu, remote)
        assert torch.equal(result.radius.cpu(), expected.radius)


@pytest.mark.parametrize("scheme", [BandAblation(2), MultiBlockAblation(2, 2)], ids=str)
@pytest.mark.parametrize("bound", ["location", "published"])
def test_patches(scheme, bound):
    cpu, gpu = both(scheme, (1, 8, 8), vote=ThresholdVote(theta=0.3))
    expected, result = (
        cpu.certify_patch(IMAGES, (2, 3), bound=bound),
        gpu.certify_patch(IMAGES.to(GPU), (2, 3), bound=bound),
    )
    assert torch.equal(result.certified.cpu(), expected.certified)


def test_python_does_not_wait_for_passes():
    """How often votes are read does not depend on the number of forward passes."""
    for scheme in SCHEMES:
        if not isinstance(scheme, SampledScheme):
            continue
        _, gpu = both(scheme, (1, 8, 8), batch_size=8)
        gpu.votes(IMAGES.to(GPU))
        counts = []
        for n in (16, 48):
            with reads() as count:
                gpu.engine.sampled(IMAGES.to(GPU), n, index=None, seed=0, stream=1)
                counts.append(count())
        assert counts[0] == counts[1], type(scheme).__name__
