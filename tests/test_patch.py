"""Patch certificates: attacked with every patch, compared with their definition copy by copy, and shown to be tight."""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from certify import (
    BandAblation,
    BlockAblation,
    DoubleMasking,
    MultiBandAblation,
    MultiBlockAblation,
    Patch,
    RandomizedBandAblation,
    RandomizedBlockAblation,
    Smoothed,
    ThresholdVote,
    argmax_vote,
    spec,
)
from certify.draws import ESTIMATION, TRAINING, Draws
from certify.patch import PatchBound, StructuredAblation
from certify.testing import copy_key
from certify.windows import WindowAxis, circular_sums, touched_runs

BOUNDS: tuple[PatchBound, ...] = ("location", "published")
CASES: list[tuple[StructuredAblation, tuple[int, int, int]]] = [
    (BandAblation(1), (1, 3, 7)),
    (BandAblation(2), (2, 2, 8)),
    (BandAblation(2, axis="row"), (1, 8, 2)),
    (BandAblation(3, stride=2), (1, 2, 9)),
    (BandAblation(4, stride=2), (1, 1, 13)),
    (BandAblation(1, axis="row", stride=2), (1, 7, 2)),
    (BlockAblation(1), (1, 4, 4)),
    (BlockAblation(2), (1, 5, 4)),
    (BlockAblation(2, stride=2), (1, 5, 5)),
    (BlockAblation(1, stride=2, null="mean", mean=(0.4,)), (1, 5, 6)),
    (MultiBandAblation(1, 2), (1, 2, 7)),
    (MultiBandAblation(2, 2, axis="row"), (1, 11, 1)),
    (MultiBlockAblation(2, 1), (1, 5, 6)),
    (MultiBlockAblation(1, 2), (1, 3, 4)),
    (MultiBlockAblation(2, 3), (1, 5, 4)),
]
SIZES = ((1, 1), (2, 2), (3, 3), (1, 3), (3, 1), (2, 9))
IDS = [f"{scheme}, {shape}" for scheme, shape in CASES]


def masks(scheme: StructuredAblation, shape: tuple[int, int, int]) -> Tensor:
    """bool ``[positions, H, W]``."""
    return scheme.masks(shape, torch.arange(scheme.num_copies(shape)))


def places(shape: tuple[int, int, int], patch: tuple[int, int]) -> list[Tensor]:
    """Every place of a patch as a bool ``[H, W]``."""
    _, rows, columns = shape
    height, width = min(patch[0], rows), min(patch[1], columns)
    found = []
    for top, left in itertools.product(range(rows - height + 1), range(columns - width + 1)):
        place = torch.zeros(rows, columns, dtype=torch.bool)
        place[top : top + height, left : left + width] = True
        found.append(place)
    return found


def at_risk(scheme: StructuredAblation, shape: tuple[int, int, int], patch: tuple[int, int]) -> Tensor:
    """Which copies each place puts at risk, from the masks: bool ``[places, positions]``."""
    return torch.stack([(masks(scheme, shape) & place).flatten(1).any(1) for place in places(shape, patch)])


