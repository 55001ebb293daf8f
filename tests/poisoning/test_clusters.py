"""Clusters as features, and models of a single label (dissertation, Appendix F.2)."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from scipy.cluster.vq import kmeans2

from certify.data import load
from certify.poisoning import ClusterLabels, Ensemble, KMeans, Part, SortedIndex, rank_classes
from certify.poisoning.features import Pretraining, load_features
from certify.results import read_rows
from scripts import poisoning, train_features

CPU = torch.device("cpu")
DATA = "digits(only=(1, 7))"


def _learn(folder, images: torch.Tensor, **options) -> bytes:
    learning = Pretraining(images, KMeans(2), folder)
    learning.start(resume=(folder / "config.json").exists())
    return learning.run(**options).read_bytes()


def _images() -> torch.Tensor:
    return load(DATA, "train").images


def _args(out: Path, features: Path, data: str = DATA) -> poisoning.Args:
    """One label per model."""
    partition = f"SortedIndex({len(_images())})"
    options = {"data": data, "partition": partition, "learner": "ClusterLabels()", "features": features}
    return poisoning.Args("all", out, at_once=100, **options)


def _fitted(clusters: list[int], labels: list[int], *, of: int, classes: int) -> dict[str, torch.Tensor]:
    samples = torch.eye(of)[torch.tensor(clusters, dtype=torch.int64)]
    part = Part(samples, torch.tensor(labels, dtype=torch.int64), 0)
    return ClusterLabels().fit(part, num_classes=classes, device=CPU)


def test_centres_are_those_that_scipy_finds(tmp_path):
    learned = Pretraining(_images(), KMeans(3, seed=1), tmp_path)
    learned.start(resume=False)
    first = learned.learning.module.get_buffer("centres").clone()
    learned.run()
    rows = _images().flatten(1).double().numpy()
    expected, nearest = kmeans2(rows, first.numpy(), iter=300, minit="matrix")
    found = learned.learning.module.get_buffer("centres")
    assert torch.allclose(found, torch.from_numpy(expected), atol=1e-6)
    assert len(learned.losses) < 300
    assert learned.losses == sorted(learned.losses, reverse=True)
    clusters = load_features(tmp_path).of(_images())
    assert torch.equal(clusters.argmax(1), torch.from_numpy(nearest).long())
    assert torch.equal(clusters.sum(1), torch.ones(len(rows)))


def test_clusters_do_not_depend_on_the_order_of_the_images(tmp_path):
    first = _learn(tmp_path / "a", _images())
    order = torch.randperm(len(_images()), generator=torch.Generator().manual_seed(0))
    assert _learn(tmp_path / "b", _images()[order]) == first
    clusters = load_features(tmp_path / "a").of(_images())
    assert torch.equal(load_features(tmp_path / "b").of(_images()[order]), clusters[order])


def test_iterations_that_were_interrupted_continue_to_the_identical_clusters(tmp_path):
    whole = _learn(tmp_path / "whole", _images())

    class Killed(Exception):
        pass

    def kill(epoch: int, loss: float) -> None:
        if epoch == 1:
            raise Killed

    with pytest.raises(Killed):
        _learn(tmp_path / "killed", _images(), on_epoch=kill)
    epochs = []
    assert _learn(tmp_path / "killed", _images(), on_epoch=lambda epoch, _: epochs.append(epoch)) == whole
    assert epochs[0] == 2
    again = []
    assert _learn(tmp_path / "killed", _images(), on_epoch=lambda epoch, _: again.append(epoch)) == whole
    assert again == []


def test_first_centres_are_distinct_images(tmp_path):
    few = torch.tensor([0, 0, 0, 9, 9, 200], dtype=torch.uint8).view(6, 1, 1, 1)
    for seed in range(5):
        learning = Pretraining(few, KMeans(3, seed=seed), tmp_path / str(seed))
        assert sorted(learning.learning.module.get_buffer("centres").flatten().tolist()) == [0, 9, 200]
    with pytest.raises(ValueError, match="got 4, but only 3 of the images are distinct; use fewer"):
        Pretraining(few, KMeans(4), tmp_path / "many")


@pytest.mark.parametrize(("given", "message"), [((1,), "clusters: got 1"), ((2, 0), "epochs: got 0")])
def test_bad_settings(given, message):
    with pytest.raises(ValueError, match=message):
        KMeans(*given)


def test_one_label_is_the_published_rule():
    for own, label, cluster in itertools.product(range(2), repeat=3):
        state = _fitted([own], [label], of=2, classes=2)
        x = torch.eye(2)[[cluster]]
        vote = int(rank_classes(ClusterLabels().scores([state], x, num_classes=2))[0, 0, 0])
        assert vote == (label if cluster == own else 1 - label)


def test_scores_of_several_labels_by_hand():
    state = _fitted([0, 0, 1, 1], [0, 1, 1, 1], of=3, classes=3)
    empty = _fitted([], [], of=3, classes=3)
    scores = ClusterLabels().scores([state, empty], torch.eye(3), num_classes=3)
    assert scores[0].tolist() == [[1, -1, 0], [-1, 1, 0], [-1, -3, 0]]
    assert scores[1].tolist() == [[0, 0, 0]] * 3


def test_anything_but_clusters_is_refused():
    with pytest.raises(ValueError, match=r"got samples of shape \(1, 8, 8\), expected clusters"):
        ClusterLabels().check((1, 8, 8), 2)
    state = _fitted([0], [0], of=2, classes=2)
    for rows in ([[0.5, 0.5]], [[1, 1]], [[0, 0]], [[2, -1]], [[float("nan"), 1]]):
        with pytest.raises(ValueError, match="expected one-hot rows; use features of KMeans"):
            ClusterLabels().fit(Part(torch.tensor(rows), torch.tensor([0]), 0), num_classes=2, device=CPU)
        with pytest.raises(ValueError, match="expected one-hot rows"):
            ClusterLabels().scores([state], torch.tensor(rows), num_classes=2)
    with pytest.raises(ValueError, match="got 3 clusters, expected 2"):
        ClusterLabels().scores([state], torch.eye(3), num_classes=2)


def test_features_that_are_no_clusters_are_refused_before_anything_is_written(tmp_path):
    method = "SimCLR('small_cnn', epochs=1, batch_size=16, flip=False)"
    train_features.main(train_features.Args(tmp_path / "views", data=DATA, method=method))
    with pytest.raises(ValueError, match="got samples that are no clusters"):
        poisoning.main(_args(tmp_path / "ensemble", tmp_path / "views"))
    assert not (tmp_path / "ensemble").exists()


def test_features_of_other_images_are_refused(tmp_path):
    """Images that were selected by their labels: one flipped label could change the features of all models."""
    train_features.main(train_features.Args(tmp_path / "clusters", data=DATA, method="KMeans(2)"))
    for other in ("digits", "digits(only=(1, 3))"):
        with pytest.raises(ValueError, match="learned from other images than the models would be trained on"):
            poisoning.main(_args(tmp_path / "ensemble", tmp_path / "clusters", data=other))
    assert not (tmp_path / "ensemble").exists()


def test_floats_have_the_clusters_of_bytes(tmp_path):
    _learn(tmp_path, _images())
    features = load_features(tmp_path)
    assert torch.equal(features.of(_images().float() / 255), features.of(_images()))


def test_the_commands_of_the_experiment(tmp_path, capsys):
    """As published for MNIST: one label per model; every image has the same radius."""
    train_features.main(train_features.Args(tmp_path / "clusters", data=DATA, method="KMeans(2)"))
    size = len(_images())
    poisoning.main(_args(tmp_path / "ensemble", tmp_path / "clusters"))
    assert f"{size} models, 1 sample each ({size} in all)" in capsys.readouterr().out
    rows = read_rows(tmp_path / "ensemble" / "test" / "plurality-labels")
    right = rows["correct"] == 1
    assert right.mean() > 0.8
    # by counting labels in clusters
    train, test = load(DATA, "train"), load(DATA, "test")
    features = load_features(tmp_path / "clusters")
    agree = (features.of(train.images).argmax(1) == train.labels).sum().item()
    votes = (agree, size - agree) if agree > size / 2 else (size - agree, agree)
    assert set(rows["radius"][right].tolist()) <= {(votes[0] - votes[1] - tie) // 2 for tie in (0, 1)}
    expected = features.of(test.images).argmax(1) == test.labels
    assert (expected if agree > size / 2 else ~expected).sum().item() == right.sum()


def test_an_ensemble_of_one_label_per_model_certifies_flipped_labels_only():
    assert Ensemble(SortedIndex(4), ClusterLabels(), 2, learned=True).threats == SortedIndex(4).threats
