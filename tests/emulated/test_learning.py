"""Training, attacks and poisoning on an accelerator: the same numbers as on the CPU, which computes them here, too."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from certify import (
    BandAblation,
    DeterministicSplittingNoise,
    GaussianNoise,
    RandomizedAblation,
    Smoothed,
    SplittingNoise,
    Undefended,
    WassersteinNoise,
)
from certify.attacks import linf_attack, patch_attack, pointwise_attack, wasserstein_attack
from certify.attacks.wasserstein import Growth
from certify.data import Dataset, load
from certify.models import ModelSpec
from certify.poisoning import ContentHash, Ensemble, KMeans, NearestNeighbors, Network, RotNet, SimCLR
from certify.poisoning.features import Pretraining, load_features
from certify.training import Trainer, TrainingConfig, base_accuracy, load_checkpoint
from tests.emulated.device import GPU


def small(count: int = 100) -> Dataset:
    data = load("digits", "train")
    return replace(data, images=data.images[:count], labels=data.labels[:count])


@pytest.mark.parametrize(
    ("scheme", "options"),
    [
        (RandomizedAblation(20), {}),
        (SplittingNoise(0.5), {"loss": "stability", "augment": True}),
        (DeterministicSplittingNoise(0.5), {"noise": "batch", "nesterov": False}),
        (BandAblation(2), {"optimizer": "adam"}),
        (GaussianNoise(0.25), {}),
        (None, {}),
    ],
    ids=str,
)
def test_training(scheme, options, tmp_path):
    channels = 1 if scheme is None else scheme.channels(1)
    spec, config = ModelSpec("mnist_cnn", channels, 10, 8), TrainingConfig(epochs=2, batch_size=32, lr=0.01, **options)
    states = [
        Trainer(small(), scheme, spec, config, tmp_path / str(device), device=device).run().state_dict()
        for device in ("cpu", GPU)
    ]
    assert all(torch.equal(theirs.cpu(), ours) for ours, theirs in zip(*(s.values() for s in states), strict=True))
    module, _ = load_checkpoint(tmp_path / GPU)
    expected = base_accuracy(module, scheme, small())
    assert base_accuracy(module.to(GPU), scheme, small()) == expected


@pytest.mark.parametrize(
    "learner", [Network("small_cnn", steps=3, batch_size=4, crop=1, flip=True), NearestNeighbors(3)]
)
@pytest.mark.parametrize("at_once", [1, 3])
def test_poisoning_ensembles(learner, at_once):
    data, ensemble = small(60), Ensemble(ContentHash(5), learner, 10)
    parts = ensemble.parts((data.images, data.labels))
    ours, theirs = (ensemble.fit(parts, at_once=at_once, device=device) for device in ("cpu", GPU))
    for mine, other in zip(ours, theirs, strict=True):
        assert all(torch.equal(other[name].cpu(), value) for name, value in mine.items())
    assert torch.equal(ensemble.rankings(theirs, data.images[:9]), ensemble.rankings(ours, data.images[:9]))


@pytest.mark.parametrize(
    "method",
    [
        RotNet("small_cnn", epochs=1, batch_size=16, crop=1),
        SimCLR("small_cnn", epochs=1, batch_size=16, projection=8),
        KMeans(3),
    ],
    ids=["rotnet", "simclr", "clusters"],
)
def test_features(method, tmp_path):
    images, found = small(40).images, []
    for device in ("cpu", GPU):
        learning = Pretraining(images, method, tmp_path / device, device=device)
        learning.start(resume=False)
        learning.run()
        found.append(load_features(tmp_path / device).of(images, device=device).cpu())
    assert torch.equal(*found)


ATTACKS = {
    "pointwise": (RandomizedAblation(20), lambda s, x, y: pointwise_attack(s, x, y, restarts=1, max_queries=60)),
    "patch": (BandAblation(2), lambda s, x, y: patch_attack(s, x, y, patch_size=3, restarts=2, steps=3)),
    "linf": (BandAblation(2), lambda s, x, y: linf_attack(s, x, y, eps=[0.1, 0.2], steps=3)),
    "undefended": (Undefended(), lambda s, x, y: linf_attack(s, x, y, eps=[0.1], steps=3)),
    "wasserstein": (
        WassersteinNoise(sigma=0.01),
        lambda s, x, y: wasserstein_attack(
            s, x, y, growth=Growth(steps=6, start=0.005, factor=1.2, every=1, samples=8)
        ),
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks(name):
    scheme, attack = ATTACKS[name]
    data, results = small(3), []
    module = ModelSpec("mnist_cnn", scheme.channels(1), 10, 8).build().eval()
    for device in ("cpu", GPU):
        smoothed = Smoothed(module.to(device), scheme, 10, n0=20, n=40)
        results.append(attack(smoothed, data.images.to(device), data.labels.to(device)))
    ours, theirs = results
    assert torch.equal(theirs.magnitude.cpu(), ours.magnitude)
    assert torch.equal(theirs.adversarial.cpu(), ours.adversarial)
