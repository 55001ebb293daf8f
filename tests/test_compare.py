"""Runs side by side, and histograms of scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from certify import Smoothed, SmoothReduce, StoredRun, UniformNoise, Votes, spec
from certify.draws import ESTIMATION, Draws
from certify.logits import histogram, scores_of_copies, top_two
from certify.models import ModelSpec
from certify.results import ResultFolder, Row, read_votes, row_columns, votes_line
from certify.smooth_reduce_scores import Reduced
from certify.training import Checkpoint, save_checkpoint
from scripts import certify as certify_script
from scripts import compare as compare_script
from scripts import logits as logits_script
from scripts import report as report_script

ROWS = [(0, 3, 3, 0.5), (20, 1, -1, -1.0), (40, 2, 2, 1.25), (60, 7, 4, 0.25)]  # idx, label, predict, radius


def write_run(folder: Path, rows=ROWS, *, n0: int = 100, n: int = 900, **config) -> Path:
    """A finished run with made-up votes."""
    entries = {
        "scheme": "UniformNoise(lam=0.5)",
        "threat": "l1",
        "data": "digits",
        "data_sha256": "0" * 64,
        "split": "test",
        "shape": [1, 8, 8],
        "num_classes": 10,
        "sampling": {"n0": n0, "n": n, "alpha": 0.001, "seed": 0, "bounds": "one-sided"},
        "vote": "argmax",
    }
    columns = row_columns(guaranteed="NOT certified" not in str(config.get("threat")))
    with ResultFolder(folder, columns=columns) as results:
        results.start(entries | config, resume=False)
        for idx, label, predict, radius in rows:
            votes = torch.zeros(1, 10, dtype=torch.int64)
            votes[0, max(predict, 0)] = n
            line = votes_line(idx, label, Votes(votes, votes * n0 // n, (1, 8, 8), n), 0, n0)
            results.append(Row(idx, label, predict, radius, int(predict == label), 2.0, label, 0.9, 0.5), line)
    return folder


@pytest.fixture(autouse=True)
def _made_up_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StoredRun, "check_rows", lambda self: None)


def compare(runs: list[Path], out: Path, **options) -> dict:
    compare_script.main(compare_script.Args(runs=runs, out=out, **options))
    return json.loads((out / "compare.json").read_text())


def test_two_runs_and_a_log(tmp_path, capsys):
    plain = write_run(tmp_path / "plain")
    reduced = write_run(tmp_path / "reduced", [(*row[:3], row[3] * 2) for row in ROWS], inputs_per_copy=4)
    log = tmp_path / "sigma_0.50"
    log.write_text("".join(f"{i}\t{y}\t{p}\t{max(r, 0.0)}\t{int(p == y)}\t0:00:03.5\n" for i, y, p, r in ROWS))
    result = compare([plain, reduced, log], tmp_path, radii=[0.0, 1.0, 2.0])
    costs = [(run["passes_per_image"], run["seconds_per_image"]) for run in result["runs"]]
    assert costs == [(1000, 2), (4000, 2), (None, 3.5)]
    assert [run["average_certified_radius"] for run in result["runs"]] == [0.4375, 0.875, 0.4375]
    assert [(run["abstained"], run["clean_accuracy"]) for run in result["runs"]] == [(0.25, 0.5)] * 3
    assert [run["certified_accuracy"] for run in result["runs"]] == [[0.5, 0.25, 0], [0.5, 0.5, 0.25], [0.5, 0.25, 0]]
    printed = capsys.readouterr().out
    assert "reduced: took 4,000 forward passes per image" in printed
    assert "with 250 samples (n0 + n), the former would cost the same" in printed
    assert "its number of forward passes is unknown" in printed
    assert str(log) in printed
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_equal_budgets(tmp_path):
    plain = write_run(tmp_path / "plain", n0=100, n=900)
    reduced = write_run(tmp_path / "reduced", n0=50, n=200, inputs_per_copy=4)
    other = write_run(tmp_path / "other", n0=50, n=205, inputs_per_copy=4)
    result = compare([plain, reduced], tmp_path, equal_budget=True, names=["RS", "mean"])
    assert [run["name"] for run in result["runs"]] == ["RS", "mean"]
    assert result["remarks"] == []
    with pytest.raises(ValueError, match=r"equal-budget: .*other: took 1,020 forward passes per image"):
        compare([plain, other], tmp_path, equal_budget=True)
    assert compare([plain, other], tmp_path, equal_budget=True, tolerance=0.02)["remarks"] == []


def test_the_printed_rule_beside_the_proven_one(tmp_path, capsys):
    scheme = SmoothReduce(0.25, 8, resize=9, stride=1, noise="patch")
    shape = (1, 8, 8)
    config = {"scheme": spec.to_text(scheme), "threat": str(scheme.threat), "inputs_per_copy": 4}
    votes = torch.zeros(1, 10, dtype=torch.int64)
    votes[0, 2] = 900
    radius = float(scheme.certify_counts(votes // 9, votes, 0.001, shape=shape, n=900).radius)
    run = write_run(tmp_path / "patch", [(0, 2, 2, radius)], **config)
    proven, printed = compare([run], tmp_path, printed=True, names=["mean"])["runs"]
    assert (proven["name"], proven["guaranteed"]) == ("mean", True)
    assert (printed["name"], printed["guaranteed"]) == ("mean, as printed", False)
    ratio = printed["average_certified_radius"] / proven["average_certified_radius"]
    assert ratio == pytest.approx(scheme.operator_norm(shape), rel=1e-3)
    assert "mean, as printed [NOT certified]" in capsys.readouterr().out
    plain = write_run(tmp_path / "plain")
    with pytest.raises(ValueError, match="printed: no run has noise on patches and a certificate"):
        compare([plain], tmp_path, printed=True)
    # in reports, the two stand apart, since one is no certificate
    report_script.main(report_script.Args(runs=[run], bound=["proven", "printed"], out=tmp_path))
    text = capsys.readouterr().out
    assert "certified accuracy" in text
    assert "CLAIMED accuracy" in text
    with pytest.raises(ValueError, match=r"bound: got tight, expected one of those of .*: proven, printed"):
        report_script.main(report_script.Args(runs=[run], bound=["tight"]))
    with pytest.raises(
        ValueError, match=r"bound: got printed, expected one of those of UniformNoise.*: published, box"
    ):
        report_script.main(report_script.Args(runs=[plain], bound=["printed"]))


def test_budgets_of_sequential_sampling_are_averages(tmp_path):
    run = write_run(tmp_path / "run", ROWS[:2])
    text = (run / "votes.tsv").read_text().splitlines()
    cells = text[2].split("\t")
    cells[3] = "100"
    (run / "votes.tsv").write_text("\n".join([*text[:2], "\t".join(cells)]) + "\n")
    assert compare([run], tmp_path)["runs"][0]["passes_per_image"] == (1000 + 200) / 2


def test_other_images_are_refused(tmp_path):
    whole, part = write_run(tmp_path / "whole"), write_run(tmp_path / "part", ROWS[1:])
    with pytest.raises(ValueError, match=r"part: has other images \(3\) than .*whole \(4\); certify the same ones"):
        compare([whole, part], tmp_path)
    shared = compare([whole, part], tmp_path, images="common")["runs"]
    assert [run["images"] for run in shared] == [3, 3]
    assert shared[0]["certified_accuracy"] == shared[1]["certified_accuracy"]
    assert [run["images"] for run in compare([whole, part], tmp_path, images="any")["runs"]] == [4, 3]
    apart = write_run(tmp_path / "apart", [(1, 2, 2, 1.0)])
    with pytest.raises(ValueError, match="no image in common"):
        compare([whole, apart], tmp_path, images="common")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data_sha256": "1" * 64}, "has other data than"),
        ({"split": "train"}, "has other data than"),
        ({"rows": [(i, 5, p, r) for i, _, p, r in ROWS]}, "has other labels than"),
    ],
)
def test_other_data_are_refused(tmp_path, options, message):
    first, other = write_run(tmp_path / "first"), write_run(tmp_path / "other", **options)
    for rule in ("same", "common"):
        with pytest.raises(ValueError, match=message):
            compare([first, other], tmp_path, images=rule)
    assert len(compare([first, other], tmp_path, images="any")["runs"]) == 2


def test_other_threats_are_remarked(tmp_path):
    first, other = write_run(tmp_path / "first"), write_run(tmp_path / "other", threat="l2")
    assert compare([first, other], tmp_path)["remarks"] == [
        "radii of different threat models cannot be compared: l1; l2"
    ]


def test_radii_that_are_no_certificates_stay_marked(tmp_path, capsys):
    proven = write_run(tmp_path / "first", threat="l2")
    claimed = write_run(tmp_path / "other", threat="l2, NOT certified (as printed)")
    result = compare([proven, claimed], tmp_path, names=["sound", "printed"])
    assert [run["guaranteed"] for run in result["runs"]] == [True, False]
    text = capsys.readouterr().out
    assert text.startswith("CLAIMED accuracy")
    assert "printed [NOT certified]" in text
    assert "sound [" not in text


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((0, 1, 0, 0.5, 1), "correct is 1 for image 0, but class 0 is predicted for label 1"),
        ((0, 1, 1, -0.5, 1), r"radius of image 0 is -0\.5, expected at least 0"),
        ((0, 1, 1, "3:00:00", 1), "radius of image 0 is nan"),
        ((0, 1, 1, "inf", 1), "radius of image 0 is inf"),
    ],
)
def test_rows_that_contradict_themselves_are_refused(tmp_path, row, message):
    run = write_run(tmp_path / "run")
    lines = (run / "rows.tsv").read_text().splitlines(keepends=True)
    cells = lines[1].split("\t")
    lines[1] = "\t".join([*map(str, row), *cells[5:]])
    (run / "rows.tsv").write_text("".join(lines))
    for show in (lambda: compare([run], tmp_path), lambda: report_script.main(report_script.Args(runs=[run]))):
        with pytest.raises(ValueError, match=message):
            show()


def test_an_abstention_has_no_radius(tmp_path):
    rows = [(0, 1, -1, 9.0), (1, 1, 1, 0.5)]
    (result,) = compare([write_run(tmp_path / "run", rows)], tmp_path)["runs"]
    assert result["average_certified_radius"] == 0.25


def test_radii_without_their_mark_are_refused(tmp_path):
    run = write_run(tmp_path / "run", threat="l2, NOT certified (as printed)")
    path = run / "config.json"
    path.write_text(path.read_text().replace(", NOT certified (as printed)", ""))
    with pytest.raises(ValueError, match="the threat model 'l2' and the column radius_not_certified"):
        compare([run], tmp_path)


def test_restating_nothing_is_refused(tmp_path):
    run = write_run(tmp_path / "run")
    with pytest.raises(ValueError, match="pixels: no run has radii to restate from l2"):
        report_script.main(report_script.Args(runs=[run], pixels=True))
    squares = write_run(tmp_path / "squares", threat="l2")
    with pytest.raises(ValueError, match="p: no run has radii to restate from l1"):
        report_script.main(report_script.Args(runs=[squares], p=0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"names": ["a"]}, "names: got 1 for 2"), ({"radii": [-1.0]}, "radii"), ({"tolerance": -1.0}, "tolerance")],
)
def test_bad_arguments(tmp_path, options, message):
    run = write_run(tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        compare([run, run], tmp_path, **options)


# scores


def test_top_two_by_hand():
    scores = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [4.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    top = top_two(scores, softmax=False)
    assert (top.first, top.second, top.share) == (0, 1, 0.75)
    assert top.of_first.tolist() == [2, 0, 4, 1]
    assert top.margin.tolist() == [1, -3, 4, 0]
    soft = top_two(scores)
    assert torch.allclose(soft.margin, (scores.double().softmax(1)[:, 0] - scores.double().softmax(1)[:, 1]))
    # no votes for 1 nor 2: the larger mean score comes second; of equal ones the lower class
    assert top_two(torch.tensor([[5.0, 1.0, 2.0]])).second == 2
    assert top_two(torch.tensor([[5.0, 1.0, 1.0]])).second == 1


@pytest.mark.parametrize("scores", [torch.zeros(3), torch.zeros(2, 1), torch.zeros(0, 3), torch.zeros(2, 3).long()])
def test_scores_of_another_shape(scores):
    with pytest.raises(ValueError, match="scores: got"):
        top_two(scores)


def test_histogram_by_hand():
    edges = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    values = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    assert histogram(values, edges).tolist() == [2, 3]
    with pytest.raises(ValueError, match=r"values: got some outside of \[0, 1\]"):
        histogram(values + 0.5, edges)


@pytest.fixture(scope="module")
def certified(tmp_path_factory) -> Path:
    """A run of an untrained network: ``model/`` and ``test/``."""
    folder = tmp_path_factory.mktemp("scores")
    model = ModelSpec("mnist_cnn", 1, 10, 8)
    torch.manual_seed(0)
    save_checkpoint(
        folder / "model/model.safetensors", model.build(), Checkpoint(model, UniformNoise(0.5), "digits", {})
    )
    certify_script.main(
        certify_script.Args(out=folder / "test", checkpoint=folder / "model", n0=10, n=300, max=2, batch_size=64)
    )
    return folder


@pytest.mark.parametrize("of", ["softmax", "scores"])
def test_histograms_of_a_run(tmp_path, certified, of):
    logits_script.main(
        logits_script.Args(run=certified / "test", checkpoint=certified / "model", n=300, of=of, bins=7, out=tmp_path)
    )
    document = json.loads((tmp_path / "logits.json").read_text())
    votes = read_votes(certified / "test").votes.counts
    assert [line["idx"] for line in document["images"]] == [0, 1]
    for line, counts in zip(document["images"], votes.tolist(), strict=True):
        # the very copies that were counted
        assert counts[line["first"]] == max(counts) == round(300 * line["share_of_first"])
        assert sum(line["of_first"]) == sum(line["of_second"]) == sum(line["margin"]) == 300
    assert (tmp_path / "logits.png").read_bytes().startswith(b"\x89PNG")


def test_scores_do_not_depend_on_how_many_are_asked_for(certified):
    smoothed, _, data = certify_script.build(
        certify_script.Args(out=certified, checkpoint=certified / "model", batch_size=64)
    )
    image = data.batch([1])[0]
    many, few = (scores_of_copies(smoothed, image, n=n, stream=1, index=1) for n in (130, 3))
    assert (many.shape, few.shape) == ((130, 10), (3, 10))
    assert torch.allclose(many[:3], few, atol=1e-6)


@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_scores_of_stacks_of_patches_are_those_that_vote(reduce):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.Flatten(), torch.nn.Linear(12, 4))
    scheme = SmoothReduce(0.3, 4, stride=2, reduce=reduce)
    smoothed = Smoothed(model, scheme, 4, n0=1, n=50)
    x = torch.randint(0, 256, (1, 2, 8, 8), dtype=torch.uint8)
    scores = scores_of_copies(smoothed, x, n=50, stream=ESTIMATION, index=3)
    votes = smoothed.votes(x, index=torch.tensor([3]))
    assert torch.equal(torch.bincount(scores.argmax(1), minlength=4), votes.counts[0])
    copies = scheme.sample(x, Draws.of(0, ESTIMATION, torch.tensor([3]), range(50)))[0]
    assert torch.allclose(scores, Reduced(model, reduce)(copies), atol=1e-5)


def test_histograms_need_the_runs_own_classifier_and_images(tmp_path, certified):
    model = ModelSpec("mnist_cnn", 1, 10, 8)
    save_checkpoint(tmp_path / "model.safetensors", model.build(), Checkpoint(model, None, "digits", {}))
    run = certified / "test"
    with pytest.raises(ValueError, match="is not the base classifier of"):
        logits_script.main(logits_script.Args(run=run, checkpoint=tmp_path))
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        logits_script.main(logits_script.Args(run=run, checkpoint=tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"images: got \[7\], expected some of the run's, such as \[0, 1\]"):
        logits_script.main(logits_script.Args(run=run, checkpoint=certified / "model", images=[7]))
