"""The vote engine: the only loop over copies whose votes are counted.

Copies are streamed through the base classifier in batches of one fixed shape, and their votes are counted as integers
on the device. The shape of a batch depends only on the scheme and the batch size, and an image with at least a batch of
copies has batches of its own: the tensors that the classifier sees then do not depend on sharding, resuming or how many
images are passed at once. Images with few copies share batches of the same fixed shape. That requires a row of the
classifier's output to depend neither on the other rows nor on its position in the batch. The former is checked for any
classifier; where the latter fails, images do not share batches if the votes have to be exact.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from certify.checks import check_integer
from certify.draws import ESTIMATION, SELECTION, Draws
from certify.images import Shape, channels_first
from certify.inference import (
    DEPENDENT,
    BaseClassifier,
    check_independence,
    check_rows,
    device_of,
    exact_inference,
    good_batch_size,
    others_matter,
    position_matters,
)
from certify.scheme import EnumeratedScheme, SampledScheme, Scheme
from certify.votes import ThresholdVote, VoteRule, Votes, argmax_vote, sum_votes

# from images, their indices in the data set and the numbers of copies: these copies, [images, copies, C', H, W]
MakeCopies = Callable[[Tensor, Tensor, range], Tensor]


@dataclass(frozen=True)
class PassLayout:
    """How copies are laid out in forward passes of one fixed shape ``[images * rows, C', H, W]``.

    Copies are made for several passes at once where they are small, to share the cost of starting each operation.
    """

    images: int
    rows: int
    passes: int
    passes_made: int

    @classmethod
    def of(cls, num_copies: int, batch_size: int, copy_bytes: int, device: torch.device, shared: int) -> PassLayout:
        """The layout for ``num_copies`` copies of each image.

        Args:
            batch_size: the most rows that a pass may have.
            shared: the most rows of a pass in which images are together; a single image costs as much as all of them.
        """
        if num_copies <= batch_size:
            return cls(max(1, min(batch_size, shared) // num_copies), num_copies, 1, 1)
        passes = -(-num_copies // batch_size)
        rows = -(-num_copies // passes)
        rows = min(batch_size, -(-rows // 16) * 16)  # kernels are slower on ragged batches
        passes = -(-num_copies // rows)
        budget = (1 << 27) if device.type == "cuda" else (1 << 21)
        return cls(1, rows, passes, max(1, budget // (rows * copy_bytes)))


_SPOT_CHECK_EVERY = 256  # passes
_KEPT = 4


def _is_spot_check(number: int) -> bool:
    """Whether the rows of a pass, counted from 0 in the life of an engine, are scored again beside others: at 1, 2, 4,
    8, ..., since few images may be certified, and regularly."""
    return number > 0 and (number & (number - 1) == 0 or number % _SPOT_CHECK_EVERY == 0)


# Larger passes are hardly faster per row than these, and the first image would have to wait longer.
_SHARED_CPU, _SHARED_CUDA = 64, 512


def copy_bytes(scheme: Scheme, shape: Shape) -> int:
    """Size of one copy of an image of ``shape``, float32."""
    return 4 * scheme.inputs_per_copy(shape) * math.prod(scheme.input_shape(shape))


_ONE_VOTE_PER_COPY = (
    "a sampled scheme needs at most one vote per copy, since its certificate and its abstention rule conclude from "
    "p > 1/2 that no other class has more: use argmax_vote, or ThresholdVote with theta >= 0.5"
)


def _are_probabilities(scores: Tensor) -> bool:
    """Whether all rows are in [0, 1] and sum to 1; one-hot rows, votes given as scores, do not count."""
    sums = scores.sum(1)
    votes = (scores == 0) | (scores == 1)
    return bool((scores >= 0).all() and ((sums - 1).abs() <= 1e-4).all() and not votes.all())


class VoteEngine:
    """Runs a base classifier over copies of images. See :class:`~certify.smooth.Smoothed` for the usual way in.

    Args:
        base_classifier: maps copies ``[N, C', H, W]`` (float32) to scores ``[N, num_classes]``; of schemes whose
            copies are several inputs each, it takes the inputs.
        scheme: makes the copies.
        num_classes: number of classes.
        vote: turns scores into votes.
        batch_size: rows per forward pass; chosen by :func:`good_batch_size` if None.
    """

    def __init__(
        self,
        base_classifier: BaseClassifier,
        scheme: Scheme,
        num_classes: int,
        *,
        vote: VoteRule = argmax_vote,
        batch_size: int | None = None,
    ) -> None:
        check_integer("num_classes", num_classes, 2)
        if batch_size is not None:
            check_integer("batch_size", batch_size, 1, (1 << 31) - 1)  # kernels count rows with 32 bits
        if not callable(vote):
            raise TypeError(f"vote: got {vote!r}, expected a rule such as argmax_vote or ThresholdVote(theta=0.6)")
        if isinstance(scheme, SampledScheme) and not getattr(vote, "exclusive", True):
            raise ValueError(f"vote: got {vote}, under which a copy may vote for several classes; {_ONE_VOTE_PER_COPY}")
        self.base_classifier = scheme.classifier(base_classifier)
        self.scheme = scheme
        self.num_classes = num_classes
        self.vote = vote
        self.batch_size = batch_size
        self._on_copies: Callable[[int], None] | None = None
        if vote is not argmax_vote and type(vote) is not ThresholdVote:
            self._check_rule()
        self._given_classifier, self._requested_batch_size = base_classifier, batch_size
        # what was found out about the classifier, valid for one mode of running it: the shapes of images whose copies
        # it takes, and the batches in which rows do not depend on one another
        self._run_mode: tuple[object, ...] = ()
        self._accepted_shapes: set[Shape] = set()
        self._independent_batches: set[tuple[Shape, int]] = set()
        self._may_share: dict[tuple[int, ...], bool] = {}  # whether images may share batches, by layout
        self._passes = 0
        self._earlier: Tensor | None = None  # a few copies of an earlier image

    @contextmanager
    def reporting(self, on_copies: Callable[[int], None] | None) -> Iterator[None]:
        """Within this context, show progress: ``with smoothed.engine.reporting(bar.update): smoothed.certify(x)``.

        Args:
            on_copies: called after each forward pass with the number of copies in it (on a GPU, once it is launched).
        """
        before, self._on_copies = self._on_copies, on_copies or self._on_copies
        try:
            yield
        finally:
            self._on_copies = before

    def _check_rule(self) -> None:
        """Raise if the vote of a copy, by a custom rule, depends on more than the scores of that copy."""
        try:
            check_rows(lambda scores: self.one_hot(scores).float(), self.num_classes)
        except ValueError as error:
            raise ValueError(
                f"vote: got {self.vote}, under which the vote of a copy changes with the scores of the others or with "
                "chance; expected a deterministic rule that looks at each row on its own"
            ) from error

    @property
    def shared_rows(self) -> int:
        """The most rows of a pass that several images share; ``batch_size`` if that was given."""
        assert self.batch_size is not None  # settled by prepare
        if self._requested_batch_size is not None:
            return self._requested_batch_size
        on_gpu = device_of(self._given_classifier, torch.device("cpu")).type == "cuda"
        return min(self.batch_size, _SHARED_CUDA if on_gpu else _SHARED_CPU)

    def prepare(self, x: Tensor) -> None:
        """Check ``x`` and, for each shape once, the classifier; settle the batch size that all calls share."""
        self.scheme.check(x)
        shape, device = tuple(x.shape[1:]), device_of(self._given_classifier, x.device)
        run_mode = (device, torch.get_num_threads())  # on which it depends which kernels run
        if run_mode != self._run_mode:
            if self._run_mode and self._run_mode[0] != device:
                self.batch_size = self._requested_batch_size
            self._run_mode = run_mode
            for known in (self._accepted_shapes, self._independent_batches, self._may_share):
                known.clear()
        if shape in self._accepted_shapes and self.batch_size is not None:
            return
        with exact_inference(self.base_classifier):
            copies = self._example_copies(x)
            self._check_first_pass(copies, shape)
            if len(shape) == 3 and not channels_first(shape):
                warnings.warn(
                    f"images: got shape {shape}, taken for {shape[0]} channels of {shape[1]} x {shape[2]} pixels, but "
                    "it looks like channels last; if so, pass x.permute(0, 3, 1, 2)",
                    UserWarning,
                    stacklevel=2,
                )
            if self.batch_size is None:
                inputs = self.scheme.inputs_per_copy(shape)
                self.batch_size = good_batch_size(self.base_classifier, copies[:1], inputs)
            check_independence(self.base_classifier, copies, min(self.batch_size, 4))  # a first check, before any work
            self._accepted_shapes.add(shape)

    def _check_first_pass(self, copies: Tensor, shape: Shape) -> None:
        """Run the classifier for the first time; if it fails, the error says what copies it was given."""
        try:
            scores = self.base_classifier(copies)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ValueError(
                f"base classifier: got copies float32 {tuple(copies.shape)} on {copies.device}, and failed: {error}"
                + self._advice_on_failure(copies, shape)
            ) from error
        self._check_logits(scores, len(copies))
        if isinstance(self.vote, ThresholdVote) and _are_probabilities(scores):
            raise ValueError(
                "base classifier: got probabilities (they sum to 1), expected scores before the soft-max, which "
                "ThresholdVote takes itself; leave out the model's last layer, or return their logarithm"
            )

    def _advice_on_failure(self, copies: Tensor, shape: Shape) -> str:
        """What to change about a classifier that does not accept the copies."""
        kind, advice = type(self.scheme).__name__, "; it has to take float32 (model.float())"
        if copies.shape[1] != shape[0]:
            advice = (
                f"; {kind} makes copies with {copies.shape[1]} channels of images with {shape[0]}: that is what the "
                "first layer has to take (scheme.channels(C)), in float32 (model.float())"
            )
            if getattr(self.scheme, "null", None) == "multichannel":
                advice += '; or keep the first layer, and hide pixels behind a colour: null="mean", mean=(0.5, ...)'
        return advice + ("" if channels_first(shape) else "; convert images [B, H, W, C] with x.permute(0, 3, 1, 2)")

    def _example_copies(self, x: Tensor) -> Tensor:
        """Four copies of the first image, on the classifier's device."""
        image = x[:1].to(device_of(self._given_classifier, x.device))
        draws = Draws.of(0, SELECTION, torch.zeros(1, dtype=torch.int64, device=image.device), range(4))
        copies = self.scheme.sample(image, draws)
        channels = self.scheme.channels(x.shape[1])
        single = self.scheme.inputs_per_copy(tuple(x.shape[1:])) == 1
        if copies.dtype != torch.float32 or copies.shape[:2] != (1, 4) or (single and copies.shape[2] != channels):
            raise ValueError(
                f"{type(self.scheme).__name__}: made copies {copies.dtype} {tuple(copies.shape)} of one image "
                f"{tuple(x.shape[1:])}, expected float32 [1, 4, {channels}, ...] for its channels({x.shape[1]})"
            )
        return copies[0]

    def _layout(self, x: Tensor, num_copies: int, device: torch.device) -> PassLayout:
        """The layout of the copies of these images.

        Exact votes need more than independent rows: a copy that a perturbation does not touch must get bit-identical
        scores wherever its image is in the batch.
        """
        assert self.batch_size is not None  # settled by prepare
        shape = tuple(x.shape[1:])
        layout = PassLayout.of(num_copies, self.batch_size, copy_bytes(self.scheme, shape), device, self.shared_rows)
        if layout.images > 1 and isinstance(self.scheme, EnumeratedScheme):
            key = (layout.images, layout.rows, *shape)
            if key not in self._may_share:
                self._may_share[key] = not position_matters(
                    self.base_classifier, self._example_copies(x), layout.images * layout.rows
                )
            layout = layout if self._may_share[key] else replace(layout, images=1)
        batch = (shape, layout.images * layout.rows)
        if batch not in self._independent_batches:
            check_independence(self.base_classifier, self._example_copies(x), batch[1])
            self._independent_batches.add(batch)
        return layout

    def enumerated(self, x: Tensor, *, index: Tensor | None = None) -> Tensor:
        """Votes of all copies of an enumerated scheme: int64 ``[B, C]``.

        Args:
            index: int64 ``[B]``, each image's index in its data set, by which errors name it.
        """
        return self._all_copies(x, index)[0]

    def enumerated_by_copy(self, x: Tensor, *, index: Tensor | None = None) -> Tensor:
        """Votes of all copies of an enumerated scheme, copy by copy: bool ``[B, n, C]``; see :meth:`enumerated`."""
        _, by_copy = self._all_copies(x, index, keep=True)
        assert by_copy is not None
        return by_copy

    def _all_copies(self, x: Tensor, index: Tensor | None, *, keep: bool = False) -> tuple[Tensor, Tensor | None]:
        scheme = self.scheme
        if not isinstance(scheme, EnumeratedScheme):
            raise TypeError(f"scheme: got {type(scheme).__name__}, expected one that enumerates its copies")

        self.prepare(x)

        def make(images: Tensor, _items: Tensor, copies: range) -> Tensor:
            index = torch.arange(copies.start, copies.stop, device=images.device)[None]
            return scheme.copies(images, index.clamp(max=num_copies - 1))

        num_copies = scheme.num_copies(tuple(x.shape[1:]))
        return self._count(x, index, num_copies, make, keep=keep)

    def sampled(self, x: Tensor, n: int, *, index: Tensor | None, seed: int, stream: int, first: int = 0) -> Tensor:
        """Votes of ``n`` random copies, those numbered ``first``, ``first + 1``, ...: int64 ``[B, C]``.

        Args:
            index: int64 ``[B]``, each image's index in its data set, on which its random numbers depend.
            seed, stream: see :class:`~certify.draws.Draws`.
        """
        if n < 1 or first < 0:
            raise ValueError(f"n, first: got {n}, {first}, expected n >= 1 and first >= 0")
        self.prepare(x)

        def make(images: Tensor, items: Tensor, copies: range) -> Tensor:
            numbers = range(first + copies.start, first + copies.stop)
            return self.scheme.sample(images, Draws.of(seed, stream, items, numbers))

        return self._count(x, index, n, make)[0]

    def _count(
        self,
        x: Tensor,
        index: Tensor | None,
        num_copies: int,
        make: MakeCopies,
        *,
        keep: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Counts, and with ``keep`` the votes copy by copy."""
        home, device = x.device, device_of(self._given_classifier, x.device)
        items = _checked_index(index, len(x))
        # kernels may round differently for another memory layout
        x, items = x.to(device).contiguous(), items.to(device)
        with exact_inference(self.base_classifier):
            counts = torch.zeros((len(x), self.num_classes), dtype=torch.int64, device=device)
            shape = (len(x), num_copies, self.num_classes)
            by_copy = torch.zeros(shape, dtype=torch.bool, device=device) if keep else None
            # read once, at the end: reading them earlier would make the host wait for every pass
            several, dependent = torch.zeros((2,), dtype=torch.bool, device=device).unbind()
            nan = torch.zeros(len(x), dtype=torch.bool, device=device)
            layout = self._layout(x, num_copies, device)
            for images, first, rows in _passes(layout, x, items, make):
                # the classifier may overwrite its inputs
                checked = rows.clone() if len(rows) > 1 and _is_spot_check(self._passes) else None
                kept = rows[:: max(1, len(rows) // _KEPT)][:_KEPT].clone() if first == 0 else None
                logits = self.base_classifier(rows)
                self._check_logits(logits, layout.images * layout.rows)
                logits = logits.to(device)
                broken = torch.isnan(logits).reshape(layout.images, -1).any(1)
                nan[images] |= broken[: images.stop - images.start]
                votes = self.one_hot(logits)
                if isinstance(self.scheme, SampledScheme):
                    several |= (votes.sum(1) > 1).any()
                votes = votes.view(layout.images, layout.rows, self.num_classes)
                # images and copies past the last ones only fill up the shape
                votes = votes[: images.stop - images.start, : num_copies - first]
                counts[images] += votes.sum(1, dtype=torch.int64)
                if by_copy is not None:
                    by_copy[images, first : first + layout.rows] = votes
                if checked is not None:
                    earlier = self._earlier  # other threads may replace it
                    usable = earlier is not None and earlier.shape[1:] == checked.shape[1:]
                    others = earlier.to(checked) if usable and earlier is not None else checked.flip(0)
                    dependent |= others_matter(self.base_classifier, checked, others).to(device)
                self._passes, self._earlier = self._passes + 1, self._earlier if kept is None else kept
                if self._on_copies is not None:
                    self._on_copies(votes.shape[0] * votes.shape[1])
        if dependent:
            raise ValueError(f"{DEPENDENT}. It showed for these images only; results so far may be wrong, too")
        if several:
            raise ValueError(f"vote: a copy got several votes; {_ONE_VOTE_PER_COPY}")
        if nan.any():
            raise ValueError(
                f"base classifier: got NaN scores for the image with index {items[nan].min().item()}, so no vote can "
                "be trusted; check the model and its inputs"
            )
        return counts.to(home), None if by_copy is None else by_copy.to(home)

    def one_hot(self, logits: Tensor) -> Tensor:
        """The votes of copies with these scores: bool ``[N, num_classes]``."""
        votes = self.vote(logits)
        if votes.dtype == torch.bool and votes.shape == logits.shape:
            return votes
        if votes.dtype != torch.int64 or votes.shape != logits.shape[:1]:
            raise ValueError(
                f"vote: got {votes.dtype} {tuple(votes.shape)} for scores {tuple(logits.shape)}, expected the class of "
                f"each copy's vote, int64 [{len(logits)}] (-1 for none), or bool {tuple(logits.shape)}"
            )
        return votes[:, None] == torch.arange(self.num_classes, device=votes.device)

    def _check_logits(self, logits: Tensor, rows: int) -> None:
        expected = (rows, self.num_classes)
        if not isinstance(logits, Tensor) or tuple(logits.shape) != expected or not logits.is_floating_point():
            got = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            advice = "" if isinstance(logits, Tensor) else "; return one tensor, such as output[0] or output.logits"
            raise ValueError(f"base classifier: got {got}, expected float scores of shape {expected}{advice}")


def _checked_index(index: Tensor | None, images: int) -> Tensor:
    """int64 ``[images]``: each image's index in its data set, by default 0, 1, 2, ..."""
    if index is None:
        index = torch.arange(images)
    if not isinstance(index, Tensor):
        raise TypeError(f"index: got {type(index).__name__}, expected a tensor int64 ({images},)")
    if index.shape != (images,) or index.dtype != torch.int64:
        raise ValueError(f"index: got {index.dtype} {tuple(index.shape)}, expected int64 ({images},)")
    if index.min() < 0 or index.max() >= 1 << 32:
        raise ValueError(f"index: got {index.min().item()} to {index.max().item()}, expected 0 <= index < 2^32")
    return index


def _passes(layout: PassLayout, x: Tensor, items: Tensor, make: MakeCopies) -> Iterator[tuple[slice, int, Tensor]]:
    """The forward passes over all copies of all images: the images of each, its first copy, and its rows.

    All passes have the same shape: the last group of images is filled up with its last image, the last pass over the
    copies of an image with copies past the last one.
    """
    for begin in range(0, len(x), layout.images):
        images = slice(begin, min(begin + layout.images, len(x)))
        group = torch.arange(begin, begin + layout.images, device=x.device).clamp(max=len(x) - 1)
        for number in range(0, layout.passes, layout.passes_made):
            last = min(number + layout.passes_made, layout.passes)
            copies = range(number * layout.rows, last * layout.rows)
            made = make(x[group], items[group], copies).flatten(0, 1)
            for i, rows in enumerate(made.split(layout.images * layout.rows)):
                yield images, (number + i) * layout.rows, rows


def collect_votes(
    engine: VoteEngine, x: Tensor, *, n0: int, n: int, index: Tensor | None = None, seed: int = 0
) -> Votes:
    """All votes that a certificate needs: of every copy, or of ``n0`` selection and ``n`` fresh estimation samples."""
    if isinstance(engine.scheme, SampledScheme):
        selection = engine.sampled(x, n0, index=index, seed=seed, stream=SELECTION)
        counts = engine.sampled(x, n, index=index, seed=seed, stream=ESTIMATION)
        items = torch.arange(len(x), device=x.device) if index is None else index.to(x.device)
        return Votes(counts, selection, tuple(x.shape[1:]), n, items, scheme=engine.scheme)
    scheme = engine.scheme
    assert isinstance(scheme, EnumeratedScheme)
    by_copy = engine.enumerated_by_copy(x, index=index) if scheme.positional else None
    counts = engine.enumerated(x, index=index) if by_copy is None else sum_votes(by_copy)
    shape = tuple(x.shape[1:])
    return Votes(counts, None, shape, scheme.num_copies(shape), by_copy=by_copy, scheme=scheme)