def random_votes(count: int, positions: int, classes: int, seed: int, *, exclusive: bool = False) -> Tensor:
    """Votes with a favourite, so that there is something to certify."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(count, positions, classes, generator=generator)
    favourite = torch.randint(classes, (count,), generator=generator)
    strength = torch.rand(count, generator=generator)
    scores[torch.arange(count), :, favourite] += 1.2 * strength[:, None]
    votes = scores > 0.8
    return votes & (scores == scores.amax(2, keepdim=True)) if exclusive else votes


# What a copy retains, and which copies a patch can change


def test_a_band_wraps():
    kept = masks(BandAblation(3), (1, 2, 5))
    assert kept[:, 0].int().tolist() == [
        [1, 1, 1, 0, 0],
        [0, 1, 1, 1, 0],
        [0, 0, 1, 1, 1],
        [1, 0, 0, 1, 1],
        [1, 1, 0, 0, 1],
    ]
    assert torch.equal(kept[:, 0], kept[:, 1])
    assert torch.equal(masks(BandAblation(3, axis="row"), (1, 5, 2)), kept.mT)


def test_a_block_wraps_in_both_directions():
    kept = masks(BlockAblation(2), (1, 3, 4))
    assert len(kept) == 12
    assert kept[2 * 4 + 3].int().tolist() == [[1, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 1]]  # row 2, column 3
    assert (kept.sum((1, 2)) == 4).all()


def test_several_blocks_are_choices_of_a_grid():
    kept = masks(MultiBlockAblation(2, 2), (1, 3, 4)).int()
    assert len(kept) == math.comb(4, 2)
    assert kept[0].tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]]
    assert kept[-1].tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]  # the lower row of cells is cut off
    assert len(masks(MultiBandAblation(2, 2), (1, 1, 7))) == 6


@pytest.mark.parametrize("scheme", [*(scheme for scheme, _ in CASES), DoubleMasking((2, 3), fill=0.0)], ids=str)
def test_schemes_as_text(scheme):
    assert spec.parse_scheme(spec.to_text(scheme)) == scheme


@pytest.mark.parametrize(("scheme", "shape"), CASES, ids=IDS)
def test_copies_show_what_the_masks_say_and_nothing_else(scheme, shape):
    index = torch.arange(scheme.num_copies(shape))[None]
    x = torch.rand(2, *shape)
    copies, kept = scheme.copies(x, index), masks(scheme, shape)
    changed = scheme.copies(1 - x, index) != copies
    assert torch.equal(changed.any(2), kept.expand(2, *kept.shape))
    assert copies.shape == (2, index.numel(), scheme.channels(shape[0]), *shape[1:])


@pytest.mark.parametrize(("scheme", "shape"), CASES, ids=IDS)
@pytest.mark.parametrize("patch", SIZES)
def test_copies_at_risk_and_votes_outside(scheme, shape, patch):
    """Box sums and grid choices against a loop over copies; every place is covered by an equal or worse one."""
    risk = at_risk(scheme, shape, patch)
    votes = random_votes(3, scheme.num_copies(shape), 3, seed=1)
    clipped = (min(patch[0], shape[1]), min(patch[1], shape[2]))
    outside, touched = scheme.outside(votes, shape, clipped)
    got = {(n, *o) for n, o in zip(touched.tolist(), outside.permute(2, 0, 1).flatten(1).tolist(), strict=True)}
    expected = {(int(place.sum()), *((votes & ~place[:, None]).sum(1).flatten().tolist())) for place in risk}
    assert {(n, tuple(o)) for n, *o in got} == {(n, tuple(o)) for n, *o in expected}
    assert scheme.most_touched(shape, clipped) >= int(risk.sum(1).max())


def literal_bound(scheme: StructuredAblation, shape: tuple[int, int, int], patch: tuple[int, int]) -> int:
    """The number of copies at risk as printed (Theorems 6.1, 6.2, Appendix E.4), never more than there are."""
    (height, width), (_, rows, columns) = patch, shape
    if isinstance(scheme, BandAblation):
        m, side = (width, columns) if scheme.axis == "column" else (height, rows)
        return min(m + scheme.width - 1, side)
    if isinstance(scheme, BlockAblation):
        s = scheme.size
        return min(height + s - 1, rows) * min(width + s - 1, columns)
    if isinstance(scheme, MultiBandAblation):
        m, side = (width, columns) if scheme.axis == "column" else (height, rows)
        cells = math.ceil(side / scheme.width)
        touched = min(math.ceil((m - 1) / scheme.width) + 1, cells)
        return math.comb(cells, scheme.count) - math.comb(cells - touched, scheme.count)
    assert isinstance(scheme, MultiBlockAblation)
    s = scheme.size
    cells = math.ceil(rows / s) * math.ceil(columns / s)
    touched = math.prod(
        min(math.ceil((m - 1) / s) + 1, math.ceil(side / s)) for m, side in ((height, rows), (width, columns))
    )
    return math.comb(cells, scheme.count) - math.comb(cells - touched, scheme.count)


@pytest.mark.parametrize(("scheme", "shape"), CASES, ids=IDS)
@pytest.mark.parametrize("patch", SIZES)
def test_published_bound_to_the_letter(scheme, shape, patch):
    votes = random_votes(200, scheme.num_copies(shape), 4, seed=2)
    result = scheme.certify_votes(votes, patch, shape=shape, bound="published")
    clipped = (min(patch[0], shape[1]), min(patch[1], shape[2]))
    strided = getattr(scheme, "stride", 1) > 1
    most = int(at_risk(scheme, shape, patch).sum(1).max()) if strided else literal_bound(scheme, shape, clipped)
    for i, counts in enumerate(votes.sum(1).tolist()):
        c = counts.index(max(counts))
        rival = max(n + (c > other) for other, n in enumerate(counts) if other != c)
        assert result.prediction[i] == c
        assert result.certified[i] == (counts[c] >= rival + 2 * most)


@pytest.mark.parametrize(("m", "s"), [(5, 4), (5, 2), (3, 12), (28, 4)])
def test_published_numbers_of_copies(m, s):
    assert BandAblation(s).most_touched((1, 28, 28), (m, m)) == min(28, m + s - 1)
    assert BlockAblation(s).most_touched((1, 28, 28), (m, m)) == min(28, m + s - 1) ** 2


def test_a_patch_of_5_meets_exactly_4_blocks_of_4():
    """Figure E.1."""
    scheme = MultiBlockAblation(4, 1)
    risk = at_risk(scheme, (1, 28, 28), (5, 5))
    assert set(risk.sum(1).tolist()) == {4}
    assert scheme.most_touched((1, 28, 28), (5, 5)) == 4
    assert MultiBlockAblation(4, 4).num_copies((1, 28, 28)) == math.comb(49, 4)


@given(size=st.integers(1, 14), data=st.data())
def test_touched_windows_against_pixels(size, data):
    axis = WindowAxis(size, data.draw(st.integers(1, size)), data.draw(st.integers(1, size)))
    length = data.draw(st.integers(1, size))
    windows = [{(t + i) % size for i in range(axis.width)} for t in range(0, size, axis.stride)]
    expected = [[bool(w & set(range(a, a + length))) for w in windows] for a in range(size - length + 1)]
    assert axis.touched(length).tolist() == expected
    assert len(windows) == axis.positions
    runs = {
        tuple((j - first) % len(windows) < count for j in range(len(windows)))
        for first, count in touched_runs(axis, length)
    }
    assert runs == {tuple(row) for row in expected}


@given(st.lists(st.lists(st.integers(-50, 50), min_size=4, max_size=4), min_size=1, max_size=3), st.data())
def test_circular_sums_against_loops(rows, data):
    runs = data.draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=6))
    first, count = torch.tensor(runs).unbind(1)
    for dtype in (torch.int16, torch.int64):
        sums = circular_sums(torch.tensor(rows, dtype=dtype), first, count)
        assert sums.dtype == dtype
        assert sums.tolist() == [[sum(row[(f + i) % 4] for i in range(n)) for f, n in runs] for row in rows]


# The certificate


def certified_by_definition(counts_by_copy: Tensor, risk: Tensor) -> bool:
    """One image: at no place can copies at risk, voting for all classes but the leader, change the prediction."""
    leader = int(counts_by_copy.sum(0).argmax())
    for place in risk:
        attacked = counts_by_copy.clone()
        attacked[place] = True
        attacked[place, leader] = False
        if int(attacked.sum(0).argmax()) != leader:
            return False
    return True


@pytest.mark.parametrize(("scheme", "shape"), CASES, ids=IDS)
def test_location_bound_is_its_definition(scheme, shape):
    for patch in SIZES:
        risk = at_risk(scheme, shape, patch)
        for exclusive in (False, True):
            votes = random_votes(40, scheme.num_copies(shape), 3, seed=3, exclusive=exclusive)
            location = scheme.certify_votes(votes, patch, shape=shape)
            published = scheme.certify_votes(votes, patch, shape=shape, bound="published")
            assert location.certified.tolist() == [certified_by_definition(v, risk) for v in votes]
            assert (location.certified | ~published.certified).all()
            assert torch.equal(location.prediction, votes.sum(1).argmax(1))
            assert torch.equal(location.prediction, published.prediction)
            assert location.threat == Patch(*patch)


def test_location_certifies_what_published_does_not():
    """Three votes, no two next to each other: a patch of two pixels meets two bands and takes one vote."""
    votes = torch.zeros(1, 8, 2, dtype=torch.bool)
    votes[0, [0, 2, 4], 0] = True
    location, published = (BandAblation(1).certify_votes(votes, 2, bound=bound) for bound in BOUNDS)
    assert location.certified.tolist() == [True]
    assert published.certified.tolist() == [False]  # gap 3 < 2 * 2
    votes[0, 3, 0] = True  # more votes, now two of them next to each other: still enough
    assert BandAblation(1).certify_votes(votes, 2).certified.tolist() == [True]
    votes[0, 4, 0] = False  # 0, 2, 3: two votes at once, one is left against two
    assert BandAblation(1).certify_votes(votes, 2).certified.tolist() == [False]


@settings(max_examples=60)
@given(st.sampled_from(CASES), st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 4))
def test_smaller_patches_are_certified_as_well(case, seed, height, width):
    scheme, shape = case
    votes = random_votes(20, scheme.num_copies(shape), 3, seed=seed)
    for bound in BOUNDS:
        large = scheme.certify_votes(votes, (height + 1, width + 1), shape=shape, bound=bound).certified
        for smaller in ((height, width + 1), (height + 1, width)):
            assert (scheme.certify_votes(votes, smaller, shape=shape, bound=bound).certified | ~large).all()


@pytest.mark.parametrize(("scheme", "shape"), CASES, ids=IDS)
def test_radius_is_the_largest_certified_side(scheme, shape):
    votes = random_votes(60, scheme.num_copies(shape), 3, seed=4)
    sides = range(1, max(shape[1:]) + 1)
    for bound in BOUNDS:
        result = scheme.certify_copies(votes, shape=shape, bound=bound)
        held = torch.stack([scheme.certify_votes(votes, m, shape=shape, bound=bound).certified for m in sides])
        assert torch.equal(result.radius, held.sum(0).double())
    assert torch.equal(result.radius, scheme.certify_counts(votes.sum(1), shape=shape).radius)  # published
    assert result.threat == Patch()


def test_large_batches_are_worked_on_in_parts(monkeypatch):
    votes = random_votes(50, 25, 3, seed=5)
    expected = BlockAblation(2).certify_votes(votes, 1, shape=(1, 5, 5))
    monkeypatch.setattr("certify.patch._CHUNK", 25 * 3 * 7)
    got = BlockAblation(2).certify_votes(votes, 1, shape=(1, 5, 5))
    assert torch.equal(got.certified, expected.certified)
    assert 0 < expected.certified.sum() < 50


def test_blocks_have_to_be_told_the_shape():
    """36 positions are those of 6x6 pixels and of 4x9: what certifies the one says nothing about the other."""
    votes = torch.zeros(1, 36, 2, dtype=torch.bool)
    votes[0, :, 0] = True
    for position in (6, 9, 16, 17, 21, 22, 25, 27, 31, 32):
        votes[0, position] = torch.tensor([False, True])
    scheme = BlockAblation(2)
    certified = [bool(scheme.certify_votes(votes, 2, shape=shape).certified[0]) for shape in ((1, 6, 6), (1, 4, 9))]
    assert certified == [True, False]
    with pytest.raises(ValueError, match="BlockAblation needs the image shape"):
        scheme.certify_votes(votes, 2)


def test_no_images_have_no_certificates():
    votes = torch.zeros(0, 6, 2, dtype=torch.bool)
    assert len(BandAblation(2).certify_votes(votes, 1).certified) == 0
    assert len(BandAblation(2).certify_top_k(votes, 1, 1)) == 0


# Top-k


def in_top_k(counts: Tensor, label: int, k: int) -> bool:
    own = int(counts[label])
    return sum(n > own or (n == own and c < label) for c, n in enumerate(counts.tolist()) if c != label) < k


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_k_against_everything_the_copies_at_risk_can_vote(k, exclusive):
    scheme, shape, classes = BandAblation(2), (1, 1, 7), 4
    risk = at_risk(scheme, shape, (1, 1))
    single = torch.cat((torch.eye(classes), torch.zeros(1, classes))).bool()
    every = torch.tensor(list(itertools.product((False, True), repeat=classes)))
    own = list(itertools.product(single if exclusive else every, repeat=2))
    possible = torch.stack([torch.stack(pair) for pair in own])
    votes = random_votes(12, 7, classes, seed=6, exclusive=exclusive)
    got = scheme.certify_top_k(votes, 1, k, exclusive=exclusive)
    published = scheme.certify_top_k(votes, 1, k, exclusive=exclusive, bound="published")
    assert (got | ~published).all()
    assert 0 < got.sum() < got.numel()
    for i, label in itertools.product(range(len(votes)), range(classes)):
        outcomes = ((votes[i] & ~place[:, None]).sum(0) + possible.sum(1) for place in risk)
        held = all(in_top_k(counts, label, k) for counts in torch.cat(list(outcomes)).unique(dim=0))
        assert got[i, label] == held
    if k == 1:
        one = scheme.certify_votes(votes, 1)
        assert torch.equal(got.any(1), one.certified)


# Attacks


class RandomScores:
    """Pseudorandom scores for every distinct copy, with a favourite class."""

    def __init__(self, num_classes: int, favourite: int, strength: float, seed: int) -> None:
        self.num_classes, self.favourite, self.strength, self.seed = num_classes, favourite, strength, seed
        self.table: dict[bytes, list[float]] = {}

    def scores(self, copy: Tensor) -> list[float]:
        k = copy_key(copy)
        if k not in self.table:
            generator = random.Random(k + self.seed.to_bytes(4, "big"))
            self.table[k] = [generator.gauss(0, 1) for _ in range(self.num_classes)]
            self.table[k][self.favourite] += self.strength
        return self.table[k]

    def __call__(self, copies: Tensor) -> Tensor:
        return torch.tensor([self.scores(copy) for copy in copies])


def every_attack(x: Tensor, patch: tuple[int, int], levels: int) -> Tensor:
    """``x [C, H, W]`` under every patch content on a grid of ``levels``, at every place."""
    attacked = []
    for place in places(tuple(x.shape), patch):
        contents = torch.tensor(list(itertools.product(range(levels), repeat=int(place.sum()) * len(x)))) / (levels - 1)
        images = x.repeat(len(contents), 1, 1, 1)
        images[place.expand_as(images)] = contents.flatten()
        attacked.append(images)
    return torch.cat(attacked)


ATTACKED: list[tuple[StructuredAblation, tuple[int, int, int], int]] = [
    (BandAblation(1), (1, 2, 9), 2),
    (BandAblation(2, axis="row"), (1, 9, 2), 2),
    (BandAblation(2, stride=2), (1, 1, 13), 3),
    (BlockAblation(1), (1, 4, 4), 2),
    (BlockAblation(2, stride=2), (1, 6, 5), 2),
    (MultiBandAblation(1, 2), (1, 2, 9), 2),
    (MultiBlockAblation(2, 2), (1, 6, 6), 2),
]


@pytest.mark.parametrize("vote", [argmax_vote, ThresholdVote(0.3)], ids=["top-1", "threshold"])
@pytest.mark.parametrize(("scheme", "shape", "levels"), ATTACKED, ids=lambda v: str(v))
def test_no_patch_breaks_a_certificate(scheme, shape, levels, vote):
    certified = 0
    for favourite, strength in ((0, 2.0), (2, 3.0)):
        smoothed = Smoothed(RandomScores(3, favourite, strength, seed=7), scheme, 3, vote=vote, batch_size=256)
        x = torch.randint(levels, (6, *shape), generator=torch.Generator().manual_seed(8)) / (levels - 1)
        votes = smoothed.votes(x)
        for patch in ((1, 1), (2, 2), (1, 3), (3, 1)):
            results = [scheme.certify_votes(votes.by_copy, patch, shape=shape, bound=bound) for bound in BOUNDS]
            assert (results[0].certified | ~results[1].certified).all()
            for i in results[0].certified.nonzero()[:2, 0].tolist():
                predictions = smoothed.predict(every_attack(x[i], patch, levels))
                assert (predictions == results[0].prediction[i]).all()
                certified += 1
        assert torch.equal(results[0].prediction, smoothed.predict(x))
    assert certified > 0, "no certificate was worth attacking"


class Recalled:
    """A classifier that votes as it was told."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.table: dict[bytes, Tensor] = {}

    def __call__(self, copies: Tensor) -> Tensor:
        return torch.stack([self.table[copy_key(copy)] for copy in copies]).float()


