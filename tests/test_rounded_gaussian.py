from __future__ import annotations

from fractions import Fraction

import mpmath
import pytest
import torch

from certify import rounded_gaussian
from certify.draws import ESTIMATION, Draws
from certify.generators import splitmix64, splitmix64_at
from certify.rounded_gaussian import RoundedGaussian

CPU = torch.device("cpu")


def draws(items=1, copies=range(50), seed=0) -> Draws:
    return Draws.of(seed, ESTIMATION, torch.arange(items), copies)


@pytest.mark.parametrize("deviation", [Fraction(1, 7), Fraction(9, 10), Fraction(255, 8)], ids=float)
def test_probabilities_are_those_of_a_rounded_gaussian(deviation):
    """Every threshold against 50 digits, and the total variation distance against what the certificate allows for."""
    noise = RoundedGaussian(deviation)
    weights, total = noise.weights(), 1 << 64
    assert len(weights) == 2 * noise.reach + 1
    assert sum(weights) == total
    assert weights == weights[::-1]
    with mpmath.workdps(50):
        below, moved = 0, mpmath.mpf(0)
        for j, weight in zip(range(-noise.reach, noise.reach), weights, strict=False):
            below += weight
            exact = mpmath.ncdf((j + mpmath.mpf(1) / 2) * deviation.denominator / deviation.numerator)
            assert abs(below - exact * total) < 0.5 + 1e-6
            moved += abs(mpmath.mpf(below) / total - exact)
        beyond = 2 * mpmath.ncdf(-(noise.reach + mpmath.mpf(1) / 2) * deviation.denominator / deviation.numerator)
        assert moved + beyond <= mpmath.mpf(noise.slip.numerator) / noise.slip.denominator
    assert noise.slip < deviation * Fraction(1, 1 << 60) + Fraction(1, 1 << 60)


@pytest.mark.parametrize("deviation", [Fraction(1, 7), Fraction(9, 10), Fraction(40)], ids=float)
def test_the_alias_table_has_exactly_these_probabilities(deviation):
    noise = RoundedGaussian(deviation)
    bits, cuts, tops, values = rounded_gaussian._alias_table(noise, CPU)
    first = (torch.arange(1 << bits) << 64 - bits) + cuts  # border and number of the column, modulo 2^64
    assert torch.equal(tops.long() & 0xFFFFFFFF, first >> 32 & 0xFFFFFFFF)
    shares = dict.fromkeys(range(-noise.reach, noise.reach + 1), 0)
    for (other, own), cut in zip(values.view(2, -1).T.tolist(), cuts.tolist(), strict=True):
        shares[own] = shares.get(own, 0) + cut
        shares[other] = shares.get(other, 0) + (1 << 64 - bits) - cut
    assert shares.pop(max(shares)) >= 0  # columns beyond the last value have a share of 0
    assert {k: n for k, n in shares.items() if n} == {
        k: n for k, n in zip(range(-noise.reach, noise.reach), noise.weights(), strict=False) if n
    }


@pytest.mark.parametrize("deviation", [Fraction(1, 100), Fraction(1, 7), Fraction(9, 10), Fraction(255, 4)], ids=float)
@pytest.mark.parametrize("count", [1, 6, 784])
def test_numbers_are_what_64_bits_say(deviation, count, monkeypatch):
    """Two thirds of the first 32 bits are on the border between the two values of a column, where 32 more decide, or
    just below it; of these, half are the border's own, and half one less."""
    noise, given = RoundedGaussian(deviation), draws(2, range(7))
    bits, cuts, _, values = rounded_gaussian._alias_table(noise, CPU)
    words = splitmix64(given.keys().view(-1, 1), count) & 0xFFFFFFFF
    column = words >> (32 - bits)
    border = (column << (32 - bits)) + (cuts[column] >> 32).clamp(max=(1 << (32 - bits)) - 1)
    kind = torch.arange(count) % 3
    words = torch.where(kind == 0, border, torch.where((kind == 1) & (cuts[column] >> 32 > 0), border - 1, words))
    more = ((cuts[column] & 0xFFFFFFFF) - torch.arange(14)[:, None] % 2).clamp(min=0)
    asked = []

    def first(keys, n):  # all copies at once, two numbers of each output, the lower half first
        whole = torch.nn.functional.pad(words, (0, 2 * n - count)).view(14, n, 2)
        return whole[..., 0] | whole[..., 1] << 32

    def second(keys, positions):
        rows = (given.keys().view(1, -1) == keys[:, None]).int().argmax(1)
        asked.append(len(rows))
        return more[rows, -1 - positions] << 32 | 12345

    monkeypatch.setattr(rounded_gaussian, "splitmix64", first)
    monkeypatch.setattr(rounded_gaussian, "splitmix64_at", second)
    drawn = noise.draw(given, count)
    assert drawn.shape == (2, 7, count)
    assert drawn.dtype == torch.float32
    assert sum(asked) > 0  # not of columns that one value has alone
    for row, rest, number in zip(words.tolist(), more.tolist(), drawn.view(14, count).tolist(), strict=True):
        for word, low, got in zip(row, rest, number, strict=True):
            place, inside = divmod(word << 32 | low, 1 << (64 - bits))
            assert got == values[place + (inside < int(cuts[place])) * len(cuts)]


