"""The engine: the same votes however the work is cut, and clear errors for what a base classifier gets wrong."""

from __future__ import annotations

import itertools
import threading
import types
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from certify import (
    L0,
    BandAblation,
    BernoulliAblation,
    Certified,
    DeterministicAblation,
    DeterministicSplittingNoise,
    DiscreteNoise,
    GaussianNoise,
    MultiBlockAblation,
    RandomizedAblation,
    RandomizedBandAblation,
    Smoothed,
    SmoothReduce,
    SplittingNoise,
    ThresholdVote,
    Undefended,
    UniformNoise,
    WassersteinNoise,
    metrics,
)
from certify.draws import ESTIMATION, SELECTION, Draws
from certify.engine import VoteEngine
from certify.inference import check_independence, exact_inference, good_batch_size, position_matters
from certify.models import build
from certify.modules import referred_modules
from certify.scheme import leader_and_gap
from certify.votes import argmax_vote

SCHEMES = [
    RandomizedAblation(6),
    SplittingNoise(0.5, q=255),
    SplittingNoise(0.4),
    UniformNoise(0.5),
    BernoulliAblation(6),
    DiscreteNoise(0.3),
    DeterministicSplittingNoise(0.5),
    DeterministicAblation(20),  # fewer copies than a batch: images share forward passes
    DeterministicSplittingNoise(10 / 510),
    BandAblation(2),
    MultiBlockAblation(2, 2),  # 120 copies, kept one by one
    RandomizedBandAblation(2),
    GaussianNoise(0.25),
]


def classifier(channels: int) -> nn.Module:
    torch.manual_seed(0)
    return build("mnist_cnn", channels, 10, 8)


def images(count=5) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def smooth(scheme, **options) -> Smoothed:
    return Smoothed(classifier(scheme.channels(1)), scheme, 10, n0=70, n=300, **options)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_votes_do_not_depend_on_how_many_images_are_passed(scheme):
    x, smoothed = images(), smooth(scheme, batch_size=64)
    together = smoothed.votes(x)
    for i in (0, 3, 4):
        alone = smoothed.votes(x[i : i + 1], index=torch.tensor([i]))
        assert torch.equal(alone.counts[0], together.counts[i])
        if together.selection is not None:
            assert alone.selection is not None
            assert torch.equal(alone.selection[0], together.selection[i])


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_votes_do_not_depend_on_the_order_of_images(scheme):
    x, order, smoothed = images(), torch.tensor([3, 0, 4, 2, 1]), smooth(scheme, batch_size=64)
    assert torch.equal(smoothed.votes(x[order], index=order).counts, smoothed.votes(x).counts[order])


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_every_batch_size_classifies_every_copy_once(scheme, batch_size):
    """An integer-valued classifier has no rounding: its votes must be equal for all batch sizes."""
    weights = torch.randint(-8, 9, (10, 64 * scheme.channels(1)), generator=torch.Generator().manual_seed(2)).double()
    base = lambda copies: (copies.flatten(1) * 255 * 2).round().double() @ weights.T  # noqa: E731
    x = images(3)
    votes = Smoothed(base, scheme, 10, n0=70, n=300, batch_size=batch_size).votes(x)
    assert (votes.counts.sum(1) == votes.n).all()
    assert torch.equal(votes.counts, Smoothed(base, scheme, 10, n0=70, n=300, batch_size=128).votes(x).counts)


def test_selection_and_estimation_samples_are_disjoint():
    seen: list[torch.Tensor] = []

    def base(copies: torch.Tensor) -> torch.Tensor:
        seen.append(copies[:, 0].flatten(1) > 0)
        return torch.zeros(len(copies), 2)

    x = torch.full((1, 1, 8, 8), 255, dtype=torch.uint8)
    Smoothed(base, RandomizedAblation(20), 2, n0=32, n=32, batch_size=32).votes(x)
    selection, estimation, again, beside = seen[-4:]  # the estimation samples are scored again, also beside others
    assert torch.equal(again, estimation)
    assert torch.equal(beside[::2], estimation[::2])
    assert not (selection[:, None] == estimation[None]).all(-1).any()


def test_copies_are_streamed():
    largest = 0

    def base(copies: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, len(copies))
        return torch.zeros(len(copies), 2)

    made = []
    scheme = RandomizedAblation(2)

    class Recording(RandomizedAblation):
        def sample(self, x: torch.Tensor, draws: Draws) -> torch.Tensor:
            copies = super().sample(x, draws)
            made.append(copies.numel())
            return copies

    Smoothed(base, Recording(2), 2, n=20_000, batch_size=64).votes(images(1))
    assert largest <= 64
    assert max(made) * 4 <= 1 << 21
    assert scheme == RandomizedAblation(2)


def test_argmax_ties_go_to_the_lower_class():
    assert argmax_vote(torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("counts", "leader", "gap"),
    [([5, 5, 0], 0, 0), ([0, 5, 4], 1, 1), ([4, 5, 0], 1, 0), ([0, 0, 9], 2, 8), ([9, 0, 0], 0, 9), ([0, 0, 0], 0, 0)],
)
def test_leader_and_gap(counts, leader, gap):
    got = leader_and_gap(torch.tensor([counts]))
    assert (got[0].item(), got[1].item()) == (leader, gap)


def test_threshold_votes_may_go_to_none_or_several():
    logits = torch.tensor([[0.5, 0.5, 0.0], [0.34, 0.33, 0.33], [1.0, 0.0, 0.0]]).log()
    assert ThresholdVote(0.4)(logits).tolist() == [[True, True, False], [False] * 3, [True, False, False]]
    assert ThresholdVote(0.5)(torch.zeros(1, 2)).tolist() == [[False, False]]  # not above 1/2
    base = lambda copies: logits[:1].expand(len(copies), 3)  # noqa: E731
    smoothed = Smoothed(base, DeterministicSplittingNoise(0.5), 3, vote=ThresholdVote(0.4))
    votes = smoothed.votes(images(2))
    assert votes.counts.tolist() == [[255, 255, 0]] * 2
    assert smoothed.certify(images(1)).radius.item() == 0


