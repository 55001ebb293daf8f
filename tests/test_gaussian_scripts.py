"""Smooth-Reduce and Gaussian noise from training to report, and what is said of radii that are no certificates."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from certify.results import UNPROVEN_RADIUS, read_config, read_rows, read_votes
from certify.topk import pixels_of_l2_radius
from scripts import certify as certify_script
from scripts import report as report_script
from scripts import train as train_script

SOUND = {
    "image": "SmoothReduce(sigma=0.15, size=6, stride=2)",
    "patch": "SmoothReduce(sigma=0.15, size=6, stride=2, noise='patch')",
    "random": "SmoothReduce(sigma=0.15, size=6, resize=7, count=3, reduce='max')",
}
PRINTED = "SmoothReduce(sigma=0.15, size=6, stride=2, noise='patch', as_printed=True)"


@pytest.fixture(scope="module")
def patches(tmp_path_factory) -> Path:
    """A classifier of noisy 6x6 patches of 8x8 digits."""
    folder = tmp_path_factory.mktemp("patches")
    options = {"epochs": 6, "batch_size": 32, "lr": 0.1}
    train_script.main(train_script.Args(out=folder, scheme=SOUND["image"], **options))
    return folder


def certify(out: Path, checkpoint: Path, scheme: str, **options) -> Path:
    options = {"n0": 50, "n": 400, "max": 16, "alpha": 0.01} | options
    certify_script.main(certify_script.Args(out=out, checkpoint=checkpoint, scheme=scheme, **options))
    return out


def test_sound_and_printed_radii_are_told_apart(tmp_path, patches, capsys):
    sound = [certify(tmp_path / name, patches, scheme) for name, scheme in SOUND.items()]
    printed = certify(tmp_path / "printed", patches, PRINTED)
    for run in sound:
        assert read_config(run)["threat"] == "l2"
        assert "radius" in read_rows(run)
    image, patch = (read_rows(run) for run in sound[:2])
    assert image["correct"].mean() > 0.6
    assert image["radius"].max() > patch["radius"].max()
    # the same votes; only the radius differs, by the norm 2, and what it is called
    assert (printed / "votes.tsv").read_text() == (tmp_path / "patch/votes.tsv").read_text()
    assert read_config(printed)["threat"] == "l2, NOT certified (as printed)"
    rows = read_rows(printed)
    assert "radius" not in rows
    np.testing.assert_allclose(rows[UNPROVEN_RADIUS], np.where(patch["radius"] < 0, -1, 2 * patch["radius"]), rtol=1e-9)

    capsys.readouterr()
    report_script.main(report_script.Args(runs=[*sound, printed], radii=[0.0, 0.25], out=tmp_path))
    tables = capsys.readouterr().out.split("\n\n")
    assert tables[0].startswith("certified accuracy at radius r, l2 (")
    assert PRINTED not in tables[0]
    assert tables[1].startswith("CLAIMED accuracy at radius r, l2, NOT certified (as printed)")
    assert "all images at once" in tables[0]
    assert "all images at once" not in tables[1]
    summaries = json.loads((tmp_path / "report.json").read_text())
    assert [s["guaranteed"] for s in summaries] == [True, True, True, False]


def test_printed_radii_stay_marked_when_certified_again(tmp_path, patches, capsys):
    printed = certify(tmp_path / "printed", patches, PRINTED)
    report_script.main(report_script.Args(runs=[printed], alpha=0.001, top_k=[2], pixels=True, radii=[0.0]))
    printed_text = capsys.readouterr().out
    assert printed_text.count("CLAIMED accuracy at radius r, l0 (pixels), NOT certified (as printed)") == 1
    assert "certified accuracy at" not in printed_text
    assert not any(s["guaranteed"] for s in json.loads((printed / "report.json").read_text()))


def test_l2_radii_as_pixels_and_top_k(tmp_path, patches, capsys):
    run = certify(tmp_path / "run", patches, "SmoothReduce(sigma=0.4, size=6, stride=2)", alpha=0.1)
    report_script.main(report_script.Args(runs=[run], top_k=[1, 3], pixels=True, radii=[0.0, 1.0, 2.0]))
    assert "certified accuracy at radius r, l0 (pixels)" in capsys.readouterr().out
    prediction, top_1, top_3 = json.loads((run / "report.json").read_text())
    assert {s["threat"] for s in (prediction, top_1, top_3)} == {"l0 (pixels)"}
    rows, labels = read_rows(run), read_votes(run).label
    radius = [pixels_of_l2_radius(r, 1) if r >= 0 else -1 for r in rows["radius"]]
    expected = [np.mean([c > 0 and r >= at for c, r in zip(rows["correct"], radius, strict=True)]) for at in (0, 1, 2)]
    assert prediction["certified_accuracy"] == pytest.approx(expected)
    assert len(labels) == 16
    assert np.all(np.array(top_3["certified_accuracy"]) >= np.array(top_1["certified_accuracy"]))


def test_a_classifier_of_patches_is_not_one_of_images(tmp_path, patches):
    with pytest.raises(ValueError, match=r"expects 6x6 pixels, but GaussianNoise on digits has 8x8"):
        certify(tmp_path, patches, "GaussianNoise(sigma=0.15)")