@pytest.mark.parametrize(("scheme", "shape"), CASES, ids=IDS)
def test_what_location_does_not_certify_can_be_broken(scheme, shape):
    """For votes that are not certified there are a classifier with these votes, and a patch that it falls for."""
    index, x = torch.arange(scheme.num_copies(shape))[None], torch.zeros(1, *shape)
    votes = random_votes(6, index.numel(), 3, seed=9)
    base, broken = Recalled(3), 0
    # classifiers that are told other votes are different ones, but all of them look at one copy at a time
    smoothed = Smoothed(base, scheme, 3, vote=lambda logits: logits > 0.5, batch_size=64)
    clean = [copy_key(copy) for copy in scheme.copies(x, index)[0]]
    for patch in ((1, 1), (2, 2), (3, 3)):
        attacks = [torch.where(place, 1.0, x) for place in places(shape, patch)]
        patched = [[copy_key(copy) for copy in scheme.copies(y, index)[0]] for y in attacks]
        result = scheme.certify_votes(votes, patch, shape=shape)
        for v, label, held in zip(votes, result.prediction.tolist(), result.certified.tolist(), strict=True):
            survived, others = [], torch.ones(3, dtype=torch.bool)
            others[label] = False
            for y, keys in zip(attacks, patched, strict=True):
                base.table = dict.fromkeys(keys, others) | dict(zip(clean, v, strict=True))
                assert int(smoothed.predict(x)) == label
                survived.append(int(smoothed.predict(y)) == label)
            assert all(survived) == held
            broken += not held
    assert broken > 0


