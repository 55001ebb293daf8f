"""Both certificates of Laplace noise on flows from the same stored votes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from certify import WassersteinNoise
from certify.results import read_rows, read_votes
from scripts import certify as certify_script
from scripts import report as report_script
from scripts import train as train_script
from scripts.parts import recertified


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wasserstein")
    train_script.main(train_script.Args(out=folder, scheme="WassersteinNoise(0.01)", epochs=3))
    out = folder / "run"
    certify_script.main(certify_script.Args(out=out, checkpoint=folder, max=12, n0=50, n=400))
    return out


def test_bounds_of_the_same_votes(run, capsys):
    report_script.main(report_script.Args(runs=[run], bound=["published", "tight"]))
    published, tight = json.loads((run / "report.json").read_text())
    assert "bound='published'" in published["name"]
    assert published["average_certified_radius"] <= tight["average_certified_radius"]
    for bound in ("published", "tight"):
        votes = read_votes(run).votes
        expected = WassersteinNoise(0.01, bound=bound).certify_counts(
            votes.selection, votes.counts, 0.05, shape=votes.shape, n=votes.n
        )
        rows = recertified.read_run(run, bound=bound).rows
        assert (rows["radius"] == expected.radius.numpy()).all()
    # rows on disk are rounded down
    assert (read_rows(run)["radius"] <= rows["radius"]).all()


def test_foreign_bounds_are_refused(run):
    with pytest.raises(ValueError, match=r"got location, expected one of those of Wasserstein.*: tight, published"):
        report_script.main(report_script.Args(runs=[run], bound=["location"]))
