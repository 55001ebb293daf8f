"""Adapter for map-style PyTorch data sets; images are read on demand."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from certify.data.datasets import Dataset, Split
from certify.images import Shape, channels_first, check_images

_TWICE = 3  # items that are read twice in advance, to check that they stay the same
_OTHER_IMAGE = (
    "gave a different image when it was read again; use deterministic transforms, and files that do not change: a "
    "certificate must be about the image that is tested"
)


class MapStyle(Protocol):
    """A map-style data set in the sense of PyTorch: ``dataset[i]`` is ``(image, label)``, for i < ``len(dataset)``."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class MappedImages:
    """The images of a map-style data set as a tensor ``[N, C, H, W]`` that reads images when they are indexed."""

    def __init__(
        self, dataset: MapStyle, shape: Shape, dtype: torch.dtype, fingerprint: str, digests: Sequence[bytes] | None
    ) -> None:
        self.dataset, self.dtype, self.fingerprint, self.digests = dataset, dtype, fingerprint, digests
        self.shape = (len(dataset), *shape)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Tensor) -> Tensor:
        return torch.stack([self._image(int(i)) for i in index])

    def _image(self, i: int) -> Tensor:
        image = as_tensor(_pair(self.dataset, i)[0], i)
        check_same(image, self.shape[1:], self.dtype, i)
        if self.digests is not None and digest_of(image) != self.digests[i]:
            raise ValueError(f"dataset: item {i} {_OTHER_IMAGE}")
        return image

    def listing(self) -> bytes:
        """Bytes that identify these images."""
        return self.fingerprint.encode()


def from_torch(
    dataset: MapStyle,
    name: str,
    *,
    num_classes: int,
    split: Split = "test",
    labels: Sequence[int] | Tensor | None = None,
    fingerprint: str | None = None,
) -> Dataset:
    """Wrap a map-style data set, such as those of torchvision, for :func:`certify.certify_dataset`.

    All items are read once here, for their labels and for a checksum that keeps results of different images apart; give
    both ``labels`` and ``fingerprint`` to read items only when they are certified. Transforms must be deterministic and
    keep values in [0, 1]: normalization belongs in the base classifier, since perturbations are measured before it.

    Args:
        dataset: ``dataset[i]`` is ``(image, label)``; an image is a tensor ``[C, H, W]`` (uint8, or floats in [0, 1]),
            a Pillow image, or a uint8 NumPy array ``[H, W]`` or ``[H, W, C]``; all of one shape.
        name: name of the data set in the results.
        labels: of all items, counted from 0; by default read from the items.
        fingerprint: any text that changes when the images do; by default a checksum of the images.

    Raises:
        TypeError: for data sets without indexing or length, or images of another type.
        ValueError: for images of different shapes, values outside [0, 1], or items that differ when read again.
    """
    if isinstance(dataset, DataLoader):
        raise TypeError("dataset: got a DataLoader, expected the data set that it reads; pass loader.dataset")
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise TypeError(
            f"dataset: got {type(dataset).__name__}, expected a map-style data set, with __getitem__ and __len__: "
            "results are stored, resumed and sharded by the index of the image"
        )
    if len(dataset) == 0:
        raise ValueError("dataset: got no items, expected at least one")
    first = as_tensor(_pair(dataset, 0)[0], 0)
    check_images(first[None])
    for i in range(min(_TWICE, len(dataset))):
        again = [as_tensor(_pair(dataset, i)[0], i) for _ in range(2)]
        if again[0].shape != again[1].shape or not torch.equal(again[0], again[1]):
            raise ValueError(f"dataset: item {i} {_OTHER_IMAGE}")
    digests = None
    if labels is None or fingerprint is None:
        found, digests = _read(dataset, first)
        labels = found if labels is None else labels
        fingerprint = hashlib.sha256(b"".join(digests)).hexdigest() if fingerprint is None else fingerprint
    numbers = torch.tensor([_label(label, i) for i, label in enumerate(labels)], dtype=torch.int64)
    images = MappedImages(dataset, tuple(first.shape), first.dtype, fingerprint, digests)
    return Dataset(name, split, images, numbers, num_classes)


def _read(dataset: MapStyle, first: Tensor) -> tuple[list[Any], list[bytes]]:
    """All labels, and a digest of each image."""
    labels, digests = [], []
    for i in range(len(dataset)):
        item, label = _pair(dataset, i)
        image = as_tensor(item, i)
        check_same(image, tuple(first.shape), first.dtype, i)
        digests.append(digest_of(image))
        labels.append(label)
    return labels, digests


def digest_of(image: Tensor) -> bytes:
    """A 16-byte digest that identifies an image."""
    return hashlib.sha256(image.contiguous().numpy().tobytes()).digest()[:16]


def _label(label: Any, i: int) -> int:
    try:
        return operator.index(label)
    except TypeError as error:
        raise TypeError(f"dataset: got {label!r} as label {i}, expected an integer, counted from 0") from error


def _pair(dataset: MapStyle, i: int) -> tuple[Any, Any]:
    item = dataset[i]
    if not isinstance(item, (tuple, list)) or len(item) < 2:
        raise TypeError(f"dataset: got {type(item).__name__} for item {i}, expected (image, label)")
    return item[0], item[1]


def as_tensor(image: Any, i: int) -> Tensor:
    """The image of item ``i`` as ``[C, H, W]``."""
    if isinstance(image, Tensor):
        tensor = image.detach().cpu().clone()  # a data set may reuse one buffer for all items
    elif isinstance(image, Image.Image):
        if image.mode not in ("L", "RGB"):
            raise ValueError(f"dataset: got an image of mode {image.mode} as item {i}, expected L or RGB; convert it")
        tensor = _channels_first(np.array(image))
    elif isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise TypeError(
                f"dataset: got an array of {image.dtype} {image.shape} as item {i}, expected uint8 [H, W] or "
                "[H, W, C]; give floats as tensors [C, H, W]"
            )
        tensor = _channels_first(image)
    else:
        raise TypeError(
            f"dataset: got {type(image).__name__} as image {i}, expected a tensor, a Pillow image or a NumPy array"
        )
    if tensor.ndim != 3:
        raise ValueError(f"dataset: got shape {tuple(tensor.shape)} as image {i}, expected [C, H, W]")
    # with channels mistaken for rows or columns, "pixel" would mean something else in the threat model
    if isinstance(image, np.ndarray):
        misplaced = not channels_first(tensor.permute(0, 2, 1).shape)  # [C, H, W] became [W, C, H]
    else:
        misplaced = not channels_first(tensor.shape)
    if misplaced:
        raise ValueError(
            f"dataset: got image {i} with its channels on the wrong axis ([C, H, W] = {list(tensor.shape)}), expected "
            "tensors [C, H, W] and arrays [H, W, C]; transpose it"
        )
    return tensor


def _channels_first(pixels: np.ndarray) -> Tensor:
    # a copy, since arrays of Pillow images may be read-only
    return torch.from_numpy(np.array(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)))


def check_same(image: Tensor, shape: Shape, dtype: torch.dtype, i: int) -> None:
    """Raise unless image ``i`` has the shape and dtype of the first one, and legal values."""
    if tuple(image.shape) != shape or image.dtype != dtype:
        raise ValueError(
            f"dataset: got {image.dtype} {tuple(image.shape)} as image {i}, but the first one is {dtype} {shape}; give "
            "all images the same shape and dtype"
        )
    check_images(image[None])