def test_later_bits_are_those_of_the_copy():
    """Of 240,000 numbers, several lie on a border as far as 32 bits tell; where they come out depends on 32 more."""
    noise, given = RoundedGaussian(Fraction(4000)), draws(1, range(300))
    bits, cuts, _, values = rounded_gaussian._alias_table(noise, CPU)
    keys = given.keys().view(-1)
    longs = splitmix64(keys[:, None], 400)
    words = torch.stack((longs & 0xFFFFFFFF, longs >> 32 & 0xFFFFFFFF), -1).view(300, 800)
    column, inside = words >> (32 - bits), words & ((1 << (32 - bits)) - 1)
    level = inside == cuts[column] >> 32
    assert level.sum() > 3
    drawn = noise.draw(given, 800)[0]
    for row, place in level.nonzero().tolist():
        more = int(splitmix64_at(keys[row], torch.tensor([-1 - place]))) % (1 << 64) >> 32
        i = int(column[row, place])
        assert drawn[row, place] == values[i + (more < int(cuts[i]) % (1 << 32)) * len(cuts)]


def test_numbers_depend_on_the_copy_not_on_the_batch():
    noise = RoundedGaussian(Fraction(255, 4))
    together = noise.draw(draws(3, range(9)), 31)
    for item, copy in ((0, 0), (2, 8), (1, 4)):
        alone = noise.draw(Draws.of(0, ESTIMATION, torch.tensor([item]), range(copy, copy + 1)), 31)
        assert torch.equal(alone[0, 0], together[item, copy])


def test_many_numbers_are_made_in_parts(monkeypatch):
    noise = RoundedGaussian(Fraction(255, 4))
    whole = noise.draw(draws(3, range(9)), 31)
    monkeypatch.setattr(rounded_gaussian, "_CHUNK", 100)
    assert torch.equal(noise.draw(draws(3, range(9)), 31), whole)
    shared = Draws(0, ESTIMATION, torch.arange(3)[:, None], torch.tensor([[4], [2], [0]]))
    assert torch.equal(noise.draw(shared, 31)[:, 0], whole[torch.arange(3), torch.tensor([4, 2, 0])])


def test_moments_and_independence():
    noise = RoundedGaussian(Fraction(51, 4))
    numbers = noise.draw(draws(1, range(4000)), 50)[0].double() / 12.75
    n = numbers.numel()
    assert abs(numbers.mean()) < 5 / n**0.5
    # rounding adds the variance of a uniform step
    assert abs(numbers.var() - 1 - 1 / (12 * 12.75**2)) < 5 * (2 / n) ** 0.5
    correlation = torch.corrcoef(numbers.T) - torch.eye(50)
    assert correlation.abs().max() < 5.5 / 4000**0.5


@pytest.mark.parametrize("sigma", [1e-6, 1e-30, 5e-324])
def test_noise_far_below_a_step_is_none(sigma):
    noise = RoundedGaussian(Fraction(sigma) * 255)
    assert noise.weights() == [0, 1 << 64, 0]
    assert not noise.draw(draws(2), 5).any()


@pytest.mark.parametrize("deviation", [Fraction(0), Fraction(-1), Fraction(20_000)], ids=float)
def test_deviations_out_of_range(deviation):
    with pytest.raises(ValueError, match="sigma"):
        RoundedGaussian(deviation)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("deviation", [Fraction(1, 100), Fraction(255, 4), Fraction(14_000)], ids=float)
def test_cuda_gives_the_same_numbers(deviation):
    """Of wide noise, several of these numbers take more than 32 bits."""
    noise = RoundedGaussian(deviation)
    cuda = Draws.of(0, ESTIMATION, torch.arange(3, device="cuda"), range(50))
    assert torch.equal(noise.draw(cuda, 784).cpu(), noise.draw(draws(3), 784))
