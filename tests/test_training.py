from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save
from torch import nn

from certify import DeterministicSplittingNoise, RandomizedAblation, SplittingNoise, VariableLambda
from certify.data import Dataset, load
from certify.draws import EVALUATION, Draws
from certify.models import MODELS, ModelSpec
from certify.training import SCHEDULES, Trainer, TrainingConfig, base_accuracy, copy_statistics, load_checkpoint
from certify.training.augment import augmented, random_crop_and_flip
from certify.training.checkpoint import read_tensors, write_tensors
from scripts import train as train_script
from scripts.parts import cli

SCHEME = RandomizedAblation(20)
SPEC = ModelSpec("mnist_cnn", 2, 10, 8)
CONFIG = TrainingConfig(epochs=3, batch_size=32, lr=0.05)


def small() -> Dataset:
    data = load("digits", "train")
    return replace(data, images=data.images[:200], labels=data.labels[:200])


def trainer(folder: Path, config: TrainingConfig = CONFIG, scheme=SCHEME, spec: ModelSpec = SPEC) -> Trainer:
    return Trainer(small(), scheme, spec, config, folder)


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_training_is_a_function_of_the_seed(tmp_path):
    a, b = trainer(tmp_path / "a").run(), trainer(tmp_path / "b").run()
    c = trainer(tmp_path / "c", replace(CONFIG, seed=1)).run()
    assert equal(a, b)
    assert not equal(a, c)


@pytest.mark.parametrize(
    "config", [CONFIG, replace(CONFIG, augment=True, noise="batch", nesterov=False)], ids=["", "augment"]
)
def test_interrupted_training_ends_in_the_identical_model(tmp_path, config):
    whole = trainer(tmp_path / "whole", config)
    whole.run()
    part = trainer(tmp_path / "part", config)

    class Killed(Exception):
        pass

    def kill(epoch: int, step: int) -> None:
        if (epoch, step) == (1, 3):
            raise Killed

    with pytest.raises(Killed):
        part.run(on_step=kill)
    torch.rand(7)  # the global generator may be anywhere
    resumed = trainer(tmp_path / "part", config)
    resumed.load_state()
    assert resumed.epoch == 1
    resumed.run()
    assert equal(resumed.module, whole.module)
    assert resumed.history == whole.history
    assert (tmp_path / "part/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


@pytest.mark.parametrize("noise", ["sample", "batch"])
def test_noise_is_shared_in_a_batch_or_not(tmp_path, noise):
    t = trainer(tmp_path, replace(CONFIG, noise=noise))
    masks = [SCHEME.masks((1, 8, 8), t.noise(position, 6)).flatten(1) for position in (0, 0, 1)]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert len(masks[0]) == (6 if noise == "sample" else 1)
    assert len(masks[0].unique(dim=0)) == len(masks[0])


def test_training_learns_and_the_checkpoint_loads(tmp_path):
    data = load("digits", "train")
    scheme = DeterministicSplittingNoise(0.5)
    config = TrainingConfig(epochs=8, batch_size=64, lr=0.1)
    mean, std = data.channel_statistics()
    t = Trainer(data, scheme, ModelSpec("mnist_cnn", 1, 10, 8, mean, std), config, tmp_path)
    t.run()
    module, checkpoint = load_checkpoint(tmp_path)
    assert equal(module, t.module)
    assert not module.training
    assert (checkpoint.scheme, checkpoint.dataset, checkpoint.model) == (scheme, "digits", t.spec)
    assert checkpoint.training["epochs"] == 8
    assert base_accuracy(module, scheme, load("digits", "test")) > 0.8


def test_without_a_scheme_the_images_themselves_are_learned(tmp_path):
    data = load("digits", "train")
    t = Trainer(data, None, ModelSpec("mnist_cnn", 1, 10, 8), TrainingConfig(epochs=8, batch_size=64), tmp_path)
    t.run()
    module, checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.scheme is None
    assert base_accuracy(module, None, load("digits", "test")) > 0.9
    mean, std = copy_statistics(None, data, images=10_000)
    assert mean + std == pytest.approx(sum(data.channel_statistics(), ()), abs=2e-4)
    with pytest.raises(ValueError, match="got 2 input channels, expected the 1 of digits"):
        Trainer(data, None, SPEC, CONFIG, tmp_path)


def test_crops_and_flips_are_translations_and_mirrors():
    images = torch.zeros(400, 1, 9, 9, dtype=torch.uint8)
    images[:, 0, 4, 3] = 200
    moved = random_crop_and_flip(images, torch.Generator().manual_seed(0), padding=2)
    rows, columns = moved[:, 0].flatten(1).argmax(1) // 9, moved[:, 0].flatten(1).argmax(1) % 9
    assert (moved.flatten(1).sum(1, dtype=torch.int64) == 200).all()
    assert set(rows.tolist()) == {2, 3, 4, 5, 6}
    assert set(columns.tolist()) == {1, 2, 3, 4, 5} | {3, 4, 5, 6, 7}


def test_image_files_are_cropped_at_random(tmp_path):
    for label in range(2):
        (tmp_path / "train" / f"n{label}").mkdir(parents=True)
        ramp = np.linspace(0, 255, 400).astype(np.uint8)
        pixels = np.stack((np.tile(ramp, (300, 1)), np.full((300, 400), 40 + label), np.zeros((300, 400))), -1)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "train" / f"n{label}" / "a.png")
    data, index = load("imagenet", "train", tmp_path), torch.tensor([0, 1] * 20)
    images, labels = augmented(data, index, torch.Generator().manual_seed(0))
    again, _ = augmented(data, index, torch.Generator().manual_seed(0))
    assert images.shape == (40, 3, 224, 224)
    assert torch.equal(images, again)
    assert torch.equal(images[:, 1, 0, 0].long() - 40, labels)
    slope = images[:, 0, 100, -1].long() - images[:, 0, 100, 0].long()
    assert 8 <= (slope < 0).sum() <= 32  # flipped about half of the time
    assert slope.abs().max() - slope.abs().min() > 60  # parts of different sizes


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_stay_between_zero_and_the_peak(name):
    rates = [SCHEDULES[name](i / 100) for i in range(100)]
    assert all(0 <= rate <= 1 for rate in rates)
    assert max(rates) > 0.99