def test_counting_bands_with_a_stride_needs_more_than_a_division():
    """13 columns, bands of 4 every 2: pixel 2 is in three bands, not in the usual ceil((m + s - 1) / stride) = 2."""
    scheme, shape = BandAblation(4, stride=2), (1, 1, 13)
    usual = math.ceil((1 + 4 - 1) / 2)
    assert scheme.most_touched(shape, (1, 1)) == 3 > usual == 2
    x, y = torch.zeros(1, *shape), torch.zeros(1, *shape)
    y[..., 2] = 1
    index = torch.arange(7)[None]
    base = Recalled(2)
    base.table |= {copy_key(copy): torch.tensor([0, 1]) for copy in scheme.copies(y, index)[0]}
    base.table |= {
        copy_key(copy): torch.tensor([int(p < 6), int(p == 6)]) for p, copy in enumerate(scheme.copies(x, index)[0])
    }
    # one of the bands at risk is number 6, which votes for class 1 anyway: move its vote to another band
    base.table[copy_key(scheme.copies(x, index)[0, 6])] = torch.tensor([1, 0])
    base.table[copy_key(scheme.copies(x, index)[0, 3])] = torch.tensor([0, 1])
    smoothed = Smoothed(base, scheme, 2)
    votes = smoothed.votes(x)
    assert votes.counts.tolist() == [[6, 1]]  # a gap of 5 >= 2 * 2: the usual count would certify
    assert smoothed.predict(y).tolist() == [1]  # and would be wrong
    for bound in BOUNDS:
        assert scheme.certify_votes(votes.by_copy, 1, shape=shape, bound=bound).certified.tolist() == [False]


