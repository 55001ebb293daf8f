from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from certify.draws import ESTIMATION, SELECTION, Draws
from certify.generators import splitmix64


def draws(items=1, copies=range(1), seed=0, stream=ESTIMATION) -> Draws:
    return Draws.of(seed, stream, torch.arange(items), copies)


@given(start=st.integers(0, 40), count=st.integers(1, 40))
def test_words_can_be_read_from_anywhere(start, count):
    d = draws(2, range(5, 8), seed=2**63 + 5)
    assert torch.equal(d.words(count, start), d.words(start + count)[..., start:])


def test_words_depend_on_the_copy_not_on_the_batch():
    together = draws(4, range(300)).words(9)
    for item, copy in itertools.product((0, 3), (0, 17, 299)):
        alone = Draws.of(0, ESTIMATION, torch.tensor([item]), range(copy, copy + 1)).words(9)
        assert torch.equal(alone[0, 0], together[item, copy])


def test_streams_seeds_items_and_copies_never_share_words():
    words = [
        draws(20, range(20), seed, stream).words(8).flatten()
        for seed, stream in itertools.product((0, 1, 2**32), (SELECTION, ESTIMATION))
    ]
    every = torch.cat(words)
    # 19,200 words of 32 bits: about 0.04 chance collisions are expected
    assert len(every.unique()) >= len(every) - 2


def test_parts_are_independent():
    words = [draws(3, range(40)).substream(part).words(16).flatten() for part in range(4)]
    assert len(torch.cat(words).unique()) >= 4 * len(words[0]) - 2


def test_integers_are_uniform_and_in_range():
    values = draws(1, range(60_000)).integers(7, 1).flatten()
    counts = torch.bincount(values, minlength=7)
    assert len(counts) == 7
    assert ((counts - 60_000 / 7) ** 2 / (60_000 / 7)).sum() < 25  # chi-square, 6 degrees of freedom, p = 0.0003


def test_uniforms_have_all_their_52_bits():
    given = draws(1, range(2_000))
    u = given.uniforms(3)
    assert u.dtype == torch.float64
    words = given.words(6).view(1, 2_000, 3, 2)
    exact = (words[..., 0] << 20) + (words[..., 1] >> 12)
    assert torch.equal((u * 2.0**52).floor().to(torch.int64), exact)
    assert (u * 2.0**53 == (2 * exact + 1).to(torch.float64)).all()


def test_uniforms_fill_the_unit_interval():
    u = draws(1, range(50_000)).uniforms(1).flatten()
    assert 0 < u.min() < 1e-3
    assert 1 - 1e-3 < u.max() < 1
    empirical = torch.arange(1, len(u) + 1) / len(u)
    assert (u.sort().values - empirical).abs().max() < 0.009  # Kolmogorov-Smirnov, p < 0.001


@pytest.mark.parametrize(("keep", "of"), [(1, 5), (2, 5), (3, 5), (4, 5), (3, 6)])
def test_subsets_are_uniform(keep, of):
    n = 30_000
    masks = draws(1, range(n)).subsets(keep, of)[0]
    assert (masks.sum(-1) == keep).all()
    counts = Counter(tuple(mask.nonzero().flatten().tolist()) for mask in masks)
    subsets = list(itertools.combinations(range(of), keep))
    expected = n / len(subsets)
    chi_square = sum((counts[s] - expected) ** 2 / expected for s in subsets)
    assert sum(counts.values()) == n
    assert chi_square < len(subsets) + 5 * (2 * len(subsets)) ** 0.5


@given(of=st.integers(1, 80), data=st.data())
def test_subsets_have_the_right_size(of, data):
    keep = data.draw(st.integers(0, of))
    masks = draws(2, range(7)).subsets(keep, of)
    assert masks.shape == (2, 7, of)
    assert (masks.sum(-1) == keep).all()


def test_subsets_do_not_depend_on_how_many_words_were_read(monkeypatch):
    expected = draws(3, range(50)).subsets(10, 40)
    # too few words at first: the sampler has to come back for more
    monkeypatch.setattr("certify.draws._expected_draws", lambda chosen, of: chosen)
    assert torch.equal(draws(3, range(50)).subsets(10, 40), expected)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_out_of_range(seed):
    with pytest.raises(ValueError, match="seed"):
        draws(seed=seed)


@pytest.mark.parametrize(("keep", "of"), [(-1, 3), (4, 3)])
def test_subset_size_out_of_range(keep, of):
    with pytest.raises(ValueError, match="keep"):
        draws().subsets(keep, of)


@pytest.mark.gpu
def test_cuda_gives_the_same_words():
    cpu, cuda = draws(3, range(100)), Draws.of(0, ESTIMATION, torch.arange(3, device="cuda"), range(100))
    assert torch.equal(cuda.words(33).cpu(), cpu.words(33))
    assert torch.equal(cuda.subsets(45, 784).cpu(), cpu.subsets(45, 784))


def test_keys_are_two_words_and_their_numbers_differ():
    d = Draws.of(3, ESTIMATION, torch.tensor([4, 9]), range(2, 500))
    high, low = d.words(2).unbind(-1)
    assert torch.equal(d.keys()[..., 0], (high << 32) + low)
    numbers = splitmix64(d.keys(), 30)
    assert numbers.shape == (2, 498, 30)
    assert len(numbers.unique()) == numbers.numel()
    assert ((numbers < 0).double().mean() - 0.5).abs() < 4 * 0.5 / math.sqrt(numbers.numel())
