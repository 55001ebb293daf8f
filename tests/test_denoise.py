"""Stability training and denoisers, from the network to the command lines."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from certify import DeterministicSplittingNoise, RandomizedAblation, Scheme, Smoothed, VariableLambda
from certify.data import DATASETS, Dataset, load
from certify.draws import TRAINING, Draws
from certify.models import DENOISERS, MODELS, Denoised, DenoisedSpec, DnCNN, ModelSpec, read_spec
from certify.training import Trainer, TrainingConfig, denoising_errors, load_checkpoint, save_checkpoint
from certify.training.checkpoint import Checkpoint
from certify.training.trainer import generator_for
from scripts import certify as certify_script
from scripts import train as train_script
from scripts import train_denoiser as denoiser_script
from scripts.parts import cli

DSSN = DeterministicSplittingNoise(0.5)
CLASSIFIER = ModelSpec("tiny", 1, 10, 8, (0.3,), (0.4,))
DENOISED = DenoisedSpec("dncnn_small", 1, CLASSIFIER)
SGD = TrainingConfig(epochs=3, batch_size=32, lr=0.05)
ADAM = replace(SGD, lr=1e-3, optimizer="adam")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """A small classifier with batch statistics."""

    def build(in_channels: int, num_classes: int, image_size: tuple[int, int]) -> nn.Module:
        layers = [nn.Conv2d(in_channels, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(8 * (image_size[0] - 2) * (image_size[1] - 2), num_classes))

    monkeypatch.setitem(MODELS, "tiny", build)
    monkeypatch.setitem(DATASETS, "few", lambda root, split: replace(small(), name="few", split=split))


def small(count: int = 150) -> Dataset:
    data = load("digits", "train")
    return replace(data, images=data.images[:count], labels=data.labels[:count])


@pytest.fixture
def clean(tmp_path) -> str:
    """A classifier of clean images."""
    Trainer(small(), None, CLASSIFIER, SGD, tmp_path / "clean").run()
    return str(tmp_path / "clean")


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Denoisers


@pytest.mark.parametrize("scheme", [DSSN, RandomizedAblation(20), VariableLambda(0.5, alpha=5, budget=100)], ids=repr)
def test_an_untrained_denoiser_shows_the_first_channels(scheme: Scheme):
    images = small(4).images
    copies = scheme.sample(images, Draws.of(0, TRAINING, torch.arange(4), range(1)))[:, 0]
    model = DenoisedSpec("dncnn_small", scheme.channels(1), CLASSIFIER).build().eval()
    assert torch.equal(model.denoiser(copies), copies[:, :1])
    assert model(copies).shape == (4, 10)
    model.train()(copies).square().sum().backward()
    gradient = model.denoiser.noise[-1].weight.grad  # pyright: ignore
    assert gradient.abs().max() > 0


def test_the_published_architecture():
    """17 layers: 3 -> 64, 15 times 64 -> 64 with normalization, 64 -> 3."""
    parameters = sum(p.numel() for p in DENOISERS["dncnn"](3, 3).parameters())
    assert parameters == (3 * 64 * 9 + 64) + 15 * (64 * 64 * 9 + 2 * 64) + 64 * 3 * 9
    copies = torch.rand(2, 6, 9, 7)
    assert torch.equal(DENOISERS["dncnn"](6, 3).eval()(copies), copies[:, :3])
    with pytest.raises(ValueError, match="in_channels: got 1, expected at least the image's 3"):
        DnCNN(1, 3)


def test_a_denoised_classifier_is_one_checkpoint(tmp_path):
    scheme = RandomizedAblation(20)
    spec = DenoisedSpec("dncnn_small", 2, CLASSIFIER)
    module = spec.build().eval()
    nn.init.normal_(module.denoiser.noise[-1].weight)  # pyright: ignore
    save_checkpoint(tmp_path / "model.safetensors", module, Checkpoint(spec, scheme, "digits", {}))
    loaded, description = load_checkpoint(tmp_path)
    assert isinstance(loaded, Denoised)
    assert description.model == spec
    assert (spec.name, spec.num_classes, spec.size) == ("dncnn_small+tiny", 10, (8, 8))
    assert same(state(loaded), state(module))
    votes = [Smoothed(m, scheme, 10, n0=20, n=50).votes(small(3).images).counts for m in (module, loaded)]
    assert torch.equal(votes[0], votes[1])


def test_bad_descriptions():
    with pytest.raises(ValueError, match="denoiser: got 'unet', expected one of dncnn"):
        DenoisedSpec("unet", 1, CLASSIFIER)
    with pytest.raises(TypeError):
        read_spec({"denoiser": "dncnn", "classifier": {"name": "tiny"}})


# Training


def test_default_training_is_plain_noise_training(tmp_path):
    """The trainer against a loop written out, bit for bit."""
    data, spec = small(), ModelSpec("mnist_cnn", 1, 10, 8)
    config = replace(SGD, epochs=1, schedule="constant")
    trained = Trainer(data, DSSN, spec, config, tmp_path).run()
    torch.manual_seed(0)
    model = spec.build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    order = torch.randperm(150, generator=generator_for(0, 0))
    for position, index in enumerate(order.split(32)):
        draws = Draws(0, TRAINING, torch.full((len(index), 1), position), torch.arange(len(index))[:, None])
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(DSSN.sample(data.images[index], draws)[:, 0]), data.labels[index])
        loss.backward()
        optimizer.step()
    assert same(state(trained), state(model))


@pytest.mark.parametrize("noise", ["sample", "batch"])
def test_the_second_copy_has_noise_of_its_own(tmp_path, noise):
    t = Trainer(small(), DSSN, CLASSIFIER, replace(SGD, noise=noise, loss="stability"), tmp_path)
    numbers = [(int(d.item[0]), int(c)) for p in (0, 1) for k in (0, 1) for d in [t.noise(p, 32, k)] for c in d.copy]
    assert len(set(numbers)) == len(numbers) == (4 * 32 if noise == "sample" else 4)
    images = small().images[:32]
    assert torch.equal(t.copies(images, 5), DSSN.sample(images, t.noise(5, 32))[:, 0])
    assert not torch.equal(t.copies(images, 5), t.copies(images, 5, 1))


def test_stability_training_of_weight_zero_is_noise_training(tmp_path):
    spec = ModelSpec("mnist_cnn", 1, 10, 8)  # without batch statistics, which the second copy would change
    results = []
    for name, loss, weight in (("a", "cross_entropy", 6.0), ("b", "stability", 0.0), ("c", "stability", 6.0)):
        config = replace(SGD, epochs=1, loss=loss, stability_weight=weight)
        results.append(state(Trainer(small(), DSSN, spec, config, tmp_path / name).run()))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_stability_training_makes_the_copies_agree(tmp_path):
    divergences = []
    for weight in (0.0, 6.0):
        config = replace(SGD, epochs=6, loss="stability", stability_weight=weight)
        t = Trainer(small(), DSSN, CLASSIFIER, config, tmp_path / str(weight))
        t.run()
        with torch.no_grad():
            p, q = (t.module(t.copies(small().images, 99, number)).softmax(1) for number in (0, 1))
        divergences.append((p * (p / q).log()).sum(1).mean())
    assert divergences[1] < divergences[0] / 2


@pytest.mark.parametrize("loss", ["denoiser_mse", "denoiser_stability"])
def test_only_the_denoiser_is_trained(tmp_path, clean, loss):
    t = Trainer(small(), DSSN, DENOISED, replace(ADAM, loss=loss, classifier=clean), tmp_path / "d")
    before = state(t.module)
    t.run()
    frozen = state(load_checkpoint(clean)[0])
    assert same(state(t.denoised.classifier), frozen)
    assert all(p.grad is None for p in t.denoised.classifier.parameters())
    changed = [name for name, tensor in t.module.state_dict().items() if not torch.equal(tensor, before[name])]
    assert set(changed) == {name for name in before if name.startswith("denoiser.")}
    loaded, description = load_checkpoint(tmp_path / "d")
    assert same(state(loaded), state(t.module))
    assert description.model == DENOISED


@pytest.mark.parametrize("scheme", [DSSN, VariableLambda(0.5, alpha=5, budget=100)], ids=["1 channel", "2 channels"])
def test_a_denoiser_denoises(tmp_path, clean, scheme):
    spec = DenoisedSpec("dncnn_small", scheme.channels(1), CLASSIFIER)
    config = replace(ADAM, loss="denoiser_mse", classifier=clean)
    t = Trainer(small(500), scheme, spec, config, tmp_path / "d")
    t.run()
    before, after = denoising_errors(t.denoised, scheme, load("digits", "test"))
    assert after < 0.6 * before
    assert t.history[-1].loss < t.history[0].loss


def test_retraining_starts_from_the_denoiser_and_trains_everything(tmp_path, clean):
    config = replace(ADAM, loss="denoiser_mse", classifier=clean)
    first = Trainer(small(), DSSN, DENOISED, config, tmp_path / "d")
    first.run()
    other = DenoisedSpec("dncnn_small", 1, ModelSpec("mnist_cnn", 1, 10, 8))
    t = Trainer(small(), DSSN, other, replace(SGD, denoiser=str(tmp_path / "d")), tmp_path / "r")
    assert same(state(t.denoised.denoiser), state(first.denoised.denoiser))
    before = state(t.module)
    t.run()
    assert all(not torch.equal(tensor, before[name]) for name, tensor in t.module.state_dict().items())


MODES = {
    "stability": (CLASSIFIER, replace(SGD, loss="stability")),
    "mse": (DENOISED, replace(ADAM, loss="denoiser_mse", classifier="clean")),
    "denoiser stability": (DENOISED, replace(SGD, loss="denoiser_stability", classifier="clean")),
    "retraining": (DENOISED, replace(ADAM, denoiser="d", augment=True)),
}


@pytest.mark.parametrize("mode", MODES)
def test_interrupted_training_ends_in_the_identical_model(tmp_path, clean, monkeypatch, mode):
    monkeypatch.chdir(tmp_path)
    spec, config = MODES[mode]
    if config.denoiser:
        Trainer(small(), DSSN, DENOISED, replace(MODES["mse"][1], epochs=1), "d").run()

    def trainer(folder: str) -> Trainer:
        return Trainer(small(), DSSN, spec, config, folder)

    def kill(epoch: int, step: int) -> None:
        if (epoch, step) == (2, 1):
            raise InterruptedError

    whole = trainer("whole")
    whole.run()
    with pytest.raises(InterruptedError):
        trainer("part").run(on_step=kill)
    torch.rand(7)
    resumed = trainer("part")
    resumed.load_state()
    assert resumed.epoch == 2
    resumed.run()
    assert resumed.history == whole.history
    assert Path("part/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"was made with config\.stability_weight = 6\.0, not 1\.0"):
        Trainer(small(), DSSN, spec, replace(config, stability_weight=1.0), "part").load_state()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "mse"}, "loss: got 'mse', expected one of cross_entropy, stability, smoothadv, macer, denoiser_mse"),
        ({"loss": "stability", "stability_weight": -1.0}, "stability_weight: got -1.0"),
        ({"stability_weight": float("inf")}, "stability_weight: got inf"),
        ({"optimizer": "lion"}, "optimizer: got 'lion'"),
        ({"loss": "denoiser_mse"}, "classifier: got none, expected a checkpoint"),
        ({"init": "a", "denoiser": "b"}, "give either init or the parts"),
    ],
)
def test_bad_config(options, message):
    with pytest.raises(ValueError, match=message):
        replace(SGD, **options)


def test_parts_that_do_not_fit(tmp_path, clean):
    def refused(message: str, spec, *, scheme: Scheme | None = DSSN, **options) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            Trainer(small(), scheme, spec, replace(SGD, **options), tmp_path / "x")
        assert not (tmp_path / "x").exists()

    mse = {"loss": "denoiser_mse", "classifier": clean}
    Trainer(small(), DSSN, DENOISED, replace(SGD, epochs=1, **mse), tmp_path / "d").run()
    denoised = str(tmp_path / "d")
    wider = DenoisedSpec("dncnn_small", 2, CLASSIFIER)
    larger = DenoisedSpec("dncnn", 1, CLASSIFIER)
    other = DenoisedSpec("dncnn_small", 1, replace(CLASSIFIER, mean=None, std=None))
    rgb = DenoisedSpec("dncnn_small", 2, replace(CLASSIFIER, in_channels=2))
    refused("the loss stability needs noised copies", CLASSIFIER, scheme=None, loss="stability")
    refused("the loss denoiser_mse needs noised copies", DENOISED, scheme=None, **mse)
    refused("which has no denoiser; the loss denoiser_mse needs a DenoisedSpec", CLASSIFIER, **mse)
    refused("the model tiny has no denoiser", CLASSIFIER, denoiser=denoised)
    refused("holds no denoiser; train one with", DENOISED, denoiser=clean)
    refused(r"holds a dncnn_small from 1 to 1 channels, expected a dncnn from 1 to 1", larger, denoiser=denoised)
    refused("expected a classifier of images", other, **mse)
    refused("expected a classifier of images", DENOISED, loss="denoiser_mse", classifier=denoised)
    refused("got 2 input channels, expected the 1 of DeterministicSplittingNoise", wider, **mse)
    refused(
        "got a denoiser with 2 output channels, expected the 1 of digits", rgb, scheme=RandomizedAblation(20), **mse
    )
    refused("no such checkpoint", DENOISED, loss="denoiser_mse", classifier=str(tmp_path / "nowhere"))
    refused("got 10 classes and 9x9 pixels, expected the 10 and 8x8", replace(CLASSIFIER, image_size=9))


# Command lines


def test_all_ways_through_the_command_lines(tmp_path, capsys):
    scheme = "RandomizedAblation(keep=30)"
    clean, denoised, stable, retrained = (tmp_path / name for name in ("clean", "denoised", "stable", "retrained"))
    train_script.main(train_script.Args(out=clean, scheme="none", data="few", model="tiny", epochs=1))
    shared = {"classifier": str(clean), "scheme": scheme, "model": "dncnn_small", "epochs": 1}
    denoiser_script.main(denoiser_script.Args(out=denoised, **shared))
    again = {"objective": "stability", "denoiser": str(denoised)}
    denoiser_script.main(denoiser_script.Args(out=stable, **shared, **again))
    options = {"data": "few", "model": "tiny", "epochs": 1, "loss": "stability", "normalize": "images"}
    train_script.main(train_script.Args(out=retrained, scheme=scheme, denoiser=str(denoised), **options))
    printed = capsys.readouterr().out
    assert (
        len(re.findall(r"mean squared error on the test images: 0\.\d+ before denoising, 0\.\d+ after", printed)) == 2
    )
    assert len(re.findall(r"base accuracy on one noised copy of each of 150 test images", printed)) == 3
    for folder in (denoised, stable, retrained):
        certify_script.main(certify_script.Args(out=folder / "test", checkpoint=folder, n0=20, n=100, max=3))
        assert len((folder / "test/rows.tsv").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        (denoiser_script, ["--scheme", "none"], "expected e.g. RandomizedAblation"),
        (denoiser_script, ["--scheme", "SplittingNoise(lam=0.5)", "--model", "unet"], "denoiser: got 'unet'"),
        (denoiser_script, ["--scheme", "SplittingNoise(lam=0.5)", "--denoiser", "CLEAN"], "holds no denoiser"),
        (train_script, ["--scheme", "SplittingNoise(lam=0.5)", "--denoiser", "CLEAN"], "holds no denoiser"),
        (train_script, ["--scheme", "none", "--loss", "stability"], "the loss stability needs noised copies"),
        (train_script, ["--scheme", "none", "--normalize", "copies", "--denoiser", "CLEAN"], "use images"),
    ],
)
def test_bad_input_leaves_no_trace(tmp_path, clean, capsys, script, options, message):
    prog = script.__name__
    arguments = [str(tmp_path / "out"), *(clean if option == "CLEAN" else option for option in options)]
    if script is denoiser_script:
        arguments += ["--classifier", clean]
    with pytest.raises(SystemExit) as stop:
        cli.run(script.main, script.Args, prog, arguments)
    assert stop.value.code == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
