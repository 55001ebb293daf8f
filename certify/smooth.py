"""``Smoothed``: turns a base classifier and a smoothing scheme into a certifiably robust classifier."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import get_args

import torch
from torch import Tensor

from certify.confidence import (
    Interval,
    bound_uniforms,
    check_alpha,
    lower_bound,
    predict_or_abstain,
    simultaneous_bounds,
)
from certify.draws import ESTIMATION
from certify.engine import VoteEngine, collect_votes
from certify.images import Shape
from certify.inference import BaseClassifier
from certify.patch import PatchBound, PatchCertified, PatchSize, StructuredAblation
from certify.scheme import (
    BAD_BOUNDS,
    Bounds,
    Certified,
    EnumeratedScheme,
    SampledScheme,
    Scheme,
    TopKCertified,
    leader_and_gap,
)
from certify.sequential import CertifiedAt, Question, RadiusWithin, SequentialCertified, certify_sequentially
from certify.votes import VoteRule, Votes, argmax_vote


class Smoothed:
    """The smoothed classifier: a majority vote of the base classifier over the copies that a scheme makes.

    Example::

        smoothed = Smoothed(model, DeterministicSplittingNoise(lam=0.5), num_classes=10)
        result = smoothed.certify(images)      # uint8 or float [B, C, H, W]
        result.prediction, result.radius       # [B], [B]

    Args:
        base_classifier: any callable that maps copies ``[N, scheme.channels(C), H, W]`` (float32) to scores
            ``[N, num_classes]``. Modules run in evaluation mode, on the device of their parameters. For schemes whose
            copies are stacks of patches, it takes the individual patches.
        scheme: a :class:`~certify.scheme.Scheme`.
        num_classes: number of classes.
        n0: number of selection samples (sampled schemes only).
        n: number of estimation samples (sampled schemes only); they are independent of the selection samples.
        alpha: failure probability of each image's certificate, and of each prediction (sampled schemes only).
        bounds: see :meth:`~certify.scheme.SampledScheme.certify_counts`.
        interval: ``"clopper-pearson"`` (the published bounds) or ``"randomized"`` (slightly larger radii from the same
            votes, see :func:`~certify.confidence.lower_bound`; ``seed`` and ``index`` determine the random numbers).
        seed: determines the samples, together with ``index``. Inputs must be chosen without knowledge of it.
        vote: turns the scores of a copy into votes.
        batch_size: copies per forward pass; by default chosen from the size of the model's activations.
    """

    def __init__(
        self,
        base_classifier: BaseClassifier,
        scheme: Scheme,
        num_classes: int,
        *,
        n0: int = 1_000,
        n: int = 10_000,
        alpha: float = 0.05,
        bounds: Bounds = "one-sided",
        interval: Interval = "clopper-pearson",
        seed: int = 0,
        vote: VoteRule = argmax_vote,
        batch_size: int | None = None,
    ) -> None:
        if not isinstance(scheme, (EnumeratedScheme, SampledScheme)):
            got = f"the class {scheme.__name__}" if isinstance(scheme, type) else type(scheme).__name__
            raise TypeError(f"scheme: got {got}, expected an EnumeratedScheme or a SampledScheme, as an instance")
        check_alpha(alpha)
        if bounds not in get_args(Bounds):
            raise ValueError(BAD_BOUNDS.format(bounds))
        check_interval(interval)
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 64:
            raise ValueError(f"seed: got {seed!r}, expected an integer in [0, 2^64)")
        for name, value in (("n0", n0), ("n", n)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: got {value!r}, expected at least 1 sample, as an integer")
        if not callable(base_classifier):
            got = type(base_classifier).__name__
            hint = "; load it into a module with load_state_dict" if isinstance(base_classifier, Mapping) else ""
            raise TypeError(f"base_classifier: got a {got}, expected a module or a function of copies{hint}")
        self._base_classifier = base_classifier
        self.n0, self.n, self.alpha, self.seed = n0, n, alpha, seed
        self.bounds: Bounds = bounds
        self.interval: Interval = interval
        self.engine = VoteEngine(base_classifier, scheme, num_classes, vote=vote, batch_size=batch_size)
        if isinstance(scheme, SampledScheme):
            check_bounds_exist(n, alpha, bounds, num_classes)

    @property
    def base_classifier(self) -> BaseClassifier:
        """The base classifier, read-only: to use another one, create another ``Smoothed``."""
        return self._base_classifier

    @property
    def scheme(self) -> Scheme:
        """The smoothing scheme, read-only: to use another one, create another ``Smoothed``."""
        return self.engine.scheme

    def copies_per_image(self, shape: Shape) -> int:
        """Number of copies that are classified to certify one image of ``shape`` (C, H, W)."""
        return self.scheme.num_copies(shape) if isinstance(self.scheme, EnumeratedScheme) else self.n0 + self.n

    def votes(self, x: Tensor, *, index: Tensor | None = None) -> Votes:
        """The integer votes for ``x [B, C, H, W]``. Store them: every certificate can be computed from them, by
        :meth:`certificate`, ``scheme.certify_top_k(votes.counts, k, alpha, n=votes.n, shape=votes.shape)`` or
        ``scheme.certify_votes(votes.by_copy, patch_size, shape=votes.shape)``.

        Args:
            index: int64 ``[B]``, each image's index in its data set; sampled copies depend on it. The default is
                0..B-1, so that the batches of a loop share their noise: each certificate still holds, but a joint
                statement about several images (:func:`~certify.metrics.certified_accuracy_lower_bound`) needs a
                distinct index for each.
        """
        return collect_votes(self.engine, x, n0=self.n0, n=self.n, index=index, seed=self.seed)

    def predict(self, x: Tensor, *, index: Tensor | None = None, fresh: bool = False) -> Tensor:
        """Predicted classes, int64 ``[B]``.

        Enumerated schemes: the exact majority, never -1. Sampled schemes: the most probable class with probability
        at least 1 - alpha, or -1 for "abstained" (PREDICT of Cohen et al., 2019, on the ``n`` estimation samples).

        Args:
            index: see :meth:`votes`.
            fresh: sample with a new secret seed instead of ``seed``. Deploy sampled schemes this way: an adversary who
                knows the seed knows the copies that will be counted and can tailor an input to them.
        """
        if isinstance(self.scheme, EnumeratedScheme):
            return self.prediction(self.votes(x))
        seed = secrets.randbits(64) if fresh else self.seed
        counts = self.engine.sampled(x, self.n, index=index, seed=seed, stream=ESTIMATION)
        return predict_or_abstain(counts, self.alpha)

    def certify(self, x: Tensor, *, index: Tensor | None = None) -> Certified:
        """Predictions with certified radii; see the scheme for the threat model and the guarantee."""
        return self.certificate(self.votes(x, index=index))

    def certify_top_k(self, x: Tensor, k: int, *, index: Tensor | None = None) -> TopKCertified:
        """For every label, how far each image may change before the label can drop out of the ``k`` most probable.

        Available for randomized ablation and Gaussian noise, see :meth:`~certify.scheme.SampledScheme.certify_top_k`.
        Uses only the ``n`` estimation samples; ``bounds`` and ``interval`` have no effect.
        """
        if not isinstance(self.scheme, SampledScheme):
            got = type(self.scheme).__name__
            raise ValueError(f"scheme: got {got}, top-k certificates are for RandomizedAblation and Gaussian noise")
        empty, shape = torch.zeros((0, self.engine.num_classes), dtype=torch.int64), tuple(x.shape[1:])
        self.scheme.certify_top_k(empty, k, self.alpha, n=self.n, shape=shape)  # raises before anything is sampled
        counts = self.engine.sampled(x, self.n, index=index, seed=self.seed, stream=ESTIMATION)
        return self.scheme.certify_top_k(counts, k, self.alpha, n=self.n, shape=shape)

    def certify_patch(self, x: Tensor, patch_size: PatchSize, *, bound: PatchBound = "location") -> PatchCertified:
        """Predictions that no patch of a given size can change; for patch schemes with one vote per position.

        Args:
            patch_size: m for m x m pixels, or (height, width).
            bound: see :meth:`~certify.patch.StructuredAblation.certify_votes`.
        """
        if not isinstance(self.scheme, StructuredAblation):
            got = type(self.scheme).__name__
            raise ValueError(
                f"scheme: got {got}, expected one with a vote for each position, such as BandAblation(width=4); other "
                "schemes against patches certify a square, whose side is the radius of certify(images)"
            )
        by_copy, shape = self.engine.enumerated_by_copy(x), tuple(x.shape[1:])
        return self.scheme.certify_votes(by_copy, patch_size, shape=shape, bound=bound)

    def certify_at(
        self, x: Tensor, radius: float, *, max_n: int = 100_000, index: Tensor | None = None
    ) -> SequentialCertified:
        """Certify, sampling only until it is settled whether the prediction is certified at ``radius``.

        Sampled schemes only; ``n``, ``bounds`` and ``interval`` have no effect. See
        :func:`~certify.sequential.certify_sequentially`.
        """
        return self.certify_until(x, CertifiedAt(radius), max_n=max_n, index=index)

    def certify_within(
        self, x: Tensor, factor: float, *, max_n: int = 100_000, index: Tensor | None = None
    ) -> SequentialCertified:
        """Certify, sampling only until the certified radius is known to within ``factor``."""
        return self.certify_until(x, RadiusWithin(factor), max_n=max_n, index=index)

    def certify_until(
        self, x: Tensor, question: Question, *, max_n: int = 100_000, index: Tensor | None = None
    ) -> SequentialCertified:
        """Certify, sampling only until ``question`` is settled; the two methods above cover the usual questions."""
        return certify_sequentially(
            self.engine, x, question, n0=self.n0, max_n=max_n, alpha=self.alpha, index=index, seed=self.seed
        )

    def prediction(self, votes: Votes) -> Tensor:
        """What :meth:`predict` returns for stored votes."""
        _check_votes(votes, self.scheme)
        return predicted(self.scheme, votes, self.alpha)

    def certificate(self, votes: Votes) -> Certified:
        """What :meth:`certify` returns for stored votes."""
        _check_votes(votes, self.scheme)
        return certified(self.scheme, votes, self.alpha, bounds=self.bounds, interval=self.interval, seed=self.seed)


def predicted(scheme: Scheme, votes: Votes, alpha: float) -> Tensor:
    """Predictions from votes, int64 ``[B]``: exact for enumerated schemes, -1 where a sampled scheme abstains."""
    if not isinstance(scheme, EnumeratedScheme):
        return predict_or_abstain(votes.counts, alpha)
    if votes.by_copy is not None:
        return scheme.predict_copies(votes.by_copy, shape=votes.shape)
    return leader_and_gap(votes.counts)[0]


def certified(
    scheme: Scheme, votes: Votes, alpha: float, *, bounds: Bounds, interval: Interval, seed: int
) -> Certified:
    """Certificates from votes.

    Args:
        alpha, bounds, interval, seed: for sampled schemes, see :class:`Smoothed`.
    """
    if isinstance(scheme, EnumeratedScheme):
        if votes.by_copy is not None:
            return scheme.certify_copies(votes.by_copy, shape=votes.shape)
        return scheme.certify_counts(votes.counts, shape=votes.shape)
    assert isinstance(scheme, SampledScheme)
    if votes.selection is None:
        raise ValueError("votes: got no selection votes, expected those of a sampled scheme")
    check_interval(interval)
    return scheme.certify_counts(
        votes.selection,
        votes.counts,
        alpha,
        shape=votes.shape,
        n=votes.n,
        bounds=bounds,
        uniforms=None if interval == "clopper-pearson" else vote_uniforms(votes, seed),
    )


def check_bounds_exist(n: int, alpha: float, bounds: Bounds, num_classes: int) -> None:
    """Raise, before anything is sampled, unless probabilities can be bounded from ``n`` samples at level ``alpha``."""
    none = torch.zeros((0, num_classes), dtype=torch.int64)
    if bounds == "simultaneous":
        simultaneous_bounds(none, none[:, 0], n, alpha)
    else:
        lower_bound(none[:, 0], n, alpha)


def check_interval(interval: str) -> None:
    """Raise unless ``interval`` is a known kind of interval."""
    if interval not in get_args(Interval):
        raise ValueError(f"interval: got {interval!r}, expected one of {', '.join(get_args(Interval))}")


def _check_votes(votes: Votes, scheme: Scheme) -> None:
    """Raise unless these are votes on a fixed number of copies, made as ``scheme`` makes them."""
    made_by = votes.scheme
    if made_by is not None and made_by is not scheme and made_by != scheme and not _differ_in_design(made_by, scheme):
        others = made_by.certificates().values() if isinstance(made_by, SampledScheme) else ()
        if scheme not in others:
            raise ValueError(f"votes: got votes on copies by {made_by}, which certify nothing for {scheme}")
    if votes.stopped:
        raise ValueError(
            "votes: got votes sampled until a question was settled, for which bounds for a fixed sample size do not "
            "hold; use the result of certify_at or certify_within itself"
        )


def _differ_in_design(one: Scheme, other: Scheme) -> bool:
    """Whether two schemes have the same arguments, but for a design: their radii are the same."""
    if type(one) is not type(other) or not is_dataclass(one):
        return False
    shown = [field.name for field in fields(one) if field.metadata.get("in_text", True)]
    return all(getattr(one, name) == getattr(other, name) for name in shown)


def vote_uniforms(votes: Votes, seed: int) -> Tensor:
    """The random numbers for randomized bounds on stored votes, float64 ``[B, C]``."""
    if votes.index is None:
        raise ValueError("votes: got no image indices, which randomized bounds need; pass index= to Votes")
    return bound_uniforms(seed, votes.index, votes.counts.shape[1])
