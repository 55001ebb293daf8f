"""Certificates against poisoning: pure functions of the integer votes of models on partitions of the training set.

They use a single fact about training: whatever the adversary does within a radius r, at most r models (or, with finite
aggregation, the models fed by at most r buckets) change, and these may then vote for any class.
"""

from __future__ import annotations

import torch
from torch import Tensor

from certify.scheme import Certified, check_counts, leader_and_gap
from certify.threats import PoisoningThreat, TrainingSamples

_CHUNK = 1 << 22  # elements of the largest temporary tensor


def certify_counts(counts: Tensor, *, threat: PoisoningThreat | None = None) -> Certified:
    """Partition aggregation (DPA, SS-DPA): the plurality of models that share no training samples.

    Guarantee: after at most ``radius`` changes in the unit of ``threat``, each of which affects one partition, the
    ensemble still returns ``prediction``. No larger radius follows from the votes. Source: dissertation, Theorems 7.1
    and 7.2 (Levine and Feizi, ICLR 2021).

    Args:
        counts: int64 ``[B, C]``, how many models vote for each class.
        threat: the threat model of the partitions, by default :class:`~certify.threats.TrainingSamples`.

    Returns:
        the class with the most votes (ties to the lower index; never abstains) and its inclusive radius.
    """
    prediction, gap = leader_and_gap(counts)
    return Certified(prediction, (gap // 2).to(torch.float64), threat or TrainingSamples())


def certify_finite(
    votes: Tensor, feeds: Tensor, num_classes: int, *, threat: PoisoningThreat | None = None
) -> Certified:
    """Finite aggregation: the plurality of models, each of which is trained on several buckets of the training set.

    Guarantee: that of :func:`certify_counts`. A poisoned bucket changes the models it feeds. A changed model can narrow
    the gap between the predicted class c and a rival by 2 if it voted for c, by 0 if it voted for the rival, and by 1
    otherwise. The radius is the largest r for which no r buckets can close the gap, where the contributions of each
    bucket's models are summed: a model fed by two of these buckets counts twice, which can only make the radius
    smaller. With one bucket per model this is :func:`certify_counts`. Source: Wang, Levine and Feizi (ICML 2022, arXiv
    2202.02628).

    Args:
        votes: int ``[B, models]``, the class that each model votes for.
        feeds: int64 ``[buckets, d]``, the models that are trained on each bucket.
        num_classes: number of classes.
        threat: see :func:`certify_counts`.
    """
    _check_votes(votes, num_classes)
    if feeds.ndim != 2 or feeds.numel() == 0 or feeds.min() < 0 or feeds.max() >= votes.shape[1]:
        raise ValueError(
            f"feeds: got shape {tuple(feeds.shape)}, expected [buckets, d] with model indices below {votes.shape[1]}"
        )
    predictions, radii = [], []
    for part in votes.long().split(max(1, _CHUNK // feeds.numel())):
        one_hot = torch.nn.functional.one_hot(part, num_classes)
        counts = one_hot.sum(1)
        leader = leader_and_gap(counts)[0]
        own = one_hot.gather(2, leader[:, None, None].expand(-1, part.shape[1], 1))[..., 0]
        radius = torch.full_like(leader, len(feeds))
        for rival in range(num_classes):
            gap = counts.gather(1, leader[:, None])[:, 0] - counts[:, rival] - (rival < leader).long()
            narrowed = (own + 1 - one_hot[..., rival])[:, feeds].sum(2)
            reach = narrowed.sort(1, descending=True).values.cumsum(1)
            steps = (reach <= gap[:, None]).sum(1)  # the number of radii that hold, as reach is nondecreasing
            radius = torch.where(leader == rival, radius, torch.minimum(radius, steps))
        predictions.append(leader)
        radii.append(radius)
    return Certified(torch.cat(predictions), torch.cat(radii).to(torch.float64), threat or TrainingSamples())


def certify_run_off(rankings: Tensor, *, threat: PoisoningThreat | None = None) -> Certified:
    """Run-off election: the two classes with the most first votes meet in a second round among all models.

    In the second round, each model votes for whichever of the two it ranks higher. All ties go to the lower class.

    Guarantee: that of :func:`certify_counts`. Source of the rule: Rezaei, Banihashem, Chegini and Feizi (ICML 2023,
    arXiv 2302.02300). The radius here is the largest that follows from the rankings, and never below theirs. It is one
    less than the smallest number of changed models that can alter the prediction c, which happens in one of two ways.

    * c misses the second round: two classes, which lack g1 <= g2 votes, get ahead of it. A model that leaves c for one
      of them brings that class 2 votes closer and the other one 1, so ``max(ceil(g2 / 2), ceil((g1 + g2) / 3))`` models
      suffice.
    * another class a reaches the second round and wins it. The best strategy makes s models rank a first: as many that
      preferred c to a as a lacks in the second round, and enough voters of each class that is ahead of a in the first.

    Args:
        rankings: int ``[B, models, C]``, each model's classes from best to worst.
        threat: see :func:`certify_counts`.
    """
    if rankings.ndim != 3 or rankings.shape[2] < 2 or rankings.shape[1] < 1 or rankings.is_floating_point():
        raise ValueError(f"rankings: got {rankings.dtype} {tuple(rankings.shape)}, expected integers [B, models, C]")
    models, classes = rankings.shape[1:]
    predictions, radii = [], []
    for part in rankings.split(max(1, _CHUNK // (models * classes + classes**2))):
        ranking = part.long()
        if not torch.equal(ranking.sort(2).values, torch.arange(classes, device=ranking.device).expand_as(ranking)):
            raise ValueError(f"rankings: got repeated or unknown classes, expected each of 0..{classes - 1} once")
        winner, first, narrow = _elect(ranking)
        fewest = torch.minimum(_to_eliminate(first, winner), _to_replace(first, narrow, winner, models))
        predictions.append(winner)
        radii.append(fewest - 1)
    return Certified(torch.cat(predictions), torch.cat(radii).to(torch.float64), threat or TrainingSamples())


def _elect(ranking: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The election.

    Returns:
        int64 ``[B]`` winner; int64 ``[B, C]`` first votes; int64 ``[B, C, C]``: entry (t, a) counts the models that
        rank t first and the winner above a.
    """
    classes = ranking.shape[2]
    place = ranking.argsort(2)
    top = torch.nn.functional.one_hot(ranking[..., 0], classes)
    first = top.sum(1)
    leader = first.argmax(1, keepdim=True)  # the first maximum
    second = first.scatter(1, leader, -1).argmax(1, keepdim=True)

    def places_of(which: Tensor) -> Tensor:
        return place.gather(2, which[:, None].expand(-1, place.shape[1], 1))

    for_leader = 2 * (places_of(leader) < places_of(second)).sum(1) - ranking.shape[1]  # how far it is ahead
    wins = (for_leader > 0) | ((for_leader == 0) & (leader < second))
    winner = torch.where(wins, leader, second)
    above = (places_of(winner) < place).to(torch.float64)
    joint = top.to(torch.float64).transpose(1, 2) @ above  # whole numbers below 2^53: exact
    return winner[:, 0], first, joint.round().long()


def _to_eliminate(first: Tensor, winner: Tensor) -> Tensor:
    """The fewest changed models that put two classes ahead of the winner in the first round: int64 ``[B]``."""
    classes = first.shape[1]
    if classes < 3:
        return torch.full_like(winner, torch.iinfo(torch.int64).max)
    index = torch.arange(classes, device=first.device)
    own = first.gather(1, winner[:, None])
    lacks = (own - first + (index > winner[:, None])).clamp(min=0)
    lacks = lacks.scatter(1, winner[:, None], torch.iinfo(torch.int64).max).sort(1).values
    return torch.maximum((lacks[:, 1] + 1) // 2, (lacks[:, 0] + lacks[:, 1] + 2) // 3)


def _to_replace(first: Tensor, joint: Tensor, winner: Tensor, models: int) -> Tensor:
    """The fewest changed models that make another class reach the second round and win it: int64 ``[B]``.

    Binary search over the number s of models that come to rank the class a first; success is monotone in s.

    Args:
        joint: see :func:`_elect`.
    """
    size, classes = first.shape
    index = torch.arange(classes, device=first.device)
    for_winner = joint.sum(1)  # [B, a]: models that prefer the winner to a
    margin = 2 * for_winner - models - (index < winner[:, None]).long()  # the winner wins iff it is not negative
    to_win = (margin // 2 + 1).clamp(min=0)
    # [B, a, b]: how many votes a, with its own first votes, lacks to be ahead of b
    before = first[:, None, :] - first[:, :, None] + (index[:, None] > index)
    rivals = ~torch.eye(classes, dtype=torch.bool, device=first.device) & (index != winner[:, None, None])
    before = before.masked_fill(~rivals, torch.iinfo(torch.int64).min // 2)
    voters = joint.transpose(1, 2)  # [B, a, b]: voters of b that prefer the winner to a
    low = torch.zeros((size, classes), dtype=torch.int64, device=first.device)
    high = models - first  # everyone ranks a first
    while (low < high).any():
        s = (low + high) // 2
        go = (before - s[..., None]).clamp(min=0)
        of_winner = torch.minimum(go, voters).sum(2)  # those who switch and preferred the winner
        free = s - go.sum(2)
        enough = (free >= 0) & (of_winner + torch.minimum(free, for_winner - of_winner) >= to_win)
        high, low = torch.where(enough, s, high), torch.where(enough, low, torch.minimum(s + 1, high))
    return high.scatter(1, winner[:, None], torch.iinfo(torch.int64).max).amin(1)


def _check_votes(votes: Tensor, num_classes: int) -> None:
    if votes.ndim != 2 or votes.is_floating_point() or votes.shape[1] < 1:
        raise ValueError(f"votes: got {votes.dtype} {tuple(votes.shape)}, expected integers [B, models]")
    if votes.numel() and (votes.min() < 0 or votes.max() >= num_classes):
        raise ValueError(f"votes: got classes {votes.min()}..{votes.max()}, expected 0..{num_classes - 1}")


def count_votes(votes: Tensor, num_classes: int) -> Tensor:
    """How many models vote for each class: int64 ``[B, C]`` from votes int ``[B, models]``."""
    _check_votes(votes, num_classes)
    counts = torch.zeros((len(votes), num_classes), dtype=torch.int64, device=votes.device)
    counts.scatter_add_(1, votes.long(), torch.ones_like(votes, dtype=torch.int64))
    check_counts(counts)
    return counts
