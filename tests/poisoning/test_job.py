from __future__ import annotations

import json

import pytest
import torch

from certify.data import load
from certify.poisoning import ContentHash, Ensemble, NearestNeighbors, Network, SortedIndex
from certify.poisoning.job import Job, ensemble_config, environment_of, read_ensemble, read_job
from certify.results import read_rows, read_votes
from scripts import poisoning, report


def _ensemble() -> Ensemble:
    return Ensemble(ContentHash(5), Network("linear", steps=3, batch_size=8), 10)


def _data():
    data = load("digits", "train")
    return data.images[:80], data.labels[:80]


def _job(folder, ensemble=None, **options) -> Job:
    return Job(folder, ensemble or _ensemble(), {"name": "digits"}, at_once=2, **options)


def _files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


class _Killed(Exception):
    pass


def test_a_killed_job_continues_to_the_identical_result(tmp_path):
    parts = _ensemble().parts(_data())
    whole = _job(tmp_path / "whole")
    whole.start(resume=False)
    whole.train(parts)
    job, seen = _job(tmp_path / "killed"), []

    def kill(count: int) -> None:
        seen.append(count)
        raise _Killed

    job.start(resume=False)
    with pytest.raises(_Killed):
        job.train(parts, on_group=kill)
    assert len(_files(job.folder)) == 1
    again = _job(tmp_path / "killed")
    again.start(resume=True)
    again.train(parts, shard=(1, 2))
    again.train(parts, shard=(0, 2))
    assert _files(job.folder) == _files(whole.folder)
    assert len(_files(job.folder)) == 3


def test_votes_belong_to_their_models(tmp_path):
    """Models that were deleted and trained on other labels do not get the votes of the earlier ones."""
    (samples, labels), job = _data(), _job(tmp_path)
    job.start(resume=False)
    job.train(_ensemble().parts((samples, labels)))
    job.vote("test", samples, {"name": "test"})
    before = job.rankings("test")
    for path in tmp_path.glob("models-*"):
        path.unlink()
    assert torch.equal(job.rankings("test"), before)  # votes are all that a certificate needs
    job.train(_ensemble().parts((samples, 9 - labels)))
    for act in (lambda: job.vote("test", samples, {"name": "test"}), lambda: job.rankings("test")):
        with pytest.raises(ValueError, match=r"votes-00000.safetensors: holds votes of other models than .*; remove"):
            act()


def test_shards_share_a_folder_without_resuming(tmp_path):
    def train(folder, **options):
        options = {"partition": "PixelSum(6)", "learner": "NearestNeighbors(1)", "at_once": 2, **options}
        poisoning.main(poisoning.Args("train", folder, **options))

    train(tmp_path / "whole")
    for number in (1, 0):
        train(tmp_path / "shared", shard=f"{number}/2")
    assert _files(tmp_path / "whole") == _files(tmp_path / "shared")
    with pytest.raises(ValueError, match=r"already holds models of shard 0/2; add --resume"):
        train(tmp_path / "shared", shard="0/2")
    train(tmp_path / "shared", shard="0/2", resume=True)
    with pytest.raises(ValueError, match="was made with"):
        train(tmp_path / "shared", shard="2/3", learner="NearestNeighbors(3)", resume=True)
    with pytest.raises(ValueError, match="already holds an ensemble"):
        train(tmp_path / "shared")


def test_votes_are_stored_and_read_again(tmp_path):
    ensemble, data = _ensemble(), _data()
    job = _job(tmp_path)
    job.start(resume=False)
    job.train(ensemble.parts(data))
    job.vote("test", data[0], {"data": "digits"})
    stored = read_job(tmp_path)
    assert (stored.ensemble, stored.identity) == (ensemble, job.identity)
    expected = torch.cat([ensemble.rankings(job.states(group), data[0]) for group in job.groups])
    assert torch.equal(stored.rankings("test"), expected)
    with pytest.raises(ValueError, match="was made with inputs"):
        job.vote("test", data[0][:3], {"data": "other"})
    (tmp_path / "test/votes.json").unlink()
    with pytest.raises(ValueError, match="holds votes on"):
        job.vote("test", data[0][:3], {"data": "other"})
    with pytest.raises(ValueError, match="holds votes on"):
        job.rankings("test")


def test_other_data_under_the_same_name_are_refused(tmp_path):
    ensemble, (images, labels) = _ensemble(), _data()
    job = _job(tmp_path)
    job.start(resume=False)
    job.train(ensemble.parts((images, labels)))
    job.train(ensemble.parts((images, labels)))
    with pytest.raises(ValueError, match="trained on other samples or labels, under the same name"):
        job.train(ensemble.parts((images, (labels + 1) % 10)))
    job.vote("test", images, {"data": "digits"})
    with pytest.raises(ValueError, match=r"was made with inputs\.x_sha256 = "):
        job.vote("test", images.flip(0), {"data": "digits"})


def test_the_number_of_threads_is_put_back(tmp_path):
    threads = torch.get_num_threads()
    job = _job(tmp_path, environment=environment_of("cpu") | {"threads": threads + 1})
    job.start(resume=False)
    job.train(_ensemble().parts(_data()))
    assert torch.get_num_threads() == threads


