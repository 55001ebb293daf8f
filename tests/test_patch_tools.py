"""Pictures of patch certificates, and choosing how copies vote."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from certify import BandAblation, BlockAblation, MultiBandAblation, spec
from certify.data import load
from certify.models import ModelSpec
from certify.results import read_config, read_rows, read_votes
from certify.training import Trainer, TrainingConfig
from scripts import certify as certify_script
from scripts import patch_pictures, select_vote
from scripts.parts import classifier_runs, cli, patches, tables

VOTE = "ThresholdVote(theta=0.3)"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    folders, data = {}, load("digits", "train")
    for scheme in (BandAblation(2), BlockAblation(4, stride=2), MultiBandAblation(2, 2)):
        name = spec.to_text(scheme)
        folders[name] = tmp_path_factory.mktemp("model")
        model = ModelSpec("mnist_cnn", scheme.channels(1), 10, 8)
        Trainer(data, scheme, model, TrainingConfig(epochs=5, batch_size=64, lr=0.1), folders[name]).run()
    return folders


@pytest.fixture(scope="module")
def runs(tmp_path_factory, checkpoints) -> list[Path]:
    found = []
    for path in checkpoints.values():
        found.append(tmp_path_factory.mktemp("run"))
        certify_script.main(certify_script.Args(out=found[-1], checkpoint=path, vote=VOTE, max=12, skip=5))
    return found


# Pictures


def is_picture(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


def test_pictures_and_curves(tmp_path, runs, capsys):
    args = ["--patch", "3x2", "--images", "10", "0", "--out", str(tmp_path / "new")]
    cli.run(patch_pictures.main, patch_pictures.Args, "scripts.patch_pictures", [*map(str, runs), *args])
    written = [Path(p) for p in capsys.readouterr().out.strip().removeprefix("wrote ").split(", ")]
    new = tmp_path / "new"
    pictures = [new / f"{i + 1}-patch-3x2.png" for i in range(len(runs))]
    assert written == [*pictures, new / "certified_by_size.png"]
    assert all(map(is_picture, written))
    patch_pictures.main(patch_pictures.Args(runs=runs[:1], patch="99"))  # covers the image
    assert is_picture(runs[0] / "certified_by_size.png")


def test_what_is_shown(runs):
    run = runs[0]
    first, second = patch_pictures.pictures_of(run, (2, 2), [10, 0], None)
    rows = {int(idx): i for i, idx in enumerate(read_rows(run)["idx"])}
    votes, data = read_votes(run).votes.by_copy, load("digits", "test")
    assert votes is not None
    for picture, idx in ((first, 10), (second, 0)):
        assert (picture.idx, picture.label) == (idx, int(data.labels[idx]))
        assert picture.prediction == read_rows(run)["predict"][rows[idx]]
        assert torch.equal(picture.votes, votes[rows[idx]])
        assert torch.equal((picture.pixels * 255).round().byte(), data.batch([idx])[0][0])
        held = BandAblation(2).certify_votes(picture.votes[None], 2).certified
        assert bool(held) == (picture.margins[picture.worst()] >= 0)
        assert picture.margins[picture.worst()] == picture.margins.min()
    assert [p.idx for p in patch_pictures.pictures_of(run, (2, 2), None, None)] == [0, 5, 10]


def test_curves_are_the_numbers_of_the_report(runs):
    for run in runs:
        found = patch_pictures.curves(run)
        for bound in ("location", "published"):
            lines = patches.patch_accuracy(run, [(m, m) for m in range(1, 9)], [bound])
            assert found[bound] == pytest.approx([lines[0].clean, *lines[0].certified], abs=1e-12)


def test_map_of_votes():
    colors = {0: (1.0, 0.0, 0.0), 2: (0.0, 1.0, 0.0)}
    votes = torch.tensor([[1, 0, 0], [0, 0, 0], [1, 0, 1], [0, 1, 0]]).bool()
    shown = patch_pictures.vote_map(votes, (2, 2), colors)
    s = patch_pictures.STRIPES
    assert shown.shape == (2 * s, 2 * s, 3)
    assert (shown[:s, :s] == colors[0]).all()
    assert (shown[:s, s:] == 1).all()
    assert (shown[s : s + s // 2, :s] == colors[0]).all()
    assert (shown[s + s // 2 :, :s] == colors[2]).all()
    assert np.allclose(shown[s:, s:], 0.6)


def test_colors_go_to_the_classes_with_most_votes():
    votes = torch.zeros((5, 40), dtype=torch.bool)
    votes[:, 7:19] = True
    votes[0, [7, 8]] = False
    votes[1:3, 7] = False
    assert sorted(patch_pictures.class_colors(votes)) == list(range(9, 19))
    assert len(patch_pictures.class_colors(votes[:, :7])) == 7


def test_bad_pictures(runs, tmp_path):
    with pytest.raises(ValueError, match="images: got 1, expected images of"):
        patch_pictures.main(patch_pictures.Args(runs=runs[:1], images=[1]))
    with pytest.raises(ValueError, match="expected a side in pixels"):
        patch_pictures.main(patch_pictures.Args(runs=runs[:1], patch="0"))


# Choosing a vote


def test_chosen_on_images_that_are_not_reported(checkpoints, capsys, tmp_path):
    paths = list(checkpoints.values())[:2]
    votes = ["top1", "theta=0.2", "ThresholdVote(theta=0.6)"]
    select_vote.main(select_vote.Args(checkpoints=paths, votes=votes, patch="1", skip=2))
    printed = capsys.readouterr().out
    chosen = classifier_runs.Args(out=tmp_path, checkpoint=paths[0], skip=2, shard="0/2")
    validated = set(classifier_runs.select(359, chosen))
    assert f"chosen on {len(validated)} validation images (part 0 of 2" in printed
    # the numbers are those of one run of the certifier per vote
    shares = []
    for path in paths:
        for number, vote in enumerate(("argmax", "ThresholdVote(theta=0.2)", "ThresholdVote(theta=0.6)")):
            out = tmp_path / f"{path.name}-{number}"
            certify_script.main(certify_script.Args(out=out, checkpoint=path, vote=vote, skip=2, shard="0/2"))
            (line,) = patches.patch_accuracy(out, [(1, 1)], ["location"])
            shares.append((line.certified[0], line.clean, str(path), vote))
    rows = re.findall(r"location +90 +([\d.]+%) +([\d.]+%)", printed)
    assert rows == [(tables.percent(clean), tables.percent(share)) for share, clean, _, _ in shares]
    best = max(shares, key=lambda share: share[:2])
    command = shlex.split(printed.strip().splitlines()[-1])
    assert command[command.index("--checkpoint") + 1] == best[2]
    assert command[command.index("--vote") + 1] == best[3]
    # and the command that is printed certifies others
    command[command.index("OUT")] = str(tmp_path / "reported")
    capsys.readouterr()
    cli.run(certify_script.main, certify_script.Args, "scripts.certify", [*command[3:], "--max", "40"])
    reported = {int(idx) for idx in read_rows(tmp_path / "reported")["idx"]}
    assert len(reported) == 20
    assert not reported & validated
    assert read_config(tmp_path / "reported")["vote"] == best[3]


def test_validation_is_reproducible_from_any_part(checkpoints, capsys):
    path = next(iter(checkpoints.values()))
    arguments = select_vote.Args(checkpoints=[path], votes=["theta=0.3"], shard="2/3", max=30, bound="published")
    select_vote.main(arguments)
    first = capsys.readouterr().out
    select_vote.main(arguments)
    assert capsys.readouterr().out == first
    assert "--shard 0/3" in first
    assert "published" in first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard", "0/1"], "leaves no test images to report"),
        (["--votes", "theta=2"], "theta: got 2"),
        (["--votes", "top2"], "vote|got 'top2'"),
        (["--votes", "top1", "top1"], "expected one or more distinct"),
        (["--patch", "x"], "expected a side in pixels"),
    ],
)
def test_bad_options(checkpoints, capsys, options, message):
    path = next(iter(checkpoints.values()))
    with pytest.raises(SystemExit) as stop:
        cli.run(select_vote.main, select_vote.Args, "scripts.select_vote", [str(path), *options])
    assert stop.value.code == 1
    assert re.search(message, capsys.readouterr().err)


def test_only_schemes_against_patches(tmp_path):
    data, scheme = load("digits", "train"), spec.parse_scheme("DeterministicAblation(alpha=4)")
    model = ModelSpec("mnist_cnn", 2, 10, 8)
    Trainer(data, scheme, model, TrainingConfig(epochs=1, batch_size=256, lr=0.1), tmp_path).run()
    with pytest.raises(ValueError, match="expected band or block ablation"):
        select_vote.main(select_vote.Args(checkpoints=[tmp_path]))