def test_sampled_schemes_refuse_several_votes_per_copy():
    """Two classes could both have p > 1/2: a one-sided bound would certify a class that is not even ahead."""
    base = lambda copies: torch.tensor([[0.4, 0.6, 0.0]]).log().expand(len(copies), 3)  # noqa: E731
    with pytest.raises(ValueError, match="may vote for several classes"):
        Smoothed(base, RandomizedAblation(2), 3, vote=ThresholdVote(0.3))
    custom = Smoothed(base, RandomizedAblation(2), 3, n=20, n0=20, vote=lambda logits: logits > -2)
    with pytest.raises(ValueError, match="a copy got several votes"):
        custom.certify(images(1))
    counts = torch.tensor([[200, 150, 0]])
    with pytest.raises(ValueError, match="got 350 votes of n = 200"):
        RandomizedAblation(2).certify_counts(counts.clone(), counts, 0.05, n=200, shape=(1, 8, 8))


@pytest.mark.parametrize("scheme", [RandomizedAblation(4), SplittingNoise(0.5), GaussianNoise(0.5)])
def test_the_number_of_samples_may_be_left_out_if_each_sample_votes(scheme):
    selection, counts = torch.tensor([[9, 1], [2, 8]]), torch.tensor([[95, 5], [10, 90]])
    told = scheme.certify_counts(selection, counts, 0.05, n=100, shape=(1, 8, 8))
    left_out = scheme.certify_counts(selection, counts, 0.05, shape=(1, 8, 8))
    assert (told.radius > 0).all()
    assert left_out.radius.equal(told.radius)
    with pytest.raises(ValueError, match=r"n: got None and between 90 and 100 votes per image, .*pass n="):
        scheme.certify_counts(selection, torch.tensor([[95, 5], [10, 80]]), 0.05, shape=(1, 8, 8))
    nobody = scheme.certify_counts(selection, torch.zeros_like(counts), 0.05, shape=(1, 8, 8))
    assert nobody.prediction.tolist() == [-1, -1]


def test_copies_without_a_vote_count_as_samples():
    def base(copies: torch.Tensor) -> torch.Tensor:
        scores = torch.tensor([[0.0, 1.0], [5.0, 0.0]])  # soft-max 0.73 and 0.99
        return scores[(copies[:, 0, 0, 0] > 0).long()]

    x = torch.full((1, 1, 2, 2), 200, dtype=torch.uint8)
    smoothed = Smoothed(base, RandomizedAblation(3), 2, n0=100, n=1000, vote=ThresholdVote(0.9))
    votes = smoothed.votes(x)
    assert 680 < votes.counts[0, 0] < 820
    assert votes.counts[0, 1] == 0
    p_lower = smoothed.certify(x).p_lower
    assert p_lower is not None
    assert p_lower.item() < 0.8


def test_modes_and_flags_are_restored():
    model = classifier(1)
    model.train()
    model[0].eval()
    Smoothed(model, DeterministicSplittingNoise(0.1), 10).votes(images(1))
    assert model.training
    assert model[2].training
    assert not model[0].training


def test_batch_statistics_are_not_touched():
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10))
    model.train()
    before = model[0].running_mean.clone()
    Smoothed(model, DeterministicSplittingNoise(0.1), 10).votes(images(2))
    assert torch.equal(model[0].running_mean, before)


