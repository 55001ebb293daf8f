"""Which part of the training set a sample belongs to.

Everything rests on one property: a change to one sample affects one bucket (or two if the sample itself changes: its
old and its new bucket), whatever the rest of the training set and its order. A hash of the sample alone has this
property for every change of the training set; the sorted index has it for changed labels only, but yields buckets of
equal size.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from certify.checks import check_integer
from certify.draws import PARTITION, Draws
from certify.registry import OwnClasses
from certify.threats import PoisoningThreat, TrainingLabels, TrainingSamples

_UNSIGNED = {1: ">u1", 2: ">u2", 4: ">u4", 8: ">u8"}


def sample_keys(samples: Tensor) -> list[bytes]:
    """One key per sample of ``samples [N, ...]``: keys are equal exactly if samples are (bit for bit), and their order
    is the lexicographic order of the values."""
    check_samples(samples)
    if len(samples) == 0:
        return []
    values = samples.detach().cpu().contiguous().numpy().reshape(len(samples), -1)
    bits = values.astype(values.dtype.newbyteorder(">"), copy=False).view(_UNSIGNED[values.itemsize])
    sign = np.array(1 << (8 * values.itemsize - 1), bits.dtype)
    if values.dtype.kind == "f":  # sign-magnitude: the order of negative values is reversed
        bits = np.where(bits & sign, ~bits, bits | sign).astype(bits.dtype)
    elif values.dtype.kind == "i":
        bits = bits ^ sign
    return [row.tobytes() for row in bits.astype(_UNSIGNED[values.itemsize])]


def check_samples(samples: Tensor) -> None:
    """Raise unless ``samples`` are ``[N, ...]`` numbers without NaN or infinity."""
    if not isinstance(samples, Tensor) or samples.ndim < 2 or samples.is_complex() or samples.dtype == torch.bfloat16:
        got = f"{samples.dtype} {tuple(samples.shape)}" if isinstance(samples, Tensor) else type(samples).__name__
        raise ValueError(f"samples: got {got}, expected integers or floats [N, features] or [N, C, H, W]")
    if samples.is_floating_point() and not torch.isfinite(samples).all():
        raise ValueError(
            "samples: got NaN or infinite values, expected finite ones; leave out such samples, judging each on its own"
        )


Rows = tuple[tuple[bytes, ...], ...]


def padded_key(image: Tensor) -> Rows:
    """The key of a uint8 image ``[C, H, W]`` of any size, far smaller than that of the zero-padded image.

    Keys have the order of the :func:`sample_keys` of images padded with zeros on the right and below to equal size
    (dissertation, Appendix F.10): zeros at the end of rows, and rows of zeros at the end of channels, are omitted, and
    a prefix comes first.
    """
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3:
        got = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(f"originals: got {got}, expected uint8 images [C, H, W]")
    channels = []
    for channel in image.cpu().contiguous().numpy():
        rows = [row.tobytes().rstrip(b"\0") for row in channel]
        while rows and not rows[-1]:
            rows.pop()
        channels.append(tuple(rows))
    return tuple(channels)


class Partitioner(ABC):
    """Assigns each sample to one of ``num_partitions`` buckets. Subclasses are frozen dataclasses.

    Attributes:
        own: partitioners defined outside this package, which texts may name, too.
    """

    own: ClassVar[OwnClasses] = OwnClasses()
    num_partitions: int

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Partitioner.own.add(cls)

    @property
    @abstractmethod
    def threats(self) -> tuple[PoisoningThreat, ...]:
        """The threat models in which a change of size 1 affects at most one bucket; the first is the default."""

    @abstractmethod
    def assign(self, samples: Tensor) -> Tensor:
        """The bucket of each sample, int64 ``[N]`` in ``[0, num_partitions)``, from ``samples [N, ...]``."""

    @abstractmethod
    def assign_each(self, samples: Iterable[Tensor]) -> Tensor:
        """Like :meth:`assign`, for samples that are given one by one, each of its own shape."""

    def __post_init__(self) -> None:
        check_integer("num_partitions", self.num_partitions, 1, 1 << 20)


class _Hash(Partitioner):
    """A function of the sample alone, not of its label: a sample with a flipped label stays in its bucket."""

    @property
    def threats(self) -> tuple[PoisoningThreat, ...]:
        return TrainingSamples(), TrainingLabels()

    def assign_each(self, samples: Iterable[Tensor]) -> Tensor:
        return torch.tensor([int(self.assign(sample[None])) for sample in samples], dtype=torch.int64)


@dataclass(frozen=True)
class PixelSum(_Hash):
    """The sum of a sample's integer values, modulo the number of partitions (dissertation, Section 7.2.2)."""

    num_partitions: int

    def assign(self, samples: Tensor) -> Tensor:
        check_samples(samples)
        if samples.is_floating_point():
            raise ValueError(f"samples: got {samples.dtype}, expected uint8 or other integers; use ContentHash")
        return samples.flatten(1).sum(1, dtype=torch.int64) % self.num_partitions