def test_published_schedules():
    assert [SCHEDULES["half_steps"](t) for t in (0, 199 / 400, 200 / 400)] == [1, 1, 0.1]
    assert [SCHEDULES["imagenet_steps"](e / 36) for e in (20, 21, 30, 31)] == [1, 0.1, 0.1, 0.01]
    assert [SCHEDULES["rotnet_steps"](e / 200) for e in (59, 60, 120, 160)] == pytest.approx([1, 0.2, 0.04, 0.008])


def test_wrong_number_of_channels(tmp_path):
    with pytest.raises(ValueError, match="got 2 input channels, expected the 1 of SplittingNoise"):
        trainer(tmp_path, scheme=SplittingNoise(0.5))


def test_diverging_training_keeps_the_last_good_state(tmp_path):
    t = trainer(tmp_path)
    t.history.append(t._train_epoch(None))
    t.epoch = 1
    t.save_state()
    before = t.state_path.read_bytes()
    for parameter in t.module.parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="training diverged in epoch 2"):
        t.run()
    assert t.state_path.read_bytes() == before


def test_resume_refuses_other_settings(tmp_path):
    trainer(tmp_path).run()
    with pytest.raises(ValueError, match=rf"was made with config\.lr = {CONFIG.lr}, not 0\.01; resume with the same"):
        trainer(tmp_path, replace(CONFIG, lr=0.01)).load_state()
    with pytest.raises(ValueError, match="was made with scheme"):
        trainer(tmp_path, scheme=RandomizedAblation(21)).load_state()


def test_resume_refuses_other_data(tmp_path):
    trainer(tmp_path).run()
    changed = trainer(tmp_path)
    changed.data = replace(changed.data, labels=changed.data.labels.roll(1))
    with pytest.raises(ValueError, match="was made with data_sha256 = "):
        changed.load_state()


