"""Certifying a model of one's own on a data set of one's own, through the library alone."""

from __future__ import annotations

import importlib
import random
import sys
import types
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.progress import Progress
from torch import nn

from certify import (
    BandAblation,
    DeterministicSplittingNoise,
    RandomizedAblation,
    Smoothed,
    SmoothReduce,
    StoredRun,
    ThresholdVote,
)
from certify.data import Dataset
from certify.evaluation import certify_dataset
from certify.identity import name_of, parameters_of
from certify.registry import OwnClasses
from certify.results import Row, read_config, read_rows, read_votes
from certify.scheme import Scheme
from certify.sequential import CertifiedAt
from certify.sources import code_of
from certify.training import training_copies
from scripts import report
from scripts.certify import Shown

L0 = RandomizedAblation(keep=5)


def images(count: int = 12) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return Dataset("mine", "test", pixels, torch.arange(count) % 3, num_classes=3)


def model(channels: int = 2, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * 16, 3))


def smoothed(scheme=L0, base=None, **options) -> Smoothed:
    base = model(scheme.channels(1)) if base is None else base
    return Smoothed(base, scheme, 3, **({"n0": 20, "n": 100, "alpha": 0.01} | options))


def without_time(path) -> list[list[str]]:
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    column = lines[0].index("time")
    return [line[:column] + line[column + 1 :] for line in lines]


@pytest.mark.parametrize("scheme", [L0, DeterministicSplittingNoise(lam=0.5)], ids=["sampled", "exact"])
def test_rows_are_what_certify_returns(scheme, tmp_path):
    data, classifier, seen = images(), smoothed(scheme), []
    path = certify_dataset(classifier, data, tmp_path / "run", index=[1, 4, 7], on_image=seen.append)
    assert path == tmp_path / "run" / "rows.tsv"
    rows = read_rows(tmp_path / "run")
    result = classifier.certify(data.images[[1, 4, 7]], index=torch.tensor([1, 4, 7]))
    assert rows["idx"].tolist() == [1, 4, 7] == [row.idx for row in seen]
    assert rows["predict"].tolist() == result.prediction.tolist()
    assert rows["radius"].tolist() == result.radius.tolist()
    report.main(report.Args(runs=[tmp_path / "run"]))  # also certifies again from the stored votes
    if scheme is L0:
        report.main(report.Args(runs=[tmp_path / "run"], alpha=0.1))


