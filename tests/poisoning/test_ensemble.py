"""Model i is a function of part i and of nothing else, bit by bit."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from random import SystemRandom
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from certify.data import load
from certify.models import MODELS, own_models
from certify.poisoning import (
    ContentHash,
    Ensemble,
    Learner,
    NearestNeighbors,
    Network,
    Part,
    PixelSum,
    SortedIndex,
    State,
    rank_classes,
)
from certify.poisoning.network import normalization, sample_order
from certify.threats import TrainingLabels
from scripts import poisoning

MODES = [1, 3]  # sequential; stacked, in groups of 3 and one that is not full


def _digits(count: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    data = load("digits", "train")
    return data.images[:count], data.labels[:count]


def _arrays(count: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = _digits(count)
    return images.flatten(1)[:, 10:30].float() / 16, labels


def _floats(count: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = _digits(count)
    return images.float() / 255, labels


def _same(a: State, b: State) -> bool:
    """Equal bits; unlike torch.equal this tells zeros by their sign, and NaN is equal to itself."""
    return a.keys() == b.keys() and all(a[k].cpu().numpy().tobytes() == b[k].cpu().numpy().tobytes() for k in a)


def _poisonings(samples, labels):
    """Training sets at distance 1 or 2: a sample less, more, changed, with another label, and an extreme one."""
    extreme = torch.full_like(samples[:1], 255 if samples.dtype == torch.uint8 else 3e38)
    changed, flipped = samples.clone(), labels.clone()
    changed[5] = samples[5].flip(-1)
    flipped[7] = (flipped[7] + 1) % 10
    yield samples[1:], labels[1:]
    yield torch.cat((samples, samples[3:4])), torch.cat((labels, labels[3:4]))
    yield torch.cat((samples, extreme)), torch.cat((labels, torch.tensor([9])))
    yield changed, labels
    yield samples, flipped


LEARNERS = pytest.mark.parametrize(
    ("learner", "data"),
    [
        (Network("linear", steps=4, batch_size=8), _arrays),
        (Network("small_cnn", steps=3, batch_size=4, crop=1, flip=True), _digits),
        (Network("small_cnn", steps=3, batch_size=4), _floats),  # where an extreme sample makes a model NaN
        (NearestNeighbors(3), _digits),
    ],
    ids=["linear", "small_cnn", "small_cnn of floats", "neighbors"],
)


@pytest.mark.parametrize("at_once", MODES)
@LEARNERS
def test_poisoning_one_part_leaves_all_other_models_identical(learner, data, at_once):
    _attack(Ensemble(ContentHash(5), learner, 10), data(), at_once)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("at_once", MODES)
@LEARNERS
def test_poisoning_one_part_leaves_all_other_models_identical_on_a_gpu(learner, data, at_once, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    _attack(Ensemble(ContentHash(5), learner, 10), data(), at_once, "cuda")


@pytest.mark.slow
@pytest.mark.parametrize("at_once", MODES)
def test_poisoning_one_part_leaves_all_other_models_identical_with_batch_normalization(at_once):
    learner = Network("network_in_network", steps=2, batch_size=4)
    _attack(Ensemble(PixelSum(5), learner, 10), _digits(), at_once)


def _attack(ensemble: Ensemble, data, at_once: int, device: str = "cpu") -> None:
    clean = ensemble.fit(ensemble.parts(data), at_once=at_once, device=device)
    before = ensemble.partitioner.assign(data[0])
    for poisoned in _poisonings(*data):
        states = ensemble.fit(ensemble.parts(poisoned), at_once=at_once, device=device)
        after = ensemble.partitioner.assign(poisoned[0])
        pairs = [
            list(zip(map(bytes, x.numpy()), y.tolist(), b.tolist(), strict=True))
            for (x, y), b in ((data, before), (poisoned, after))
        ]
        touched = {bucket for *_, bucket in _difference(*pairs)}
        assert 1 <= len(touched) <= 2
        changed = {i for i, (a, b) in enumerate(zip(clean, states, strict=True)) if not _same(a, b)}
        assert changed == touched


def _difference(a: list, b: list) -> list:
    from collections import Counter

    return list((Counter(a) - Counter(b)) + (Counter(b) - Counter(a)))


@pytest.mark.parametrize("at_once", MODES)
def test_the_order_of_the_training_set_does_not_matter(at_once):
    samples, labels = _arrays()
    ensemble = Ensemble(ContentHash(4), Network("linear", steps=3, batch_size=8), 10)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    first = ensemble.fit(ensemble.parts((samples, labels)), at_once=at_once)
    again = ensemble.fit(ensemble.parts((samples[order], labels[order])), at_once=at_once)
    assert all(_same(a, b) for a, b in zip(first, again, strict=True))


def test_a_model_that_diverges_takes_no_other_with_it():
    samples, labels = _arrays()
    samples = torch.cat((samples, torch.full_like(samples[:1], 3e38)))
    labels = torch.cat((labels, torch.tensor([0])))
    ensemble = Ensemble(ContentHash(4), Network("linear", steps=30, batch_size=8, lr=1e30), 10)
    states = ensemble.fit(ensemble.parts((samples, labels)), at_once=4)
    calm = Ensemble(ContentHash(4), Network("linear", steps=30, batch_size=8), 10)
    assert all(not s["parameter.1.weight"].isfinite().all() for s in states)
    assert ensemble.rankings(states, samples[:5]).shape == (4, 5, 10)
    finite = [s["parameter.1.weight"].isfinite().all() for s in calm.fit(calm.parts((samples, labels)), at_once=4)]
    assert sum(finite) >= 3


@pytest.mark.parametrize("learner", [Network("small_cnn", steps=3, batch_size=4), NearestNeighbors()])
def test_parts_that_are_empty_or_lack_classes_train_all_the_same(learner: Learner):
    samples, labels = _digits(3)
    ensemble = Ensemble(ContentHash(6), learner, 10)
    parts = ensemble.parts((samples, labels))
    assert sorted(len(part.labels) for part in parts)[:3] == [0, 0, 0]
    states = ensemble.fit(parts, at_once=6)
    rankings = ensemble.rankings(states, samples)
    assert torch.equal(rankings.sort(-1).values, torch.arange(10).expand(6, 3, 10).to(torch.uint8))
    assert all(_same(a, b) for a, b in zip(states, ensemble.fit(parts, at_once=6), strict=True))
    nobody = ensemble.parts((samples[:0], labels[:0]))
    assert ensemble.certify(ensemble.rankings(ensemble.fit(nobody), samples)).prediction.shape == (3,)


def test_both_modes_train_the_same_models():
    samples, labels = _digits(200)
    ensemble = Ensemble(ContentHash(5), Network("small_cnn", steps=20, batch_size=16, crop=1), 10)
    parts = ensemble.parts((samples, labels))
    one, many = ensemble.fit(parts), ensemble.fit(parts, at_once=5)
    for a, b in zip(one, many, strict=True):
        assert all(torch.allclose(a[k], b[k], atol=1e-4) for k in a)
    assert torch.equal(ensemble.rankings(one, samples)[..., 0], ensemble.rankings(many, samples)[..., 0])


def test_models_learn():
    data, test = load("digits", "train"), load("digits", "test")
    ensemble = Ensemble(ContentHash(5), Network("linear", steps=40, batch_size=32), 10)
    states = ensemble.fit(ensemble.parts((data.images, data.labels)), at_once=5)
    result = ensemble.certify(ensemble.rankings(states, test.images))
    assert result.correct(test.labels).float().mean() > 0.9


def test_finite_aggregation_trains_each_model_on_several_buckets():
    samples, labels = _digits()
    ensemble = Ensemble(ContentHash(6), NearestNeighbors(), 10, spread=2)
    buckets, feeds = ensemble.partitioner.assign(samples), ensemble.feeds
    for model, part in enumerate(ensemble.parts((samples, labels))):
        own = (feeds == model).any(1).nonzero()[:, 0]
        assert len(part.labels) == int(torch.isin(buckets, own).sum())


def test_seeds_are_distinct_or_shared():
    parts = {
        s: Ensemble(ContentHash(3), NearestNeighbors(), 10, seeds=s).parts(_digits()) for s in ("distinct", "shared")
    }
    assert [part.seed for part in parts["distinct"]] == [0, 1, 2]
    assert [part.seed for part in parts["shared"]] == [0, 0, 0]


def test_learners_see_the_inputs_while_samples_decide_the_part():
    samples, labels = _digits()
    inputs = samples[..., ::2, ::2].contiguous()
    ensemble = Ensemble(PixelSum(4), NearestNeighbors(), 10)
    for part, plain in zip(
        ensemble.parts((samples, labels), inputs=inputs), ensemble.parts((samples, labels)), strict=True
    ):
        assert torch.equal(part.samples, plain.samples[..., ::2, ::2])


def test_normalization_is_of_the_part_alone():
    images = torch.tensor([[[[0, 255]], [[7, 7]]]], dtype=torch.uint8)
    mean, std = normalization(images)
    assert mean.flatten().tolist() == pytest.approx([0.5, 7 / 255])
    assert std.flatten().tolist() == [0.5, 1]
    assert [t.flatten().tolist() for t in normalization(images[:0])] == [[0, 0], [1, 1]]


def test_every_step_takes_the_next_samples_of_a_permutation():
    order = sample_order(5, steps=4, batch_size=3, seed=1).flatten()
    assert sorted(order[:5].tolist()) == sorted(order[5:10].tolist()) == [0, 1, 2, 3, 4]
    assert torch.equal(order, sample_order(5, steps=4, batch_size=3, seed=1).flatten())
    assert sample_order(1, steps=2, batch_size=3, seed=0).tolist() == [[0, 0, 0]] * 2


def test_nan_is_the_lowest_score_and_ties_go_to_the_lower_class():
    nan = float("nan")
    assert rank_classes(torch.tensor([[nan, 1.0, 1.0], [nan, nan, nan]])).tolist() == [[1, 2, 0], [0, 1, 2]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e.certify(torch.zeros(4, 2, 10).long()), "rankings"),
        (lambda e: e.certify(torch.zeros(5, 2, 10).long(), method="median"), "method"),
        (lambda e: e.certify(torch.zeros(5, 2, 10).long(), threat="x"), "threat"),
        (lambda e: e.parts((torch.zeros(2, 3), torch.tensor([0, 10]))), "labels: got 0..10"),
        (lambda e: e.parts((torch.zeros(2, 3), torch.tensor([0]))), "labels"),
        (lambda e: Ensemble(ContentHash(2), NearestNeighbors(), 10, spread=3), "spread"),
        (lambda e: Ensemble(ContentHash(2), NearestNeighbors(), 1), "num_classes"),
        (lambda e: Network("nothing"), "model"),
        (lambda e: Network(lr=-1), "lr"),
        (lambda e: Network(steps=0), "steps"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(Ensemble(ContentHash(5), NearestNeighbors(), 10))


@pytest.mark.parametrize("at_once", [1, 2])
def test_models_with_dropout_are_refused(at_once):
    samples, labels = torch.rand(6, 6, 4, 1), torch.arange(6) % 2
    ensemble = Ensemble(ContentHash(2), Network("pointnet_basic", steps=1, batch_size=2), 2)
    with pytest.raises(ValueError, match="which has dropout"):
        ensemble.fit(ensemble.parts((samples, labels)), at_once=at_once)


class Noisy(nn.Module):
    """Weights from NumPy, and dropout of as many values as the images have that are not 0."""

    def __init__(self, channels: int, classes: int, size: tuple[int, int], source: Any = np.random) -> None:
        super().__init__()
        self.last = nn.Linear(channels * size[0] * size[1], classes)
        weight = source.normal(size=tuple(self.last.weight.shape)) / 8
        self.last.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float32).to(self.last.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        if self.training and x.device.type != "meta":
            x = x.clone()
            x[x > 0.5] = nn.functional.dropout(x[x > 0.5], 0.3, training=True) + random.random() / 8
        return self.last(x)


def test_chance_in_a_model_follows_from_its_own_part(monkeypatch):
    """Code of others may draw from the global generators, as often as its samples make it."""
    monkeypatch.setitem(MODELS, "noisy", Noisy)
    monkeypatch.setitem(own_models, "noisy", Noisy)
    samples, labels = _digits()
    ensemble = Ensemble(ContentHash(5), Network("noisy", steps=5, batch_size=8), 10)
    states = []
    for extra in (0, 0, 1):
        more = samples[:extra] // 2, labels[:extra]
        before = torch.get_rng_state(), random.getstate()
        states.append(ensemble.fit(ensemble.parts((torch.cat((samples, more[0])), torch.cat((labels, more[1]))))))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert random.getstate() == before[1]
        torch.rand(3)
        random.random()
        np.random.rand(3)  # noqa: NPY002
    same = [
        [all(torch.equal(a[name], b[name]) for name in a) for a, b in zip(states[0], other, strict=True)]
        for other in states[1:]
    ]
    assert all(same[0])
    bucket = int(ensemble.partitioner.assign(samples[:1] // 2))
    assert same[1] == [i != bucket for i in range(5)]


@dataclass(frozen=True)
class Drawn(Learner):
    """Draws as many numbers as its part has samples, and then its model."""

    def fit(self, part: Part, *, num_classes: int, device: torch.device) -> State:
        torch.randperm(len(part.samples))
        return {"weights": torch.randn(num_classes), "numpy": torch.tensor(np.random.rand())}  # noqa: NPY002

    def scores(self, states: Sequence[State], x: Tensor, *, num_classes: int) -> Tensor:
        return torch.stack([state["weights"].expand(len(x), -1) for state in states])

    def fit_many(self, parts: Sequence[Part], *, num_classes: int, device: torch.device) -> list[State]:
        return [self.fit(part, num_classes=num_classes, device=device) for part in parts]


@dataclass(frozen=True)
class Scored(Drawn):
    """Its scores are mistaken in some way."""

    how: str = ""

    def scores(self, states: Sequence[State], x: Tensor, *, num_classes: int) -> Tensor:
        scores = super().scores(states, x, num_classes=num_classes)
        wrong = {
            "chance": lambda: scores + torch.rand(scores.shape),
            "models": lambda: scores - scores.mean(0),
            "inputs": lambda: scores + x.flatten(1).double().mean(),
            "shape": lambda: scores.transpose(0, 1),
        }
        return wrong[self.how]() if self.how else scores


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("chance", "votes must not be random"),
        ("models", "a function of one model and one input"),
        ("inputs", "a function of one model and one input"),
        ("shape", r"Scored.scores: got shape \(9, 6, 10\), .* = \[6, 9, 10\]"),
        ("", None),
    ],
)
def test_scores_of_a_learner_of_ones_own_are_of_one_model_and_one_input(how, message):
    samples, labels = _digits()
    ensemble = Ensemble(ContentHash(6), Scored(how), 10)
    states = ensemble.fit(ensemble.parts((samples, labels)))
    if message is None:
        assert ensemble.rankings(states, samples[:9]).shape == (6, 9, 10)
        assert ensemble.rankings(states, samples[:0]).shape == (6, 0, 10)
        return
    with pytest.raises(ValueError, match=message):
        ensemble.rankings(states, samples[:9])


@pytest.mark.parametrize("at_once", [1, 6])
def test_chance_in_a_learner_of_ones_own_follows_from_its_part(at_once):
    samples, labels = _digits()
    ensemble = Ensemble(ContentHash(6), Drawn(), 10)
    whole, less = (ensemble.fit(ensemble.parts((samples[i:], labels[i:])), at_once=at_once) for i in (0, 1))
    bucket = int(ensemble.partitioner.assign(samples[:1]))
    for i, (one, other) in enumerate(zip(whole, less, strict=True)):
        assert i == bucket or all(torch.equal(one[name], other[name]) for name in one)


class Signed(Noisy):
    """Has a random attribute that its parameters do not show."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.sign = random.choice((-1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.sign * self.last(x.flatten(1))


