"""Runs on disk, certified again from their votes through the library."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from certify import (
    BandAblation,
    DeterministicAblation,
    GaussianNoise,
    RandomizedAblation,
    Smoothed,
    StoredRun,
    ThresholdVote,
    VariableLambda,
    WassersteinNoise,
    certify_dataset,
)
from certify.data import Dataset
from certify.sequential import CertifiedAt
from scripts import report


@dataclass(frozen=True)
class OwnAblation(DeterministicAblation):
    """A scheme of one's own."""

    version: str = "one"

    def fingerprint(self) -> str:
        return "design one"


def images(count: int = 9) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 1, 6, 6), generator=generator, dtype=torch.uint8)
    return Dataset("mine", "test", pixels, torch.arange(count) % 3, num_classes=3)


def smoothed(scheme, **options) -> Smoothed:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(scheme.channels(1) * 36, 3))
    return Smoothed(model, scheme, 3, **({"n0": 20, "n": 200, "alpha": 0.01} | options))


def stored(tmp_path: Path, scheme, **options) -> tuple[StoredRun, Smoothed, Tensor]:
    classifier, data = smoothed(scheme, **options), images()
    certify_dataset(classifier, data, tmp_path / "run")
    return StoredRun(tmp_path / "run"), classifier, data.batch(range(len(data)))[0]


@pytest.mark.parametrize(
    "scheme",
    [RandomizedAblation(3), GaussianNoise(0.5), DeterministicAblation(5), BandAblation(2), WassersteinNoise(0.01)],
    ids=lambda scheme: type(scheme).__name__,
)
def test_the_same_again(scheme, tmp_path):
    run, classifier, x = stored(tmp_path, scheme)
    again, expected = run.certify(), classifier.certify(x)
    assert torch.equal(again.prediction, expected.prediction)
    assert torch.equal(again.radius, expected.radius)
    assert (again.radius.numpy() == run.rows["radius"]).all()
    assert torch.equal(run.predict(), classifier.predict(x))
    assert (run.predict().numpy() == run.rows["clean"]).all()
    assert run.scheme == scheme
    assert run.guaranteed
    assert (again.correct(run.label).numpy() == run.rows["correct"]).all()


def edit(path: Path, row: int, change: Callable[[list[str]], None]) -> None:
    """Change the fields of a row of a table."""
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    change(lines[row + 1])
    path.write_text("".join("\t".join(line) + "\n" for line in lines))


@pytest.mark.parametrize("scheme", [GaussianNoise(0.5), DeterministicAblation(5), BandAblation(2)])
def test_rows_that_claim_more_than_their_votes_are_refused(scheme, tmp_path):
    run, *_ = stored(tmp_path, scheme)
    run.check_rows()
    row = int((run.rows["predict"] >= 0).nonzero()[0][-1])

    def larger(fields: list[str]) -> None:
        fields[3] = repr(float(fields[3]) + 1)

    def other_class(fields: list[str]) -> None:
        fields[2] = str((int(fields[2]) + 1) % 3)
        fields[4] = str(int(fields[1] == fields[2]))

    table = (tmp_path / "run/rows.tsv").read_text()
    for change in (larger, other_class):
        edit(tmp_path / "run/rows.tsv", row, change)
        with pytest.raises(ValueError, match=rf"the row of image {row} has class .* 1 of 9 rows"):
            StoredRun(tmp_path / "run").check_rows()
        with pytest.raises(ValueError, match=f"the row of image {row} has class"):
            report.main(report.Args([tmp_path / "run"]))
        (tmp_path / "run/rows.tsv").write_text(table)
    (tmp_path / "run/votes.tsv").unlink()  # rows alone, as someone may pass them on
    StoredRun(tmp_path / "run").check_rows()


def test_the_threat_model_is_that_of_the_scheme(tmp_path):
    stored(tmp_path, GaussianNoise(0.5))
    path = tmp_path / "run/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"threat": "l1"}))
    with pytest.raises(ValueError, match=r"got the threat model 'l1', but GaussianNoise\(sigma=0.5\) certifies 'l2'"):
        report.main(report.Args([tmp_path / "run"]))