def hidden(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function in which the engine does not find the model."""
    found = weakref.ref(model)
    return lambda copies: found()(copies)


class Hiding(nn.Module):
    """A module that keeps another one where torch does not see it."""

    def __init__(self, place: object) -> None:
        super().__init__()
        self.place = place

    def forward(self, copies: torch.Tensor) -> torch.Tensor:
        own: Any = self.place[0] if isinstance(self.place, list) else self.place
        return own(copies)


def test_a_wrapped_model_runs_in_evaluation_mode():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(128, 10))
    model(torch.rand(64, 2, 8, 8))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    votes = [
        Smoothed(each, RandomizedAblation(30), 10, n=200).votes(images(1)).counts
        for each in (
            model,
            lambda copies: model(copies),
            lambda copies, own=model: own(copies),
            Holder(model),
            Hiding([model]),
            Hiding(lambda copies: model(copies)),
        )
    ]
    assert all(torch.equal(each, votes[0]) for each in votes)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training


class Exported(nn.Module):
    """As programs of torch.export are."""

    def train(self, mode: bool = True):
        raise NotImplementedError("Calling train() is not supported yet.")


class Obstinate(nn.Sequential):
    def eval(self):
        return self


def test_modules_that_refuse_evaluation_mode_are_no_obstacle_to_others():
    norm, last = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
    program = Exported()
    net = nn.Sequential(norm, program, last)
    for wrapped in (
        lambda copies: norm(copies) + last(copies) if program else copies,
        lambda copies: net(copies),
        Obstinate(norm, last),
    ):
        with exact_inference(wrapped):
            assert not norm.training
            assert not last.training
        assert norm.training
        assert last.training


NET = nn.Sequential(nn.Flatten(), nn.Linear(2, 2)).train()
OTHER = nn.Linear(2, 2)


class Slotted:
    __slots__ = ("net", "notes")

    def __init__(self) -> None:
        self.net, self.notes = NET, [str(number) for number in range(5_000)]

    def __call__(self, copies: torch.Tensor) -> torch.Tensor:
        return self.net(copies)


class OneSlot:
    __slots__ = "net"

    def __init__(self) -> None:
        self.net = NET

    def __call__(self, copies: torch.Tensor) -> torch.Tensor:
        return self.net(copies)


class ByGlobal(nn.Module):
    def forward(self, copies: torch.Tensor) -> torch.Tensor:
        return NET(copies)


class CallsGlobal:
    def __call__(self, copies: torch.Tensor) -> torch.Tensor:
        return NET(copies)


def in_a_comprehension(copies: torch.Tensor) -> torch.Tensor:
    return torch.cat([NET(part) for part in copies.split(8)])


def in_a_generator(copies: torch.Tensor) -> torch.Tensor:
    return torch.cat(list((lambda part: NET(part))(part) for part in copies.split(8)))  # noqa: C400


@pytest.mark.parametrize(
    "function",
    [
        in_a_comprehension,
        in_a_generator,
        eval("lambda copies: net(copies)", {"net": NET}),  # whose module has no name
        Slotted(),
        Slotted().__call__,
        OneSlot(),
        CallsGlobal(),
        ByGlobal(),
    ],
)
def test_modules_are_found_wherever_a_function_uses_them(function):
    assert NET in list(referred_modules(function))
    with exact_inference(function):
        assert not NET.training
    assert NET.training


def test_a_name_of_an_attribute_is_no_global():
    box = types.SimpleNamespace(OTHER=NET)
    assert list(referred_modules(lambda copies: box.OTHER(copies))) == [NET]
    assert list(referred_modules(lambda copies: OTHER(copies))) == [OTHER]


def test_parts_of_a_module_and_compiled_ones_are_found_once():
    whole = nn.Sequential(NET, OTHER)
    assert list(referred_modules([whole, NET, OTHER])) == [whole]
    assert list(referred_modules(torch.compile(NET))) == [NET]


def test_a_model_in_training_mode_that_is_not_found_is_refused():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(128, 10))
    model.train()
    with pytest.raises(ValueError, match="depend on the other copies in its batch"):
        Smoothed(hidden(model), RandomizedAblation(30), 10).votes(images(1))
    dropout = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(128, 10))
    with pytest.raises(ValueError, match=r"call .eval\(\)"):
        Smoothed(hidden(dropout), RandomizedAblation(30), 10).votes(images(1))


class Masked(nn.Module):
    """Scores that depend on the batch (or not), beside a class that is masked out, with an offset that all share."""

    def __init__(self, offset: float, *, batch: bool) -> None:
        super().__init__()
        norm = nn.BatchNorm2d(2, track_running_stats=not batch, affine=False)
        self.scores, self.offset = nn.Sequential(norm, nn.Flatten(), nn.Linear(128, 9)), offset

    def forward(self, copies: torch.Tensor) -> torch.Tensor:
        masked = copies.new_full((len(copies), 1), -torch.inf if self.offset else -1e4)
        return torch.cat((self.scores(copies), masked), 1) + self.offset


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("batch_size", [None, 32])
def test_batch_statistics_are_found(offset, batch_size):
    """Whatever the batch size, and however large other scores are."""
    torch.manual_seed(0)
    scheme = RandomizedAblation(30)
    with pytest.raises(ValueError, match="depend on the other copies in its batch"):
        Smoothed(Masked(offset, batch=True), scheme, 10, n0=10, n=20, batch_size=batch_size).votes(images(1))
    Smoothed(Masked(offset, batch=False), scheme, 10, n0=10, n=20, batch_size=batch_size).votes(images(1))


def rounded(copies: torch.Tensor) -> torch.Tensor:
    """Activations as integers of 8 bits, by the range of the batch, as dynamic quantization has them."""
    step = copies.abs().max() / 127
    return (copies / step).round() * step


def centered(copies: torch.Tensor) -> torch.Tensor:
    return copies - 1e-5 * copies.mean(0)


def centered_where_many(copies: torch.Tensor) -> torch.Tensor:
    return centered(copies) if len(copies) > 8 else copies


@pytest.mark.parametrize("inside", [rounded, centered, centered_where_many])
@pytest.mark.parametrize("scheme", [DeterministicAblation(16), RandomizedAblation(16)])
def test_batches_that_matter_a_little_are_found(inside, scheme):
    """Too little for a tolerance: a changed pixel moves votes of copies that it does not touch."""
    model = classifier(2)
    with pytest.raises(ValueError, match="depend on the other copies in its batch"):
        Smoothed(lambda copies: model(inside(copies)), scheme, 10, n0=16, n=64).votes(images(1))
    alone = Smoothed(lambda copies: model(inside(copies)), scheme, 10, n0=16, n=64, batch_size=1)
    assert int(alone.votes(images(1)).counts.sum()) > 0


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c + 1e-5 * (c.amax() <= 1).float() * c.flip(1),  # of pixels or of values of 0 to 255
        lambda c: c + 1e-5 * (c.amin() >= 0).float() * c.flip(1),
        lambda c: c + 1e-5 * (c.amax(dim=(1, 2, 3)) == 0).any().float() * c.flip(1),  # a missing image
        lambda c: c + 1e-5 * c.roll(1, 0),
        lambda c: c + 1e-5 * (c.amax() > 0.5).float() * c.flip(1),  # a dark batch
    ],
    ids=["bright", "negative", "black", "neighbour", "dark"],
)
def test_each_kind_of_neighbour_is_tried(change):
    model = classifier(2)
    check = partial(check_independence, lambda copies: model(change(copies)))
    copies = RandomizedAblation(30).sample(images(1), Draws.of(0, SELECTION, torch.zeros(1).long(), range(4)))[0]
    with torch.inference_mode(), pytest.raises(ValueError, match="depend on the other copies in its batch"):
        check(copies, 16)
    with torch.inference_mode():
        check_independence(model, copies, 16)
        check(copies, 1)


def test_every_pair_of_rows_is_tried():
    """One row that looks at one other."""
    copies = torch.rand((4, 1, 2, 2), generator=torch.Generator().manual_seed(0))
    for rows in (2, 3, 7, 16):
        for reader, read in itertools.permutations(range(rows), 2):

            def base_classifier(batch, reader=reader, read=read, rows=rows):
                scores = batch.flatten(1)[:, :2].clone()
                if len(batch) == rows:
                    scores[reader] += (batch[read].sum() > 3).float()
                return scores

            with pytest.raises(ValueError, match="depend on the other copies in its batch"):
                check_independence(base_classifier, copies, rows)


def test_a_classifier_that_looks_at_the_first_row_is_refused():
    """Its copy number 0 would decide all votes: one pixel in reach of it would break any radius."""

    def first(batch: torch.Tensor) -> torch.Tensor:
        bright = (batch[:1].flatten(1).sum(1) > 0.75).float().expand(len(batch))
        return torch.stack((1 - bright, bright), 1)

    blank = torch.zeros((1, 1, 8, 8), dtype=torch.uint8)
    for scheme in (BandAblation(width=1, null="mean", mean=(0.0,)), DeterministicAblation(8, null="mean", mean=(0.0,))):
        with pytest.raises(ValueError, match="depend on the other copies in its batch"):
            Smoothed(first, scheme, 2, batch_size=64).certify(blank)


@pytest.mark.parametrize(
    "vote",
    [
        lambda scores: torch.full((len(scores),), int((scores.sum().abs() * 1e4) % 3)),  # one class for all
        lambda scores: torch.randint(3, (len(scores),)),
        lambda scores: (scores - scores.mean(0)).argmax(1),
        lambda scores: scores.argmax(1).where(scores.amax(1) > scores.amax(1).median(), -1),
        lambda scores: torch.nn.functional.one_hot(scores.argmax(1).roll(1), 3).bool(),
    ],
    ids=["all", "random", "centred", "median", "neighbour"],
)
def test_rules_that_look_at_other_copies_are_refused(vote):
    """A rule that inherits from ThresholdVote, too."""

    class Inherited(ThresholdVote):
        def __call__(self, logits):
            return vote(logits)

    with pytest.raises(ValueError, match="the vote of a copy changes with the scores of the others or with chance"):
        Smoothed(classifier(2), DeterministicAblation(6), 3, vote=Inherited(0.5))
    with pytest.raises(ValueError, match="the vote of a copy changes with the scores of the others or with chance"):
        Smoothed(classifier(2), DeterministicAblation(6), 3, vote=vote)


class Holder:
    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, copies: torch.Tensor) -> torch.Tensor:
        return self.model(copies)

    def scores(self, copies: torch.Tensor) -> torch.Tensor:
        return self(copies)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: lambda copies: model(copies),
        lambda model: lambda copies: (lambda inner: model(inner))(copies),
        lambda model: partial(nn.Module.__call__, model),
        lambda model: Holder(model),
        lambda model: Holder(model).scores,
        lambda model: model.forward,
        lambda model: (lambda models: lambda copies: models[0](copies))([model]),
        lambda model: (lambda models: lambda copies: models["best"](copies))({"best": model}),
        lambda model: (lambda holder: lambda copies: holder.scores(copies))(Holder(model)),
    ],
    ids=["function", "inner", "partial", "object", "method", "module's", "list", "dictionary", "indirect"],
)
def test_a_wrapped_model_that_goes_back_to_training_is_the_same_classifier(wrap):
    """As between the epochs of a training."""
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(128, 10)).eval()
    smoothed = Smoothed(wrap(model), RandomizedAblation(30), 10, n0=10, n=20)
    before = smoothed.votes(images(1)).counts
    model.train()
    assert torch.equal(smoothed.votes(images(1)).counts, before)
    assert model.training
    assert model[0].num_batches_tracked == 0


def test_a_classifier_of_patches_that_goes_back_to_training_is_the_same():
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, 10)).eval()
    smoothed = Smoothed(lambda patches: model(patches), SmoothReduce(0.25, 4, stride=4), 10, n0=10, n=20)
    before = smoothed.votes(images(1)).counts
    model.train()
    assert torch.equal(smoothed.votes(images(1)).counts, before)
    assert model[0].num_batches_tracked == 0


def test_threads_do_not_disturb_each_other():
    """What belongs to the process, modes of modules among it, stays as it has to be until the last of them is done."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))
    for _ in range(5):
        model(torch.rand(64, 2, 8, 8))
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    inside, done = threading.Event(), threading.Event()

    def stay() -> None:
        with exact_inference(model):
            inside.set()
            done.wait(30)

    other = threading.Thread(target=stay)
    other.start()
    assert inside.wait(30)
    with exact_inference(nn.Sequential(model)):  # a part of another module
        assert not model.training
    still = model.training, torch.backends.cudnn.deterministic
    done.set()
    other.join()
    assert still == (False, True)
    assert model.training
    assert all(part.training for part in model)
    assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic) == before


