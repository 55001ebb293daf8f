"""Checkpoints of networks that were trained elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from certify import StoredRun
from certify.models import MODELS, build
from certify.training import load_checkpoint
from scripts import adopt
from scripts import certify as certify_script
from scripts.parts import cli


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return build("small_cnn", 2, 10, 8).state_dict()


def call(out: Path, state: Path, *options: str) -> None:
    words = [str(out), "--state", str(state), "--model", "small_cnn", "--data", "digits", *options]
    cli.run(adopt.main, adopt.Args, "scripts.adopt", words)


@pytest.mark.parametrize("form", ["plain", "safetensors", "wrapped", "parallel", "compiled"])
def test_it_is_certified_like_any_other(form, state, tmp_path, capsys):
    path = tmp_path / ("mine.safetensors" if form == "safetensors" else "mine.pt")
    if form == "safetensors":
        save_file(state, path)
    elif form in ("parallel", "compiled"):
        prefix = "module." if form == "parallel" else "_orig_mod."
        torch.save({f"{prefix}{name}": tensor for name, tensor in state.items()}, path)
    else:
        torch.save({"epoch": 3, "state_dict": state} if form == "wrapped" else state, path)
    call(tmp_path / "run", path, "--scheme", "DeterministicAblation(alpha=5)")
    assert "accuracy on one noised copy of each of 359 test images" in capsys.readouterr().out
    module, checkpoint = load_checkpoint(tmp_path / "run")
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    assert checkpoint.training["adopted"] == path.name
    words = [str(tmp_path / "run/test"), "--checkpoint", str(tmp_path / "run"), "--max", "3"]
    cli.run(certify_script.main, certify_script.Args, "scripts.certify", words)
    assert len(StoredRun(tmp_path / "run/test").idx) == 3


def test_normalization_in_front(tmp_path):
    torch.manual_seed(0)
    network = build("small_cnn", 1, 10, 8)
    torch.save(network.state_dict(), tmp_path / "mine.pt")
    call(tmp_path / "run", tmp_path / "mine.pt", "--mean", "0.5", "--std", "0.25")
    module, checkpoint = load_checkpoint(tmp_path / "run")
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(module(x), network.eval()((x - 0.5) / 0.25))
    assert checkpoint.scheme is None
    assert json.dumps(checkpoint.training)


class Attack:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, (), "state: no file"),
        (b"not a file of tensors", (), "holds more than tensors"),
        (Attack(), (), "holds more than tensors"),
        ([1, 2], (), "holds a list, expected model.state_dict()"),
        ({"weight": 3}, (), "holds a dict, expected model.state_dict()"),
        ({"weight": torch.zeros(2)}, (), "does not fit this network for these images and classes: "),
        ("state", (), "give the --scheme whose copies the network classifies"),  # of one channel
        ("state", ("--scheme", "RandomizedAblation(3)", "--mean", "0.5"), "expected 1 numbers each"),
        ("state", ("--scheme", "RandomizedAblation(3)", "--mean", "0.5", "--std", "nan"), "expected 1 numbers each"),
        ("nan", ("--scheme", "RandomizedAblation(3)"), "expected finite ones; did training diverge?"),
        ("state", ("--scheme", "RandomizedAblation(3)", "--model", "vgg"), "model: got 'vgg'"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(content, options, message, state, tmp_path, capsys):
    path = tmp_path / "mine.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str) and content == "nan":
        torch.save({name: torch.nan * tensor for name, tensor in state.items()}, path)
    elif content is not None:
        torch.save(state if content == "state" else content, path)
    with pytest.raises(SystemExit):
        call(tmp_path / "run", path, *options)
    captured = capsys.readouterr()
    assert message in captured.err
    assert "executed" not in captured.out
    assert not (tmp_path / "run").exists()


def test_networks_that_take_no_such_images_and_give_no_scores(tmp_path, monkeypatch, capsys):
    class Wrong(nn.Module):
        def __init__(self, channels: int, classes: int, size: tuple[int, int]) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 5)

        def forward(self, x: torch.Tensor) -> object:
            return self.layer(x)

    class Tuple(Wrong):
        def forward(self, x: torch.Tensor) -> object:
            return (x,)

    torch.save(Wrong(1, 1, (1, 1)).state_dict(), tmp_path / "mine.pt")
    for kind, message in ((Wrong, "does not accept these images"), (Tuple, "got scores tuple for 2 images")):
        monkeypatch.setitem(MODELS, "wrong", kind)
        with pytest.raises(SystemExit):
            call(tmp_path / "run", tmp_path / "mine.pt", "--model", "wrong")
        assert message in capsys.readouterr().err


def test_a_checkpoint_is_not_overwritten(state, tmp_path, capsys):
    torch.save(state, tmp_path / "mine.pt")
    call(tmp_path / "run", tmp_path / "mine.pt", "--scheme", "RandomizedAblation(3)")
    before = (tmp_path / "run/model.safetensors").read_bytes()
    with pytest.raises(SystemExit):
        call(tmp_path / "run", tmp_path / "mine.pt", "--scheme", "RandomizedAblation(4)")
    assert "holds a checkpoint; choose another folder" in capsys.readouterr().err
    assert (tmp_path / "run/model.safetensors").read_bytes() == before