@pytest.mark.parametrize("scheme", [L0, DeterministicSplittingNoise(lam=0.5)], ids=["sampled", "exact"])
@pytest.mark.parametrize("step", [1, 2, 5])
def test_progress_within_images(scheme, step, tmp_path):
    classifier, passes, told = smoothed(scheme, batch_size=16), [], []
    per_image = classifier.copies_per_image((1, 4, 4))
    certify_dataset(
        classifier,
        images(5),
        tmp_path / "run",
        images_per_step=step,
        on_image=lambda row: told.append(sum(passes)),
        on_copies=passes.append,
    )
    assert sum(passes) == 5 * per_image
    assert min(passes) >= 1
    assert told == [min(5, (i // step + 1) * step) * per_image for i in range(5)]
    classifier.certify(images().images)  # afterwards nobody is told
    assert sum(passes) == 5 * per_image


def test_progress_of_certify(monkeypatch):
    classifier, passes = smoothed(), []
    with classifier.engine.reporting(passes.append), classifier.engine.reporting(None):
        classifier.certify(images(3).images)
    assert sum(passes) == 3 * 120


def test_the_progress_bar_never_goes_back():
    bar = Progress(disable=True)
    shown = Shown(bar, 5, per_image=120)
    shown.on_start(1)
    completed = [bar.tasks[0].completed]
    for _ in range(2):
        for count in (100, 100, 40):
            shown.on_copies(count)
            completed.append(bar.tasks[0].completed)
        for correct in (1, 0):
            shown.on_image(Row(0, 1, 1, 1.0, correct, 0.0, 1, 0.9, 0.9))
            completed.append(bar.tasks[0].completed)
    assert completed == sorted(completed)
    assert (completed[0], completed[1], completed[-1]) == (1, 1 + 100 / 120, 5)
    assert bar.tasks[0].description == "certifying, 50.0% of the new images correct"


def test_a_stopped_run_continues_to_the_same_rows(tmp_path):
    def stop(row) -> None:
        if row.idx == 5:
            raise KeyboardInterrupt

    certify_dataset(smoothed(), images(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        certify_dataset(smoothed(), images(), tmp_path / "run", on_image=stop, images_per_step=2)
    with pytest.raises(ValueError, match="holds results"):
        certify_dataset(smoothed(), images(), tmp_path / "run")
    before = []
    certify_dataset(smoothed(), images(), tmp_path / "run", resume=True, on_start=before.append)
    assert before == [6]
    assert without_time(tmp_path / "run" / "rows.tsv") == without_time(tmp_path / "whole" / "rows.tsv")


def test_images_whose_votes_are_lost_are_done_again(tmp_path):
    """A machine that crashes may lose what was written last to one file and not to the other."""
    certify_dataset(smoothed(), images(), tmp_path / "run")
    whole = without_time(tmp_path / "run" / "rows.tsv")
    votes = tmp_path / "run" / "votes.tsv"
    votes.write_text("".join(votes.read_text().splitlines(keepends=True)[:-2]))
    with pytest.raises(ValueError, match="no votes of image 10"):
        read_votes(tmp_path / "run")
    certify_dataset(smoothed(), images(), tmp_path / "run", resume=True)
    assert without_time(tmp_path / "run" / "rows.tsv") == whole
    assert len(read_votes(tmp_path / "run").idx) == 12


def test_shards_share_a_folder(tmp_path):
    certify_dataset(smoothed(), images(), tmp_path / "whole")
    for i in range(3):
        certify_dataset(smoothed(), images(), tmp_path / "run", shard=(i, 3))
    whole, run = read_rows(tmp_path / "whole"), read_rows(tmp_path / "run")
    assert run["radius"].tolist() == whole["radius"].tolist()
    assert torch.equal(read_votes(tmp_path / "run").votes.counts, read_votes(tmp_path / "whole").votes.counts)


def test_another_model_never_adds_to_a_folder(tmp_path):
    certify_dataset(smoothed(), images(), tmp_path / "run", index=[0, 1])
    certify_dataset(smoothed(), images(), tmp_path / "run", index=[2], resume=True)
    with pytest.raises(ValueError, match="model"):
        certify_dataset(smoothed(base=model(seed=1)), images(), tmp_path / "run", index=[3], resume=True)
    assert len(read_rows(tmp_path / "run")["idx"]) == 3


class Plain:
    """Settings of no kind that is known."""

    def __init__(self, **settings) -> None:
        vars(self).update(settings | {"me": self})

    def get(self) -> int:
        return vars(self).get("sign", 0)


def shifted(by: int):
    return lambda values: values + by


class Nested(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale


def other_class() -> type[Scaled]:
    class Scaled(globals()["Scaled"]):
        def forward(self, copies):
            return -super().forward(copies)

    return Scaled


class Scaled(nn.Module):
    """A model with more to it than its parameters."""

    def __init__(self, **settings) -> None:
        super().__init__()
        self.linear = model()
        self.register_buffer("sign", torch.tensor(settings.pop("sign", 1.0)), persistent=False)
        torch.manual_seed(0)
        more = {"config": {"head": {"sign": 1}}, "act": shifted(1), "dtype": torch.float32, "blocks": [nn.Linear(1, 1)]}
        same = {"mean": 0.0, "scale": torch.tensor(1.0), "shift": np.zeros(2), "sides": (4, 4), "plain": Plain()}
        if (hook := settings.pop("hook", None)) is not None:
            self.register_forward_hook(hook)
        vars(self).update(same | more | settings)

    def forward(self, copies: torch.Tensor) -> torch.Tensor:
        return self.linear(copies - self.mean + self.shift[0]) * self.sign * self.scale


@pytest.mark.parametrize(
    "change",
    [
        {"mean": 0.9},
        {"sign": -1.0},
        {"scale": torch.tensor(2.0)},
        {"shift": np.ones(2)},
        {"sides": (2, 8)},
        {"config": {"head": {"sign": -1}}},
        {"config": Plain(sign=-1)},
        {"config": Plain(inner=[Plain(sign=-1)])},
        {"act": torch.tanh},
        {"act": partial(torch.clamp, min=0)},
        {"act": shifted(2)},
        {"dtype": torch.float64},
        {"blocks": [nn.Linear(2, 2)]},
        {"act": partial(shifted, 2)},
        {"act": Plain(sign=2).get},
        {"blocks": [Nested(2)]},
        {"hook": lambda _module, _inputs, output: output * 2},
        {"kind": "other"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_models_are_told_apart_by_all_they_have(tmp_path, change):
    certify_dataset(smoothed(base=Scaled()), images(), tmp_path / "run", index=[0])
    certify_dataset(smoothed(base=Scaled().train()), images(), tmp_path / "run", index=[1], resume=True)
    other = other_class()() if "kind" in change else Scaled(**change)
    with pytest.raises(ValueError, match="was made with model"):
        certify_dataset(smoothed(base=other), images(), tmp_path / "run", index=[2], resume=True)


@pytest.mark.parametrize("wrap", [lambda base: base, lambda base: lambda copies: base(copies)])
def test_a_name_does_not_stand_for_other_parameters(tmp_path, wrap):
    base = model()
    certify_dataset(smoothed(base=wrap(base)), images(), tmp_path / "run", index=[0], model="mine")
    certify_dataset(smoothed(base=wrap(model())), images(), tmp_path / "run", index=[1], model="mine", resume=True)
    with torch.no_grad():
        base[1].bias.neg_()
    with pytest.raises(ValueError, match="was made with parameters"):
        certify_dataset(smoothed(base=wrap(base)), images(), tmp_path / "run", index=[2], model="mine", resume=True)


def test_a_name_does_not_stand_for_other_buffers(tmp_path):
    base = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(32), nn.Linear(32, 3)).eval()
    certify_dataset(smoothed(base=base), images(), tmp_path / "run", index=[0], model="mine")
    base[1].running_mean.add_(1)
    with pytest.raises(ValueError, match="was made with parameters"):
        certify_dataset(smoothed(base=base), images(), tmp_path / "run", index=[1], model="mine", resume=True)


def test_compiled_models_have_the_same_name():
    torch.manual_seed(0)
    plain = Scaled()
    assert name_of(torch.compile(plain)) == name_of(plain) == name_of(Scaled())
    assert parameters_of(torch.compile(plain)) == parameters_of(plain)


def test_parameters_have_a_place():
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    before = parameters_of(lambda x: a(b(x)))
    assert before == parameters_of(lambda x: a(b(x)))
    a, b = b, a
    assert before != parameters_of(lambda x: a(b(x)))
    assert parameters_of(nn.Sequential(a, b)) != parameters_of(nn.Sequential(b, a))
    assert parameters_of(lambda x: x) is None


def test_models_that_cannot_be_told_apart_need_a_name(tmp_path):
    with pytest.raises(ValueError, match=r"a Scaled whose source is a Generator, .* give the model a name"):
        certify_dataset(smoothed(base=Scaled(source=torch.Generator())), images(), tmp_path / "run")
    with pytest.raises(ValueError, match=r"a Scaled whose source is a Random, .* give the model a name"):
        name_of(Scaled(source=random.Random(1)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated
        scripted = nn.Sequential(nn.Identity(), torch.jit.script(model().eval()))
    with pytest.raises(ValueError, match=r"a Sequential whose 1 is compiled by TorchScript, .* give the model a name"):
        certify_dataset(smoothed(base=scripted), images(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    certify_dataset(smoothed(base=scripted), images(), tmp_path / "run", index=[0], model="scripted")


def test_functions_need_a_name(tmp_path):
    def first_pixels(copies):
        return copies.flatten(1)[:, :3]

    for scheme in (L0, SmoothReduce(0.25, 2, stride=1)):
        classifier = Smoothed(first_pixels, scheme, 3, n0=5, n=10)
        with pytest.raises(ValueError, match=r"model.*name"):
            certify_dataset(classifier, images(), tmp_path / "run")
        assert not (tmp_path / "run").exists()
    certify_dataset(Smoothed(first_pixels, L0, 3, n0=5, n=10), images(), tmp_path / "run", model="first three pixels")
    assert read_config(tmp_path / "run")["model"] == "first three pixels"


def test_votes_copy_by_copy_and_their_rule_are_stored(tmp_path):
    scheme = BandAblation(width=2)
    classifier = smoothed(scheme, vote=ThresholdVote(theta=0.3))
    certify_dataset(classifier, images(), tmp_path / "run")
    assert read_config(tmp_path / "run")["vote"] == "ThresholdVote(theta=0.3)"
    assert read_votes(tmp_path / "run").votes.by_copy is not None
    with pytest.raises(ValueError, match="vote"):
        certify_dataset(smoothed(vote=lambda scores: scores.argmax(1)), images(), tmp_path / "other")


def test_sequential_questions(tmp_path):
    certify_dataset(smoothed(), images(), tmp_path / "run", question=CertifiedAt(1), max_n=300)
    assert "CertifiedAt" in read_config(tmp_path / "run")["sampling"]["until"]
    base = read_config(tmp_path / "run")
    own = {name: base[name] for name in ("shape", "num_classes", "scheme", "threat")}
    certify_dataset(smoothed(), images(), tmp_path / "own", question=CertifiedAt(1), max_n=300, config=own)
    with pytest.raises(ValueError, match="sampling stopped depending on the votes"):
        read_votes(tmp_path / "own")
    exact = smoothed(DeterministicSplittingNoise(lam=0.5))
    with pytest.raises(ValueError, match="exact"):
        certify_dataset(exact, images(), tmp_path / "other", question=CertifiedAt(1))


def test_the_numbers_of_classes_have_to_agree(tmp_path):
    with pytest.raises(ValueError, match="num_classes: got 5 of the classifier and 3 of"):
        certify_dataset(Smoothed(lambda copies: copies.flatten(1)[:, :5], L0, 5), images(), tmp_path / "run", model="5")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("index", [[0, 12], [-1], [3, 3]])
def test_wrong_indices(index, tmp_path):
    with pytest.raises(ValueError, match=r"index.*0 to 11"):
        certify_dataset(smoothed(), images(), tmp_path / "run", index=index)
    assert not (tmp_path / "run").exists()


def test_training_copies_change_with_epoch_and_image_only():
    pixels = images().images
    index = torch.arange(12)
    first = training_copies(L0, pixels, index, epoch=0)
    assert first.shape == (12, 2, 4, 4)
    assert torch.equal(training_copies(L0, pixels[3:5], index[3:5], epoch=0), first[3:5])
    assert not torch.equal(training_copies(L0, pixels, index, epoch=1), first)
    assert not torch.equal(training_copies(L0, pixels, index, epoch=0, seed=1), first)
    with pytest.raises(ValueError, match="index"):
        training_copies(L0, pixels, index[:3], epoch=0)


def test_other_kinds_of_data_are_told_how_to_become_one(tmp_path):
    with pytest.raises(TypeError, match=r"got TensorDataset, .* certify\.data\.from_torch makes one"):
        certify_dataset(smoothed(), torch.utils.data.TensorDataset(torch.zeros(3)), tmp_path / "run")
    with pytest.raises(TypeError, match=r"images as a NumPy array, expected a tensor: torch.from_numpy"):
        Dataset("mine", "test", np.zeros((2, 1, 4, 4), np.uint8), torch.zeros(2).long(), 3)


OWN_MODEL = """
import torch
from torch import nn

SCALE = 2.0
MEAN = [0.5, 0.4]
GAINS = {"first": 3.0}
SHIFT = torch.ones(1)
TABLE = [0.0]
TABLE[0] = 11.0
LONG = []
LONG.append(12.0)
if SCALE > 0:
    INNER = [13.0]
PAIR = (torch.zeros(2), {"a": 14})
LIMITS = [15.0]
MADE = torch.tensor(LIMITS)
CURVE = None


def halved(x):
    return x / 2


def kernel():
    return torch.tensor([16.0])


BUILT = kernel()


class Net(nn.Module):
    gain = 1.0

    def __init__(self):
        super().__init__()
        self.last = nn.Flatten()

    @property
    def sign(self):
        return -1

    def head(self, x):
        return self.last(x)[:, :3] * 7.0

    def forward(self, x):
        global CURVE
        if CURVE is None:
            CURVE = torch.zeros(1)
        x = halved(self.head(x - MEAN[0])) * SCALE * GAINS["first"] * self.sign * self.gain + SHIFT
        return x + TABLE[0] + LONG[0] + INNER[0] + PAIR[1]["a"] + MADE + BUILT + CURVE
"""


def own_models(tmp_path, monkeypatch, *sources):
    """Modules with these sources, one after the other under one name."""
    for i, source in enumerate(sources):
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / "own_model.py").write_text(source)
        monkeypatch.syspath_prepend(folder)
        monkeypatch.delitem(sys.modules, "own_model", raising=False)
        yield importlib.import_module("own_model")
    monkeypatch.delitem(sys.modules, "own_model")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("7.0", "-7.0"),
        ("x / 2", "x / -2"),
        ("gain = 1.0", "gain = -1.0"),
        ("return -1", "return 1"),
        ("= 2.0", "= 3.0"),
        ("[0.5, ", "[0.6, "),
        ('"first": 3.0', '"first": 4.0'),
        ("ones(1)", "zeros(1)"),
        ("11.0", "-11.0"),
        ("12.0", "-12.0"),
        ("13.0", "-13.0"),
        ("14", "-14"),
        ("15.0", "-15.0"),
        ("16.0", "-16.0"),
        ("CURVE = torch.zeros", "CURVE = torch.ones"),
    ],
)
def test_models_are_told_apart_by_all_of_their_code(old, new, tmp_path, monkeypatch):
    """A run that is resumed after an edit would mix the votes of two models."""
    names = []
    assert OWN_MODEL.count(old) == 1
    for own in own_models(tmp_path, monkeypatch, OWN_MODEL, OWN_MODEL, OWN_MODEL.replace(old, new)):
        by_hook = nn.Sequential(nn.Flatten())
        by_hook.register_forward_hook(lambda _module, _inputs, output, own=own.halved: own(output))
        names.append((name_of(own.Net()), name_of(by_hook)))
    assert names[0] == names[1]
    assert names[0][0] != names[2][0]
    assert (names[0][1] != names[2][1]) == (old == "x / 2")


def test_models_without_a_source_are_told_apart_by_the_values_they_refer_to(monkeypatch):
    names = []
    for mean in ("[0.5]", "[0.5]", "[0.6]", "torch.tensor([0.5])", "torch.tensor([0.6])"):
        module = types.ModuleType("without_source")
        monkeypatch.setitem(sys.modules, "without_source", module)
        exec(OWN_MODEL.replace("[0.5, 0.4]", mean), vars(module))  # as in a notebook
        names.append(name_of(module.Net()))
    assert names[0] == names[1]
    assert len(set(names)) == 4


def test_a_lambda_is_not_the_line_around_it(tmp_path, monkeypatch):
    sources = [
        f"made = (lambda x: x + {number}), dict(resume={resume})\n" for number, resume in ((1, 0), (1, 1), (2, 1))
    ]
    codes = [code_of([own.made[0]]) for own in own_models(tmp_path, monkeypatch, *sources)]
    assert codes[0] == codes[1] != codes[2]


def test_functions_of_no_module():
    space: dict[str, Any] = {}
    exec("def double(x):\n    return 2 * x", space)
    names = []
    for function in (space["double"], space["double"]):
        model = nn.Flatten()
        model.register_forward_hook(lambda _module, _inputs, output, function=function: function(output))
        names.append(name_of(model))
    assert names[0] == names[1]


def test_what_a_model_remembers_in_its_module_does_not_change_its_name(tmp_path, monkeypatch):
    """Only how it begins is code."""
    source = OWN_MODEL.replace("* SCALE", "* KNOWN.setdefault(x.shape, SCALE)") + "\n\nKNOWN = {}\n"
    for own in own_models(tmp_path, monkeypatch, source):
        model = own.Net()
        before = name_of(model)
        model(torch.ones(1, 3, 1, 1))
        assert own.KNOWN
        assert own.CURVE is not None
        assert name_of(model) == before


class Indexed(nn.Module):
    """What is in its code has no order of its own, or no value."""

    def forward(self, x):
        return x.flatten(1)[..., :3] if x.ndim in {3, 4, 5} else x


def test_code_with_ellipses_and_sets_has_a_name():
    assert name_of(Indexed()) == name_of(Indexed())


def _as_it_was(self, p_lower, p_upper, *, shape=None):
    return RandomizedAblation.radius(self, p_lower, p_upper, shape=shape)


def _twice(self, p_lower, p_upper, *, shape=None):
    return 2 * RandomizedAblation.radius(self, p_lower, p_upper, shape=shape)


def test_another_version_of_a_scheme_does_not_continue_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(Scheme, "own", OwnClasses())

    def version(radius) -> Smoothed:
        Scheme.own.clear()  # as in another process
        kind = type("Versioned", (RandomizedAblation,), {"radius": radius, "__module__": "here"})
        return smoothed(dataclass(frozen=True)(kind)(keep=5))

    certify_dataset(version(_as_it_was), images(), tmp_path / "run", index=[0])
    certify_dataset(version(_as_it_was), images(), tmp_path / "run", index=[0, 1], resume=True)
    with pytest.raises(ValueError, match="scheme_code"):
        certify_dataset(version(_twice), images(), tmp_path / "run", index=[0, 1, 2], resume=True)


SOURCE = """
from functools import cached_property, lru_cache, partial, wraps

import torch

FACTOR = 1


def helper(x):
    return x + 1


def decorated(function):
    @wraps(function)
    def inner(*args):
        return function(*args)

    return inner


class Base:
    def inherited(self):
        return 1


class Thing(Base):
    \"\"\"Words.\"\"\"

    constant = 1

    @property
    def prop(self):
        return 2

    @decorated
    def method(self, x, default=3):
        \"\"\"Words.\"\"\"
        return helper(x) * FACTOR

    @lru_cache
    def cached(self):
        return 4

    @cached_property
    def other(self):
        return 5  # a comment


def build(channels, width=7):
    return torch.nn.Sequential(torch.nn.Linear(channels, width), torch.nn.ReLU())
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("FACTOR = 1", "FACTOR = 2"),
        ("return x + 1", "return x + 2"),
        ("        return function(*args)", "        return 2 * function(*args)"),
        ("return 1", "return 11"),
        ("constant = 1", "constant = 2"),
        ("return 2", "return 22"),
        ("default=3", "default=33"),
        ("return 4", "return 44"),
        ("return 5", "return 55"),
        ("width=7", "width=8"),
        ("ReLU", "Tanh"),
    ],
)
def test_changed_code_of_ones_own_is_seen(old, new, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    changed = SOURCE.replace(old, new)
    assert changed != SOURCE
    assert code_in(tmp_path, "before", SOURCE) != code_in(tmp_path, "after", changed)


@pytest.mark.parametrize(
    ("old", "new"), [("Words", "Others"), ("# a comment", "# another"), ("Base:", "Base:  # more")]
)
def test_words_about_code_and_the_name_of_its_module_are_not_code(old, new, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    assert code_in(tmp_path, "before", SOURCE) == code_in(tmp_path, "after", SOURCE.replace(old, new)) is not None


def code_in(folder: Path, name: str, source: str) -> str | None:
    """Of a class and a partial function in a module with this source."""
    name = f"{name}_{folder.name}"
    (folder / f"{name}.py").write_text(source)
    module = importlib.import_module(name)
    code = code_of([module.Thing, partial(module.build, width=3)])
    del sys.modules[name]
    return code


def test_classes_of_one_name_are_told_apart(tmp_path, monkeypatch):
    """As those that inherit from one of the same name in another module."""
    monkeypatch.syspath_prepend(tmp_path)
    codes = []
    for number in (1, 2):
        base, own = f"base_{tmp_path.name}_{number}", f"own_{tmp_path.name}_{number}"
        (tmp_path / f"{base}.py").write_text(f"class Net:\n    def one(self):\n        return {number}\n")
        (tmp_path / f"{own}.py").write_text(f"import {base} as base\n\n\nclass Net(base.Net):\n    pass\n")
        codes.append(code_of([importlib.import_module(own).Net]))
        del sys.modules[base], sys.modules[own]
    assert codes[0] != codes[1]


def test_code_that_is_not_ones_own():
    assert code_of([nn.Linear, RandomizedAblation, None, torch.relu]) is None
    assert code_of([partial(nn.Linear, 3)]) is not None


def test_code_without_a_source():
    """Of standard input, say."""
    found = []
    for number in (1, 1, 2):
        space = {"__name__": "typed"}
        exec(f"class Typed:\n    def method(self):\n        return {number}\n", space)
        found.append(code_of([space["Typed"]]))
    assert found[0] == found[1] != found[2]


def test_votes_of_another_version_of_a_scheme_are_pointed_out(tmp_path, monkeypatch):
    monkeypatch.setattr(Scheme, "own", OwnClasses())
    kinds = [
        type("Versioned", (RandomizedAblation,), {"radius": each, "__module__": "here"})
        for each in (_as_it_was, _twice)
    ]
    schemes = [dataclass(frozen=True)(kind)(keep=5) for kind in kinds]
    Scheme.own.clear()
    Scheme.own.add(type(schemes[0]))
    certify_dataset(smoothed(schemes[0]), images(), tmp_path / "run", index=[0])
    StoredRun(tmp_path / "run", scheme=schemes[0])
    Scheme.own.clear()
    Scheme.own.add(type(schemes[1]))
    with pytest.warns(UserWarning, match="was made by another version of Versioned"):
        StoredRun(tmp_path / "run", scheme=schemes[1])
