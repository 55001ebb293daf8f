"""Counter-based random numbers: the randomness of a copy is a function of *which* copy it is.

A sampled copy is identified by ``(seed, stream, item, copy)``: the seed of the run, the purpose of the sample, the
index of the image in its data set and the index of the copy. Its random words are Philox4x32-10 of exactly these
numbers, so batch sizes, sharding, resuming, the order of images and the device cannot change a result, and two streams
never share a word. A scheme that needs very many numbers takes one 64-bit key per copy from Philox and generates the
numbers from that key with SplitMix64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from certify.generators import philox4x32

# Incremented whenever a change makes a sampled scheme draw different copies from the same seed, so that rows from
# before and after the change never mix.
GENERATOR = 2

# Streams, the fourth word of the counter: selecting the class and bounding its probability must never share samples.
SELECTION, ESTIMATION, TRAINING, EVALUATION, BOUNDS, ATTACK, VERIFICATION = range(7)
DATA = 16  # points of generated and sampled clouds
PARTITION = 17  # the assignment of buckets to models

_WORD = 0xFFFFFFFF


@dataclass(frozen=True)
class Draws:
    """The random numbers of a batch of copies.

    Attributes:
        seed: seed of the run, 0 <= seed < 2^64.
        stream: purpose of the numbers (``SELECTION``, ``ESTIMATION``, ``TRAINING``, ...).
        item: int64 ``[B, 1]``, index of each image in its data set, in [0, 2^32).
        copy: int64 ``[1, n]`` or ``[B, n]``, index of each copy, in [0, 2^32).
        part: a scheme that needs several kinds of noise takes each from a separate part, see :meth:`substream`.
    """

    seed: int
    stream: int
    item: Tensor
    copy: Tensor
    part: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 1 << 64:
            raise ValueError(f"seed: got {self.seed}, expected an integer in [0, 2^64)")

    @classmethod
    def of(cls, seed: int, stream: int, items: Tensor, copies: range) -> Draws:
        """Copies ``copies`` of each image in ``items`` (int64 ``[B]``)."""
        numbers = torch.arange(copies.start, copies.stop, device=items.device)
        return cls(seed, stream, items[:, None], numbers[None, :])

    def substream(self, part: int) -> Draws:
        """Random numbers for the same copies, independent of those of every other part.

        Within one part, every method below starts at the first word, so calling two of them gives dependent numbers.
        """
        return replace(self, part=part)

    @property
    def shape(self) -> torch.Size:
        """``(B, n)``."""
        return torch.Size((len(self.item), self.copy.shape[1]))

    def words(self, count: int, start: int = 0) -> Tensor:
        """The words ``start .. start + count`` of each copy: int64 ``[B, n, count]``, uniform on [0, 2^32)."""
        first, last = start // 4, -(-(start + count) // 4)
        words = self._blocks(first, last).movedim(0, -1).reshape(*self.shape, -1)
        return words[..., start - 4 * first : start - 4 * first + count]

    def keys(self) -> Tensor:
        """One uniform key per copy, for :func:`~certify.generators.splitmix64`: int64 ``[B, n, 1]``."""
        words = self.words(2)
        return words[..., :1] << 32 | words[..., 1:]

    def _blocks(self, first: int, last: int) -> Tensor:
        """The blocks of four words ``first .. last`` of each copy: int64 ``[4, B, n, last - first]``."""
        shape, device = self.shape, self.item.device
        counter = torch.empty((4, *shape, last - first), dtype=torch.int64, device=device)
        counter[0] = torch.arange(first, last, device=device)
        counter[1] = self.copy[..., None]
        counter[2] = self.item[..., None]
        counter[3] = self.stream | self.part << 8
        return philox4x32(counter.view(4, -1), (self.seed & _WORD, self.seed >> 32)).view_as(counter)

    def integers(self, bound: int, count: int) -> Tensor:
        """int64 ``[B, n, count]`` in [0, bound), by multiply-and-shift.

        Every value has probability at most ``(1 + bound / 2^32) / bound``; a certificate that uses these integers must
        account for the excess, as that of splitting noise does. If ``bound`` is a power of two, the integers are
        exactly uniform.
        """
        if not 1 <= bound <= 1 << 31:
            raise ValueError(f"bound: got {bound}, expected an integer in [1, 2^31]")
        return (self.words(count) * bound) >> 32

    def uniforms(self, count: int) -> Tensor:
        """float64 ``[B, n, count]``, exactly uniform on the 2^52 midpoints ``(i + 1/2) / 2^52``."""
        words = self.words(2 * count).view(*self.shape, count, 2)
        # convert first: adding 0.5 to integers would give float32, which has half the bits
        return (((words[..., 0] << 20) + (words[..., 1] >> 12)).to(torch.float64) + 0.5) * 2.0**-52

    def bernoulli(self, chances: int, count: int) -> Tensor:
        """Independent events: bool ``[B, n, count]``, each True with probability exactly ``chances / 2^16``."""
        if not 0 <= chances <= 1 << 16:
            raise ValueError(f"chances: got {chances}, expected an integer in [0, 2^16]")
        if chances == 1 << 16:
            return torch.ones((*self.shape, count), dtype=torch.bool, device=self.item.device)
        # Each word gives two signed halves, uniform on [-2^15, 2^15). Whole blocks of four words have a stride of one.
        halves = (self.words(-(-count // 8) * 4) - (1 << 31)).to(torch.int32).contiguous().view(torch.int16)
        return halves[..., :count] < chances - (1 << 15)

    def subsets(self, keep: int, of: int) -> Tensor:
        """Uniformly random subsets of ``keep`` out of ``of`` elements: bool ``[B, n, of]``.

        Exactly uniform: elements are drawn one after another with rejection, and the first ``keep`` distinct ones form
        the subset (or, if ``keep`` is more than half of ``of``, the first ``of - keep`` form its complement).
        """
        if not 0 <= keep <= of:
            raise ValueError(f"keep: got {keep}, expected an integer in [0, {of}]")
        chosen = min(keep, of - keep)
        if chosen == 0:
            return torch.full((*self.shape, of), keep == of, dtype=torch.bool, device=self.item.device)
        draws = _expected_draws(chosen, of)
        while True:
            last, found = self._first_distinct(chosen, of, draws)
            if found:
                return last if chosen == keep else ~last
            draws *= 2

    def _first_distinct(self, chosen: int, of: int, draws: int) -> tuple[Tensor, bool]:
        words = self.words(draws)
        # Words at or above the largest multiple of `of` would favour the low elements, so they are rejected.
        accepted = words < (1 << 32) // of * of
        element = words % of
        position = torch.arange(draws, dtype=torch.int32, device=words.device).expand(words.shape)
        position = torch.where(accepted, position, draws)
        first = torch.full((*self.shape, of), draws, dtype=torch.int32, device=words.device)
        first.scatter_reduce_(-1, element, position, "amin")
        is_first = accepted & (first.gather(-1, element) == position)
        different = is_first.cumsum(-1)
        # The position at which the last wanted element appears for the first time.
        cutoff = (different < chosen).sum(-1, keepdim=True)
        return first <= cutoff, bool((cutoff < draws).all())


def _expected_draws(chosen: int, of: int) -> int:
    """Number of draws that almost surely contain `chosen` distinct elements (six standard deviations)."""
    miss = torch.arange(chosen, dtype=torch.float64) / of
    mean = (1 / (1 - miss)).sum()
    deviation = (miss / (1 - miss) ** 2).sum().sqrt()
    return int(mean + 6 * deviation) + 8
