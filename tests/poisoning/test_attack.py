"""Attacks on training sets: of the size they claim, concentrated or spread, and never stronger than certified."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from certify.attacks.poisoning import amounts_up_to, best_plan, near_copies, nearest_in_parts
from certify.data import load
from certify.poisoning import ContentHash, Ensemble, NearestNeighbors, PixelSum
from certify.threats import TrainingLabels, TrainingSamples
from scripts import poisoning_attack


def _digits():
    data = load("digits", "train")
    return data.images, data.labels


def test_attacks_have_the_size_of_their_plan():
    training = _digits()
    x, label = training[0][3], int(training[1][3])
    ensemble = Ensemble(ContentHash(20), NearestNeighbors(), 10)
    plan = [0, 5, 1] + [0] * 16 + [3]
    poisoned = poisoning_attack.insertions(training, x, 7, ensemble, 5)(plan)
    assert TrainingSamples().distance(training, poisoned) == 9
    reached = torch.bincount(ensemble.partitioner.assign(poisoned[0][-9:]), minlength=20)
    assert reached.tolist() == plan
    assert poisoned[1][-9:].tolist() == [7] * 9
    changed = poisoning_attack.flips(training, x, (label + 1) % 10, ensemble, label)(plan)
    assert TrainingLabels().distance(training, changed) == 9
    where = (changed[1] != training[1]).nonzero()[:, 0]
    assert torch.bincount(ensemble.partitioner.assign(training[0][where]), minlength=20).tolist() == plan


@pytest.mark.parametrize("partitioner", [PixelSum(50), PixelSum(300), ContentHash(50)])
def test_near_copies_belong_to_every_part(partitioner):
    x = load("digits", "test").images[0]
    copies = near_copies(x, partitioner, 3)
    for part, own in enumerate(copies):
        assert own.shape == (3, *x.shape)
        assert partitioner.assign(own).tolist() == [part] * 3
    distances = [int((own != x).flatten(1).sum(1).max()) for own in copies]
    assert max(distances) <= 16


def test_the_nearest_samples_come_first():
    samples = torch.tensor([9, 1, 4, 6, 2], dtype=torch.uint8).view(5, 1, 1, 1)
    among, buckets = torch.tensor([True, True, False, True, True]), torch.tensor([0, 0, 0, 1, 1])
    order = nearest_in_parts(samples, among, torch.tensor([[[5]]], dtype=torch.uint8), buckets, 3)
    assert [part.tolist() for part in order] == [[0, 1], [3, 4], []]


def test_plans_are_the_best_there_are():
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        votes = torch.randint(0, 3, (4,), generator=generator)
        poisoned = {amount: torch.randint(0, 3, (4,), generator=generator) for amount in (1, 2, 3)}
        states = {0: votes} | poisoned

        def lead(plan, states=states):
            own = [int(states[amount][part]) for part, amount in enumerate(plan)]
            return own.count(0) - own.count(1)

        for budget in range(7):
            plans = [plan for plan in itertools.product(range(4), repeat=4) if sum(plan) <= budget]
            plan = best_plan(votes, poisoned, 0, 1, budget)
            assert sum(plan) <= budget
            assert lead(plan) == min(map(lead, plans))


def test_attacks_concentrate_where_one_sample_is_not_enough():
    votes = torch.zeros(5, dtype=torch.int64)
    stubborn = {1: votes, 2: votes, 3: torch.ones(5, dtype=torch.int64)}
    assert sorted(best_plan(votes, stubborn, 0, 1, 7)) == [0, 0, 0, 3, 3]
    weak = {1: torch.ones(5, dtype=torch.int64), 3: torch.ones(5, dtype=torch.int64)}
    assert best_plan(votes, weak, 0, 1, 7) == [1] * 5
    assert amounts_up_to(20) == [1, 2, 3, 5, 8, 13, 20]
    assert amounts_up_to(1) == [1]


def test_concentration_breaks_what_one_sample_each_cannot(tmp_path):
    """Three neighbours vote in each part: a near copy alone is outvoted, two are not."""
    ensemble = Ensemble(ContentHash(4), NearestNeighbors(3), 10)
    test = load("digits", "test")
    x, label = test.images[0], int(test.labels[0])
    spread = poisoning_attack.insertions(_digits(), x, (label + 1) % 10, ensemble, 1)([1] * 4)
    assert int(poisoning_attack.predict(ensemble, spread, x[None])[0].prediction[0]) == label
    args = poisoning_attack.Args(tmp_path, sizes=[4, 6])
    at, radius = poisoning_attack.smallest_break(args, ensemble, _digits(), x, label)
    assert radius < at < float("inf")


@pytest.mark.parametrize("attack", ["insert", "flip"])
def test_accuracy_under_attack_is_never_below_the_certified_one(tmp_path, attack, capsys):
    args = poisoning_attack.Args(
        tmp_path, partition="ContentHash(10)", learner="NearestNeighbors()", attack=attack, sizes=[0, 4], skip=60, max=3
    )
    poisoning_attack.main(args)
    lines = json.loads((tmp_path / "attack.json").read_text())
    assert all(line["partitions"] >= line["certified"] for line in lines)
    assert (tmp_path / "attack.png").exists()
    assert "one model" in capsys.readouterr().out