def test_another_level_other_bounds(tmp_path):
    run, _, x = stored(tmp_path, RandomizedAblation(3))
    for options in (
        {"alpha": 1e-6},
        {"bounds": "simultaneous"},
        {"interval": "randomized"},
        {"alpha": 0.2, "bounds": "simultaneous", "interval": "randomized"},
    ):
        expected = smoothed(RandomizedAblation(3), **options).certify(x)
        assert torch.equal(run.certify(**options).radius, expected.radius)
    assert torch.equal(run.predict(alpha=0.2), smoothed(RandomizedAblation(3), alpha=0.2).predict(x))
    for options, message in (
        ({"alpha": 1.0}, "alpha"),
        ({"bounds": "both"}, "bounds: got 'both'"),
        ({"interval": "wald"}, "interval: got 'wald'"),
        ({"bound": "tight"}, "only one certificate; leave it out"),
    ):
        with pytest.raises(ValueError, match=message):
            run.certify(**options)


def test_exact_runs_have_no_level(tmp_path):
    run, *_ = stored(tmp_path, DeterministicAblation(5))
    for ask in (
        lambda: run.certify(alpha=0.1),
        lambda: run.predict(alpha=0.1),
        lambda: run.certify(bounds="one-sided"),
    ):
        with pytest.raises(ValueError, match=r"is exact; alpha, bounds and interval are for sampled schemes"):
            ask()
    with pytest.raises(ValueError, match="top-k certificates are for RandomizedAblation and Gaussian noise"):
        run.certify_top_k(1)
    with pytest.raises(ValueError, match="expected votes of a scheme against patches"):
        run.certify_patch(2)


@pytest.mark.parametrize("scheme", [RandomizedAblation(3), GaussianNoise(0.5)], ids=["l0", "l2"])
def test_top_k(scheme, tmp_path):
    run, classifier, x = stored(tmp_path, scheme)
    direct = classifier.certify_top_k(x, 2)
    assert torch.equal(run.certify_top_k(2).radius, direct.radius)
    assert (run.certify_top_k(2, alpha=1e-5).radius <= direct.radius).all()
    assert (direct.top_k, direct.threat, direct.guaranteed) == (2, scheme.threat, True)
    assert (direct.radius_of(run.label) >= 0).any()
    with pytest.raises(ValueError, match=r"k \(predicted labels\): got 3"):
        classifier.certify_top_k(x, 3)
    with pytest.raises(ValueError, match="expected one with a vote for each position"):
        classifier.certify_patch(x, 2)
    with pytest.raises(ValueError, match="top-k certificates are for"):
        smoothed(WassersteinNoise(0.01)).certify_top_k(x, 2)
    with pytest.raises(ValueError, match="top-k certificates are for"):
        smoothed(DeterministicAblation(5)).certify_top_k(x, 2)


def test_patches(tmp_path):
    run, classifier, x = stored(tmp_path, BandAblation(2), vote=ThresholdVote(0.4))
    votes = classifier.votes(x)
    for bound in run.bound_names():
        expected = run.by_position()[0].certify_votes(votes.by_copy, (1, 2), shape=votes.shape, bound=bound)
        got = run.certify_patch((1, 2), bound=bound)
        assert torch.equal(classifier.certify_patch(x, (1, 2), bound=bound).certified, got.certified)
        assert torch.equal(got.certified, expected.certified)
        assert ((run.certify(bound=bound).radius >= 2) <= run.certify_patch(2, bound=bound).certified).all()


def test_stored_votes_certify_nothing_for_another_scheme(tmp_path):
    run, classifier, _ = stored(tmp_path, GaussianNoise(0.5))
    assert torch.equal(classifier.certificate(run.votes).radius, run.certify().radius)
    for certify in (Smoothed.certificate, Smoothed.prediction):
        with pytest.raises(ValueError, match=r"votes on copies by GaussianNoise.*certify nothing for GaussianNoise"):
            certify(smoothed(GaussianNoise(2.0)), run.votes)


