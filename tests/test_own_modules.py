"""Modules of one's own in the commands: --import, own schemes and own models, in this process and in workers."""

import importlib
import linecache
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch

import certify
from certify import StoredRun, models
from certify.data import load
from certify.poisoning import ContentHash, Ensemble, Learner, Network, Partitioner
from certify.poisoning.executors import Processes
from certify.poisoning.job import Job, ensemble_config
from certify.results import read_rows
from certify.scheme import Scheme
from certify.training import load_checkpoint
from scripts import certify as certify_script
from scripts import poisoning as poisoning_script
from scripts import train as train_script
from scripts.parts import cli

MODULE = '''
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from certify import L0, EnumeratedScheme
from certify.images import to_float
from certify.models import register_model
from certify.poisoning import Learner, Part, Partitioner, State, TrainingLabels, TrainingSamples
from certify.threats import PoisoningThreat


@dataclass(frozen=True)
class OwnRows(EnumeratedScheme):
    """Copy number t shows every ``count``-th row, beginning with the t-th."""

    count: int

    @property
    def threat(self) -> L0:
        return L0("pixel")

    def channels(self, channels: int) -> int:
        return 2 * channels

    def num_copies(self, shape: tuple[int, ...]) -> int:
        return self.count

    def copies(self, x: Tensor, index: Tensor) -> Tensor:
        image = to_float(x)
        shown = torch.arange(x.shape[2], device=x.device) % self.count == index[..., None]  # [B, n, H]
        return torch.where(shown[:, :, None, :, None], torch.cat((image, 1 - image), 1)[:, None], 0.0)

    def radius_of_flips(self, flips: Tensor, *, shape: tuple[int, ...] | None = None) -> Tensor:
        return flips.to(torch.float64)


def own_net(channels: int, classes: int, size: tuple[int, int]) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size[0] * size[1], classes))


register_model("own_net", own_net)


@dataclass(frozen=True)
class Centroids(Learner):
    """The class whose mean is nearest."""

    def fit(self, part: Part, *, num_classes: int, device: torch.device) -> State:
        x = to_float(part.samples).flatten(1).double()
        means = torch.full((num_classes, x.shape[1]), 1e6, dtype=torch.float64)
        for label in part.labels.unique():
            means[label] = x[part.labels == label].mean(0)
        return {"means": means}

    def scores(self, states: Sequence[State], x: Tensor, *, num_classes: int) -> Tensor:
        x = to_float(x).flatten(1).double()
        return torch.stack([-(x[:, None] - state["means"]).square().sum(2) for state in states])


@dataclass(frozen=True)
class FirstPixels(Partitioner):
    """By the sum of the first row."""

    num_partitions: int

    @property
    def threats(self) -> tuple[PoisoningThreat, ...]:
        return TrainingSamples(), TrainingLabels()

    def assign(self, samples: Tensor) -> Tensor:
        return samples[:, 0, 0].long().sum(1) % self.num_partitions

    def assign_each(self, samples: Iterable[Tensor]) -> Tensor:
        return torch.cat([self.assign(sample[None]) for sample in samples])
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module in a folder of its own, as its text; everything that importing it leaves is taken back."""
    (tmp_path / "own_things.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_things"
    sys.modules.pop("own_things", None)
    for registry, name in ((Scheme.own, "OwnRows"), (Learner.own, "Centroids"), (Partitioner.own, "FirstPixels")):
        registry.pop(name, None)
    models.MODELS.pop("own_net", None)
    models.own_models.pop("own_net", None)
    cli.imported.clear()


def test_own_scheme_and_model_in_the_commands(own, tmp_path, capsys):
    folder = str(tmp_path / "run")
    words = [folder, "--scheme", "OwnRows(count=4)", "--model", "own_net", "--epochs", "3", "--import", own]
    cli.run(train_script.main, train_script.Args, "scripts.train", words)
    checkpoint = load_checkpoint(folder)[1]
    assert (type(checkpoint.scheme).__name__, checkpoint.model.name) == ("OwnRows", "own_net")
    words = [f"{folder}/test", "--checkpoint", folder, "--max", "40", "--import", own]
    cli.run(certify_script.main, certify_script.Args, "scripts.certify", words)
    run = StoredRun(f"{folder}/test")
    assert run.scheme == checkpoint.scheme
    assert run.certify().correct(run.label).float().mean() > 0.5
    assert "--import own_things" in (tmp_path / "run/test/config.json").read_text()


def test_a_new_process_reads_them_with_import(own, tmp_path):
    folder = str(tmp_path / "run")
    words = [folder, "--scheme", "OwnRows(count=4)", "--model", "own_net", "--epochs", "1", "--import", own]
    cli.run(train_script.main, train_script.Args, "scripts.train", words)
    root = Path(certify.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{tmp_path}"}
    command = [sys.executable, "-m", "scripts.certify", f"{folder}/test", "--checkpoint", folder, "--max", "4"]

    def call(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [*command, *words], cwd=root, env=environment, capture_output=True, text=True, timeout=300
        )

    unknown = call()
    assert unknown.returncode == 1
    assert "expected e.g. RandomizedAblation(keep=45)" in unknown.stderr
    assert "--import MODULE" in unknown.stderr
    assert call("--import", own).returncode == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module", "found no module no_such_module; put it in this folder or on PYTHONPATH"),
        ("own_things.py", "expected the name of a module: my_schemes for my_schemes.py"),
        ("own_things.sub", "found no module own_things.sub"),
    ],
)
def test_wrong_imports_are_refused_in_one_line(own, tmp_path, capsys, name, message):
    with pytest.raises(SystemExit):
        cli.run(
            train_script.main,
            train_script.Args,
            "scripts.train",
            [str(tmp_path / "x"), "--scheme", "none", "--import", name],
        )
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("text", "message"), [("x = (", "raised SyntaxError"), ("y = x", "raised NameError: name 'x'")]
)
def test_what_a_module_raises_is_told_in_one_line(text, message, own, tmp_path, capsys):
    name = f"broken_{len(text)}"
    (tmp_path / f"{name}.py").write_text(text)
    words = [str(tmp_path / "x"), "--scheme", "none", "--import", name]
    with pytest.raises(SystemExit):
        cli.run(train_script.main, train_script.Args, "scripts.train", words)
    assert f"import: {name} {message}" in capsys.readouterr().err


def test_what_a_module_lacks_is_named(own, tmp_path, monkeypatch, capsys):
    (tmp_path / "needs_more.py").write_text("import not_installed_here\n")
    with pytest.raises(SystemExit):
        cli.run(
            train_script.main,
            train_script.Args,
            "scripts.train",
            [str(tmp_path / "x"), "--scheme", "none", "--import", "needs_more"],
        )
    assert "not_installed_here" in capsys.readouterr().err


def test_workers_know_own_models(own, tmp_path):
    __import__(own)
    data = load("digits", "train")
    files = []
    for folder, executor in (("here", None), ("workers", Processes(1))):
        ensemble = Ensemble(ContentHash(2), Network("own_net", steps=2, batch_size=8), 10)
        job = Job(tmp_path / folder, ensemble, {"name": "digits"})
        job.start(resume=False)
        job.train(ensemble.parts((data.images[:40], data.labels[:40])), executor=executor)
        files.append([path.read_bytes() for path in (tmp_path / folder).glob("*.safetensors")])
    assert files[0] == files[1]
    assert len(files[0]) == 1
    models.own_models["lambda_net"] = lambda channels, classes, size: torch.nn.Identity()
    with pytest.raises(ValueError, match="define them at the top level of a module"):
        next(Processes(1).run(_other, None, [1]))
    models.own_models.pop("lambda_net")


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_own_learners_and_partitions_against_poisoning(own, workers, tmp_path, capsys):
    words = ["all", str(tmp_path / "run"), "--data", "digits", "--partition", "FirstPixels(7)", "--import", own]
    words += ["--learner", "Centroids()", "--at-once", "2", "--workers", str(workers), "--max", "50"]
    cli.run(poisoning_script.main, poisoning_script.Args, "scripts.poisoning", words)
    assert "7 models" in capsys.readouterr().out
    rows = read_rows(tmp_path / "run/test/plurality-samples")
    assert len(rows["correct"]) == 50
    assert rows["correct"].mean() > 0.7
    assert '"code": ' in (tmp_path / "run/ensemble.json").read_text()


def test_own_classes_with_a_name_that_is_taken(own):
    module = __import__(own)
    kind = dataclass(frozen=True)(type("NearestNeighbors", (module.Centroids,), {"__module__": own}))
    try:
        with pytest.raises(ValueError, match="got a NearestNeighbors of own_things, but another class has that name"):
            ensemble_config(Ensemble(ContentHash(3), kind(), 10))
    finally:
        Learner.own.pop("NearestNeighbors", None)


def test_names_of_models_are_unique(own):
    module = __import__(own)
    models.register_model("own_net", module.own_net)  # once more is no other
    with pytest.raises(
        ValueError, match=r"got 'own_net' of tests\.test_own_modules, but own_things has one of that name, too"
    ):
        models.register_model("own_net", _other)
    for name in ("mnist_cnn", "partition_mlp", "two words", "3d", ""):
        with pytest.raises(ValueError, match="expected a new name"):
            models.register_model(name, _other)


def _other(channels: int, classes: int, size: tuple[int, int]) -> torch.nn.Module:
    return torch.nn.Linear(1, 1)


def test_partial_functions_and_lambdas(own):
    module = __import__(own)
    wide, narrow = partial(module.own_net), partial(module.own_net, size=(8, 8))
    models.register_model("own_net", module.own_net)
    with pytest.raises(ValueError, match="got 'own_net'"):
        models.register_model("own_net", narrow)
    models.register_model("own_wide", wide)
    models.register_model("own_wide", partial(module.own_net))
    models.MODELS.pop("own_wide")
    models.own_models.pop("own_wide")
    with pytest.raises(ValueError, match=r"got a lambda, which has no name, expected a function \(written"):
        models.register_model("own_lambda", lambda channels, classes, size: torch.nn.Identity())


def test_another_version_of_a_model_does_not_continue_a_run(own, tmp_path, capsys):
    """Neither its training nor its certificates."""
    folder, path = str(tmp_path / "run"), tmp_path / "own_things.py"
    train = [folder, "--scheme", "OwnRows(count=4)", "--model", "own_net", "--epochs", "2", "--import", own]
    certify = [f"{folder}/test", "--checkpoint", folder, "--import", own, "--max"]
    cli.run(train_script.main, train_script.Args, "scripts.train", train)
    cli.run(certify_script.main, certify_script.Args, "scripts.certify", [*certify, "3"])
    cli.run(certify_script.main, certify_script.Args, "scripts.certify", [*certify, "4", "--resume"])
    models.MODELS.pop("own_net")
    models.own_models.pop("own_net")
    sys.modules.pop(own)
    linecache.clearcache()
    importlib.invalidate_caches()
    path.write_text(MODULE.replace("nn.Flatten()", "nn.Flatten(1)"))
    for script, prog, words in (
        (train_script, "scripts.train", [*train, "--resume"]),
        (certify_script, "scripts.certify", [*certify, "6", "--resume"]),
    ):
        with pytest.raises(SystemExit):
            cli.run(script.main, script.Args, prog, words)
        assert "model_code = " in capsys.readouterr().err


class Dithered(torch.nn.Module):
    """Has random thresholds outside its state dictionary; with ``seed``, always the same."""

    def __init__(self, channels, classes, size, seed=None):
        super().__init__()
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        self.thresholds = torch.rand(channels, *size, generator=generator)
        self.last = torch.nn.Linear(channels * size[0] * size[1], classes)

    def forward(self, x):
        return self.last((x > self.thresholds).float().flatten(1))


def test_networks_that_no_checkpoint_determines_are_refused(monkeypatch, tmp_path):
    def train(folder, name):
        train_script.main(train_script.Args(tmp_path / folder, model=name, scheme=scheme, data="digits", epochs=1))

    scheme = "DeterministicAblation(alpha=5)"
    for name, network in (("dithered", Dithered), ("fixed", partial(Dithered, seed=0))):
        monkeypatch.setitem(models.own_models, name, network)
        monkeypatch.setitem(models.MODELS, name, network)
    with pytest.raises(ValueError, match="got dithered, which is another network each time it is built"):
        train("refused", "dithered")
    train("m", "fixed")
    load_checkpoint(tmp_path / "m")
    monkeypatch.setitem(models.MODELS, "fixed", Dithered)
    with pytest.raises(ValueError, match=r"model.safetensors: model: got fixed, which is another network each time"):
        load_checkpoint(tmp_path / "m")
