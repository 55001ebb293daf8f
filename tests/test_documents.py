"""What the documents say: code that runs, links that lead somewhere, and a docstring for every public name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import rl

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
RUNNABLE = ("own_classifier", "own_environment", "own_method")
# those of "make docs"
MODULES = (ROOT / "Makefile").read_text().split("MODULES := ")[1].split("\n\n")[0].replace("\\", "").split()


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_compiles(page: Path) -> None:
    for block in python_blocks(page):
        compile(block, str(page), "exec")


@pytest.mark.parametrize("name", RUNNABLE)
def test_pages_of_code_run_from_top_to_bottom(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / f"{name}.md"
    # dataclasses look their module up
    module = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    for registry in ("MODELS", "own_models"):
        own = importlib.import_module("certify.models.build")  # the package has a function of this name
        monkeypatch.setattr(own, registry, dict(getattr(own, registry)))
    for block in python_blocks(page):
        exec(compile(block, str(page), "exec"), module.__dict__)
    if name == "own_classifier":
        assert (tmp_path / "runs" / "mine" / "rows.tsv").exists()
        assert (module.result.prediction == module.labels).float().mean() > 0.5  # type: ignore[attr-defined]
        assert module.one_change.float().mean() > 0.5  # type: ignore[attr-defined]
    elif name == "own_method":
        assert module.attacked > 1000  # type: ignore[attr-defined]
    else:
        assert module.model.num_timesteps >= 600  # type: ignore[attr-defined]
        rl.VectorEnvAdapter(module.many).close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("package", "missing"), [("rl", "stable_baselines3"), ("rl", "gymnasium"), ("envs", "gymnasium")]
)
def test_what_is_not_installed_is_named_with_its_extra(
    package: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ModuleNotFoundError, match=rf'{missing} is not installed.*"scalable-robust-ml\[rl\]"'):
        importlib.import_module(package)


def test_commands_name_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("scripts", "rich")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "rich" else True)
    with pytest.raises(ModuleNotFoundError, match=r"scripts: rich is not installed; .*'\.\[commands\]'"):
        importlib.import_module("scripts.train")


THEOREMS = (ROOT / "docs" / "theorems.md").read_text()


def test_theorems_name_code_that_exists() -> None:
    names = set(re.findall(r"`((?:certify|rl|envs)\.[\w.]+)`", THEOREMS))
    assert len(names) > 80
    missing = []
    for name in names:
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            missing.append(name)
    assert not missing


def test_theorems_name_tests_that_exist() -> None:
    named = set(re.findall(r"`([\w/]+\.py)::(\w+)`", THEOREMS))
    assert len(named) > 100
    assert THEOREMS.count(".py::") == len(re.findall(r"`[\w/]+\.py::\w+`", THEOREMS))
    defined = {
        file: re.findall(r"^def (test_\w+)\(", (ROOT / "tests" / file).read_text(), re.MULTILINE) for file, _ in named
    }
    assert not [f"{file}::{name}" for file, name in named if name not in defined[file]]


def test_tables_of_theorems_have_all_their_cells() -> None:
    for table in re.findall(r"(?:^\|.*\n)+", THEOREMS, re.MULTILINE):
        assert len({row.count("|") for row in table.splitlines()}) == 1, table[:80]


def public(module: ModuleType) -> list[str]:
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    return getattr(module, "__all__", [name for name in own if not name.startswith("_")])


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_has_a_docstring(name: str) -> None:
    module, missing = importlib.import_module(name), []
    assert module.__doc__
    for public_name in public(module):
        value = getattr(module, public_name)
        if inspect.isclass(value) or inspect.isfunction(value):
            text = value.__doc__ or ""
            # a dataclass without one gets its signature for a docstring
            missing += [public_name] if not text or text.startswith(f"{public_name}(") else []
        for member in vars(value) if inspect.isclass(value) else ():
            if not member.startswith("_") and (
                callable(getattr(value, member)) or isinstance(vars(value)[member], property)
            ):
                missing += [] if inspect.getdoc(getattr(value, member)) else [f"{public_name}.{member}"]
    assert not missing
