"""Certificates against adversarial patches, from the votes of structured ablation, position by position.

A copy shows the base classifier one part of the image and nothing else. A patch at a given location can only change the
votes of the copies whose part it intersects: these are *at risk*, and an adversary can make each vote as it likes::

    votes [B, positions, C] --scheme.outside, a patch size--> votes not at risk [B, C, L], copies at risk [L]
        --votes_needed--> votes each class lacks to overtake --> certified iff no location has that many at risk

Sources: ``bound="published"`` is Levine and Feizi, "(De)Randomized Smoothing for Certifiable Defense against Patch
Attacks" (NeurIPS 2020, appendix, Theorems 1, 2 and Section D; dissertation, Theorems 6.1, 6.2 and Appendix E.4): the
most copies that any location puts at risk, all counted as votes for the leader. ``bound="location"`` counts, for each
location, the votes that are in fact at risk there; it certifies whatever the published bound does, and no more can be
certified for every base classifier.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from certify.ablation import NullEncoding
from certify.checks import check_integer
from certify.images import Shape
from certify.scheme import Certified, EnumeratedScheme, check_counts, leader_and_gap, needed
from certify.threats import Patch
from certify.votes import sum_votes

PatchSize = int | tuple[int, int]
PatchBound = Literal["location", "published"]

_CHUNK = 1 << 22  # votes that are processed at once


@dataclass(frozen=True, eq=False)
class PatchCertified:
    """Predictions, and whether any patch of one size can change them.

    Attributes:
        prediction: int64 ``[B]``, the class returned; never abstains.
        certified: bool ``[B]``: the smoothed classifier returns the same class for every image that differs in one
            rectangle of ``threat.height`` by ``threat.width`` pixels, wherever it is.
        threat: the patch.
        bound: which certificate this is.
    """

    prediction: Tensor
    certified: Tensor
    threat: Patch
    bound: PatchBound


def height_and_width(patch_size: PatchSize) -> tuple[int, int]:
    """``m`` or ``(height, width)`` as two checked integers."""
    sides = patch_size if isinstance(patch_size, tuple) else (patch_size, patch_size)
    if len(sides) != 2:
        raise ValueError(f"patch_size: got {patch_size!r}, expected one integer or (height, width)")
    for side in sides:
        check_integer("patch_size", side, 1)
    return sides


def clip(shape: Shape, patch: tuple[int, int]) -> tuple[int, int]:
    """The size of a patch, cut to that of images of ``shape``."""
    return min(patch[0], shape[1]), min(patch[1], shape[2])


def votes_needed(outside: Tensor, label: Tensor) -> Tensor:
    """How many of the votes at risk each class needs to rank ahead of ``label``, which gets none of them.

    Args:
        outside: integers ``[B, C, L]``, votes that are not at risk, for each of L locations of the patch.
        label: int64 ``[B]``.

    Returns:
        integers ``[B, C, L]``, at most 0 where a class is ahead anyway; for ``label`` itself more than there can be.
    """
    index = label[:, None, None].expand(-1, 1, outside.shape[2])
    later = torch.arange(outside.shape[1], device=outside.device)[:, None] > label[:, None, None]  # these lose ties
    needed = outside.gather(1, index) - outside + later.to(outside.dtype)
    return needed.scatter_(1, index, torch.iinfo(outside.dtype).max)


def may_overtake(counts: Tensor, label: Tensor, spare: Tensor, k: int) -> Tensor:
    """The only classes that matter for whether ``label`` stays among the k with the most votes.

    Left out are classes that cannot rank ahead of the label at any location, even with all of their votes and all
    copies at risk; and, of the classes without votes, all but the first k: these are ahead of the others everywhere.

    Args:
        counts: int64 ``[B, C]``, votes of all copies.
        label: int64 ``[B]``.
        spare: integers ``[B]``, votes of the label not at risk, less the copies at risk, at the worst location.
        k: ties are ranked by class index.

    Returns:
        bool ``[B, C]``; never the label itself.
    """
    classes = torch.arange(counts.shape[1], device=counts.device)
    rival, later = classes != label[:, None], classes > label[:, None]
    unvoted = rival & (counts == 0)
    able = counts - later.to(counts.dtype) >= spare[:, None]
    return rival & able & (~unvoted | (unvoted.cumsum(1) <= k))


def keeps_place(least: Tensor, touched: Tensor, *, exclusive: bool = False) -> Tensor:
    """Whether a label stays among the k classes with the most votes, whatever the copies at risk vote: bool ``[B]``.

    Args:
        least: integers ``[B, k, L]``, the k smallest numbers of votes that other classes need
            (:func:`votes_needed`), for each of L locations.
        touched: integers ``[L]``, copies at risk.
        exclusive: every copy has at most one vote, so that k classes must share the copies at risk.
    """
    if exclusive:
        return (least.clamp(min=0).sum(1, dtype=torch.int64) > touched).all(1)
    return (least.amax(1) > touched).all(1)


class _Question(NamedTuple):
    """Can patches of one size (no larger than the image) push a label out of the k classes with the most votes?"""

    shape: Shape
    patch: tuple[int, int]
    bound: PatchBound
    k: int = 1
    exclusive: bool = False


@dataclass(frozen=True)
class StructuredAblation(NullEncoding, EnumeratedScheme):
    """What all schemes against patches share: copies that retain one fixed part of the image each.

    Guarantee: the prediction, the class with the most votes (ties go to the lower index), is the same for every image
    that differs in one square of ``radius`` by ``radius`` pixels: any values, all channels, anywhere in the image.

    A copy may vote for several classes or for none (:class:`~certify.votes.ThresholdVote`); all bounds hold for that.
    """

    positional: ClassVar[bool] = True

    @property
    def threat(self) -> Patch:
        return Patch()

    @abstractmethod
    def masks(self, shape: Shape, index: Tensor) -> Tensor:
        """What copies number ``index`` (int64, any shape) retain: bool ``[*index.shape, H, W]``."""

    @abstractmethod
    def most_touched(self, shape: Shape, patch: tuple[int, int]) -> int:
        """The published bound on the number of copies that a patch (no larger than the image) puts at risk."""

    @abstractmethod
    def outside(self, votes: Tensor, shape: Shape, patch: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """What a patch (no larger than the image) leaves untouched, for every location or every kind of location.

        Args:
            votes: bool ``[B, positions, C]``.

        Returns:
            integers ``[B, C, L]``, votes of the copies that are not at risk, and ``[L]``, the number of those at risk.
        """

    @abstractmethod
    def guess_shape(self, positions: int) -> Shape | None:
        """The shape of images with this many positions, if there is only one."""

    def copies(self, x: Tensor, index: Tensor) -> Tensor:
        return self.encode(x, self.masks(tuple(x.shape[1:]), index)[:, :, None])

    def radius_of_flips(self, flips: Tensor, *, shape: Shape | None = None) -> Tensor:
        shape = needed(shape, self)
        sides = range(1, max(shape[1:]) + 1)
        touched = torch.tensor([self.most_touched(shape, clip(shape, (m, m))) for m in sides])
        return torch.searchsorted(touched.to(flips.device), flips, right=True).to(torch.float64)

    def certify_copies(self, by_copy: Tensor, *, shape: Shape, bound: PatchBound = "location") -> Certified:
        """The largest square patch that cannot change the prediction; ``radius`` is its side, 0 if there is none."""
        self.check_votes(by_copy, shape, bound)
        counts = sum_votes(by_copy)
        prediction = leader_and_gap(counts)[0]
        radius = torch.zeros(len(by_copy), dtype=torch.int64, device=by_copy.device)
        # a smaller patch puts fewer votes at risk: bisection, for all images with the same question at once
        largest = max(shape[1:])
        for step in (1 << bit for bit in reversed(range(largest.bit_length()))):
            for side in (radius + step).unique().tolist():
                asked = (radius + step == side).nonzero()[:, 0]
                if side <= largest:
                    question = _Question(shape, clip(shape, (side, side)), bound)
                    held = self._label_stays(by_copy, counts, prediction, asked, question)
                    radius[asked[held]] = side
        return Certified(prediction, radius.to(torch.float64), self.threat)

    def certify_votes(
        self, votes: Tensor, patch_size: PatchSize, *, shape: Shape | None = None, bound: PatchBound = "location"
    ) -> PatchCertified:
        """Exact certificate against every patch of one size, from the votes of all positions.

        Args:
            votes: bool ``[B, positions, C]``, see :attr:`~certify.votes.Votes.by_copy`.
            patch_size: m for m x m pixels, or (height, width).
            shape: shape of one image (C, H, W); may be omitted if it follows from the number of positions, as for bands
                without a stride.
            bound: ``"location"``, or ``"published"``: the gap is at least twice the most copies that can be touched.
        """
        shape = self.check_votes(votes, shape, bound)
        height, width = height_and_width(patch_size)
        counts = sum_votes(votes)
        prediction = leader_and_gap(counts)[0]
        everyone = torch.arange(len(votes), device=votes.device)
        question = _Question(shape, clip(shape, (height, width)), bound)
        certified = self._label_stays(votes, counts, prediction, everyone, question)
        return PatchCertified(prediction, certified, Patch(height, width), bound)

    def certify_top_k(
        self,
        votes: Tensor,
        patch_size: PatchSize,
        k: int,
        *,
        shape: Shape | None = None,
        bound: PatchBound = "location",
        exclusive: bool = False,
    ) -> Tensor:
        """Which classes stay among the ``k`` with the most votes, whatever patch of one size is applied.

        Args:
            votes, patch_size, shape, bound: see :meth:`certify_votes`.
            k: number of classes; they rank by votes, and by index in ties.
            exclusive: no copy can vote for two classes (argmax, a threshold of one half or more), which certifies more.

        Returns:
            bool ``[B, C]``.
        """
        shape = self.check_votes(votes, shape, bound)
        check_integer("k", k, 1, votes.shape[2] - 1)
        question = _Question(shape, clip(shape, height_and_width(patch_size)), bound, k, exclusive)
        if exclusive and (votes.sum(2) > 1).any():
            raise ValueError("exclusive: got copies that vote for several classes, expected at most one vote per copy")
        certified = torch.zeros((len(votes), votes.shape[2]), dtype=torch.bool, device=votes.device)
        counts, everyone = sum_votes(votes), torch.arange(len(votes), device=votes.device)
        ranked = counts.argsort(dim=1, descending=True, stable=True)
        for label in ranked[:, :k].unbind(1):  # other classes are not among the k even without a patch
            held = self._label_stays(votes, counts, label, everyone, question)
            certified.scatter_(1, label[:, None], held[:, None])
        return certified

    def _label_stays(self, votes: Tensor, counts: Tensor, label: Tensor, asked: Tensor, question: _Question) -> Tensor:
        """Whether the ``label`` of images number ``asked`` stays among the first k: bool ``[len(asked)]``."""
        shape, patch, bound, k, exclusive = question
        if bound == "published":
            # as if as many copies as a patch can touch all voted for the label, and for no other class
            most, own = self.most_touched(shape, patch), label[asked, None]
            counts = counts[asked].scatter_add(1, own, counts.new_full((len(asked), 1), -most))
            least = votes_needed(counts[:, :, None], own[:, 0]).topk(k, dim=1, largest=False).values
            return keeps_place(least, counts.new_tensor([most]), exclusive=exclusive)
        held = torch.ones(len(asked), dtype=torch.bool, device=votes.device)
        step = max(1, _CHUNK // max(1, votes[:1].numel()))
        for begin in range(0, len(asked), step):
            at = asked[begin : begin + step]
            own, touched = self._outside_of_classes(votes, at, label[at, None], question)
            able = may_overtake(counts[at], label[at], (own[:, 0] - touched).amin(1), k)
            close = (able.sum(1) >= k).nonzero()[:, 0]  # fewer than k cannot push the label out
            if len(close):
                rivals = counts[at[close]].masked_fill(~able[close], -1)
                held[begin + close] = self._stays_ahead_of(
                    rivals, votes, at[close], label[at[close]], own[close], question
                )
        return held

    def _stays_ahead_of(
        self, rivals: Tensor, votes: Tensor, at: Tensor, label: Tensor, own: Tensor, question: _Question
    ) -> Tensor:
        """Whether ``label``, with ``own`` votes not at risk, keeps its place among ``rivals``: bool ``[B]``.

        Args:
            rivals: int64 ``[B, C]``, their votes; -1 for classes that do not matter.
            at: int64 ``[B]``, which images.
        """
        _, _, _, k, exclusive = question
        never, held = votes.shape[1] + 1, torch.ones_like(at, dtype=torch.bool)  # more than all copies
        # equally many classes for each image; those that only fill up are ignored below
        strongest = rivals.argsort(dim=1, descending=True, stable=True)[:, : int((rivals >= 0).sum(1).max())]
        least = own.new_full((len(at), k, own.shape[2]), never)
        for some in strongest.split(max(1, _CHUNK // (len(at) * votes.shape[1])), dim=1):
            outside, touched = self._outside_of_classes(votes, at, some, question)
            needed = own - outside + (some > label[:, None])[:, :, None].to(own.dtype)  # later classes lose ties
            needed.masked_fill_((rivals.gather(1, some) < 0)[:, :, None], never)
            if k == 1:
                least = torch.minimum(least, needed.amin(1, keepdim=True))
            else:
                least = torch.cat((least, needed), dim=1).topk(k, dim=1, largest=False).values
            held = keeps_place(least, touched, exclusive=exclusive)
            if not held.any():
                break  # more rivals cannot change that
        return held

    def _outside_of_classes(
        self, votes: Tensor, at: Tensor, classes: Tensor, question: _Question
    ) -> tuple[Tensor, Tensor]:
        """:meth:`outside` for some classes (int64 ``[len(at), K]``) of the images number ``at``."""
        rows = votes[at[0] : at[0] + 1] if len(at) == 1 else votes[at]  # one image may be large
        picked = rows.gather(2, classes[:, None].expand(-1, rows.shape[1], -1))
        return self.outside(picked.bool(), question.shape, question.patch)

    def check_votes(self, votes: Tensor, shape: Shape | None, bound: str = "location") -> Shape:
        """The shape of the images; raise unless these can be their votes."""
        if bound not in get_args(PatchBound):
            raise ValueError(f"bound: got {bound!r}, expected one of {', '.join(get_args(PatchBound))}")
        if not isinstance(votes, Tensor) or votes.ndim != 3:
            got = tuple(votes.shape) if isinstance(votes, Tensor) else type(votes).__name__
            raise ValueError(f"votes: got {got}, expected bool [B, positions, num_classes]")
        if votes.dtype != torch.bool:
            check_counts(votes.flatten(0, 1), "votes")
            if votes.numel() and votes.max() > 1:
                raise ValueError(f"votes: got {votes.max().item()}, expected at most one vote per copy and class")
        elif votes.shape[2] < 2:
            raise ValueError(f"votes: got {votes.shape[2]} classes, expected at least 2")
        shape = needed(self.guess_shape(votes.shape[1]) if shape is None else shape, self)
        self.check_shape(shape)
        if votes.shape[1] != self.num_copies(shape):
            raise ValueError(
                f"votes: got {votes.shape[1]} positions, expected {self.num_copies(shape)}, as for an image of shape "
                f"{shape}; were these votes made with another scheme?"
            )
        return shape

    @abstractmethod
    def check_shape(self, shape: Shape) -> None:
        """Raise unless images of ``shape`` are large enough for this scheme."""

    def check(self, x: Tensor) -> None:
        super().check(x)
        self.check_shape(tuple(x.shape[1:]))