@dataclass(frozen=True)
class ContentHash(_Hash):
    """BLAKE2b of a sample's content: buckets of nearly equal size for any kind of data.

    Attributes:
        key: key of the hash, at most 64 bytes; different keys give different partitions.
    """

    num_partitions: int
    key: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.key.encode()) > hashlib.blake2b.MAX_KEY_SIZE:
            raise ValueError(f"key: got {len(self.key.encode())} bytes, expected at most 64")

    def assign(self, samples: Tensor) -> Tensor:
        kind = f"{samples.dtype} {tuple(samples.shape[1:])}".encode()
        digests = (
            hashlib.blake2b(kind + sample, digest_size=16, key=self.key.encode()).digest()
            for sample in sample_keys(samples)
        )
        buckets = [int.from_bytes(digest, "big") % self.num_partitions for digest in digests]
        return torch.tensor(buckets, dtype=torch.int64, device=samples.device)


@dataclass(frozen=True)
class SortedIndex(Partitioner):
    """A sample's index in the sorted list of all distinct samples, modulo the number of partitions (SS-DPA).

    Certifies against flipped labels only: an inserted sample shifts all later ones. Equal samples share a bucket,
    whatever their labels. Images of different sizes are padded with zeros to the same size. Source: dissertation, Eq.
    7.7 and Appendix F.7.
    """

    num_partitions: int

    @property
    def threats(self) -> tuple[PoisoningThreat, ...]:
        return (TrainingLabels(),)

    def assign(self, samples: Tensor) -> Tensor:
        return self._by_place(sample_keys(samples)).to(samples.device)

    def assign_each(self, samples: Iterable[Tensor]) -> Tensor:
        return self._by_place([padded_key(sample) for sample in samples])

    def _by_place(self, keys: list[Any]) -> Tensor:
        place = {key: i for i, key in enumerate(sorted(set(keys)))}
        return torch.tensor([place[key] % self.num_partitions for key in keys], dtype=torch.int64)


PARTITIONERS: dict[str, type] = {kind.__name__: kind for kind in (PixelSum, ContentHash, SortedIndex)}


def spread_buckets(num_partitions: int, spread: int) -> Tensor:
    """The models that each bucket feeds, int64 ``[num_partitions, spread]``; there are as many models as buckets.

    Bucket b feeds the models b + r (modulo their number) for ``spread`` distinct r that are random but fixed (finite
    aggregation); with a spread of 1, it feeds model b alone (partition aggregation).
    """
    check_integer("spread", spread, 1, num_partitions)
    if spread == 1:
        return torch.arange(num_partitions)[:, None]
    chosen = Draws.of(0, PARTITION, torch.zeros(1, dtype=torch.int64), range(1)).subsets(spread, num_partitions)
    return (torch.arange(num_partitions)[:, None] + chosen[0, 0].nonzero()[:, 0]) % num_partitions