# In the engine


@pytest.mark.parametrize(
    "scheme", [BandAblation(3), BlockAblation(2, stride=2), MultiBandAblation(2, 2)], ids=lambda scheme: str(scheme)
)
@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_votes_by_copy(scheme, batch_size):
    weights = torch.randint(-8, 9, (4, 128), generator=torch.Generator().manual_seed(2)).double()
    base = lambda copies: (copies.flatten(1) * 255).round().double() @ weights.T  # noqa: E731
    x = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    smoothed = Smoothed(base, scheme, 4, batch_size=batch_size)
    votes, result = smoothed.votes(x), smoothed.certify(x)
    expected = [base(scheme.copies(image[None], torch.arange(votes.n)[None])[0]).argmax(1) for image in x]
    assert votes.by_copy is not None
    assert votes.by_copy.dtype == torch.bool
    assert votes.by_copy.int().argmax(2).tolist() == [e.tolist() for e in expected]
    assert torch.equal(votes.counts, votes.by_copy.sum(1))
    assert torch.equal(smoothed.engine.enumerated(x), votes.counts)
    assert torch.equal(result.prediction, smoothed.predict(x))
    assert torch.equal(result.radius, scheme.certify_copies(votes.by_copy, shape=votes.shape).radius)


def test_training_samples_positions():
    scheme, x = BandAblation(2), torch.ones(40, 1, 3, 6)
    copies = scheme.sample(x, Draws.of(0, TRAINING, torch.arange(40), range(1)))
    columns = (copies[:, 0, 0, 0] > 0).int()
    assert (columns.sum(1) == 2).all()
    assert len(columns.unique(dim=0)) == 6