class Positions(nn.Module):
    """Keeps a table from its first pass."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.table = nn.Linear(128, 10), None

    def forward(self, copies: torch.Tensor) -> torch.Tensor:
        self.table = torch.arange(128.0) / 128 if self.table is None else self.table
        return self.linear(copies.flatten(1) + self.table)


@pytest.mark.parametrize("outer", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_a_model_can_be_trained_after_it_was_certified(outer):
    model = Positions()
    with outer():
        Smoothed(model, RandomizedAblation(6), 10, n0=10, n=20).certify(images(1))
        reduce = SmoothReduce(0.25, 4, stride=4, resize=12, sound=False)
        Smoothed(nn.Sequential(nn.Flatten(), nn.Linear(16, 10)), reduce, 10, n0=10, n=20).certify(images(1))
    model(torch.rand(2, 2, 8, 8)).sum().backward()
    copies = reduce.sample(images(1) / 255, Draws.of(0, SELECTION, torch.zeros(1, dtype=torch.int64), range(2)))
    (copies * torch.ones(1, requires_grad=True)).sum().backward()


def test_a_model_that_cannot_be_put_into_evaluation_mode_changes_nothing_else():
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    with pytest.raises(ValueError, match="Exported, which cannot be put in evaluation mode"):
        Smoothed(Exported(), RandomizedAblation(6), 10).certify(images(1))
    assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic) == before
    model = classifier(2).train()
    with exact_inference(model):
        assert not model.training
    assert model.training
    with exact_inference(model):
        model.train()  # of another thread, which goes on training
        with exact_inference(model):
            assert not model.training
    assert model.training


def test_functions_choose_among_the_devices_of_their_modules():
    """Of several devices, the function knows which; scores come back from anywhere."""
    model, other = classifier(2), nn.Linear(1, 1, device="meta")
    wrapped = lambda copies: model(copies) if copies.device != other.weight.device else None  # noqa: E731
    expected = smooth(RandomizedAblation(6)).votes(images(1)).counts
    assert torch.equal(Smoothed(wrapped, RandomizedAblation(6), 10, n0=70, n=300).votes(images(1)).counts, expected)


@pytest.mark.parametrize("kind", ["script", "freeze", "trace"])
def test_compiled_modules(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 10)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they are deprecated
        compiled = torch.jit.trace(model, torch.rand(1, 2, 8, 8)) if kind == "trace" else torch.jit.script(model)
        compiled = torch.jit.freeze(compiled) if kind == "freeze" else compiled
    smoothed = Smoothed(compiled, RandomizedAblation(30), 10, n0=10, n=50)
    assert torch.equal(
        smoothed.votes(images()).counts, Smoothed(model, RandomizedAblation(30), 10, n=50).votes(images()).counts
    )


@pytest.mark.parametrize("scheme", [DeterministicAblation(20), BandAblation(2), RandomizedAblation(6)])
def test_one_image_does_not_wait_for_a_whole_batch(scheme):
    rows: list[int] = []
    model = classifier(scheme.channels(1))
    model.register_forward_hook(lambda _module, inputs, _output: rows.append(len(inputs[0])))
    smoothed = Smoothed(model, scheme, 10, n0=8, n=8)
    for _ in range(2):
        rows.clear()
        smoothed.certify(images(1))
    assert max(rows) <= 64 < smoothed.engine.batch_size
    fixed = Smoothed(model, scheme, 10, n0=8, n=8, batch_size=256)
    for _ in range(2):
        rows.clear()
        fixed.certify(images(1))
    assert max(rows) > 128


def test_what_is_known_of_a_classifier_is_of_one_number_of_threads():
    smoothed, looks = smooth(DeterministicAblation(20)), []
    smoothed.engine.prepare(images(1))
    number = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("certify.engine.check_independence", lambda *_: looks.append(torch.get_num_threads()))
        smoothed.engine.prepare(images(1))
        try:
            torch.set_num_threads(number + 1)
            smoothed.engine.prepare(images(1))
        finally:
            torch.set_num_threads(number)
    assert looks == [number + 1]


def test_votes_are_of_one_scheme():
    """keep = 30 with the radii of keep = 3 would be certified at 12 pixels in place of 1."""
    many, few = smooth(RandomizedAblation(30)), smooth(RandomizedAblation(3))
    votes = many.votes(images(1))
    for ask in (few.certificate, few.prediction):
        with pytest.raises(ValueError, match=r"copies by RandomizedAblation\(.*keep=30\), which certify nothing for"):
            ask(votes)
    with pytest.raises(AttributeError):
        many.scheme = few.scheme  # type: ignore[misc]
    with pytest.raises(AttributeError):
        many.base_classifier = few.base_classifier  # type: ignore[misc]
    # the same copies, and another rule
    flow = WassersteinNoise(0.01)
    tight = Smoothed(classifier(1), flow, 10, n0=10, n=20)
    published = Smoothed(classifier(1), flow.certificates()["published"], 10, n0=10, n=20)
    votes = tight.votes(images(1))
    assert published.certificate(votes).radius <= tight.certificate(votes).radius


@pytest.mark.parametrize(
    "scheme", [RandomizedAblation(30, null="mean", mean=(0.0,)), RandomizedAblation(64), GaussianNoise(1e-4)]
)
def test_copies_that_are_all_equal_hide_nothing(scheme):
    norm = nn.Sequential(nn.BatchNorm2d(scheme.channels(1)), classifier(scheme.channels(1))).train()
    smoothed = Smoothed(hidden(norm), scheme, 10, n0=16, n=64)
    with pytest.raises(ValueError, match="depend on the other copies in its batch"):
        smoothed.certify(torch.zeros(1, 1, 8, 8))


def test_a_classifier_that_takes_nothing_but_copies():
    """It cannot be tried with noise, copies do."""
    model = classifier(2)

    def picky(copies: torch.Tensor) -> torch.Tensor:
        if not (copies.sum(1).logical_or(copies.sum(1) == 0) & (copies.sum(1) <= 1)).all():
            raise ValueError("neither hidden nor shown")
        return model(copies)

    Smoothed(picky, RandomizedAblation(30), 10, n0=16, n=64).certify(images(1))
    norm = nn.BatchNorm2d(2).train()
    normalized = hidden(norm)
    with pytest.raises(ValueError, match="depend on the other copies in its batch"):
        Smoothed(
            lambda copies: picky(copies) + normalized(copies).sum((1, 2, 3))[:, None] * torch.arange(10),
            RandomizedAblation(30),
            10,
        ).certify(images(1))


def test_scores_that_are_a_little_random():
    """Too little for a tolerance, and enough to turn a tie."""
    model = classifier(2)
    smoothed = Smoothed(lambda c: model(c) + 1e-7 * torch.rand(len(c), 1), DeterministicAblation(6), 10)
    with pytest.raises(ValueError, match="got different scores for the same batch, so they are random"):
        smoothed.votes(images(1))


def test_a_classifier_is_checked_once():
    sizes = []
    model = classifier(2)
    smoothed = Smoothed(
        lambda c: sizes.append(len(c)) or model(c), RandomizedAblation(6), 10, n0=16, n=16, batch_size=16
    )
    smoothed.votes(images(1))
    first = len(sizes)
    smoothed.votes(images(1))
    assert len(sizes) - first == 2 + 2  # one is scored again, also beside others
    assert first == 2 + 1 + (9 + 3) + (9 + 7) + 2  # scores, a first look, the batches of 16 to come, one again


def shortcut(copies: torch.Tensor) -> torch.Tensor:
    """Looks at copies a second time, and comes to another conclusion, unless all of them are bright."""
    bright = copies[:, 0].flatten(1).mean(1)
    scores = torch.stack((bright, 1 - bright), 1)
    return scores if (bright > 0.6).all() else scores.flip(1)


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("scheme", [DeterministicSplittingNoise(0.5), RandomizedAblation(60)], ids=str)
def test_shortcuts_that_depend_on_the_batch_are_found_where_they_show(scheme, together):
    """The first images do not show them, so the classifier is accepted."""
    dark, bright = torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.full((3, 1, 8, 8), 255, dtype=torch.uint8)
    smoothed = Smoothed(shortcut, scheme, 2, n0=16, n=16)
    calls = [torch.cat((dark, bright))] if together else [x[None] for x in (*dark, *bright)]
    with pytest.raises(ValueError, match=r"depend on the other copies in its batch.* It showed for these images only"):
        [smoothed.certify(x) for x in calls]
    smoothed = Smoothed(shortcut, scheme, 2, n0=16, n=16, batch_size=1)
    assert smoothed.certify(bright).prediction.tolist() == [0] * 3


@pytest.mark.parametrize("batch_size", [3, 5, 16])
def test_scoring_again_changes_no_votes_and_refuses_no_plain_networks(batch_size):
    """Also of a classifier that writes its scores into the same tensor each time, or overwrites its inputs; and where
    matrix products round differently in unaligned memory."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(100, 64), nn.ReLU(), nn.Linear(64, 10))
    buffers: dict[int, torch.Tensor] = {}

    def buffered(copies: torch.Tensor) -> torch.Tensor:
        return buffers.setdefault(len(copies), torch.empty(len(copies), 10)).copy_(plain(copies))

    def overwriting(copies: torch.Tensor) -> torch.Tensor:
        scores = plain(copies)
        copies.zero_()
        return scores

    x = torch.randint(0, 256, (6, 2, 5, 5), dtype=torch.uint8)
    for scheme in (DeterministicAblation(alpha=12), RandomizedAblation(10)):
        counts = [
            Smoothed(base, scheme, 10, n0=20, n=40, batch_size=batch_size).votes(x).counts
            for base in (plain, buffered, overwriting)
        ]
        assert torch.equal(counts[0], counts[1])
        assert torch.equal(counts[0], counts[2])