class Jittery(Noisy):
    """Draws when it votes, too."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x.flatten(1)) * (1 + random.random())


class Unseeded(Noisy):
    """Begins with other weights each time."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args, source=np.random.default_rng(SystemRandom().getrandbits(64)))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Signed, "whose scores in evaluation mode do not follow from its parameters"),
        (Jittery, "whose scores in evaluation mode do not follow from its parameters"),
        (Unseeded, "which differs from one time to the next with the same seed"),
    ],
)
def test_models_that_do_not_follow_from_their_part_are_refused(monkeypatch, kind, message):
    monkeypatch.setitem(MODELS, "own", kind)
    monkeypatch.setitem(own_models, "own", kind)
    ensemble = Ensemble(ContentHash(5), Network("own", steps=5, batch_size=8), 10)
    with pytest.raises(ValueError, match=f"got own, {message}"):
        ensemble.parts(_digits())


def test_models_that_cannot_learn_from_samples_are_refused_before_any_work(tmp_path):
    clouds = torch.rand(6, 6, 4, 1), torch.arange(6) % 2
    with pytest.raises(ValueError, match="which has dropout"):
        Ensemble(ContentHash(2), Network("pointnet_basic", batch_size=2), 2).parts(clouds)
    one_pixel = torch.rand(6, 3), torch.arange(6) % 2
    assert len(Ensemble(ContentHash(2), Network("nin_block", batch_size=2), 2).parts(one_pixel)) == 2
    with pytest.raises(ValueError, match="cannot be trained on 1 inputs of shape"):
        Ensemble(ContentHash(2), Network("nin_block", batch_size=1), 2).parts(one_pixel)
    with pytest.raises(ValueError, match="in_channels"):
        poisoning.main(poisoning.Args("train", tmp_path / "run", learner="Network('pointnet_basic')"))
    assert not (tmp_path / "run").exists()


def test_originals_decide_the_part_and_inputs_what_is_seen():
    samples, labels = _digits()
    small = samples[..., ::2, ::2].contiguous()
    for partitioner in (PixelSum(4), SortedIndex(4)):
        ensemble = Ensemble(partitioner, NearestNeighbors(), 10)
        buckets = partitioner.assign(samples)
        for i, part in enumerate(ensemble.parts((small, labels), originals=iter(samples))):
            assert sorted(part.samples.flatten(1).tolist()) == sorted(small[buckets == i].flatten(1).tolist())
    with pytest.raises(ValueError, match="originals: got 59"):
        ensemble.parts((small, labels), originals=list(samples[1:]))


def test_hashed_parts_certify_flipped_labels_too():
    ensemble = Ensemble(ContentHash(5), NearestNeighbors(), 3)
    rankings = torch.tensor([0, 1, 2]).expand(5, 1, 3)
    assert ensemble.certify(rankings, threat=TrainingLabels()).threat == TrainingLabels()
    assert ensemble.certify(rankings).radius.tolist() == [2]
