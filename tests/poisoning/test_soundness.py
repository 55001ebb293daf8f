"""Every poisoning of a toy training set up to the certified radius, each with all models trained again."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch

from certify.poisoning import ClusterLabels, ContentHash, Ensemble, NearestNeighbors, PixelSum, SortedIndex
from certify.threats import TrainingLabels, TrainingSamples, TrainingSet

LARGEST = 2  # radius up to which all poisonings are tried
CLASSES = 3
QUERIES = torch.arange(0, 12, dtype=torch.uint8)[:, None]


def _training_set() -> TrainingSet:
    """Whole numbers 0..11, twice as many low ones of class 0; one sample is there twice, with different labels."""
    samples = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 3], dtype=torch.uint8)[:, None]
    return samples, torch.tensor([0, 0, 0, 0, 1, 0, 1, 1, 1, 1, 2, 1])


def _samples_within(data: TrainingSet, distance: int) -> Iterator[TrainingSet]:
    """Every training set of samples 0..11 at this distance in insertions and deletions."""
    samples, labels = data
    new = list(itertools.product(range(12), range(CLASSES)))
    for inserted in range(distance + 1):
        for gone in itertools.combinations(range(len(labels)), distance - inserted):
            stay = torch.tensor([i for i in range(len(labels)) if i not in gone])
            for extra in itertools.combinations_with_replacement(new, inserted):
                values = torch.tensor([value for value, _ in extra], dtype=torch.uint8).view(-1, 1)
                own = torch.tensor([label for _, label in extra], dtype=torch.int64)
                yield torch.cat((samples[stay], values)), torch.cat((labels[stay], own))


def _labels_within(data: TrainingSet, distance: int) -> Iterator[TrainingSet]:
    """Every training set in which the labels of this many different samples are others."""
    samples, labels = data
    values = sorted({int(sample) for sample in samples})
    for chosen in itertools.combinations(values, distance):
        where = [i for i, sample in enumerate(samples.flatten().tolist()) if sample in chosen]
        for flipped in itertools.product(range(CLASSES), repeat=len(where)):
            poisoned = labels.clone()
            poisoned[where] = torch.tensor(flipped)
            if TrainingLabels().distance(data, (samples, poisoned)) == distance:
                yield samples, poisoned


def _rankings(ensemble: Ensemble, data: TrainingSet) -> torch.Tensor:
    if not ensemble.learned:
        return ensemble.rankings(ensemble.fit(ensemble.parts(data)), QUERIES)
    # features that depend on all samples, learned again for each training set: their quantiles
    samples = data[0].flatten().sort().values

    def features(x: torch.Tensor) -> torch.Tensor:
        quantiles = torch.searchsorted(samples, x)
        if isinstance(ensemble.learner, ClusterLabels):  # two clusters: the lower and the upper half
            return torch.nn.functional.one_hot((2 * quantiles[:, 0] >= len(samples)).long(), 2)
        return quantiles

    parts = ensemble.parts(data, features=features(data[0]))
    return ensemble.rankings(ensemble.fit(parts), features(QUERIES))


CASES = [
    ("plurality", TrainingSamples(), PixelSum(6), 1),
    ("run-off", TrainingSamples(), PixelSum(6), 1),
    ("plurality", TrainingSamples(), ContentHash(6, key="a"), 2),
    ("plurality", TrainingLabels(), SortedIndex(6), 1),
    ("run-off", TrainingLabels(), SortedIndex(6), 1),
    ("plurality", TrainingLabels(), SortedIndex(7), 2),
    ("plurality", TrainingLabels(), PixelSum(6), 1),
    ("learned", TrainingLabels(), SortedIndex(6), 1),
    ("learned", TrainingLabels(), PixelSum(6), 1),
    ("clusters", TrainingLabels(), SortedIndex(5), 1),
    ("clusters", TrainingLabels(), PixelSum(6), 1),
    ("clusters", TrainingLabels(), PixelSum(15), 1),  # some parts are empty
]


@pytest.mark.parametrize(("method", "threat", "partitioner", "spread"), CASES)
def test_no_poisoning_within_the_radius_changes_a_prediction(method, threat, partitioner, spread):
    """All poisonings of size 1, and every fifth of the many of size 2."""
    _attack(method, threat, partitioner, spread, every=5)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "threat", "partitioner", "spread"), CASES)
def test_no_poisoning_at_all_within_the_radius_changes_a_prediction(method, threat, partitioner, spread):
    _attack(method, threat, partitioner, spread, every=1)


def _attack(method, threat, partitioner, spread, *, every: int) -> None:
    learned = method in ("learned", "clusters")
    learner = ClusterLabels() if method == "clusters" else NearestNeighbors()
    ensemble = Ensemble(partitioner, learner, CLASSES, spread=spread, learned=learned)
    method = "plurality" if learned else method
    data = _training_set()
    clean = ensemble.certify(_rankings(ensemble, data), method=method, threat=threat)
    attacked, broken = 0, 0
    for distance in range(1, LARGEST + 1):
        within = _samples_within if isinstance(threat, TrainingSamples) else _labels_within
        for poisoned in itertools.islice(within(data, distance), 0, None, 1 if distance == 1 else every):
            assert threat.distance(data, poisoned) <= distance
            prediction = ensemble.certify(_rankings(ensemble, poisoned), method=method, threat=threat).prediction
            other = prediction != clean.prediction
            assert not (other & (clean.radius >= distance)).any()
            attacked += int((clean.radius >= distance).sum())
            broken += int((other & (clean.radius == distance - 1)).sum())
    assert attacked > 0, "no certificate was worth attacking"
    if spread == 1:
        assert broken > 0, "no prediction can be changed just outside its radius"