@pytest.mark.parametrize("keep", [0, 7, 100, 5000])
def test_truncated_checkpoint(tmp_path, keep):
    trainer(tmp_path).run()
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="truncated, or not a checkpoint"):
        load_checkpoint(tmp_path)


def test_damaged_files_of_tensors(tmp_path):
    """Whichever bit is wrong: an error, or what was written."""
    path = tmp_path / "file.safetensors"
    tensors = {
        "a.weight": torch.randn(3, 2, generator=torch.Generator().manual_seed(0)),
        "steps": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "none": torch.zeros(0, 3),
    }
    write_tensors(path, tensors, {"format": 1, "name": "n"})
    content = path.read_bytes()
    harmless = 0
    for place in range(len(content)):
        for bit in (0, 3, 7):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            path.write_bytes(bytes(damaged))
            try:
                found, header = read_tensors(path)
            except ValueError:
                continue
            harmless += 1
            assert header.items() >= {"format": 1, "name": "n"}.items()
            assert found.keys() == tensors.keys()
            assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert harmless < 3 * 20  # in padding, and in the name of the checksum
    path.write_bytes(save(tensors, metadata={"json": "{}"}))  # of an earlier version
    assert read_tensors(path)[1] == {}


def test_missing_and_foreign_checkpoints(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such checkpoint; train one with .*scripts.train"):
        load_checkpoint(tmp_path)
    trainer(tmp_path).run()
    (tmp_path / "state.safetensors").rename(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="not a base classifier of this project"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs: got 0, expected an integer at least 1"),
        ({"lr": float("nan")}, "lr, momentum, weight_decay: got nan"),
        ({"lr": -1.0}, "lr, momentum, weight_decay: got -1"),
        ({"momentum": 2.0}, "momentum in "),
        ({"weight_decay": -1.0}, "weight_decay >= 0"),
        ({"epochs": 1.5}, "epochs: got 1.5, expected an integer"),
        ({"batch_size": 2.5}, "batch_size: got 2.5, expected an integer"),
        ({"schedule": "linear"}, "schedule: got 'linear'"),
        ({"noise": "none"}, "noise: got 'none'"),
    ],
)
def test_bad_config(options, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **options)


def test_another_run_is_not_overwritten(tmp_path):
    trainer(tmp_path).run()
    before = (tmp_path / "model.safetensors").read_bytes()
    for gone in (None, "state.safetensors"):
        if gone is not None:
            (tmp_path / gone).unlink()
        with pytest.raises(ValueError, match="holds a training run, expected another folder"):
            trainer(tmp_path, replace(CONFIG, seed=1)).run()
        assert (tmp_path / "model.safetensors").read_bytes() == before


def test_descent_without_momentum(tmp_path):
    trainer(tmp_path, replace(CONFIG, epochs=1, momentum=0.0)).run()