def test_images_in_another_memory_format_have_the_same_votes():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(576, 5))
    seen = []

    def base(copies: torch.Tensor) -> torch.Tensor:
        seen.append(copies.is_contiguous())
        return model(copies)

    x = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    for scheme in (Undefended(), SplittingNoise(0.5)):
        smoothed = Smoothed(base, scheme, 5, n0=8, n=8)
        smoothed.votes(x)
        seen.clear()
        smoothed.votes(x.to(memory_format=torch.channels_last))
        smoothed.votes(x.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0))
        assert all(seen)


def test_probabilities_are_not_scores():
    """Their soft-max is nearly uniform, and no class would pass a threshold."""
    model = nn.Sequential(classifier(2), nn.Softmax(1))
    with pytest.raises(ValueError, match="leave out the model's last layer"):
        Smoothed(model, BandAblation(2), 10, vote=ThresholdVote(0.3)).votes(images(1))
    Smoothed(model, BandAblation(2), 10).votes(images(1))  # the largest is the same
    one_hot = lambda copies: torch.eye(10)[classifier(2)(copies).argmax(1)]  # noqa: E731
    Smoothed(one_hot, BandAblation(2), 10, vote=ThresholdVote(0.1)).votes(images(1))


@pytest.mark.parametrize("model", [classifier(1), classifier(2).double()], ids=["channels", "dtype"])
def test_a_classifier_that_does_not_take_copies(model):
    with pytest.raises(
        ValueError, match=r"copies float32 \(4, 2, 8, 8\) on cpu, and failed: .* BandAblation makes copies with 2"
    ):
        Smoothed(model, BandAblation(2), 10).votes(images(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 10.0}, "num_classes: got 10.0"),
        ({"n": 1e3}, "n: got 1000.0, expected at least 1 sample, as an integer"),
        ({"batch_size": 64.0}, "batch_size: got 64.0"),
        ({"seed": None}, "seed: got None"),
        ({"vote": "argmax"}, "vote: got 'argmax'"),
        ({"scheme": RandomizedAblation}, "scheme: got the class RandomizedAblation"),
        ({"base_classifier": "model"}, "base_classifier: got a str, expected a module"),
        ({"base_classifier": {"weight": torch.zeros(2)}}, "got a dict, .*; load it into a module"),
    ],
)
def test_arguments_of_the_wrong_kind(options, message):
    usual = {"base_classifier": classifier(2), "scheme": RandomizedAblation(6), "num_classes": 10}
    with pytest.raises((TypeError, ValueError), match=message):
        Smoothed(**usual | options)


