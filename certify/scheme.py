"""The contract of a smoothing scheme, and the result of a certificate.

A scheme makes copies of an input: it either enumerates a fixed, finite list of them (:class:`EnumeratedScheme`) or
samples them (:class:`SampledScheme`). It is plain data (a frozen dataclass) and knows no model, no label and no device
of its own. Its certificate is a function of vote counts alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from certify import confidence
from certify.checks import check_integer
from certify.draws import Draws
from certify.images import Shape, check_images
from certify.inference import BaseClassifier
from certify.registry import OwnClasses
from certify.threats import PoisoningThreat, Threat, Unproven
from certify.votes import sum_votes

Bounds = Literal["one-sided", "simultaneous"]
NOT_IN_TEXT = {"in_text": False}  # metadata of fields that :meth:`Scheme.fingerprint` stands for
BAD_BOUNDS = "bounds: got {!r}, expected 'one-sided' or 'simultaneous'"


@dataclass(frozen=True, eq=False)  # comparing tensors gives no single answer
class Certified:
    """Predictions and what is guaranteed about them.

    Attributes:
        prediction: int64 ``[B]``, the class returned, or -1 for "abstained".
        radius: float64 ``[B]``: the smoothed classifier returns the same class for every input within ``radius`` of
            this one (inclusive), in the unit of ``threat``; -1 where it abstained.
        threat: the threat model the radius is stated in; if it is ``Unproven``, radii are for comparison only.
        p_lower: float64 ``[B]``, lower confidence bound on the predicted class's probability (sampled schemes only).
    """

    prediction: Tensor
    radius: Tensor
    threat: Threat | PoisoningThreat
    p_lower: Tensor | None = None

    @property
    def guaranteed(self) -> bool:
        """Whether the radii are certificates; those of an :class:`~certify.threats.Unproven` threat are not."""
        return not isinstance(self.threat, Unproven)

    def certified_at(self, radius: float) -> Tensor:
        """bool ``[B]``: the prediction is guaranteed for every perturbation of size ``radius``."""
        if not radius >= 0:
            raise ValueError(f"radius: got {radius}, expected at least 0 (an abstention has a negative one)")
        if not self.guaranteed:
            raise ValueError(
                f"radius: got one in {self.threat}, where nothing is certified; compare result.radius itself"
            )
        return self.radius >= radius

    def correct(self, labels: Tensor) -> Tensor:
        """bool ``[B]``: predicted correctly, without abstaining."""
        if labels.shape != self.prediction.shape:
            raise ValueError(f"labels: got shape {tuple(labels.shape)}, expected {tuple(self.prediction.shape)}")
        return (self.prediction == labels.to(self.prediction.device)) & (self.prediction >= 0)


@dataclass(frozen=True, eq=False)
class TopKCertified:
    """For every label, how far an input may change before the label can drop out of the top-k labels.

    Attributes:
        radius: ``[B, C]``, -1 where a label is not certified at all: int64, a number of pixels, or float64 (l2).
        top_k: number of labels that are predicted.
        threat: the threat model of the radii; if it is ``Unproven``, they are for comparison only.
    """

    radius: Tensor
    top_k: int
    threat: Threat

    @property
    def guaranteed(self) -> bool:
        """Whether the radii are certificates; those of an :class:`~certify.threats.Unproven` threat are not."""
        return not isinstance(self.threat, Unproven)

    def radius_of(self, labels: Tensor) -> Tensor:
        """Radii of the true labels, ``[B]``."""
        return self.radius.gather(1, labels[:, None])[:, 0]


class Scheme(ABC):
    """What both kinds of scheme share. Subclasses are frozen dataclasses; docs/own_method.md shows how to write one.

    Attributes:
        own: registry of the schemes that are defined outside of this package.
        positional: the best certificate depends on which copy voted for what, not only on the counts: votes are then
            kept and stored copy by copy (enumerated schemes only, :meth:`EnumeratedScheme.certify_copies`).
    """

    own: ClassVar[OwnClasses] = OwnClasses()
    positional: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Scheme.own.add(cls)

    @property
    @abstractmethod
    def threat(self) -> Threat:
        """The threat model that radii are stated in."""

    def check(self, x: Tensor) -> None:
        """Raise unless every image of ``x [B, C, H, W]`` is a legal input of this scheme. Called once per batch."""
        check_images(x)

    def fingerprint(self) -> str | None:
        """What the classifier depends on beyond the parameters of the scheme; None if there is nothing."""
        return None

    def stored_design(self) -> Any:
        """What :meth:`fingerprint` is a digest of, as a JSON value that :meth:`with_design` accepts: checkpoints carry
        it to machines that would find something else. None if there is nothing, or if it cannot be stored."""
        return None

    def with_design(self, stored: Any) -> Self:
        """This scheme with the design of another machine, as :meth:`stored_design` gave it there."""
        raise ValueError(f"design: got one, but {type(self).__name__} has none")

    def channels(self, channels: int) -> int:
        """Channels of a copy, which the base classifier takes, of an image with ``channels`` channels."""
        return channels

    def input_shape(self, shape: Shape) -> Shape:
        """Shape of what the base classifier takes, for images of ``shape`` (C, H, W)."""
        return (self.channels(shape[0]), *shape[1:])

    def inputs_per_copy(self, shape: Shape) -> int:
        """How many inputs of the base classifier a copy of an image of ``shape`` consists of: one, for most schemes."""
        return 1

    def classifier(self, base_classifier: BaseClassifier) -> BaseClassifier:
        """The map from copies to scores: the base classifier, unless a copy consists of several of its inputs."""
        return base_classifier

    @abstractmethod
    def sample(self, x: Tensor, draws: Draws) -> Tensor:
        """Random copies of a batch of images.

        Args:
            x: ``[B, C, H, W]``.
            draws: the random numbers of the copies, of shape ``[B, n]``, or ``[1, n]`` to give every image of the
                batch the same noise.

        Returns:
            float32 ``[B, n, C', H, W]``.
        """

    def sample_inputs(self, x: Tensor, draws: Draws) -> Tensor:
        """Random inputs to train the base classifier on: copies, or one of the inputs that each of them consists of."""
        return self.sample(x, draws)


def needed(shape: Shape | None, scheme: Scheme) -> Shape:
    """``shape``; raises if it was not given to a scheme whose certificate depends on it."""
    if shape is None:
        raise ValueError(f"shape: got None; {type(scheme).__name__} needs the image shape (C, H, W), pass shape=")
    return shape


def check_counts(counts: Tensor, name: str = "counts") -> Tensor:
    """``counts`` as int64, in which sums and differences of votes cannot overflow.

    Raises:
        TypeError, ValueError: unless it is an integer tensor ``[B, C]`` of votes for at least two classes.
    """
    if counts.is_floating_point() or counts.is_complex() or counts.dtype == torch.bool:
        raise TypeError(f"{name}: got {counts.dtype}, expected integer votes (int64), never averaged floats")
    counts = counts.to(torch.int64)
    if counts.ndim != 2 or counts.shape[1] < 2:
        raise ValueError(f"{name}: got shape {tuple(counts.shape)}, expected [B, num_classes] with num_classes >= 2")
    if counts.numel() and counts.min() < 0:
        raise ValueError(f"{name}: got negative votes ({counts.min().item()}), expected counts >= 0")
    return counts


def sample_size(counts: Tensor, n: int | None) -> int:
    """The number of samples behind ``counts`` (``[B, C]``, already checked), each of which votes for at most one class.

    Args:
        n: the number. Without it, each sample is taken to have voted; images with different numbers of votes show that
            some did not, and are refused. A single image cannot show it.
    """
    votes = counts.sum(1)
    if n is None:
        if len(counts) and votes.min() < votes.max():
            raise ValueError(
                f"n: got None and between {votes.min().item()} and {votes.max().item()} votes per image, so not every "
                "sample voted for one class; pass n=, the number of samples per image"
            )
        return int(votes.max()) if len(counts) and votes.max() > 0 else 1
    check_integer("n", n, 1)
    if (votes > n).any():
        raise ValueError(f"counts: got {votes.max().item()} votes of n = {n} samples, expected at most n")
    return n


def checked_radius(scheme: Scheme, radius: Tensor, images: int) -> Tensor:
    """The radii that a scheme returned; raises unless they are float64 ``[images]``: a conversion might round up."""
    if not isinstance(radius, Tensor) or radius.dtype != torch.float64 or radius.shape != (images,):
        got = f"{radius.dtype} {tuple(radius.shape)}" if isinstance(radius, Tensor) else type(radius).__name__
        raise ValueError(f"{type(scheme).__name__}: got radii {got}, expected float64 ({images},), one for each image")
    if radius.isnan().any():
        raise ValueError(
            f"{type(scheme).__name__}: got a radius that is not a number, expected -1 where nothing is certified"
        )
    return radius


def leader_and_gap(counts: Tensor) -> tuple[Tensor, Tensor]:
    """The class with the most votes (ties go to the lower index) and its lead, which accounts for ties.

    With ``c`` the leader, ``gap = min over c' != c of n_c - n_c' - [c' < c]``. If an adversary can change at most A
    votes, the leader stays iff ``gap >= 2 A``.

    Args:
        counts: int64 ``[B, C]``.

    Returns:
        int64 ``[B]`` leader, int64 ``[B]`` gap (never negative).
    """
    counts = check_counts(counts)
    leader = counts.argmax(1, keepdim=True)  # the first maximum, as documented
    lower_index = torch.arange(counts.shape[1], device=counts.device) < leader
    rivals = (counts + lower_index).scatter(1, leader, -1)
    return leader[:, 0], counts.gather(1, leader)[:, 0] - rivals.amax(1)


class EnumeratedScheme(Scheme):
    """A scheme with a fixed list of copies: the smoothed classifier and its certificate are exact."""

    @abstractmethod
    def num_copies(self, shape: Shape) -> int:
        """Number of copies of an image of ``shape`` (C, H, W)."""

    @abstractmethod
    def copies(self, x: Tensor, index: Tensor) -> Tensor:
        """Copies number ``index`` (int64 ``[B, n]`` or ``[1, n]``) of each image: float32 ``[B, n, C', H, W]``."""

    @abstractmethod
    def radius_of_flips(self, flips: Tensor, *, shape: Shape | None = None) -> Tensor:
        """The largest radius at which a perturbation touches at most ``flips`` (int64 ``[B]``) votes: float64.

        Args:
            shape: shape of one image, for schemes whose radius depends on it.
        """

    def sample(self, x: Tensor, draws: Draws) -> Tensor:
        return self.copies(x, draws.integers(self.num_copies(tuple(x.shape[1:])), 1)[..., 0])

    def certify_counts(self, counts: Tensor, *, shape: Shape | None = None) -> Certified:
        """Exact certificate from the votes of *all* copies.

        Args:
            counts: int64 ``[B, C]``, summing over classes to the number of copies (for a vote per copy).
            shape: shape of one image; if given, the number of votes is checked against it.

        Returns:
            the prediction (never abstains) and its inclusive radius.
        """
        prediction, gap = leader_and_gap(counts)
        if shape is not None and (counts.amax(1) > self.num_copies(shape)).any():
            raise ValueError(
                f"counts: got {counts.max().item()} votes for a class, but an image of shape {shape} has only "
                f"{self.num_copies(shape)} copies; were these votes made with another scheme?"
            )
        radius = checked_radius(self, self.radius_of_flips(gap // 2, shape=shape), len(counts))
        return Certified(prediction, radius, self.threat)

    def predict_copies(self, by_copy: Tensor, *, shape: Shape) -> Tensor:
        """The class that :meth:`certify_copies` returns, int64 ``[B]``: by default the one with the most votes."""
        return leader_and_gap(sum_votes(by_copy))[0]

    def certify_copies(self, by_copy: Tensor, *, shape: Shape) -> Certified:
        """Exact certificate from the votes copy by copy, at least as good as the one from their counts.

        Args:
            by_copy: bool ``[B, n, C]``, whether each copy votes for each class.
            shape: shape of one image.
        """
        return self.certify_counts(sum_votes(by_copy), shape=shape)


class SampledScheme(Scheme):
    """A scheme whose copies are random: certificates hold with probability 1 - alpha per image."""

    @abstractmethod
    def radius(self, p_lower: Tensor, p_upper: Tensor, *, shape: Shape | None = None) -> Tensor:
        """Certified radius from exact probability bounds.

        Args:
            p_lower: float64 ``[B]``, the returned class has at least this probability.
            p_upper: float64 ``[B]``, every other class has at most this probability.
            shape: of one image (C, H, W).

        Returns:
            float64 ``[B]``, rounded towards zero; -1 where nothing is certified.
        """

    def certificates(self) -> dict[str, SampledScheme]:
        """Schemes with the same copies, hence the same votes, but other radii, by name; none by default."""
        return {}

    def certify_counts(
        self,
        selection_counts: Tensor,
        counts: Tensor,
        alpha: float,
        *,
        n: int | None = None,
        shape: Shape | None = None,
        bounds: Bounds = "one-sided",
        uniforms: Tensor | None = None,
    ) -> Certified:
        """CERTIFY of Cohen, Rosenfeld and Kolter (2019), from stored votes.

        Guarantee: for each image, with probability at least 1 - alpha over the sampling, either this abstains, or the
        smoothed classifier returns ``prediction`` for every input within ``radius``.

        Args:
            selection_counts: int64 ``[B, C]`` votes of the samples that choose the class.
            counts: int64 ``[B, C]`` votes of *other*, fresh samples, which bound its probability.
            alpha: failure probability, in (0, 1).
            n: number of samples behind ``counts``, including those that voted for no class. Needed if there may be such
                (:class:`~certify.votes.ThresholdVote`): votes do not show them, and without them the certificate would
                be wrong. By default, each sample is taken to have voted for one class, as with argmax. No copy may vote
                for two: p > 1/2 must imply that no other class has more.
            shape: of one image (C, H, W), for schemes whose radius depends on the number of pixels.
            bounds: ``"one-sided"`` bounds the chosen class from below and leaves the rest to one rival
                (Levine and Feizi, AAAI 2020, Corollary 1); ``"simultaneous"`` bounds every class (Corollary 2).
            uniforms: float64 ``[B, C]``: use randomized Clopper-Pearson bounds, see
                :func:`certify.confidence.lower_bound`; None for the published, plain ones.
        """
        if selection_counts is counts:
            raise ValueError("selection_counts: got the same tensor as counts, expected the votes of other samples")
        selection_counts, counts = check_counts(selection_counts, "selection_counts"), check_counts(counts)
        if selection_counts.shape != counts.shape:
            raise ValueError(
                f"selection_counts: got shape {tuple(selection_counts.shape)}, "
                f"expected that of counts, {tuple(counts.shape)}"
            )
        selected = selection_counts.argmax(1)
        n = sample_size(counts, n)
        if bounds == "one-sided":
            own = None if uniforms is None else uniforms.gather(1, selected[:, None])[:, 0]
            p_lower = confidence.lower_bound(counts.gather(1, selected[:, None])[:, 0], n, alpha, uniforms=own)
            p_upper = 1 - p_lower
        elif bounds == "simultaneous":
            p_lower, p_upper = confidence.simultaneous_bounds(counts, selected, n, alpha, uniforms=uniforms)
        else:
            raise ValueError(BAD_BOUNDS.format(bounds))
        radius = checked_radius(self, self.radius(p_lower, p_upper, shape=shape), len(counts))
        return Certified(torch.where(radius >= 0, selected, -1), radius, self.threat, p_lower)

    def certify_top_k(
        self, counts: Tensor, k: int, alpha: float, *, n: int | None = None, shape: Shape | None = None
    ) -> TopKCertified:
        """How far an image may change before a label can leave the ``k`` most probable ones, from stored votes.

        Guarantee: for each image and each label (fixed before looking at the votes, as the true label is), with
        probability at least 1 - alpha the label stays among the ``k`` most probable for every input within its radius.
        Implemented for randomized ablation and Gaussian noise; other schemes raise.

        Args:
            counts: int64 ``[B, C]`` votes of independent copies.
            k: number of predicted labels, 1 <= k < C.
            alpha: failure probability, in (0, 1), for each label: of its bound and those of all others together.
            n: number of copies behind ``counts``, including those that voted for no class; needed if there may be such.
            shape: of one image (C, H, W), for schemes whose radius depends on it.
        """
        raise ValueError(
            f"scheme: got {type(self).__name__}, top-k certificates are for RandomizedAblation and Gaussian noise"
        )
