"""Patch certificates look at the classes that matter only: the results are those of looking at all of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from certify import BandAblation, BlockAblation, MultiBandAblation, MultiBlockAblation
from certify.patch import PatchBound, StructuredAblation, clip, votes_needed
from certify.votes import sum_votes

CASES: list[tuple[StructuredAblation, tuple[int, int, int]]] = [
    (BandAblation(2), (2, 2, 8)),
    (BandAblation(3, stride=2), (1, 2, 9)),
    (BlockAblation(2), (1, 5, 4)),
    (MultiBandAblation(1, 2), (1, 2, 7)),
    (MultiBlockAblation(2, 2), (1, 5, 6)),
]
IDS = [f"{scheme}, {shape}" for scheme, shape in CASES]


def all_classes(
    scheme: StructuredAblation,
    votes: Tensor,
    label: Tensor,
    shape: tuple[int, int, int],
    patch: tuple[int, int],
    bound: PatchBound,
    k: int = 1,
    *,
    exclusive: bool = False,
) -> Tensor:
    """Whether ``label`` stays among the k first, by the votes that every class needs at every place: bool ``[B]``."""
    patch = clip(shape, patch)
    if bound == "published":
        most = scheme.most_touched(shape, patch)
        outside = votes.sum(1)[:, :, None].clone()
        outside[torch.arange(len(votes)), label] -= most
        touched = torch.tensor([most])
    else:
        outside, touched = scheme.outside(votes, shape, patch)
    needed = votes_needed(outside.long(), label).sort(1).values[:, :k]
    return ((needed.clamp(min=0).sum(1) if exclusive else needed[:, -1]) > touched).all(1)


def random_votes(generator: torch.Generator, images: int, positions: int, classes: int, kind: str) -> Tensor:
    """Votes for few of many classes, with ties and classes that got none: one, several or no vote of each copy."""
    used = torch.randperm(classes, generator=generator)[
        : 1 + int(torch.randint(min(classes, 7), (1,), generator=generator))
    ]
    if kind == "all":
        used = torch.arange(classes)
    favourite = used[torch.randint(len(used), (images, 1), generator=generator)]
    other = used[torch.randint(len(used), (images, positions), generator=generator)]
    strong = torch.rand(images, positions, generator=generator) < torch.rand(images, 1, generator=generator)
    votes = torch.nn.functional.one_hot(torch.where(strong, favourite, other), classes).bool()
    if kind == "none":
        return votes & (torch.rand(images, positions, 1, generator=generator) < 0.8)
    if kind == "several":
        return votes | (torch.rand(votes.shape, generator=generator) < 0.1 * torch.rand(classes, generator=generator))
    return votes


@pytest.mark.parametrize("classes", [3, 60])
@pytest.mark.parametrize("kind", ["one", "none", "several", "all"])
@pytest.mark.parametrize(("scheme", "shape"), CASES, ids=IDS)
def test_the_result_is_that_of_all_classes(monkeypatch, scheme, shape, kind, classes):
    generator = torch.Generator().manual_seed(classes)
    held, total = 0, 0
    for chunk in (1 << 22, 5 * scheme.num_copies(shape)):  # the second: image by image, five classes at a time
        monkeypatch.setattr("certify.patch._CHUNK", chunk)
        votes = random_votes(generator, 12, scheme.num_copies(shape), classes, kind)
        votes[0], votes[1, :, :-1], votes[1, :, -1] = False, False, True
        counts = votes.sum(1)
        for bound in ("location", "published"):
            for patch in ((1, 1), (2, 2), (1, 3)):
                result = scheme.certify_votes(votes, patch, shape=shape, bound=bound)
                expected = all_classes(scheme, votes, counts.argmax(1), shape, patch, bound)
                assert torch.equal(result.certified, expected)
                held, total = held + int(expected.sum()), total + 12
            sides = range(1, max(shape[1:]) + 1)
            each = [all_classes(scheme, votes, counts.argmax(1), shape, (m, m), bound) for m in sides]
            assert torch.equal(
                scheme.certify_copies(votes, shape=shape, bound=bound).radius, torch.stack(each).sum(0).double()
            )
    assert 0 < held < total


@pytest.mark.parametrize("kind", ["none", "several", "all"])
@pytest.mark.parametrize(("scheme", "shape"), CASES, ids=IDS)
def test_the_first_k_are_those_of_all_classes(monkeypatch, scheme, shape, kind):
    generator = torch.Generator().manual_seed(1)
    for chunk, classes in ((1 << 22, 40), (3 * scheme.num_copies(shape), 10)):
        monkeypatch.setattr("certify.patch._CHUNK", chunk)
        votes = random_votes(generator, 12, scheme.num_copies(shape), classes, kind)
        ranked = votes.sum(1).argsort(dim=1, descending=True, stable=True)
        for k in (1, 3):
            for exclusive in (False, True) if kind != "several" else (False,):
                for bound in ("location", "published"):
                    got = scheme.certify_top_k(votes, (1, 2), k, shape=shape, bound=bound, exclusive=exclusive)
                    expected = torch.zeros_like(got)
                    for label in ranked[:, :k].unbind(1):
                        stays = all_classes(scheme, votes, label, shape, (1, 2), bound, k, exclusive=exclusive)
                        expected[torch.arange(12), label] = stays
                    assert torch.equal(got, expected)


def test_of_classes_without_votes_the_first_one_counts():
    """Two of four bands vote for one class, none for others: one vote is left against that of the band at risk."""
    votes = torch.zeros(3, 4, 9, dtype=torch.bool)
    votes[0, :2, 0] = votes[1, :2, 5] = votes[2, :3, 5] = True
    result = BandAblation(1).certify_votes(votes, (1, 1), shape=(1, 1, 4))
    # a tie goes to class 0: for it in the first image, against class 5 in the second; with three votes there is none
    assert result.certified.tolist() == [True, False, True]
    first = BandAblation(1).certify_top_k(votes, (1, 1), 2, shape=(1, 1, 4))
    # two classes that no copy votes for would both have to get the vote at risk, which one copy may give them
    assert first[:, [0, 5]].tolist() == [[True, False], [False, False], [False, True]]
    exclusive = BandAblation(1).certify_top_k(votes, (1, 1), 2, shape=(1, 1, 4), exclusive=True)
    assert exclusive[:, [0, 5]].tolist() == [[True, False], [False, True], [False, True]]


@pytest.mark.parametrize("copies", [1, 254, 255, 256, 1_000])
def test_votes_are_counted_as_by_a_plain_sum(copies):
    votes = torch.rand(3, copies, 4) < 0.9
    votes[0] = True  # as many votes as there can be
    for given in (votes, votes.transpose(0, 2).contiguous().transpose(0, 2), votes.to(torch.uint8), votes.long()):
        assert torch.equal(sum_votes(given), votes.long().sum(1))
        assert sum_votes(given).dtype == torch.int64
    assert torch.equal(sum_votes(votes[:0]), torch.zeros(0, 4, dtype=torch.int64))
