"""Double masking: every patch lies in a mask, the prediction is the published algorithm, certificates are attacked."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from certify import DoubleMasking, Patch, Smoothed, ThresholdVote
from certify.double_masking import mask_starts
from certify.testing import RandomTable
from tests.test_patch import every_attack


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 8))
def test_every_patch_lies_in_a_mask(size, patch, masks):
    starts, length = mask_starts(size, patch, masks)
    patch = min(patch, size)
    assert len(starts) <= masks
    assert all(0 <= start <= size - length for start in starts)
    assert len(set(starts)) == len(starts)
    for first in range(size - patch + 1):
        assert any(start <= first and first + patch <= start + length for start in starts)


def test_published_number_of_copies():
    """6 masks a side: 36 predictions of the first round, 666 for a certificate."""
    assert DoubleMasking(32).num_copies((3, 224, 224)) == 36 * 37 // 2


def test_copies_hide_one_or_two_masks():
    scheme, x = DoubleMasking(1, masks=3, fill=0.25), torch.ones(1, 2, 1, 6)
    copies = scheme.copies(x, torch.arange(6)[None])[0, :, 0, 0]
    shown = [[0, 1], [0, 1, 2, 3], [0, 1, 4, 5], [2, 3], [2, 3, 4, 5], [4, 5]]
    assert [(row == 0.25).nonzero()[:, 0].tolist() for row in copies] == shown


def published_algorithm(table: dict[tuple[int, int], int], masks: int) -> int:
    """Algorithm 1, mask by mask; ties of the majority go to the lower class."""
    first = [table[i, i] for i in range(masks)]
    majority = max(sorted(set(first)), key=first.count)
    if len(set(first)) == 1:
        return majority
    for i in range(masks):
        if first[i] != majority and all(table[min(i, j), max(i, j)] == first[i] for j in range(masks)):
            return first[i]
    return majority


@given(st.integers(0, 10**6), st.sampled_from([0.2, 0.6, 0.9, 1.0]))
def test_prediction_is_the_published_algorithm(seed, share):
    scheme, shape, masks = DoubleMasking(1, masks=4), (1, 1, 8), 4
    generator = torch.Generator().manual_seed(seed)
    pairs = list(itertools.combinations_with_replacement(range(masks), 2))
    classes = torch.randint(3, (4, len(pairs)), generator=generator)
    classes[torch.rand(classes.shape, generator=generator) < share] = 1
    # one mask that disagrees and keeps to it
    odd = torch.tensor([2 in pair for pair in pairs])
    classes[2:, odd] = 2
    by_copy = torch.nn.functional.one_hot(classes, 3).bool()
    result = scheme.certify_copies(by_copy, shape=shape)
    expected = [published_algorithm(dict(zip(pairs, row, strict=True)), masks) for row in classes.tolist()]
    assert result.prediction.tolist() == expected
    assert result.radius.tolist() == [float(len(set(row)) == 1) for row in classes.tolist()]


@pytest.mark.parametrize(
    ("scheme", "shape", "patch"),
    [(DoubleMasking(2, masks=2), (1, 4, 4), (2, 2)), (DoubleMasking((1, 3), masks=2, fill=0), (1, 3, 5), (1, 3))],
)
def test_no_patch_breaks_a_certificate(scheme, shape, patch):
    certified = 0
    for seed in range(6):
        base = RandomTable(3, seed, bias=0.9)
        smoothed = Smoothed(base, scheme, 3, batch_size=64)
        x = torch.randint(2, (4, *shape), generator=torch.Generator().manual_seed(seed)).float()
        result = smoothed.certify(x)
        assert torch.equal(result.prediction, smoothed.predict(x))
        for i in (result.radius > 0).nonzero()[:, 0].tolist():
            assert (smoothed.predict(every_attack(x[i], patch, 2)) == result.prediction[i]).all()
            certified += 1
    assert certified > 0


def test_threat():
    assert DoubleMasking(3).threat == Patch()
    assert DoubleMasking((2, 3)).threat == Patch(2, 3)
    votes = torch.zeros(1, DoubleMasking(3).num_copies((1, 8, 8)), 2, dtype=torch.bool)
    votes[..., 1] = True
    assert DoubleMasking(3).certify_copies(votes, shape=(1, 8, 8)).radius.tolist() == [3]
    votes = torch.ones(1, DoubleMasking((3, 2)).num_copies((1, 8, 8)), 2, dtype=torch.bool)
    votes[..., 1] = False
    assert DoubleMasking((3, 2)).certify_copies(votes, shape=(1, 8, 8)).radius.tolist() == [1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patch": 0}, "patch_size: got 0"),
        ({"patch": 3, "masks": 0}, "masks: got 0"),
        ({"patch": 3, "fill": 1.5}, "fill: got 1.5"),
    ],
)
def test_bad_parameters(arguments, message):
    with pytest.raises(ValueError, match=message):
        DoubleMasking(**arguments)


def test_bad_votes():
    def base(copies: Tensor) -> Tensor:
        return torch.zeros(len(copies), 2)

    with pytest.raises(ValueError, match="needs the argmax vote"):
        Smoothed(base, DoubleMasking(3), 2, vote=ThresholdVote(0.9)).certify(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"expected \[B, 666, classes\]"):
        DoubleMasking(3).certify_copies(torch.ones(1, 5, 2, dtype=torch.bool), shape=(1, 28, 28))
    with pytest.raises(ValueError, match="copy by copy"):
        DoubleMasking(3).certify_counts(torch.tensor([[3, 1]]))
