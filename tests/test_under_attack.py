"""Attacks beside certificates: accuracy against radius, and pictures of what the attacks found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from certify import L0, LInf, Patch, Smoothed, Wasserstein, certify_dataset
from certify.data import load
from certify.images import to_float
from certify.models import ModelSpec
from certify.results import read_rows
from certify.spec import parse
from certify.training import Trainer, TrainingConfig, load_checkpoint
from scripts import attack as attack_script
from scripts import attack_pictures
from scripts import certify as certify_script
from scripts import report as report_script
from scripts.parts import attacks, cli

SCHEME = "DeterministicAblation(alpha=3)"


def attack(out: Path, checkpoint: Path, **options) -> None:
    attack_script.main(attack_script.Args(out=out, checkpoint=checkpoint, **options))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Two classifiers of digits; exact certificates and a pointwise attack; a Wasserstein attack on the plain one."""
    folder = tmp_path_factory.mktemp("runs")
    for name, scheme in (("ablated", parse(SCHEME)), ("clean", None)):
        channels = 1 if scheme is None else scheme.channels(1)
        config = TrainingConfig(epochs=8 if scheme else 3, batch_size=32, lr=0.1)
        Trainer(
            load("digits", "train"), scheme, ModelSpec("mnist_cnn", channels, 10, (8, 8)), config, folder / name
        ).run()
    certify_script.main(certify_script.Args(out=folder / "certified", checkpoint=folder / "ablated", max=16))
    attack(folder / "pointwise", folder / "ablated", skip=2, max=12, restarts=2)
    wasserstein = {"scheme": "Undefended()", "attack": "wasserstein", "steps": 30, "every": 2, "start": 0.05}
    attack(folder / "wasserstein", folder / "clean", max=8, **wasserstein)
    return folder


def test_certified_accuracy_is_below_accuracy_under_attack(runs, tmp_path, capsys):
    radii = [0.0, 1.0, 2.0, 5.0, 30.0]
    args = report_script.Args([runs / "certified"], attack=[runs / "pointwise"], radii=radii, out=tmp_path)
    report_script.main(args)
    printed = capsys.readouterr().out
    certified, attacked = json.loads((tmp_path / "report.json").read_text())
    assert certified["images"] == attacked["images"] == 8  # 0, 2, ..., 14
    assert certified["threat"] == attacked["threat"] == str(L0())
    assert (np.array(certified["certified_accuracy"]) <= attacked["attacked_accuracy"]).all()
    magnitude = read_rows(runs / "pointwise")["magnitude"][:8]
    assert attacked["attacked_accuracy"] == [(magnitude > r).mean() for r in radii]
    assert attacked["attacked_accuracy"][0] > 0.5
    assert attacked["attacked_accuracy"][-1] < 0.5
    assert "0 changed class within the certified radius, 0 led to an abstention" in printed
    assert (tmp_path / "certified_accuracy.png").stat().st_size > 10_000


def test_broken_certificates_are_told(runs, tmp_path, capsys):
    """Radii that are too large."""
    rows = (runs / "certified/rows.tsv").read_text().splitlines()
    false = tmp_path / "false"
    false.mkdir()
    (false / "config.json").write_text((runs / "certified/config.json").read_text())
    cells = [line.split("\t") for line in rows]
    cells = [[*row[:3], "64.0" if i else row[3], *row[4:]] for i, row in enumerate(cells)]
    (false / "rows.tsv").write_text("".join("\t".join(row) + "\n" for row in cells))
    report_script.main(report_script.Args([false], attack=[runs / "pointwise"], out=tmp_path))
    certified, attacked = json.loads((tmp_path / "report.json").read_text())
    broken = round(8 * (certified["certified_accuracy"][0] - attacked["attacked_accuracy"][-1]))
    assert broken > 0
    assert f" {broken} changed class within the certified radius" in capsys.readouterr().out


def test_runs_of_the_library_beside_attacks(runs, tmp_path, capsys):
    """Which know nothing of a checkpoint's file, and so of no certificate that an attack would contradict."""
    module, checkpoint = load_checkpoint(runs / "ablated")
    assert checkpoint.scheme is not None
    smoothed = Smoothed(module, checkpoint.scheme, 10)
    certify_dataset(smoothed, load("digits", "test"), tmp_path / "run", index=range(8))
    report_script.main(report_script.Args([tmp_path / "run"], attack=[runs / "pointwise"], out=tmp_path))
    assert "within the certified radius" not in capsys.readouterr().out


def test_attacks_alone_and_in_their_own_panels(runs, tmp_path, capsys):
    both = [runs / "pointwise", runs / "wasserstein"]
    report_script.main(report_script.Args(attack=both, out=tmp_path))
    summaries = json.loads((tmp_path / "report.json").read_text())
    assert [summary["threat"] for summary in summaries] == [str(L0()), str(Wasserstein())]
    assert [summary["images"] for summary in summaries] == [12, 8]
    assert "certified" not in capsys.readouterr().out.replace("certified_accuracy.png", "")