class Row(nn.Module):
    """Where a copy stands in its batch gets into its scores, as rounding does where kernels treat some rows apart."""

    def forward(self, copies: torch.Tensor) -> torch.Tensor:
        scores = copies.flatten(1)[:, :2].clone()
        scores[5:] += 1e-7
        return scores


def test_where_the_place_in_a_batch_matters_images_do_not_share_one():
    x = images(1)[:, :1].expand(3, -1, -1, -1).contiguous()
    scheme = DeterministicAblation(5)
    for model in (Row(), nn.Sequential(nn.Flatten(), nn.Linear(2 * x[0].numel(), 2))):
        engine = VoteEngine(model, scheme, 2, batch_size=15)
        by_copy = engine.enumerated_by_copy(x)
        assert (by_copy == by_copy[:1]).all()
    shared = VoteEngine(lambda copies: copies.flatten(1)[:, :2], scheme, 2, batch_size=15)
    shared.prepare(x)
    assert shared._layout(x, 5, x.device).images == 3
    apart = VoteEngine(Row(), scheme, 2, batch_size=15)
    apart.prepare(x)
    assert apart._layout(x, 5, x.device).images == 1

    def only_copies(copies: torch.Tensor) -> torch.Tensor:
        if not ((copies[:, 0] + copies[:, 1]).frac() == 0).all():
            raise ValueError("not a copy")
        return copies.flatten(1)[:, :2]

    with exact_inference(None):
        assert position_matters(only_copies, torch.zeros(2, 2, 8, 8), 15)


@pytest.mark.parametrize("precision", ["medium", "high", "highest"])
def test_reduced_matrix_precision_is_suspended(precision):
    before = torch.get_float32_matmul_precision()
    x, smoothed = images(2), smooth(DeterministicSplittingNoise(0.5))
    expected = smoothed.votes(x).counts
    scores = []
    base = smoothed.engine.base_classifier
    try:
        torch.set_float32_matmul_precision(precision)
        recording = Smoothed(lambda c: scores.append(base(c)) or scores[-1], DeterministicSplittingNoise(0.5), 10)
        assert torch.equal(recording.votes(x).counts, expected)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    exact = Smoothed(lambda c: scores.append(base(c)) or scores[-1], DeterministicSplittingNoise(0.5), 10)
    half = len(scores)
    exact.votes(x)
    assert all(torch.equal(a, b) for a, b in zip(scores[:half], scores[half:], strict=True))


