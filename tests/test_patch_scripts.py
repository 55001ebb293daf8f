"""Runs against patches from training to the report, as a user makes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from certify import BandAblation, StoredRun, spec
from certify.data import load
from certify.models import ModelSpec
from certify.results import read_rows, read_votes
from certify.training import Trainer, TrainingConfig
from scripts import certify as certify_script
from scripts import report as report_script
from scripts.parts import patches, recertified

VOTE = "ThresholdVote(theta=0.3)"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder, data, scheme = tmp_path_factory.mktemp("band"), load("digits", "train"), BandAblation(2)
    model = ModelSpec("mnist_cnn", scheme.channels(1), 10, 8)
    Trainer(data, scheme, model, TrainingConfig(epochs=20, batch_size=64, lr=0.1), folder).run()
    return folder


def certify(out: Path, checkpoint: Path, **options) -> None:
    certify_script.main(certify_script.Args(out=out, checkpoint=checkpoint, **({"max": 40, "vote": VOTE} | options)))


def report(capsys, *runs: Path, **options) -> tuple[str, list[dict]]:
    report_script.main(report_script.Args(runs=list(runs), **options))
    return capsys.readouterr().out, json.loads((runs[0] / "report.json").read_text())


def test_any_patch_size_afterwards(tmp_path, checkpoint, capsys):
    certify(tmp_path, checkpoint)
    stored, rows = read_votes(tmp_path), read_rows(tmp_path)
    votes = stored.votes.by_copy
    assert votes is not None
    assert votes.shape == (40, 8, 10)
    assert (votes.sum(2) > 1).any(), "no copy votes for several classes: nothing is tested about them"
    sizes, bounds = [(1, 1), (2, 2), (3, 1), (1, 3)], ["location", "published"]
    text, summaries = report(capsys, tmp_path, patch=["1", "2", "3x1", "1x3"], bound=bounds)
    lines = [s for s in summaries if s["threat"] == "patch"]
    assert [line["bound"] for line in lines] == bounds
    for line in lines:
        assert line["patches"] == ["1x1", "2x2", "3x1", "1x3"]
        for size, share in zip(sizes, line["certified_accuracy"], strict=True):
            result = BandAblation(2).certify_votes(votes, size, bound=line["bound"])
            held = result.certified & (result.prediction == stored.label)
            assert share == pytest.approx(held.double().mean().item(), abs=1e-12)
    location, published = (line["certified_accuracy"] for line in lines)
    assert all(a >= b for a, b in zip(location, published, strict=True))
    assert location[1] > 0.05
    assert "certified accuracy against one patch" in text
    # the curves over the side of a square
    curves = [s for s in summaries if s["threat"] != "patch"]
    assert [c["name"].rsplit(", ", 1)[1] for c in curves] == ["location bound", "published bound"]
    at = dict(zip(curves[0]["radii"], curves[0]["certified_accuracy"], strict=True))
    assert at[2.0] == pytest.approx(location[1], abs=1e-12)
    assert (rows["radius"] == StoredRun(tmp_path).certify(bound="location").radius.numpy()).all()


def test_runs_are_resumed_and_sharded(tmp_path, checkpoint):
    certify(tmp_path / "one", checkpoint)
    certify(tmp_path / "single", checkpoint, images_per_step=1)
    for shard in ("1/2", "0/2"):
        certify(tmp_path / "two", checkpoint, shard=shard)
    certify(tmp_path / "cut", checkpoint, max=40)
    for name in ("rows.tsv", "votes.tsv"):
        path = tmp_path / "cut" / name
        whole = path.read_text().splitlines(keepends=True)
        path.write_text("".join(whole[:20]) + whole[20][:15])
    certify(tmp_path / "cut", checkpoint, resume=True)
    expected = read_votes(tmp_path / "one").votes.by_copy
    assert expected is not None
    for other in ("single", "two", "cut"):
        got = read_votes(tmp_path / other).votes.by_copy
        assert got is not None
        assert torch.equal(got, expected)
        assert (read_rows(tmp_path / other)["radius"] == read_rows(tmp_path / "one")["radius"]).all()


def test_choosing_a_threshold_on_validation_images(tmp_path, checkpoint, capsys):
    for theta in (0.0, 0.3, 0.99):
        certify(tmp_path / f"{theta}", checkpoint, vote=f"ThresholdVote(theta={theta})", shard="0/2")
    runs = [tmp_path / f"{theta}" for theta in (0.0, 0.3, 0.99)]
    text, summaries = report(capsys, *runs, patch=["1"])
    shares = [s["certified_accuracy"][0] for s in summaries if s["threat"] == "patch"]
    assert shares[1] == max(shares) > shares[0]
    assert f"best at 1x1: digits, BandAblation(width=2), {VOTE}" in text


def test_an_l0_certificate_is_one_against_patches(tmp_path, capsys):
    """Section 6.2.1: a patch of 2 x 2 is an l0 perturbation of 4 pixels."""
    data, scheme = load("digits", "train"), spec.parse_scheme("RandomizedAblation(keep=12)")
    model = ModelSpec("mnist_cnn", scheme.channels(1), 10, 8)
    Trainer(data, scheme, model, TrainingConfig(epochs=8, batch_size=64, lr=0.1), tmp_path / "model").run()
    certify(tmp_path / "run", tmp_path / "model", vote="argmax", n0=50, n=500)
    rows = read_rows(tmp_path / "run")
    _, summaries = report(capsys, tmp_path / "run", patch=["1", "2", "1x3"])
    shares = summaries[-1]["certified_accuracy"]
    assert summaries[-1]["bound"] == "l0"
    assert shares == [((rows["correct"] > 0) & (rows["radius"] >= area)).mean() for area in (1, 4, 3)]
    assert shares[0] > 0
    # certified again at another level, so are the patches
    again = recertified.read_run(tmp_path / "run", recertified.Again(alpha=1e-9)).rows
    _, summaries = report(capsys, tmp_path / "run", patch=["1", "2", "1x3"], alpha=1e-9)
    expected = [((again["correct"] > 0) & (again["radius"] >= area)).mean() for area in (1, 4, 3)]
    assert summaries[-1]["certified_accuracy"] == expected < shares
    assert summaries[-1]["name"].endswith(", alpha=1e-09")
    with pytest.raises(ValueError, match="no run has alternative certificates: only runs against patches"):
        report(capsys, tmp_path / "run", bound=["location"])
    with pytest.raises(ValueError, match="expected votes of a scheme against patches"):
        StoredRun(tmp_path / "run").certify_patch(2)


@pytest.mark.parametrize("text", ["", "0", "5x", "x5", "5x0", "3x4x5", "-1", "2.5", "5×3"])
def test_bad_sizes(text):
    with pytest.raises(ValueError, match="expected a side in pixels"):
        patches.parse_size(text)


def test_sizes():
    assert (patches.parse_size("5"), patches.parse_size("3x7")) == ((5, 5), (3, 7))