# The randomized baseline


def test_randomized_bands_are_certified_by_the_published_count():
    """28 columns, s = 2, m = 5: six bands of 28, so p_lower has to exceed 1/2 + 6/28."""
    scheme, shape = RandomizedBandAblation(2), (1, 28, 28)
    shares = scheme.touched_shares(shape)
    assert all(
        0 <= share - Fraction(min(28, m + 1), 28) <= Fraction(28, 2**32) for m, share in enumerate(shares[1:], 1)
    )
    edge = 0.5 + 6 / 28
    p_lower = torch.tensor([0.4, 0.5 + 1e-9, edge - 1e-6, edge + 1e-6, 1.0], dtype=torch.float64)
    assert scheme.radius(p_lower, 1 - p_lower, shape=shape).tolist() == [-1, 0, 4, 5, 12]


def test_randomized_copies_are_those_of_the_exact_scheme():
    exact, sampled = BlockAblation(2), RandomizedBlockAblation(2)
    x = torch.rand(1, 2, 4, 5)
    every = {copy_key(copy) for copy in exact.copies(x, torch.arange(20)[None])[0]}
    got = {copy_key(copy) for copy in sampled.sample(x, Draws.of(0, ESTIMATION, torch.arange(1), range(400)))[0]}
    assert got == every