def test_stored_votes_are_for_any_design_of_their_scheme(tmp_path):
    scheme = VariableLambda(0.5, 2, budget=20)
    run, classifier, _ = stored(tmp_path, replace(scheme, design=scheme.designs()))
    assert torch.equal(classifier.certificate(run.votes).radius, run.certify().radius)
    with pytest.raises(ValueError, match="certify nothing for"):
        smoothed(replace(scheme, alpha=3)).certificate(run.votes)


def test_a_scheme_of_ones_own(tmp_path, monkeypatch):
    certify_dataset(smoothed(OwnAblation(5)), images(), tmp_path / "run")
    for run in (StoredRun(tmp_path / "run", scheme=OwnAblation(5)), StoredRun(tmp_path / "run")):
        assert (run.certify().radius.numpy() == run.rows["radius"]).all()
        assert run.scheme == OwnAblation(5)
    with pytest.raises(ValueError, match=r"got the scheme OwnAblation\(alpha=6\), expected"):
        StoredRun(tmp_path / "run", scheme=OwnAblation(6))
    monkeypatch.setattr(OwnAblation, "fingerprint", lambda self: "design two")
    with pytest.raises(ValueError, match="of the design design one, which is design two here"):
        StoredRun(tmp_path / "run", scheme=OwnAblation(5))
    with pytest.raises(ValueError, match="of the design design one, which is design two here"):
        StoredRun(tmp_path / "run").certify()
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(config | {"scheme": "Elsewhere(alpha=5)"}))
    with pytest.raises(ValueError, match=r"a scheme of your own has to be given, StoredRun\(folder, scheme=...\)"):
        StoredRun(tmp_path / "run").certify()


def test_names_of_schemes_are_of_one_class(tmp_path):
    @dataclass(frozen=True)
    class RandomizedAblation(DeterministicAblation):  # not the one of that name
        pass

    with pytest.raises(ValueError, match=r"RandomizedAblation of tests\.test_runs, but .* is another scheme, too"):
        certify_dataset(smoothed(RandomizedAblation(5)), images(), tmp_path / "run")

    @dataclass(frozen=True)
    class Chosen(DeterministicAblation):
        kept: Tensor | None = None

    with pytest.raises(ValueError, match="a Chosen whose kept is a Tensor, which has no unique text form"):
        certify_dataset(smoothed(Chosen(5, kept=torch.ones(2))), images(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("radius", "got"),
    [
        (lambda p: p[:, None], r"float64 \(9, 1\)"),
        (lambda p: p.float(), r"float32 \(9,\)"),
        (lambda p: p * torch.nan, "not a number"),
        (lambda p: 1.0, "float"),
    ],
)
def test_radii_of_the_wrong_kind_are_refused(radius, got):
    """Of float32, half would be rounded up."""

    @dataclass(frozen=True)
    class Sampled(RandomizedAblation):
        def radius(self, p_lower, p_upper, *, shape=None):
            return radius(p_lower)

    @dataclass(frozen=True)
    class Exact(DeterministicAblation):
        def radius_of_flips(self, flips, *, shape=None):
            return radius(flips.double())

    for scheme in (Sampled(3), Exact(5)):
        with pytest.raises(ValueError, match=f"{type(scheme).__name__}: got .*{got}"):
            smoothed(scheme).certify(images().batch(range(9))[0])


def test_votes_that_were_stopped(tmp_path):
    certify_dataset(smoothed(RandomizedAblation(3)), images(), tmp_path / "run", question=CertifiedAt(1), max_n=300)
    run = StoredRun(tmp_path / "run")
    assert len(run.rows["idx"]) == 9
    for ask in (run.certify, run.predict, lambda: run.certify_top_k(1)):
        with pytest.raises(ValueError, match=r"was sampled until CertifiedAt\(radius=1\) was settled"):
            ask()


def test_what_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such run"):
        StoredRun(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"attack": "pointwise"}))
    with pytest.raises(ValueError, match="holds an attack"):
        StoredRun(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"data": "digits"}))
    with pytest.raises(ValueError, match=r"config\.json has no scheme, which every run has"):
        StoredRun(tmp_path)
