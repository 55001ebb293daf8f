"""Certificates against every possible change of the votes of ever more models."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from certify.ablation import touched_shares
from certify.poisoning import certificates
from certify.poisoning.certificates import certify_counts, certify_finite, certify_run_off, count_votes


def _profiles(choices: list, models: int) -> torch.Tensor:
    """Every way in which the models may vote: int64 ``[len(choices)^models, models, ...]``."""
    index = torch.tensor(list(itertools.product(range(len(choices)), repeat=models)))
    return torch.tensor(choices)[index]


def _changed_models(profiles: torch.Tensor) -> torch.Tensor:
    """Between every two profiles, which models differ: bool ``[N, N, models]``."""
    differs = profiles[:, None] != profiles[None]
    return differs.any(3) if differs.ndim == 4 else differs


@pytest.mark.parametrize(("models", "classes"), [(1, 2), (4, 2), (7, 2), (1, 3), (2, 3), (5, 3), (4, 4)])
def test_plurality_radius_is_exact(models, classes):
    votes = _profiles(list(range(classes)), models)
    result = certify_counts(count_votes(votes, classes))
    distance = _changed_models(votes).sum(2)
    other = result.prediction[:, None] != result.prediction[None]
    fewest = torch.where(other, distance, models + 1).amin(1)
    assert torch.equal(result.radius, (fewest - 1).double())


@pytest.mark.parametrize(("models", "classes"), [(1, 2), (5, 2), (1, 3), (2, 3), (3, 3), (4, 3), (1, 4), (2, 4)])
def test_run_off_radius_is_exact(models, classes):
    rankings = _profiles(list(itertools.permutations(range(classes))), models)
    result = certify_run_off(rankings)
    assert torch.equal(result.prediction, torch.tensor([_elect(r.tolist(), classes) for r in rankings]))
    distance = _changed_models(rankings).sum(2)
    other = result.prediction[:, None] != result.prediction[None]
    fewest = torch.where(other, distance, models + 1).amin(1)
    assert torch.equal(result.radius, (fewest - 1).double())


@pytest.mark.slow
@pytest.mark.parametrize(("models", "classes"), [(5, 3), (3, 4)])
def test_run_off_radius_is_exact_for_more_models(models, classes):
    test_run_off_radius_is_exact(models, classes)


@pytest.mark.parametrize(("models", "classes"), [(6, 4), (7, 4), (9, 3)])
def test_run_off_radius_where_elimination_decides(models, classes):
    """Attacks on how many models have which ranking, not on each of them: all that change as few as the radius says."""
    rankings = torch.rand((3_000, models, classes), generator=torch.Generator().manual_seed(models)).argsort(2)
    winner, first, joint = certificates._elect(rankings)
    eliminated = certificates._to_eliminate(first, winner)
    decides = eliminated < certificates._to_replace(first, joint, winner, models)
    # those for which rounding matters first: two rivals that lack a multiple of three together
    decided = rankings[decides][(eliminated[decides] - 1).argsort(descending=True, stable=True)[:25]]
    result = certify_run_off(decided)
    assert result.radius.max() >= 1
    for profile, prediction, radius in zip(decided, result.prediction.tolist(), result.radius.tolist(), strict=True):
        assert not _winners_after(profile, int(radius)) - {prediction}
        assert _winners_after(profile, int(radius) + 1) - {prediction}


def _winners_after(profile: torch.Tensor, changed: int) -> set[int]:
    """The classes that can win when so many models change, by trying all ways to take and to give rankings."""
    classes = profile.shape[1]
    types = torch.tensor(list(itertools.permutations(range(classes))))
    which = (profile[:, None] == types).all(2).long().argmax(1).tolist()
    taken = {tuple(sorted(t)) for t in itertools.combinations(which, changed)}
    given = list(itertools.combinations_with_replacement(range(len(types)), changed))
    one_hot = torch.eye(len(types), dtype=torch.int64)
    counts = one_hot[which].sum(0) - torch.stack([one_hot[list(t)].sum(0) for t in taken])
    counts = (counts[:, None] + torch.stack([one_hot[list(t)].sum(0) for t in given])).flatten(0, 1)
    first = counts @ torch.nn.functional.one_hot(types[:, 0], classes)
    place = types.argsort(1)
    prefer = (place[:, :, None] < place[:, None, :]).long().flatten(1)  # [types, a * b]: a before b
    ahead = (counts @ prefer).view(-1, classes, classes)
    order = (first * classes - torch.arange(classes)).argsort(1, descending=True)[:, :2].sort(1).values
    low, high = order[:, 0], order[:, 1]
    row = torch.arange(len(counts))
    return set(torch.where(ahead[row, low, high] >= ahead[row, high, low], low, high).tolist())


def _elect(rankings: list[list[int]], classes: int) -> int:
    """The rule in plain words."""
    first = [sum(r[0] == c for r in rankings) for c in range(classes)]
    finalists = sorted(range(classes), key=lambda c: (-first[c], c))[:2]
    second = {c: sum(r.index(c) < r.index(o) for r in rankings) for c, o in itertools.permutations(finalists, 2)}
    return min(finalists, key=lambda c: (-second[c], c))


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(2, 6), st.integers(0, 10**6))
def test_run_off_agrees_with_the_plain_rule_and_the_published_bound(models, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand((1, models, classes), generator=generator) + torch.linspace(0.6, 0, classes)
    rankings = noise.argsort(2, descending=True)
    result = certify_run_off(rankings)
    assert result.prediction.tolist() == [_elect(rankings[0].tolist(), classes)]
    assert _published(rankings[0].tolist(), classes) <= result.radius.item() < models


def _published(rankings: list[list[int]], classes: int) -> int:
    """The radius of the paper: the second round and the way into it are looked at one after the other."""
    first = [sum(r[0] == c for r in rankings) for c in range(classes)]
    winner = _elect(rankings, classes)
    finalists = sorted(range(classes), key=lambda c: (-first[c], c))[:2]
    other = finalists[0] if finalists[1] == winner else finalists[1]

    def half(gap: int) -> int:
        return max(0, -(-gap // 2))

    def gap(votes: list[int], a: int, b: int) -> int:  # votes a has to lose to b, at one a change
        return votes[a] - votes[b] + (b > a)

    ways = []
    for a in range(classes):
        if a != winner:
            pair = [sum(r.index(c) < r.index(o) for r in rankings) for c, o in ((winner, a), (a, winner))]
            wins = half(pair[0] - pair[1] + (a > winner))
            ways.append(max(wins, 0 if a == other else half(gap(first, other, a))))
    for a, b in itertools.combinations([c for c in range(classes) if c != winner], 2):
        lacks = sorted(max(0, gap(first, winner, c)) for c in (a, b))
        ways.append(max(half(lacks[1]), -(-sum(lacks) // 3)))
    return min(ways) - 1


@pytest.mark.parametrize(
    ("models", "classes", "offsets"),
    [(5, 2, (0, 1)), (6, 2, (0, 2)), (5, 3, (0, 1)), (6, 2, (0, 1, 3)), (4, 4, (0, 1))],
)
def test_finite_aggregation_holds_for_every_choice_of_buckets(models, classes, offsets):
    votes = _profiles(list(range(classes)), models)
    feeds = (torch.arange(models)[:, None] + torch.tensor(offsets)) % models
    result = certify_finite(votes, feeds, classes)
    changed, attacked = _changed_models(votes), 0
    other = result.prediction[:, None] != result.prediction[None]
    for r in range(1, models + 1):
        certified = result.radius >= r
        for buckets in itertools.combinations(range(models), r):
            touched = torch.zeros(models, dtype=torch.bool)
            touched[feeds[list(buckets)].flatten()] = True
            reachable = ~(changed & ~touched).any(2)
            assert not (reachable & other & certified[:, None]).any()
            attacked += int(certified.sum())
    assert attacked > 0


@settings(max_examples=30)
@given(st.integers(1, 30), st.integers(2, 5), st.integers(0, 10**6))
def test_finite_aggregation_with_one_bucket_each_is_partition_aggregation(models, classes, seed):
    votes = torch.randint(0, classes, (3, models), generator=torch.Generator().manual_seed(seed))
    finite = certify_finite(votes, torch.arange(models)[:, None], classes)
    plain = certify_counts(count_votes(votes, classes))
    assert torch.equal(finite.prediction, plain.prediction)
    assert torch.equal(finite.radius, plain.radius)


def test_run_off_may_overturn_the_plurality():
    rankings = torch.tensor([[[0, 1, 2]] * 4 + [[1, 2, 0]] * 3 + [[2, 1, 0]] * 2])
    assert certify_counts(count_votes(rankings[..., 0], 3)).prediction.tolist() == [0]
    assert certify_run_off(rankings).prediction.tolist() == [1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: certify_counts(torch.rand(2, 3)), "integer votes"),
        (lambda: certify_run_off(torch.rand(2, 3, 4)), "rankings: got torch.float32"),
        (lambda: certify_run_off(torch.zeros(2, 3, 4).long()), r"each of 0\.\.3 once"),
        (lambda: certify_finite(torch.tensor([[0, 7]]), torch.tensor([[0], [1]]), 3), "votes: got classes"),
        (lambda: certify_finite(torch.tensor([[0, 1]]), torch.tensor([[0], [2]]), 3), "feeds"),
    ],
)
def test_wrong_votes_are_refused(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_retaining_labels_at_random_poisons_hardly_fewer_models():
    """App. F.3: r flipped labels reach the share F.11 of models that see s of m labels at random, or F.12 of m / s."""
    assert round(float(touched_shares(60_000, 50)[200]), 3) == 0.154
    assert round(200 * 50 / 60_000, 3) == 0.167
    for m, s in ((12, 3), (20, 4), (60, 5)):
        for r, at_random in enumerate(touched_shares(m, s)):
            assert at_random <= Fraction(r * s, m)