def test_randomized_bad_input():
    with pytest.raises(ValueError, match="width: got 0"):
        RandomizedBandAblation(0)
    with pytest.raises(ValueError, match="size: got 0"):
        RandomizedBlockAblation(0)
    with pytest.raises(ValueError, match="images are 8 pixels wide"):
        Smoothed(lambda copies: copies, RandomizedBandAblation(9), 2).certify(torch.zeros(1, 1, 9, 8))
    with pytest.raises(ValueError, match="needs the image shape"):
        RandomizedBandAblation(2).radius(torch.ones(1), torch.zeros(1))


# Errors


def votes_of(positions: int, classes: int = 3) -> Tensor:
    return torch.zeros(2, positions, classes, dtype=torch.bool)


@pytest.mark.parametrize(
    ("scheme", "arguments", "message"),
    [
        (BandAblation(2), {"votes": votes_of(8), "patch_size": 0}, "patch_size: got 0"),
        (BandAblation(2), {"votes": votes_of(8), "patch_size": 2.0}, "patch_size: got 2.0"),
        (BandAblation(2), {"votes": votes_of(8), "patch_size": (1, 2, 3)}, "expected one integer or"),
        (BandAblation(2), {"votes": votes_of(8), "patch_size": 2, "bound": "best"}, "bound: got 'best'"),
        (BandAblation(2), {"votes": votes_of(8)[0], "patch_size": 2}, r"votes: got \(8, 3\)"),
        (BandAblation(2), {"votes": votes_of(8, 1), "patch_size": 2}, "votes: got 1 classes"),
        (BandAblation(2), {"votes": votes_of(8).long() + 2, "patch_size": 2}, "at most one vote per copy"),
        (BandAblation(2), {"votes": votes_of(8), "patch_size": 2, "shape": (1, 8, 9)}, "expected 9, as"),
        (
            BandAblation(9),
            {"votes": votes_of(8), "patch_size": 2},
            "expected at most 8 for both, as images are 8 pixels wide",
        ),
        (BandAblation(2, stride=2), {"votes": votes_of(8), "patch_size": 2}, "needs the image shape"),
        (BlockAblation(2), {"votes": votes_of(8), "patch_size": 2}, "needs the image shape"),
        (MultiBandAblation(2, 2), {"votes": votes_of(6), "patch_size": 2}, "needs the image shape"),
        (MultiBandAblation(2, 5), {"votes": votes_of(6), "patch_size": 2, "shape": (1, 1, 7)}, "at most the 4 cells"),
        (MultiBlockAblation(1, 5), {"votes": votes_of(6), "patch_size": 2, "shape": (1, 28, 28)}, "choose fewer"),
        (MultiBlockAblation(9, 1), {"votes": votes_of(1), "patch_size": 2, "shape": (1, 8, 8)}, "cells of 9 pixels"),
    ],
)
def test_bad_votes(scheme, arguments, message):
    with pytest.raises(ValueError, match=message):
        scheme.certify_votes(**arguments)