def test_good_batch_size_falls_with_the_size_of_activations():
    small = good_batch_size(build("mnist_cnn", 1, 10, 28), torch.zeros(1, 1, 28, 28))
    large = good_batch_size(build("resnet18", 3, 10, 32).eval(), torch.zeros(1, 3, 32, 32))
    assert 32 <= large < small <= 256
    assert good_batch_size(lambda copies: copies, torch.zeros(1, 1, 2, 2)) == 256


def test_nan_scores_are_refused():
    base = lambda copies: torch.full((len(copies), 3), float("nan"))  # noqa: E731
    with pytest.raises(ValueError, match="NaN scores"):
        Smoothed(base, RandomizedAblation(2), 3).certify(images(1))


@pytest.mark.parametrize("scheme", [DeterministicSplittingNoise(0.5, q=15), GaussianNoise(0.05)], ids=str)
def test_the_image_with_nan_scores_is_named(scheme):
    """Also where several images share a batch."""

    def base(copies: torch.Tensor) -> torch.Tensor:
        size = copies.flatten(1).sum(1, keepdim=True)
        return torch.cat((size, (size < 40).float(), (40 - size).clamp(min=0).sqrt() / (size < 40)), 1)

    x = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    x[2] = 255
    smoothed = Smoothed(base, scheme, 3, n0=16, n=16)
    smoothed.certify(x[:2])
    with pytest.raises(ValueError, match="NaN scores for the image with index 17, so no vote"):
        smoothed.votes(x, index=torch.tensor([5, 9, 17, 30]))


@pytest.mark.parametrize("width", [2, 4])
def test_wrong_number_of_scores(width):
    base = lambda copies: torch.zeros(len(copies), width)  # noqa: E731
    with pytest.raises(ValueError, match=r"base classifier: got torch.float32 .* expected float scores of shape"):
        Smoothed(base, DeterministicSplittingNoise(0.5), 3).certify(images(1))


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.full((1, 1, 4, 4), float("nan")), ValueError, "NaN or infinite"),
        (torch.full((1, 1, 4, 4), 1.5), ValueError, r"values in \[1.5, 1.5\], expected \[0, 1\]"),
        (torch.full((1, 1, 4, 4), -0.5), ValueError, r"expected \[0, 1\]"),
        (torch.zeros(1, 1, 4, 4, dtype=torch.int64), TypeError, "dtype torch.int64"),
        (torch.zeros(1, 1, 4, 4, dtype=torch.float16), TypeError, "dtype torch.float16"),
        (torch.zeros(1, 4, 4), ValueError, r"expected \[B, C, H, W\]"),
        (torch.zeros(0, 1, 4, 4), ValueError, "empty batch"),
        ([[0.0]], TypeError, "expected a torch.Tensor"),
    ],
)
@pytest.mark.parametrize(
    "scheme", [RandomizedAblation(2), DeterministicSplittingNoise(0.5), SplittingNoise(0.5)], ids=str
)
def test_bad_images(scheme, x, error, message):
    called = []
    smoothed = Smoothed(lambda copies: called.append(1) or copies, scheme, 2)
    for method in (smoothed.certify, smoothed.predict, smoothed.votes):
        with pytest.raises(error, match=message):
            method(x)
    assert not called, "the base classifier ran before the input was checked"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0}, "alpha"),
        ({"alpha": 1}, "alpha"),
        ({"n": 0}, "n: got 0"),
        ({"n0": 0}, "n0: got 0"),
        ({"num_classes": 1}, "num_classes: got 1"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"seed": -1}, "seed"),
        ({"bounds": "both"}, "bounds: got 'both'"),
    ],
)
def test_bad_options_are_refused_at_once(options, message):
    options = {"num_classes": 2} | options
    with pytest.raises(ValueError, match=message):
        Smoothed(lambda copies: copies, RandomizedAblation(2), **options)


@pytest.mark.parametrize("index", [[0], [0, -1], [0, 1 << 32]])
def test_bad_index(index):
    with pytest.raises(ValueError, match="index: got"):
        smooth(RandomizedAblation(2)).votes(images(2), index=torch.tensor(index))


def test_a_scheme_of_the_wrong_kind():
    with pytest.raises(TypeError, match="expected one that enumerates"):
        VoteEngine(lambda copies: copies, RandomizedAblation(2), 2).enumerated(images(1))
    with pytest.raises(TypeError, match="scheme: got str"):
        Smoothed(lambda copies: copies, "ablation", 2)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "counts", [torch.rand(2, 3), torch.tensor([1, 2]), torch.tensor([[5]]), torch.tensor([[-1, 2]])]
)
def test_bad_counts(counts):
    with pytest.raises((TypeError, ValueError), match="counts"):
        DeterministicSplittingNoise(0.5).certify_counts(counts)


def test_votes_of_another_scheme_are_refused():
    with pytest.raises(ValueError, match="only 255 copies"):
        DeterministicSplittingNoise(0.5).certify_counts(torch.tensor([[300, 1]]), shape=(1, 2, 2))


def test_stored_votes_give_the_same_certificate():
    for scheme in SCHEMES:
        smoothed = smooth(scheme)
        votes, result = smoothed.votes(images(2)), smoothed.certify(images(2))
        again = smoothed.certificate(votes)
        assert torch.equal(again.prediction, result.prediction)
        assert torch.equal(again.radius, result.radius)
        assert torch.equal(smoothed.prediction(votes), smoothed.predict(images(2)))


def test_sampling_uses_the_streams():
    smoothed = smooth(RandomizedAblation(6), batch_size=64)
    votes = smoothed.votes(images(1))
    for stream, n, expected in ((SELECTION, 70, votes.selection), (ESTIMATION, 300, votes.counts)):
        counts = smoothed.engine.sampled(images(1), n, index=None, seed=0, stream=stream)
        assert torch.equal(counts, expected)


