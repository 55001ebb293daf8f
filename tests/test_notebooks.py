"""The notebooks are kept without results, and each runs from beginning to end in a copy of their folder."""

import json
import re
import shutil
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))


def read(path):
    return nbformat.read(path, as_version=4)


def test_there_is_a_notebook_for_each_line_of_the_readme():
    listed = re.findall(r"\]\((\w+\.ipynb)\)", (FOLDER / "README.md").read_text())
    assert sorted(listed) == [path.name for path in PATHS]
    assert len(PATHS) >= 6


def test_logs_are_small():
    assert sum(path.stat().st_size for path in (FOLDER / "data").rglob("*") if path.is_file()) < 200_000


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_is_kept_without_results(path):
    """So that a difference between two versions is one that somebody made."""
    notebook = read(path)
    nbformat.validate(notebook)
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert set(notebook.metadata.language_info) == {"name"}  # no versions
    assert notebook.metadata.kernelspec.name == "python3"
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    for cell in notebook.cells:
        assert cell.metadata == {}, cell.id
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", cell.id), "a name, not a random number, says what changed"
        if cell.cell_type == "code":
            assert cell.outputs == [], cell.id
            assert cell.execution_count is None, cell.id
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert f"notebooks/{path.name}" in first.source, "the first cell says how to run it"
    assert "**For your own" in first.source, "and where one's own model, data or results go"


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)#]+)\)", cell.source):
                assert (FOLDER / target).exists(), target


# what takes longest, in small; the slow tests run the notebooks as they are
QUICK = {
    "certify_your_model": {"epochs: int = 30": "epochs: int = 12", "index=range(100)": "index=range(20)"},
    "patch_certificates": {"epochs=20": "epochs=8", '"restarts": 8, "steps": 20': '"restarts": 1, "steps": 5'},
    "poisoning": {"max=8": "max=1"},
    "top_k_and_lp": {
        "epochs=20": "epochs=6",
        "skip=6, n0=100, n=2000": "skip=24, n0=100, n=500",
        "folder / str(i), skip=6": "folder / str(i), skip=24",
    },
    "wasserstein": {
        "epochs=20": "epochs=8",
        "skip=5, n0=100, n=2000": "skip=20, n0=100, n=500",
        '"every": 5, "steps": 80': '"every": 2, "steps": 30',
        "skip=60": "skip=120",
    },
}


@pytest.mark.parametrize(
    "quick", [pytest.param(True, id="quick"), pytest.param(False, id="whole", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_runs(path, quick, tmp_path, monkeypatch):
    run = pytest.importorskip("nbmake.nb_run")
    copy = tmp_path / "copy" / "notebooks"
    shutil.copytree(FOLDER, copy)
    if quick:
        text = json.dumps(json.loads(path.read_text()))
        for whole, small in QUICK.get(path.stem, {}).items():
            before, after = (json.dumps(each)[1:-1] for each in (whole, small))
            assert before in text, f"{path.stem} has no {whole}"
            text = text.replace(before, after)
        (copy / path.name).write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # where the copy's ".." would be
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "TMPDIR"):  # nothing outside of the test's folder
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    result = run.NotebookRun(copy / path.name, 280).execute()
    assert result.error is None, result.error.trace
    shown = [output for cell in result.nb.cells if cell.cell_type == "code" for output in cell.outputs]
    complaints = [output.text for output in shown if output.output_type == "stream" and output.name == "stderr"]
    assert complaints == []
    assert any("image/png" in output.get("data", {}) for output in shown)
    kept = {p.relative_to(copy) for p in copy.rglob("*")} - {p.relative_to(FOLDER) for p in FOLDER.rglob("*")}
    assert kept == set(), "a notebook writes to a temporary folder"
