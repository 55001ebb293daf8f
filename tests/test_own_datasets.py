"""Data sets of one's own by name: ``register_dataset``, options, and the commands."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from certify import StoredRun
from certify.data import Dataset, check_files, load, register_dataset
from certify.data.datasets import DATASETS, Split, own_datasets
from certify.results import read_rows
from scripts import certify as certify_script
from scripts import poisoning as poisoning_script
from scripts import train as train_script
from scripts.parts import cli

MODULE = '''
import torch

from certify.data import from_torch, load, register_dataset


def halves(root, split, *, invert=False):
    """Digits below 5."""
    digits = load("digits", split)
    chosen = (digits.labels < 5).nonzero().flatten()
    images = 255 - digits.images if invert else digits.images
    pairs = [(images[i], int(digits.labels[i])) for i in chosen]
    return from_torch(pairs, "whatever", num_classes=5, split=split)


register_dataset("half-digits", halves)
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_data.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_data"
    sys.modules.pop("own_data", None)
    for name in list(own_datasets):
        own_datasets.discard(name)
        DATASETS.pop(name)
    cli.imported.clear()


def test_by_name_with_options(own):
    __import__(own)
    test, train = load("half-digits", "test"), load("half-digits", "train")
    assert (test.name, test.split, train.split, test.num_classes) == ("half-digits", "test", "train", 5)
    inverted = load("half-digits(invert=True)", "test")
    assert inverted.name == "half-digits(invert=True)"
    index = torch.arange(20)
    assert torch.equal(inverted.batch(index)[0], 255 - test.batch(index)[0])
    assert load("half-digits()", "test").name == "half-digits"
    check_files("half-digits(invert=True)")  # there is nothing to look for


def test_errors(own):
    module = __import__(own)
    with pytest.raises(ValueError, match=r"expected options as in half-digits\(invert=False\) .*'size'"):
        load("half-digits(size=3)", "test")
    with pytest.raises(ValueError, match=r"expected options as in half-digits\(invert=False\)"):
        load("half-digits(3)", "test")
    with pytest.raises(
        ValueError, match=r"known once the module that calls certify\.data\.register_dataset is imported"
    ):
        load("quarter-digits", "test")
    register_dataset("half-digits", module.halves)  # once more is no other
    with pytest.raises(
        ValueError, match=r"got 'half-digits' of tests\.test_own_datasets, but own_data has one of that name, too"
    ):
        register_dataset("half-digits", _other)
    for name in ("mnist", "npz", "two words", "a(b)", "3d-shapes", "-mine", ""):
        with pytest.raises(
            ValueError, match="expected a new name of letters, digits, - and _, beginning with a letter"
        ):
            register_dataset(name, _other)
    with pytest.raises(ValueError, match=r"data set: got .*lambda.*, expected a function"):
        register_dataset("mine", lambda root, split: load("digits", split))
    register_dataset("other", _other)
    with pytest.raises(TypeError, match=r"got a list from the code of other, expected a certify\.data\.Dataset"):
        load("other", "test")
    register_dataset("fixed", partial(module.halves, invert=True))
    assert torch.equal(load("fixed", "test").batch([0])[0], load("half-digits(invert=True)", "test").batch([0])[0])


def test_options_are_named_as_they_can_be_given(own):
    register_dataset("sized", _sized)
    with pytest.raises(ValueError, match=r"expected options as in sized\(size=\.\.\., mode='all'\) "):
        load("sized(shape=3)", "test")
    assert len(load("sized(size=3)", "test")) == 3


def _other(root: Path, split: Split) -> Any:
    return []


def _sized(root: Path, split: Split, *, size: int, mode: str = "all", **_others: Any) -> Dataset:
    digits = load("digits", split)
    return Dataset(mode, split, digits.images[:size], digits.labels[:size], 10)


def _first_labels(root: Path, split: Split) -> Dataset:
    """As many classes as there are labels."""
    digits = load("digits", split)
    classes = int(digits.labels.max()) + 1
    return Dataset("x", split, digits.images, digits.labels, classes, classes_known=False)


def test_the_root_is_given(own, tmp_path):
    roots = []

    def read(root: Path, split: Split) -> Dataset:
        roots.append(root)
        return load("digits", split)

    register_dataset("mine", read)
    load("mine", "train", tmp_path)
    assert roots == [tmp_path]


def test_in_the_commands(own, tmp_path):
    folder = str(tmp_path / "run")
    words = [folder, "--data", "half-digits", "--scheme", "RandomizedAblation(keep=20)", "--epochs", "2", "--augment"]
    cli.run(train_script.main, train_script.Args, "scripts.train", [*words, "--model", "small_cnn", "--import", own])
    words = [f"{folder}/test", "--checkpoint", folder, "--max", "20", "--n", "200", "--import", own]
    cli.run(certify_script.main, certify_script.Args, "scripts.certify", words)
    run = StoredRun(f"{folder}/test")
    assert run.config["data"] == "half-digits"
    assert run.label.max() < 5
    missing = [sys.executable, "-m", "scripts.certify", f"{folder}/other", "--checkpoint", folder, "--max", "2"]
    told = subprocess.run(missing, capture_output=True, text=True, check=False)
    assert told.returncode == 1
    assert "register_dataset" in told.stderr


def test_poisoned_training_data(own, tmp_path, capsys):
    folder = str(tmp_path / "run")
    words = ["all", folder, "--data", "half-digits", "--partition", "ContentHash(5)", "--learner", "NearestNeighbors()"]
    cli.run(poisoning_script.main, poisoning_script.Args, "scripts.poisoning", [*words, "--import", own])
    assert read_rows(tmp_path / "run/test/plurality-samples")["correct"].mean() > 0.7
    register_dataset("guessed", _first_labels)
    words = [
        "all",
        folder + "-2",
        "--data",
        "guessed",
        "--partition",
        "ContentHash(5)",
        "--learner",
        "NearestNeighbors()",
    ]
    with pytest.raises(SystemExit):
        cli.run(poisoning_script.main, poisoning_script.Args, "scripts.poisoning", words)
    assert "classes" in capsys.readouterr().err