@pytest.mark.gpu
def test_cuda_gives_the_same_votes():
    for scheme in SCHEMES:
        weights = torch.randint(-8, 9, (10, 64 * scheme.channels(1)), generator=torch.Generator().manual_seed(2))

        class Exact(nn.Module):
            def __init__(self, weight: torch.Tensor) -> None:
                super().__init__()
                self.register_buffer("weight", weight.double())

            def forward(self, copies: torch.Tensor) -> torch.Tensor:
                return (copies.flatten(1) * 510).round().double() @ self.weight.T

        cpu = Smoothed(Exact(weights), scheme, 10, n0=70, n=300).votes(images())
        cuda = Smoothed(Exact(weights).cuda(), scheme, 10, n0=70, n=300).votes(images())
        assert torch.equal(cpu.counts, cuda.counts)


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="this version of torch has one interface")
@pytest.mark.parametrize("reduce", ["older", "newer", "neither"])
def test_settings_of_matrix_precision_do_not_contradict_each_other(reduce):
    """torch has an older and a newer interface, and kernels and programs of others may read either."""
    products: Any = torch.backends.cuda.matmul

    def seen() -> list[object]:
        values: list[object] = [products.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision]  # type: ignore[attr-defined]
        for read in (torch.get_float32_matmul_precision, lambda: products.allow_tf32):
            try:
                values.append(read())
            except RuntimeError:  # only one of the interfaces has been used
                values.append("unknown")
        return values

    before, newer = torch.get_float32_matmul_precision(), products.fp32_precision
    try:
        if reduce == "older":
            torch.set_float32_matmul_precision("medium")
        elif reduce == "newer":
            products.fp32_precision = "tf32"
        outside = seen()
        with exact_inference(None):
            assert seen() == ["ieee", "ieee", "highest", False]
        assert seen() == outside
    finally:
        products.fp32_precision = newer
        torch.set_float32_matmul_precision(before)


def test_predictions_with_a_seed_that_nobody_knows():
    """A classifier that knows the copies of seed 0 is right for those alone: fresh samples do not fall for it."""
    scheme, x = GaussianNoise(0.5), images(2)
    known = {
        copy.numpy().tobytes()
        for copy in scheme.sample(x, Draws.of(0, ESTIMATION, torch.arange(2), range(200))).flatten(0, 1)
    }

    def fitted(copies: torch.Tensor) -> torch.Tensor:
        votes = torch.tensor([int(copy.numpy().tobytes() in known) for copy in copies])
        return torch.nn.functional.one_hot(votes, 2).float()

    smoothed = Smoothed(fitted, scheme, 2, n0=10, n=200)
    assert smoothed.predict(x).tolist() == [1, 1]
    assert smoothed.predict(x, fresh=True).tolist() == [0, 0]


def test_no_radius_below_0_is_certified():
    result = Smoothed(classifier(2), DeterministicAblation(6), 10).certify(images(1))
    assert result.certified_at(0).all()
    for radius in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=r"radius: got .*, expected at least 0"):
            result.certified_at(radius)


@pytest.mark.parametrize(("shape", "message"), [((1, 4, 4), r"and failed: .*float\(\)\)$"), ((8, 6, 1), "x.permute")])
def test_images_of_every_shape_are_tried_first(shape, message):
    smoothed = Smoothed(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), UniformNoise(0.5), 3, n=10)
    smoothed.certify(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match=message):
        smoothed.certify(torch.zeros(1, *shape))


class Doubled(DeterministicSplittingNoise):
    def channels(self, channels: int) -> int:
        return 2 * channels


class Precise(DeterministicSplittingNoise):
    def copies(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return super().copies(x, index).double()


@pytest.mark.parametrize(
    ("kind", "message"), [(Doubled, r"\[1, 4, 2, \.\.\.\] for its channels\(1\)"), (Precise, "float64")]
)
def test_a_scheme_that_makes_other_copies_than_it_says_is_named(kind, message):
    with pytest.raises(ValueError, match=rf"^{kind.__name__}: made copies .*{message}"):
        Smoothed(classifier(1), kind(0.5), 10).certify(torch.zeros(1, 1, 8, 8))


def test_labels_are_as_many_as_predictions():
    result = Smoothed(classifier(2), DeterministicAblation(6), 10).certify(images(3))
    assert result.correct(result.prediction).all()
    for labels in (torch.zeros(1, dtype=torch.int64), torch.zeros(3, 1, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"labels: got shape .*, expected \(3,\)"):
            result.correct(labels)


def test_an_abstention_is_never_right():
    result = Certified(torch.tensor([-1, 0]), torch.tensor([-1.0, 2.0]).double(), L0())
    assert result.correct(torch.tensor([-1, 0])).tolist() == [False, True]
    assert metrics.clean_accuracy([-1, 0], [-1, 0]) == 0.5


@pytest.mark.parametrize(("options", "message"), [({"n": 2 * 10**8}, "n "), ({"alpha": 1e-160}, "alpha")])
def test_bounds_that_do_not_exist_are_told_before_anything_is_sampled(options, message):
    with pytest.raises(ValueError, match=message):
        Smoothed(Silent(), RandomizedAblation(3), 3, bounds="simultaneous", **options)


class Silent:
    def __call__(self, copies: torch.Tensor) -> torch.Tensor:
        raise AssertionError("no copy is classified")


@pytest.mark.parametrize(
    ("rule", "got"),
    [
        (lambda scores: scores.argmax(1)[:, None], r"int64 \(\d+, 1\)"),
        (lambda scores: (scores > 0).long(), r"int64 \(\d+, 10\)"),
        (lambda scores: scores.argmax(1).float(), r"float32 \(\d+,\)"),
        (lambda scores: scores.argmax(1) > 3, r"bool \(\d+,\)"),
    ],
)
def test_votes_are_classes(rule, got):
    with pytest.raises(
        ValueError, match=rf"vote: got torch\.{got} for scores .*, expected the class of each copy's vote"
    ):
        Smoothed(classifier(2), DeterministicAblation(6), 10, vote=rule).votes(images(1))


def test_images_that_look_like_channels_last_are_warned_about():
    scheme = DeterministicSplittingNoise(lam=0.5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6 * 5 * 3, 2))  # takes any layout
    images = torch.zeros(1, 6, 5, 3, dtype=torch.uint8)
    smoothed = Smoothed(model, scheme, num_classes=2)
    with pytest.warns(UserWarning, match="taken for 6 channels of 5 x 3 pixels, but it looks like channels last"):
        smoothed.certify(images)
    smoothed.certify(images)  # told once
    smoothed.certify(images.permute(0, 3, 1, 2))