def test_folders_never_mix_ensembles(tmp_path):
    job = _job(tmp_path)
    job.start(resume=False)
    with pytest.raises(ValueError, match="holds an ensemble"):
        job.start(resume=False)
    other = Job(tmp_path, _ensemble(), {"name": "poisoned digits"}, at_once=2)
    with pytest.raises(ValueError, match=r"data\.name = "):
        other.start(resume=True)
    with pytest.raises(ValueError, match="mode = "):
        _job(tmp_path, mode="sequential").start(resume=True)
    job.train(_ensemble().parts(_data()), shard=(0, 3))
    with pytest.raises(ValueError, match="does not belong to the ensemble"):
        other.states(other.groups[0])
    with pytest.raises(FileNotFoundError, match="resume"):
        job.states(job.groups[1])


@pytest.mark.parametrize(
    "ensemble",
    [
        _ensemble(),
        Ensemble(SortedIndex(7), NearestNeighbors(3), 10, seeds="shared"),
        Ensemble(ContentHash(6, key="k"), Network(crop=2), 4, spread=3),
    ],
)
def test_ensembles_are_text_and_back(ensemble):
    assert read_ensemble(json.loads(json.dumps(ensemble_config(ensemble)))) == ensemble


def test_wrong_ensembles_name_what_is_known():
    config = ensemble_config(_ensemble())
    with pytest.raises(ValueError, match="PixelSum"):
        read_ensemble(config | {"partition": "Modulo(3)"})
    with pytest.raises(ValueError, match="NearestNeighbors"):
        read_ensemble(config | {"learner": "RandomizedAblation(3)"})


def test_the_script_trains_votes_certifies_and_reports(tmp_path, capsys):
    args = poisoning.Args("all", tmp_path, partition="ContentHash(8)", learner="NearestNeighbors()", at_once=3, skip=20)
    poisoning.main(args)
    assert "poisoning (training samples inserted or deleted)" in capsys.readouterr().out
    run = tmp_path / "test" / "plurality-samples"
    rows, votes = read_rows(run), read_votes(run)
    assert len(rows["idx"]) == 18
    assert rows["correct"].mean() > 0.8
    assert votes.votes.counts.sum(1).tolist() == [8] * 18
    summary = json.loads((tmp_path / "report.json").read_text())
    assert summary[0]["base_accuracy"] == pytest.approx(rows["label_share"].mean())
    for step in (
        poisoning.Args(
            "train", tmp_path, partition="ContentHash(8)", learner="NearestNeighbors()", at_once=3, resume=True
        ),
        poisoning.Args("vote", tmp_path, skip=20),
        poisoning.Args("certify", tmp_path, method="run-off", threat="labels"),
    ):
        poisoning.main(step)
    poisoning.main(poisoning.Args("certify", tmp_path))  # again: nothing to do
    path = run / "rows.tsv"
    text = path.read_text()
    cells = text.splitlines()[1].split("\t")
    path.write_text(text.replace("\t".join(cells), "\t".join([*cells[:3], "99.0", *cells[4:]])))
    with pytest.raises(ValueError, match=r"got a stored radius of 99 for image .*this version of the certificate"):
        poisoning.main(poisoning.Args("certify", tmp_path))
    path.write_text(text)
    labels = read_rows(tmp_path / "test" / "run-off-labels")
    assert (labels["radius"] >= 0).all()
    with pytest.raises(ValueError, match="is exact"):
        report.main(report.Args([run], alpha=0.1))
    with pytest.raises(ValueError, match="holds an ensemble"):
        poisoning.main(args)


def test_arguments_of_other_steps_are_refused(tmp_path):
    for options, message in (
        ({"step": "vote", "learner": "NearestNeighbors(1)"}, "learner: is used by train, not by vote"),
        ({"step": "certify", "device": "cuda"}, "device: is used by train, vote, not by certify"),
        ({"step": "report", "method": "run-off"}, "method: is used by certify, not by report"),
    ):
        with pytest.raises(ValueError, match=message):
            poisoning.main(poisoning.Args(out=tmp_path, **options))


def test_labels_of_other_data_than_were_voted_on_are_refused(tmp_path, monkeypatch):
    poisoning.main(poisoning.Args("train", tmp_path, partition="ContentHash(3)", learner="NearestNeighbors()"))
    poisoning.main(poisoning.Args("vote", tmp_path, max=2))
    monkeypatch.setattr("certify.data.Dataset.checksum", lambda _: "other")
    with pytest.raises(ValueError, match="is not the data that was voted on"):
        poisoning.main(poisoning.Args("certify", tmp_path))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"shard": "2/2"}, "shard: got '2/2'"),
        ({"skip": 0}, "skip, max: got 0, None"),
        ({"max": 0}, "skip, max: got 1, 0"),
        ({"radii": [float("nan")]}, "radii: got"),
        ({"device": "meta"}, "device: got 'meta', which is not available here"),
    ],
)
def test_what_later_steps_would_refuse_is_refused_before_training(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        poisoning.main(poisoning.Args("all", tmp_path / "out", **wrong))
    assert not (tmp_path / "out").exists()


def test_the_script_explains_missing_steps(tmp_path):
    with pytest.raises(FileNotFoundError, match="poisoning train"):
        poisoning.main(poisoning.Args("vote", tmp_path))
    poisoning.main(poisoning.Args("train", tmp_path, partition="SortedIndex(3)", learner="NearestNeighbors()"))
    with pytest.raises(FileNotFoundError, match="poisoning vote"):
        poisoning.main(poisoning.Args("certify", tmp_path))
    with pytest.raises(FileNotFoundError, match="certify first"):
        poisoning.main(poisoning.Args("report", tmp_path))
    poisoning.main(poisoning.Args("vote", tmp_path, max=2))
    with pytest.raises(ValueError, match="certifies only"):
        poisoning.main(poisoning.Args("certify", tmp_path, threat="samples"))
