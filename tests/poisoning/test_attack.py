from __future__ import annotations

import json

import pytest
import torch

from certify.data import load
from certify.poisoning import ContentHash, Ensemble, NearestNeighbors
from certify.threats import TrainingLabels, TrainingSamples
from scripts import poisoning_attack


def test_attacks_stay_within_their_size():
    data = load("digits", "train")
    training, x = (data.images, data.labels), data.images[3]
    ensemble = Ensemble(ContentHash(20), NearestNeighbors(), 10)
    votes = torch.zeros(20, dtype=torch.int64)
    votes[:5] = 7
    poisoned = poisoning_attack.inserted(training, x, 7, 12, ensemble, votes)
    assert TrainingSamples().distance(training, poisoned) == 12
    reached = ensemble.partitioner.assign(poisoned[0][-12:])
    assert len(reached.unique()) == 12
    assert (reached >= 5).all()
    label = int(data.labels[3])
    changed = poisoning_attack.flipped(training, x, (label + 1) % 10, 9, label)
    assert TrainingLabels().distance(training, changed) == 9
    assert changed[1][3] != label


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
