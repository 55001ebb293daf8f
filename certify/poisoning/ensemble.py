"""An ensemble on partitions of a training set: which model is trained on what, and what its votes certify."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from certify.checks import check_integer
from certify.poisoning.certificates import certify_counts, certify_finite, certify_run_off, count_votes
from certify.poisoning.learner import Learner, Part, State, rank_classes, seeded
from certify.poisoning.partition import Partitioner, sample_keys, spread_buckets
from certify.scheme import Certified
from certify.threats import PoisoningThreat, TrainingSamples, TrainingSet

Seeds = Literal["distinct", "shared"]
Method = Literal["plurality", "run-off"]

_CHECKED = 32  # inputs whose scores are computed again, for learners defined outside of this package


@dataclass(frozen=True)
class Ensemble:
    """As many models as the partitioner has buckets, each a function of its own part of the training set.

    Guarantee: two training sets within distance r of each other (in one of ``threats``) yield the same models, except
    for those that some r buckets feed; :meth:`certify` turns their votes into radii. The training set is a multiset:
    its order does not matter, and another copy of a sample is an insertion like any other.

    Attributes:
        partitioner: assigns samples to buckets.
        learner: trains a model on its part.
        num_classes: number of classes, fixed in advance; classes without samples count, too.
        spread: number of models that each bucket feeds. 1: partition aggregation; more: finite aggregation, where each
            model is trained on ``spread`` buckets.
        seeds: ``"distinct"``: a model's seed is its index; ``"shared"``: all have the seed 0
            (dissertation, Appendix F.6).
        learned: models are trained on features that were learned from exactly the training samples, without labels
            (SS-DPA). An inserted or deleted sample may change these features for every model, so certificates are
            against flipped labels only.
    """

    partitioner: Partitioner
    learner: Learner
    num_classes: int
    spread: int = 1
    seeds: Seeds = "distinct"
    learned: bool = False

    def __post_init__(self) -> None:
        for name, value, kind in (("partitioner", self.partitioner, Partitioner), ("learner", self.learner, Learner)):
            if not isinstance(value, kind):
                raise TypeError(
                    f"{name}: got {value!r}, expected a {kind.__name__} of certify.poisoning, or a dataclass that "
                    "inherits from it"
                )
        check_integer("num_classes", self.num_classes, 2)
        check_integer("spread", self.spread, 1, self.partitioner.num_partitions)
        if self.seeds not in get_args(Seeds):
            raise ValueError(f"seeds: got {self.seeds!r}, expected one of {', '.join(get_args(Seeds))}")

    @property
    def threats(self) -> tuple[PoisoningThreat, ...]:
        """The threat models that the ensemble has certificates against; the first is the default."""
        known = self.partitioner.threats
        return tuple(threat for threat in known if not (self.learned and isinstance(threat, TrainingSamples)))

    @property
    def size(self) -> int:
        """Number of models."""
        return self.partitioner.num_partitions

    @property
    def feeds(self) -> Tensor:
        """The models that each bucket feeds, int64 ``[size, spread]``."""
        return spread_buckets(self.size, self.spread)

    def parts(
        self,
        data: TrainingSet,
        *,
        inputs: Tensor | None = None,
        features: Tensor | None = None,
        originals: Iterable[Tensor] | None = None,
    ) -> list[Part]:
        """What each model is trained on, sorted by content, then label.

        Args:
            data: samples ``[N, ...]`` and their labels, int64 ``[N]``, in any order.
            inputs: ``[N, ...]``, what the learner is given for each sample, which must be a function of that sample
                alone; by default the samples.
            features: the same, but learned from exactly these samples without labels; only for an ensemble with
                ``learned``.
            originals: the samples before resizing, each of its own shape: the partition then depends on these, so that
                certificates are about them (dissertation, Appendix F.10).
        """
        samples, labels = data
        check_training_set(data, self.num_classes)
        seen = self._seen(samples, inputs, features)
        self.learner.check(tuple(seen.shape[1:]), self.num_classes)
        self.learner.check_samples(seen)
        assigned = self.partitioner.assign(samples) if originals is None else self.partitioner.assign_each(originals)
        buckets = assigned.tolist()
        if len(buckets) != len(samples):
            raise ValueError(f"originals: got {len(buckets)}, expected one for each of the {len(samples)} samples")
        keys, own = sample_keys(samples), labels.tolist()
        members: list[list[int]] = [[] for _ in range(self.size)]
        feeds = self.feeds.tolist()
        for i in sorted(range(len(keys)), key=lambda i: (keys[i], own[i])):
            for model in feeds[buckets[i]]:
                members[model].append(i)
        index = [torch.tensor(part, dtype=torch.int64) for part in members]
        distinct = self.seeds == "distinct"
        return [Part(seen[part], labels[part], i if distinct else 0) for i, part in enumerate(index)]

    def _seen(self, samples: Tensor, inputs: Tensor | None, features: Tensor | None) -> Tensor:
        """The inputs of the learner."""
        if self.learned != (features is not None) or (self.learned and inputs is not None):
            got = [name for name, given in (("inputs", inputs), ("features", features)) if given is not None]
            expected = "features alone" if self.learned else "no features learned from all samples"
            raise ValueError(
                f"features: got {' and '.join(got) or 'none'} for an ensemble with learned={self.learned}, expected "
                f"{expected}; whether features are learned decides what is certified"
            )
        given = features if inputs is None else inputs
        if given is not None and len(given) != len(samples):
            raise ValueError(f"inputs: got {len(given)} of them, expected one for each of the {len(samples)} samples")
        return samples if given is None else given

    def fit(self, parts: Sequence[Part], *, at_once: int = 1, device: torch.device | str = "cpu") -> list[State]:
        """Train on ``parts``, ``at_once`` of them together (1: one after the other, the reference).

        Grouping affects the last bits of a model, so it must be the same for all training sets that a certificate
        covers: groups of consecutive indices, as here.
        """
        check_integer("at_once", at_once, 1)
        options: dict[str, Any] = {"num_classes": self.num_classes, "device": torch.device(device)}
        if at_once == 1:
            return [self.learner.fit(part, **options) for part in parts]
        states = []
        for group in (parts[i : i + at_once] for i in range(0, len(parts), at_once)):
            with seeded(group[0].seed):
                states += self.learner.fit_many(group, **options)
        return states

    def check_certificate(self, method: str, threat: PoisoningThreat | None = None) -> PoisoningThreat:
        """Raise unless :meth:`certify` has a certificate for these arguments; returns its threat model."""
        if method not in get_args(Method):
            raise ValueError(f"method: got {method!r}, expected one of {', '.join(get_args(Method))}")
        if method == "run-off" and self.spread > 1:
            raise ValueError(f"method: got run-off with a spread of {self.spread}, expected a spread of 1")
        threat = self.threats[0] if threat is None else threat
        if threat not in self.threats:
            reason = f"{type(self.partitioner).__name__} certifies only {_names(self.partitioner.threats)}"
            if self.learned:
                reason = f"features learned from all training samples certify only {_names(self.threats)}"
            raise ValueError(f"threat: got {threat}, but {reason}")
        return threat

    def rankings(self, states: Sequence[State], x: Tensor) -> Tensor:
        """Each model's classes from best to worst: uint8 or int16 ``[models, B, C]``; the first is its vote.

        Raises:
            ValueError: if scores have another shape than they should, or, for learners of your own, if scores of a few
                inputs depend on the other models, on the other inputs, or on chance.
        """
        ranking = rank_classes(self._scores(states, x)).cpu()  # before scores that may share its memory are computed
        if type(self.learner).__module__.partition(".")[0] != "certify" and len(states) and len(x):
            self._check_scores(states, x[:_CHECKED].clone())  # aligned in memory, as the other inputs it tries
        return ranking

    def _scores(self, states: Sequence[State], x: Tensor) -> Tensor:
        scores = self.learner.scores(states, x, num_classes=self.num_classes)
        expected = (len(states), len(x), self.num_classes)
        if tuple(scores.shape) != expected:
            raise ValueError(
                f"{type(self.learner).__name__}.scores: got shape {tuple(scores.shape)}, expected [models, inputs, "
                f"classes] = {list(expected)}"
            )
        return scores

    def _check_scores(self, states: Sequence[State], x: Tensor) -> None:
        """Compare scores, which must be functions of one model and one input, from passes of the same shape."""
        usual, again = (self._scores(states, x).nan_to_num() for _ in range(2))
        if not torch.equal(usual, again):
            raise ValueError(
                f"{type(self.learner).__name__}.scores: got other scores for the same models and inputs the second "
                "time; votes must not be random"
            )
        alone = self._scores([states[-1]] * len(states), x[-1:].expand_as(x).clone()).nan_to_num()
        if not torch.equal(usual[-1, -1], alone[-1, -1]):
            raise ValueError(
                f"{type(self.learner).__name__}.scores: got other scores of a model for an input where other models "
                "and inputs come with them; a vote must be a function of one model and one input, since poisoned "
                "samples may change all models of their buckets"
            )

    def certify(
        self, rankings: Tensor, *, method: Method = "plurality", threat: PoisoningThreat | None = None
    ) -> Certified:
        """Predictions and certified radii from the rankings of all models.

        Args:
            rankings: int ``[size, B, C]``, in the order of the models.
            method: ``"plurality"`` counts votes (finite aggregation if ``spread`` is above 1); ``"run-off"`` holds a
                second round between the two best classes (only with a ``spread`` of 1).
            threat: one of ``threats``, by default the first.
        """
        if rankings.ndim != 3 or (rankings.shape[0], rankings.shape[2]) != (self.size, self.num_classes):
            raise ValueError(
                f"rankings: got shape {tuple(rankings.shape)}, expected [{self.size}, B, {self.num_classes}]"
            )
        threat = self.check_certificate(method, threat)
        if method == "run-off":
            return certify_run_off(rankings.transpose(0, 1), threat=threat)
        votes = rankings[..., 0].T
        if self.spread > 1:
            return certify_finite(votes, self.feeds, self.num_classes, threat=threat)
        return certify_counts(count_votes(votes, self.num_classes), threat=threat)


def check_training_set(data: TrainingSet, num_classes: int) -> None:
    """Raise unless labels fit the samples and the number of classes."""
    samples, labels = data
    if labels.dtype != torch.int64 or labels.shape != samples.shape[:1]:
        raise ValueError(f"labels: got {labels.dtype} {tuple(labels.shape)}, expected int64 ({len(samples)},)")
    if len(labels) and (labels.min() < 0 or labels.max() >= num_classes):
        raise ValueError(f"labels: got {labels.min()}..{labels.max()}, expected 0..{num_classes - 1}")


def _names(threats: tuple[PoisoningThreat, ...]) -> str:
    return " or ".join(map(str, threats))
