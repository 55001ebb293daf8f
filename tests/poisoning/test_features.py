"""Features for SS-DPA: no label is read, all runs give the same bits, and no insertion is certified with them."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from certify.data import load
from certify.poisoning import Ensemble, Network, PixelSum, RotNet, SimCLR, SortedIndex
from certify.poisoning.features import FILE, Pretraining, load_features, read_method
from certify.poisoning.pretext import contrastive_loss
from certify.poisoning.views import gray, jittered, random_view, resized_crops, turned
from certify.results import read_rows
from certify.threats import TrainingLabels, TrainingSamples
from scripts import poisoning, train_features

ROTNET = RotNet("small_cnn", epochs=2, batch_size=16, crop=1)
SIMCLR = SimCLR("small_cnn", epochs=2, batch_size=16, projection=8)
METHODS = pytest.mark.parametrize("method", [ROTNET, SIMCLR], ids=["rotnet", "simclr"])


def _images(count: int = 40):
    return load("digits", "train").images[:count]


def _learn(folder, method, images, **options) -> bytes:
    learning = Pretraining(images, method, folder)
    learning.start(resume=(folder / "config.json").exists())
    return learning.run(**options).read_bytes()


@METHODS
def test_learning_is_reproducible_in_any_order_of_the_images(tmp_path, method):
    first = _learn(tmp_path / "a", method, _images())
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert _learn(tmp_path / "b", method, _images()[order]) == first
    assert _learn(tmp_path / "c", replace(method, seed=1), _images()) != first
    seen = load_features(tmp_path / "a").of(_images())
    assert torch.equal(load_features(tmp_path / "b").of(_images()[order]), seen[order])


class _Killed(Exception):
    pass


@METHODS
def test_learning_that_was_killed_continues_to_the_identical_features(tmp_path, method):
    whole = _learn(tmp_path / "whole", method, _images())
    steps = []

    def kill() -> None:
        steps.append(0)
        if len(steps) == 3:  # an epoch has two
            raise _Killed

    with pytest.raises(_Killed):
        _learn(tmp_path / "killed", method, _images(), on_step=kill)
    epochs = []
    again = _learn(tmp_path / "killed", method, _images(), on_epoch=lambda epoch, _: epochs.append(epoch))
    assert (again, epochs) == (whole, [1])


def test_a_folder_is_for_one_process_at_a_time(tmp_path):
    pytest.importorskip("fcntl")
    (tmp_path / f".{FILE}.{'0' * 32}.tmp").touch()

    def second() -> None:
        with pytest.raises(ValueError, match="another process trains here"):
            _learn(tmp_path, ROTNET, _images())

    _learn(tmp_path, ROTNET, _images(), on_step=second)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "state.safetensors", FILE}


def test_folders_never_mix_features(tmp_path):
    _learn(tmp_path, ROTNET, _images())
    with pytest.raises(ValueError, match="holds features; add --resume"):
        Pretraining(_images(), ROTNET, tmp_path).start(resume=False)
    with pytest.raises(ValueError, match="was made with method"):
        Pretraining(_images(), replace(ROTNET, epochs=3), tmp_path).start(resume=True)
    with pytest.raises(ValueError, match="was made with images_sha256"):
        Pretraining(_images(41)[1:], ROTNET, tmp_path).start(resume=True)


def test_stored_features_are_those_of_the_images(tmp_path):
    _learn(tmp_path, ROTNET, _images())
    features, path = load_features(tmp_path), tmp_path / "some.safetensors"
    first = features.stored(_images(), path)
    assert first.shape == (40, 32, 2, 2)
    assert torch.equal(features.stored(_images(), path), first)
    assert torch.equal(features.stored(_images(5), path), features.of(_images(5)))
    doubled = features.of(torch.cat((_images(3), _images(70))))
    assert torch.equal(doubled[:3], doubled[3:6])
    with pytest.raises(ValueError, match="as in training"):
        features.of(torch.zeros((1, 1, 9, 9), dtype=torch.uint8))
    with pytest.raises(FileNotFoundError, match="train_features"):
        load_features(tmp_path / "nothing")


def test_pooled_features_are_means_of_the_others(tmp_path):
    _learn(tmp_path / "a", ROTNET, _images())
    _learn(tmp_path / "b", replace(ROTNET, pool=1), _images())
    whole, pooled = (load_features(tmp_path / name).of(_images()) for name in "ab")
    assert pooled.shape == (40, 32, 1, 1)
    assert torch.allclose(pooled, whole.mean((2, 3), keepdim=True), atol=1e-6)


@pytest.mark.parametrize(
    ("method", "chance"),
    [
        (RotNet("small_cnn", epochs=3, batch_size=64, crop=0), math.log(4)),
        (SimCLR("small_cnn", epochs=2, batch_size=64, lr=0.1, flip=False), math.log(127)),
    ],
    ids=["rotnet", "simclr"],
)
def test_the_tasks_are_learned(tmp_path, method, chance):
    learning = Pretraining(load("digits", "train").images, method, tmp_path)
    learning.start(resume=False)
    learning.run()
    assert learning.losses[-1] < min(learning.losses[0], 0.9 * chance)


def test_published_networks():
    with torch.device("meta"):
        features, head = RotNet().build(1, (28, 28))
        maps = features(torch.empty(2, 1, 28, 28))
        assert maps.shape == (2, 192, 7, 7)
        assert head(maps).shape == (2, 4)
        below, projection = SimCLR().build(3, (32, 32))
        assert below(torch.empty(2, 3, 32, 32)).shape == (2, 512)
        assert projection(torch.empty(2, 512)).shape == (2, 128)
    settings = SimCLR()
    assert (settings.epochs, settings.batch_size, settings.lr, settings.temperature) == (1000, 512, 0.5, 0.5)


def test_the_contrastive_loss_by_hand():
    z = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, -1.0]])
    right, wrong = math.exp(1 / 0.5), math.exp(-1 / 0.5)
    first = -math.log(right / (right + 2))  # views 0 and 2 agree, each among two that are orthogonal
    second = -math.log(wrong / (wrong + 2))  # views 1 and 3 are opposite
    assert contrastive_loss(z, 0.5).item() == pytest.approx((first + second) / 2, abs=1e-6)


def test_views():
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    a, b = (random_view(images, torch.Generator().manual_seed(1), flip=True) for _ in range(2))
    assert torch.equal(a, b)
    assert a.shape == images.shape
    assert 0 <= a.min() <= a.max() <= 1
    whole = torch.tensor([[1, 0.5, 0.5, 0.5, 0.9]]).expand(6, 5)
    assert torch.allclose(resized_crops(images, whole, flip=True), images, atol=1e-5)
    mirror = torch.tensor([[1, 0.5, 0.5, 0.5, 0.1]]).expand(6, 5)
    assert torch.allclose(resized_crops(images, mirror, flip=True), images.flip(3), atol=1e-5)
    assert torch.allclose(resized_crops(images, mirror, flip=False), images, atol=1e-5)
    assert torch.equal(jittered(images, torch.full((6, 6), 0.95)), images)
    assert torch.allclose(jittered(images, torch.tensor([[0.95] * 5 + [0.1]])), gray(images).expand(6, 3, 8, 8))
    third = torch.full((6, 1, 1, 1), 2 * math.pi / 3)
    assert torch.allclose(turned(images, third), images.roll(1, 1), atol=1e-5)
    one = images[:, :1]
    assert jittered(one, torch.rand(6, 6)).shape == one.shape


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RotNet("resnet18"), "model"),
        (lambda: SimCLR("nothing"), "model"),
        (lambda: SimCLR("wide_resnet40_2").build(1, (8, 8)) and SimCLR("linear").build(1, (8, 8)), "linear layer"),
        (lambda: RotNet().build(1, (8, 9)), "expected square images"),
        (lambda: RotNet(batch_size=1), "batch_size"),
        (lambda: SimCLR(temperature=0), "temperature"),
        (lambda: read_method("Jigsaw()"), "RotNet"),
        (lambda: Pretraining(_images(1), ROTNET, "x"), "expected at least 2"),
        (lambda: Pretraining(torch.zeros(4, 8), ROTNET, "x"), "images"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# What is certified with them


def test_insertions_are_never_certified_with_learned_features():
    features = torch.rand(6, 4)
    data = torch.zeros((6, 3), dtype=torch.uint8), torch.arange(6) % 2
    rankings = torch.zeros((3, 1, 2), dtype=torch.int64) + torch.tensor([0, 1])
    for partitioner in (PixelSum(3), SortedIndex(3)):
        ensemble = Ensemble(partitioner, Network("linear"), 2, learned=True)
        assert ensemble.threats == (TrainingLabels(),)
        assert ensemble.certify(rankings).threat == TrainingLabels()
        for method in ("plurality", "run-off"):
            with pytest.raises(ValueError, match="features learned from all training samples certify only"):
                ensemble.certify(rankings, method=method, threat=TrainingSamples())
        assert len(ensemble.parts(data, features=features)) == 3
        for options in ({}, {"inputs": features}, {"inputs": features, "features": features}):
            with pytest.raises(ValueError, match="expected features alone"):
                ensemble.parts(data, **options)
    with pytest.raises(ValueError, match="decides what is certified"):
        Ensemble(PixelSum(3), Network("linear"), 2).parts(data, features=features)


def _learn_by_script(folder) -> None:
    train_features.main(train_features.Args(folder, method="RotNet('small_cnn', epochs=1, batch_size=256, crop=1)"))


def test_no_label_is_read(tmp_path, monkeypatch):
    _learn_by_script(tmp_path / "a")
    data = load("digits", "train")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr(train_features, "load", lambda *_: replace(data, labels=data.labels[order]))
    _learn_by_script(tmp_path / "b")
    for name in (FILE, "train.safetensors", "state.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_scripts_learn_train_and_certify(tmp_path, capsys):
    _learn_by_script(tmp_path / "features")
    options = {"learner": "Network('linear', steps=30, batch_size=32)", "features": tmp_path / "features", "skip": 10}
    args = poisoning.Args("all", tmp_path / "run", partition="SortedIndex(6)", **options)
    for wrong in ({"threat": "samples"}, {"threat": "samples", "partition": "PixelSum(6)"}):
        with pytest.raises(ValueError, match="features learned from all training samples certify only"):
            poisoning.main(replace(args, **wrong))
    with pytest.raises(ValueError, match="run-off with a spread"):
        poisoning.main(replace(args, method="run-off", spread=2))
    with pytest.raises(FileNotFoundError, match="train_features"):
        poisoning.main(replace(args, features=tmp_path / "nothing"))
    assert not (tmp_path / "run").exists()
    poisoning.main(args)
    run = tmp_path / "run" / "test" / "plurality-labels"
    assert read_rows(run)["correct"].mean() > 0.7
    assert "RotNet" in json.loads((run / "config.json").read_text())["scheme"]
    assert "poisoning (training labels flipped)" in capsys.readouterr().out
    poisoning.main(poisoning.Args("vote", tmp_path / "run", skip=10))  # the features are stored with the models
    poisoning.main(poisoning.Args("vote", tmp_path / "run", split="train", max=3))
    (tmp_path / "run" / FILE).write_bytes((tmp_path / "features" / "state.safetensors").read_bytes())
    with pytest.raises(ValueError, match="got no features"):
        poisoning.main(poisoning.Args("vote", tmp_path / "run", skip=10))
    (tmp_path / "features" / "again").mkdir()
    other = Pretraining(_images(), ROTNET, tmp_path / "features" / "again")
    (tmp_path / "run" / FILE).write_bytes(other.run().read_bytes())
    with pytest.raises(ValueError, match="is not what the models were trained on"):
        poisoning.main(poisoning.Args("vote", tmp_path / "run", skip=10))


def test_flips_are_refused_where_they_change_what_a_sign_means():
    signs = replace(load("digits", "train"), mirrored=False)
    with pytest.raises(ValueError, match="add flip=False"):
        train_features.check(SimCLR(), signs)
    train_features.check(SimCLR(flip=False), signs)
    train_features.check(RotNet(), signs)