def test_averaged_votes_are_refused():
    with pytest.raises(TypeError, match="expected integer votes"):
        BandAblation(2).certify_votes(votes_of(8).float(), 2)


@pytest.mark.parametrize(
    ("scheme", "arguments", "message"),
    [
        (BandAblation, {"width": 0}, "width: got 0"),
        (BandAblation, {"width": 2, "axis": "diagonal"}, "axis: got 'diagonal'"),
        (BandAblation, {"width": 2, "stride": 0}, "stride: got 0"),
        (BlockAblation, {"size": 1.5}, "size: got 1.5"),
        (MultiBandAblation, {"width": 2, "count": 0}, "count: got 0"),
        (MultiBandAblation, {"width": 2, "count": 2, "axis": "x"}, "axis: got 'x'"),
        (MultiBlockAblation, {"size": 0, "count": 1}, "size: got 0"),
        (Patch, {"height": 0}, "height: got 0"),
        (BandAblation, {"width": 2, "null": "grey"}, "null: got 'grey'"),
    ],
)
def test_bad_schemes(scheme, arguments, message):
    with pytest.raises(ValueError, match=message):
        scheme(**arguments)


def test_too_small_images_and_bad_k():
    called = []
    with pytest.raises(ValueError, match="8 pixels wide"):
        Smoothed(lambda copies: called.append(1) or copies, BandAblation(9), 2).certify(torch.zeros(1, 1, 9, 8))
    assert not called
    with pytest.raises(ValueError, match="k: got 3"):
        BandAblation(2).certify_top_k(votes_of(8), 2, 3)
    with pytest.raises(ValueError, match="exclusive: got copies"):
        BandAblation(2).certify_top_k(~votes_of(8), 2, 1, exclusive=True)
    with pytest.raises(ValueError, match="shape: got None; BandAblation needs the image shape"):
        BandAblation(2).certify_counts(torch.tensor([[5, 3]]))


def test_patch_distance():
    x, y = torch.zeros(3, 2, 5, 6), torch.zeros(3, 2, 5, 6)
    y[1, 0, 1, 4] = y[1, 1, 3, 4] = 1
    y[2, 0, 0, 0] = y[2, 0, 1, 5] = 1
    assert Patch().distance(x, y).tolist() == [0, 3, 6]
    assert Patch(2, 3).distance(x, y).tolist() == [0, 2, 2]
    assert (str(Patch()), str(Patch(3, 7))) == ("patch (side in pixels)", "patch (3x7)")


@pytest.mark.gpu
@pytest.mark.parametrize(("scheme", "shape"), CASES, ids=IDS)
def test_cuda_gives_the_same_certificates(scheme, shape):
    votes = random_votes(60, scheme.num_copies(shape), 3, seed=4)
    x = torch.rand(2, *shape)
    index = torch.arange(scheme.num_copies(shape))[None]
    assert torch.equal(scheme.copies(x.cuda(), index.cuda()).cpu(), scheme.copies(x, index))
    for bound in BOUNDS:
        cpu = scheme.certify_copies(votes, shape=shape, bound=bound)
        cuda = scheme.certify_copies(votes.cuda(), shape=shape, bound=bound)
        assert torch.equal(cpu.radius, cuda.radius.cpu())
        assert torch.equal(cpu.prediction, cuda.prediction.cpu())
    on_cuda = scheme.certify_top_k(votes.cuda(), 1, 2, shape=shape)
    assert torch.equal(on_cuda.cpu(), scheme.certify_top_k(votes, 1, 2, shape=shape))