def test_kill_in_the_middle_of_a_training_run(tmp_path):
    """SIGKILL at an arbitrary moment; the resumed run ends in the identical file."""
    command = [sys.executable, "-m", "scripts.train", "--scheme", "RandomizedAblation(keep=20)", "--epochs", "3"]
    command += ["--batch-size", "64"]
    root = Path(__file__).parent.parent
    subprocess.run([*command, tmp_path / "whole"], cwd=root, check=True, capture_output=True)
    process = subprocess.Popen(
        [*command, tmp_path / "part"], cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    state = tmp_path / "part" / "state.safetensors"
    while process.poll() is None and not state.exists():
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "part/model.safetensors").exists(), "the run was over before it could be killed"
    refused = subprocess.run([*command, tmp_path / "part"], cwd=root, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "add --resume" in refused.stderr
    subprocess.run([*command, tmp_path / "part", "--resume"], cwd=root, check=True, capture_output=True)
    assert (tmp_path / "part/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


def test_a_folder_is_for_one_process_at_a_time(tmp_path):
    pytest.importorskip("fcntl")
    half, mine = tmp_path / f".state.safetensors.{uuid4().hex}.tmp", tmp_path / f".other.{uuid4().hex}.tmp"
    half.touch()
    mine.touch()

    def second(epoch: int, step: int) -> None:
        assert not half.exists()
        with pytest.raises(ValueError, match="another process trains here"):
            trainer(tmp_path).run()

    trainer(tmp_path, replace(CONFIG, epochs=1)).run(on_step=second)
    assert {path.name for path in tmp_path.iterdir()} == {"state.safetensors", "model.safetensors", mine.name}


def test_copy_statistics_normalize_the_copies():
    data = load("digits", "train")
    scheme = VariableLambda(0.5, alpha=5, budget=100)
    mean, std = copy_statistics(scheme, data, images=10_000, seed=3)
    items = torch.arange(len(data))
    copies = scheme.sample(data.batch(items)[0], Draws.of(3, EVALUATION, items, range(1)))[:, 0].double()
    assert mean == pytest.approx(copies.mean((0, 2, 3)).tolist(), abs=1e-4)
    assert std == pytest.approx(copies.std((0, 2, 3), correction=0).tolist(), abs=1e-4)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.second(self.first(x.flatten(1))))


def tied(channels: int, classes: int, size: tuple[int, int]) -> nn.Module:
    return Tied()


def test_tensors_of_every_kind_are_written(tmp_path):
    whole = torch.arange(6.0).view(2, 3)
    tensors = {
        "tied": whole,
        "transposed": whole.T,
        "one value, strided": torch.zeros(2, dtype=torch.float64)[::2],  # contiguous, with a stride of 2
        "none": torch.zeros(0, 3),
        "scalar": torch.tensor(3),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "truth": torch.tensor([True, False]),
    }
    path = tmp_path / "file"
    write_tensors(path, tensors, {"pair": (1, 1e-5)})
    found, header = read_tensors(path)
    assert header == {"pair": [1, 1e-5]}
    assert found.keys() == tensors.keys()
    assert all(found[name].dtype == value.dtype and torch.equal(found[name], value) for name, value in tensors.items())


def test_tied_parameters_are_kept(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "tied", tied)
    spec = ModelSpec("tied", 1, 10, 8)
    module = Trainer(load("digits", "train"), None, spec, TrainingConfig(epochs=1, lr=0.01), tmp_path).run()
    loaded = load_checkpoint(tmp_path)[0]
    assert equal(module, loaded)
    assert loaded.first.weight is loaded.second.weight


def test_normalization_by_given_numbers(tmp_path, capsys):
    words = [str(tmp_path / "run"), "--scheme", "none", "--epochs", "1"]

    def run(*options: str) -> str:
        with pytest.raises(SystemExit):
            cli.run(train_script.main, train_script.Args, "scripts.train", [*words, *options])
        return capsys.readouterr().err

    assert "expected 1 numbers each, std > 0" in run("--mean", "0.5", "0.5", "--std", "0.2", "0.2")
    assert "expected 1 numbers each, std > 0" in run("--mean", "0.5")
    assert "expected 1 numbers each, std > 0" in run("--mean", "0.5", "--std", "0")
    assert "--normalize images, expected one or the other" in run(
        "--mean", "0.5", "--std", "1", "--normalize", "images"
    )
    cli.run(train_script.main, train_script.Args, "scripts.train", [*words, "--mean", "0.5", "--std", "0.25"])
    spec = load_checkpoint(tmp_path / "run")[1].model
    assert (spec.mean, spec.std) == ((0.5,), (0.25,))


@pytest.mark.parametrize("resume", [(), ("--resume",)])
def test_a_model_without_its_state_is_not_replaced(resume, tmp_path, capsys):
    words = [str(tmp_path), "--scheme", "none", "--epochs", "1"]
    (tmp_path / "model.safetensors").write_bytes(b"precious")
    with pytest.raises(SystemExit):
        cli.run(train_script.main, train_script.Args, "scripts.train", [*words, *resume])
    assert "holds a model, but no training state to resume; choose another folder" in capsys.readouterr().err
    assert (tmp_path / "model.safetensors").read_bytes() == b"precious"


def test_a_seed_is_checked_before_anything_starts(tmp_path, capsys):
    words = [str(tmp_path / "x"), "--scheme", "none", "--seed", "-1"]
    with pytest.raises(SystemExit):
        cli.run(train_script.main, train_script.Args, "scripts.train", words)
    assert "seed: got -1" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