def test_units():
    def unit(name: str, scheme: str, **options):
        return attacks.measured_in(
            {"attack": {"name": name} | attacks.ATTACKS[name].defaults | options, "scheme": scheme}
        )

    assert unit("pointwise", SCHEME) == (L0("pixel"), 1)
    assert unit("pointwise", "DeterministicAblation(alpha=3, unit='feature')") == (L0("feature"), 1)
    assert unit("pointwise", "BandAblation(width=2)") == (L0("pixel"), 1)
    assert unit("patch", "BandAblation(width=2)") == (Patch(), 5)
    assert unit("patch", "BandAblation(width=2)", patch="3x7") == (Patch(3, 7), 1)
    assert unit("linf", "Undefended()") == (LInf(), 1)
    assert unit("wasserstein", "Undefended()") == (Wasserstein("l2"), 1)
    assert unit("wasserstein", "WassersteinNoise(sigma=0.1, metric='l1')") == (Wasserstein("l1"), 1)
    assert unit("wasserstein", "WassersteinNoise(sigma=0.1)", metric="l1") == (Wasserstein("l1"), 1)


def test_reports_that_make_no_sense(runs, tmp_path):
    other = tmp_path / "other"
    attack(other, runs / "ablated", split="train", max=1, restarts=1)
    for args, message in (
        (report_script.Args(), "runs: got none"),
        (report_script.Args([runs / "pointwise"]), "name it after --attack"),
        (report_script.Args(attack=[runs / "certified"]), "name it before --attack"),
        (report_script.Args([runs / "certified"], attack=[other]), r"digits \(test\) and digits \(train\)"),
        (report_script.Args([runs / "certified/rows.tsv"], attack=[runs / "pointwise"]), None),
    ):
        if message is None:  # a table of rows does not tell its threat model: a panel of its own
            report_script.main(report_script.Args(args.runs, attack=args.attack, out=tmp_path))
            assert len(json.loads((tmp_path / "report.json").read_text())) == 2
            continue
        with pytest.raises(ValueError, match=message):
            report_script.main(args)
    apart = tmp_path / "apart"
    attack(apart, runs / "ablated", skip=20, shard="1/2", max=2, restarts=1)
    with pytest.raises(ValueError, match="the runs share no image"):
        report_script.main(report_script.Args([runs / "certified"], attack=[apart]))


# --- pictures --------------------------------------------------------------------------------------------------------


def test_adversarial_images_are_read_back():
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8, generator=generator)
    pixels = image.clone()
    pixels[:, 1, 2] = torch.tensor([0, 255, 7], dtype=torch.uint8)
    moved = (to_float(image) + 1e-3 * torch.rand(3, 4, 5, generator=generator)).clamp(0, 1)
    for adversarial in (image, pixels, to_float(image), moved):
        floats = adversarial.dtype == torch.float32
        text = attack_script.changes(image, adversarial)
        assert torch.equal(attack_script.changed(image, text, floats=floats), adversarial)


@pytest.mark.parametrize("name", ["wasserstein", "pointwise"])
def test_pictures(runs, tmp_path, capsys, name):
    certified = runs / "certified"
    args = attack_pictures.Args(runs / name, certified=certified, out=tmp_path / "attacked.png")
    attack_pictures.main(args)
    assert (tmp_path / "attacked.png").stat().st_size > 20_000
    assert f"wrote {tmp_path / 'attacked.png'}" in capsys.readouterr().out
    rows = read_rows(runs / name)
    config = json.loads((runs / name / "config.json").read_text())
    threat, _ = attacks.measured_in(config)
    for picture in attack_pictures.pictures_of(args, config, threat):
        magnitude = rows["magnitude"][rows["idx"] == picture.idx].item()
        assert 0 < picture.distance <= magnitude * (1 + 1e-5)
        assert picture.predictions[0] == picture.label != picture.predictions[1]
    broken = rows["idx"][(rows["magnitude"] > 0) & np.isfinite(rows["magnitude"])]
    assert picture.idx in broken


def test_windows_around_flows():
    places = np.array([[[2, 3], [2, 4]], [[3, 3], [2, 3]]])
    top, bottom, left, right = attack_pictures._around(places, (10, 20))
    assert top <= 1 < 4 <= bottom
    assert left <= 2 < 5 <= right
    assert (right - left) / (bottom - top) == pytest.approx(2)
    assert attack_pictures._around(np.array([[0, 0], [9, 19]]), (10, 20)) == (-0.5, 9.5, -0.5, 19.5)


def test_pictures_that_cannot_be_made(runs, tmp_path, capsys):
    for arguments, message in (
        ([str(runs / "certified")], "holds certificates, expected an attack"),
        ([str(runs / "pointwise"), "--images", "1"], "images: got 1, expected images that the attack"),
    ):
        with pytest.raises(SystemExit):
            cli.run(attack_pictures.main, attack_pictures.Args, "scripts.attack_pictures", arguments)
        assert message in capsys.readouterr().err
