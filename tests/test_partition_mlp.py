"""One network per partition: each sees its own pixels and nothing else."""

from __future__ import annotations

import pytest
import torch

from certify import DeterministicAblation, Smoothed
from certify.data import load
from certify.models import ModelSpec, build
from certify.models.partition_mlp import PartitionMLP
from certify.spec import parse_scheme
from certify.training import Trainer, TrainingConfig, load_checkpoint

SHAPE = (2, 5, 4)


def ensemble(scheme: DeterministicAblation) -> PartitionMLP:
    torch.manual_seed(0)
    return PartitionMLP(4, 3, (5, 4), alpha=scheme.alpha, seed=scheme.seed, unit=scheme.unit, hidden=16).eval()


@pytest.mark.parametrize("unit", ["pixel", "feature"])
@pytest.mark.parametrize("alpha", [1, 4, 70])
def test_each_copy_is_seen_by_the_network_of_its_partition(unit, alpha):
    scheme = DeterministicAblation(alpha, seed=2, unit=unit)
    model = ensemble(scheme)
    x = torch.rand(1, *SHAPE)
    copies = scheme.copies(x, torch.arange(alpha)[None])[0]
    before = model(copies)
    for t in (0, alpha - 1):
        with torch.no_grad():
            model.biases[2][t] += 1.0
        shown = (copies[t] != 0).any()
        changed = (model(copies) != before).any(1)
        expected = [t] if shown else []
        assert [i for i in changed.nonzero()[:, 0].tolist() if (copies[i] != 0).any()] == expected
        before = model(copies)


@pytest.mark.parametrize("unit", ["pixel", "feature"])
def test_a_changed_unit_changes_one_vote(unit):
    scheme = DeterministicAblation(6, seed=1, unit=unit)
    model = ensemble(scheme)
    x = torch.rand(1, *SHAPE)
    index = torch.arange(6)[None]
    before = model(scheme.copies(x, index)[0])
    for row in range(5):
        y = x.clone()
        if unit == "pixel":
            y[0, :, row, 2] = torch.rand(2)
        else:
            y[0, 1, row, 2] = torch.rand(1)
        assert (model(scheme.copies(y, index)[0]) != before).any(1).sum() == 1


def test_values_of_zero_and_one_are_not_taken_for_ablated_ones():
    scheme = DeterministicAblation(3)
    model = ensemble(scheme)
    for value in (0.0, 1.0):
        copies = scheme.copies(torch.full((1, *SHAPE), value), torch.arange(3)[None])[0]
        retained = (copies[:, :2] + copies[:, 2:]) > 0.5
        assert torch.equal(model.partition[retained[:, 0].flatten(1).byte().argmax(1)], torch.arange(3))


def test_certificates_are_those_of_deterministic_ablation():
    scheme = DeterministicAblation(9, seed=4)
    smoothed = Smoothed(ensemble(scheme), scheme, 3)
    x = torch.rand(20, *SHAPE)
    result = smoothed.certify(x)
    assert torch.equal(result.prediction, smoothed.votes(x).counts.argmax(1))
    for i in range(20):
        for _ in range(10):  # as many changed pixels as are certified, anywhere
            y = x[i : i + 1].clone().flatten(2)
            where = torch.randperm(20)[: int(result.radius[i])]
            y[:, :, where] = torch.rand(1, 2, len(where))
            assert smoothed.predict(y.view(1, *SHAPE))[0] == result.prediction[i]


def test_every_network_is_trained():
    scheme = DeterministicAblation(4, seed=2)
    model = ensemble(scheme)
    copies = scheme.copies(torch.rand(3, *SHAPE), torch.arange(4)[None]).flatten(0, 1)
    model(copies).square().sum().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert (parameter.grad.flatten(1) != 0).any(1).all()


def test_encodings_without_two_channels_are_refused():
    with pytest.raises(ValueError, match="in_channels: got 3, expected an even number"):
        PartitionMLP(3, 10, (4, 4), alpha=2)


def test_the_ensemble_is_trained_and_certified_like_any_model(tmp_path):
    text = "DeterministicAblation(alpha=8, seed=3)"
    data = load("digits", "train")
    spec = ModelSpec("partition_mlp", 2, 10, 8, scheme=text)
    scheme = parse_scheme(text)
    Trainer(data, scheme, spec, TrainingConfig(epochs=12, batch_size=64, lr=0.05), tmp_path).run()
    module, checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.model == spec
    test = load("digits", "test")
    result = Smoothed(module, scheme, 10).certify(test.batch(torch.arange(200))[0])
    assert (result.correct(test.labels[:200]) & (result.radius >= 1)).double().mean() > 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "scheme: got None, expected a DeterministicAblation"),
        ({"scheme": "RandomizedAblation(keep=3)"}, "expected a DeterministicAblation"),
        ({"scheme": "DeterministicAblation(alpha=3, null='mean', mean=(0.5,))"}, "plain multichannel encoding"),
        ({"scheme": "DeterministicAblation(alpha=3)", "mean": (0.5,), "std": (1.0,)}, "train without it"),
    ],
)
def test_what_the_ensemble_cannot_follow_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build("partition_mlp", 2, 10, 8, **options)
    with pytest.raises(ValueError, match="only partition_mlp depends on a scheme"):
        build("mnist_cnn", 2, 10, 8, scheme="DeterministicAblation(alpha=3)")
