"""The catalogue itself: complete, its commands understood, its smoke runs done, RESULTS.md up to date."""

from __future__ import annotations

import contextlib
import io
import math
import re
from pathlib import Path
from typing import Any

import pytest

from certify import EnumeratedScheme, spec
from certify.models.build import MODELS, PARTITION_MLP
from certify.poisoning.job import LEARNERS
from certify.poisoning.partition import PARTITIONERS
from certify.training.schedules import SCHEDULES
from reproduction import document, results
from reproduction.catalogue import Run
from reproduction.quantities import Source
from reproduction.reading import load
from reproduction.running import parsed, run_commands
from scripts import attack
from scripts.parts import classifier_runs, cli

CATALOGUE = load()


def _numbered(kind: str, chapter: str, numbers: str) -> list[str]:
    """``("table", "2", "1-3 5")`` is table-2.1, table-2.2, table-2.3 and table-2.5."""
    names = []
    for part in numbers.split():
        first, _, last = part.partition("-")
        names += [f"{kind}-{chapter}.{i}" for i in range(int(first), int(last or first) + 1)]
    return names


TABLES = {
    "2": "1-8",
    "3": "1",
    "4": "1",
    "5": "1-2",
    "6": "1-2",
    "7": "1",
    "B": "2",
    "C": "1-7",
    "E": "1-9",
    "F": "1-3",
}
CURVES = {
    "3": "5-6",
    "4": "6 8",
    "5": "5-6",
    "6": "1 3 5-7",
    "7": "1-4",
    "8": "2-4",
    "B": "1-7",
    "C": "1-3",
    "D": "1",
    "G": "1-11 13-14",
}
EXPECTED = [
    *(name for chapter, numbers in (TABLES | {"G": "1-5"}).items() for name in _numbered("table", chapter, numbers)),
    *(name for chapter, numbers in CURVES.items() for name in _numbered("figure", chapter, numbers)),
    *(f"topk-{name}" for name in ("table-1", "table-2", *(f"figure-{i}" for i in range(1, 5)), "modelnet40")),
    *(f"smooth-reduce-{name}" for name in ("table-1", "table-2", *(f"figure-{i}" for i in (2, 3, 4, 5, 7, 8)))),
]


def test_the_list_itself():
    assert len(EXPECTED) == len(set(EXPECTED)) == 40 + 42 + 7 + 8


@pytest.mark.parametrize("name", EXPECTED)
def test_every_experiment_is_in_the_catalogue(name):
    """Under its name, or in parts such as table-4.1-third."""
    found = [
        known for known in CATALOGUE.entries if re.fullmatch(rf"{re.escape(name)}([a-z]|-.+)?", known, re.IGNORECASE)
    ]
    assert found, f"{name} has no entry in reproduction/entries"


def check_arguments(words: list[str]) -> None:
    """Whatever can be checked of a command without its data."""
    with contextlib.redirect_stderr(io.StringIO()):
        args: Any = parsed(words)[1]
    module = words[0].removeprefix("scripts.")
    for name, parse in (("scheme", spec.parse_scheme), ("vote", spec.parse_vote)):
        text = getattr(args, name, None)
        if text not in (None, "none"):
            parse(text)
    if module in ("train", "train_denoiser"):
        assert args.schedule in SCHEDULES
    if module == "train":
        assert args.model in (*MODELS, PARTITION_MLP)
    if module == "attack":
        attack.options_of(args)
    if module == "poisoning":
        cli.check_used(args, args.step)
        spec.parse(args.partition, PARTITIONERS, example="")
        spec.parse(args.learner, LEARNERS, example="")
    if module in ("train_bit_flipping", "train_continuous_seek", "train_multi_goal", "train_hand"):
        import importlib

        importlib.import_module(words[0]).configuration(args)


@pytest.mark.parametrize("run", CATALOGUE.runs.values(), ids=list(CATALOGUE.runs))
def test_commands_of_every_budget_are_understood(run):
    for budget in run.budgets:
        trained_on = None
        for words in run.words(budget):
            check_arguments(words)
            args: Any = parsed(words)[1]
            trained_on = args.scheme if words[0] == "scripts.train" else trained_on
            if words[0] in ("scripts.certify", "scripts.attack"):
                text = args.scheme or trained_on
                scheme = None if text in (None, "none") else spec.parse_scheme(text)
                if isinstance(scheme, EnumeratedScheme):
                    classifier_runs.check_exact(args, scheme)


# Runs whose smoke commands are the same words are done once.


def same_smoke() -> dict[str, list[Run]]:
    groups: dict[str, list[Run]] = {}
    for run in CATALOGUE.runs.values():
        key = str(run.words("smoke")) if "smoke" in run.budgets else run.name
        groups.setdefault(key, []).append(run)
    return {runs[0].name: runs for runs in groups.values()}


SMOKE = same_smoke()


@pytest.mark.parametrize("name", SMOKE)
def test_smoke(name: str, tmp_path: Path):
    """Every command works on embedded data, and every cell that reads it gets a number."""
    assert "smoke" in CATALOGUE.runs[name].budgets, f"{name}: has no smoke budget"
    folder = run_commands(CATALOGUE.runs[name], "smoke", tmp_path, in_process=True)
    sources: dict[Path, Source] = {}
    for run in SMOKE[name]:
        users = [(e, row) for e in CATALOGUE.entries.values() for row in e.rows if row.run == run.name]
        for entry, row in users:
            for column in entry.columns:
                value = results.measured(entry, row, column, run, sources, folder)
                assert not math.isnan(value.value)
                assert value.n >= 1
                if value.low is not None and value.high is not None:
                    assert value.low <= value.value + 1e-9
                    assert value.value <= value.high + 1e-9


def test_the_committed_document_is_up_to_date():
    text = document.render(CATALOGUE, results.read_all(CATALOGUE))
    assert document.PATH.read_text(encoding="utf-8") == text, "do python -m scripts.reproduce document"


def test_no_paths_or_dates_in_kept_results():
    for path in results.RESULTS.glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert len(text) < 100_000
        assert not re.search(r"/(home|work|tmp|root|Users)/|20\d\d-\d\d-\d\d", text), path
