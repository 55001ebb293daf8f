"""Any map-style data set of PyTorch as one of this project: images are read when they are asked for."""

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

_TWICE = 3  # items that are read twice at once, to see whether they are the same
_OTHER_IMAGE = (
    "was another image when it was read again; use transforms that are not random, and files that stay as they are: "
    "what is certified has to be the image that is tested"
)


class MapStyle(Protocol):
    """What PyTorch calls a map-style data set: ``dataset[i]`` is an image and its label, of ``len(dataset)``."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class MappedImages:
    """The images of a map-style data set as a tensor ``[N, C, H, W]`` that reads what is indexed."""

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
        """What tells these images from others."""
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
    """A map-style data set, such as those of torchvision, for :func:`certify.certify_dataset`.

    All items are read once here, for their labels and a checksum that keeps rows of different images apart; give both
    ``labels`` and ``fingerprint`` to read them only when they are certified. Transforms must not be random, and leave
    values in [0, 1]: normalization belongs into the base classifier, since perturbations are measured before it.

    Args:
        dataset: ``dataset[i]`` is ``(image, label)``: a tensor ``[C, H, W]`` (uint8, or floats in [0, 1]), a picture of
            Pillow, or a NumPy array ``[H, W]`` or ``[H, W, C]`` of bytes; all of one shape.
        name: of the results.
        labels: of all items, from 0 on; by default read from them.
        fingerprint: any text that changes when the images do; by default a checksum of them.

    Raises:
        TypeError: for data sets without numbered items, or images of another type.
        ValueError: for images of different shapes, values outside of [0, 1], items that are others when read again.
    """
    if isinstance(dataset, DataLoader):
        raise TypeError("dataset: got a DataLoader, expected the data set that it reads: loader.dataset")
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise TypeError(
            f"dataset: got {type(dataset).__name__}, expected one with numbered items and a length: results are kept, "
            "resumed and shared between shards by the number of the image"
        )
    if len(dataset) == 0:
        raise ValueError("dataset: got no items")
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
    """What tells an image from others, in 16 bytes."""
    return hashlib.sha256(image.contiguous().numpy().tobytes()).digest()[:16]


def _label(label: Any, i: int) -> int:
    try:
        return operator.index(label)
    except TypeError as error:
        raise TypeError(f"dataset: got {label!r} as label {i}, expected a whole number, from 0 on") from error


def _pair(dataset: MapStyle, i: int) -> tuple[Any, Any]:
    item = dataset[i]
    if not isinstance(item, (tuple, list)) or len(item) < 2:
        raise TypeError(f"dataset: got {type(item).__name__} for item {i}, expected (image, label)")
    return item[0], item[1]


def as_tensor(image: Any, i: int) -> Tensor:
    """The image of item ``i`` as ``[C, H, W]``."""
    if isinstance(image, Tensor):
        tensor = image.detach().cpu().clone()  # a data set may fill one buffer again and again
    elif isinstance(image, Image.Image):
        if image.mode not in ("L", "RGB"):
            raise ValueError(f"dataset: got a picture of mode {image.mode} as item {i}, expected L or RGB; convert it")
        tensor = _channels_first(np.array(image))
    elif isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise TypeError(
                f"dataset: got an array of {image.dtype} {image.shape} as item {i}, expected uint8 [H, W] or "
                "[H, W, C]; give floats as tensors [C, H, W]"
            )
        tensor = _channels_first(image)
    else:
        raise TypeError(f"dataset: got {type(image).__name__} as image {i}, expected a tensor, a picture or an array")
    if tensor.ndim != 3:
        raise ValueError(f"dataset: got shape {tuple(tensor.shape)} as image {i}, expected [C, H, W]")
    # channels that are taken for rows or columns would make another threat model of "pixels"
    if isinstance(image, np.ndarray):
        misplaced = not channels_first(tensor.permute(0, 2, 1).shape)  # [C, H, W] became [W, C, H]
    else:
        misplaced = not channels_first(tensor.shape)
    if misplaced:
        raise ValueError(
            f"dataset: got image {i} with its channels where rows or columns should be ([C, H, W] = "
            f"{list(tensor.shape)}); expected tensors [C, H, W] and arrays [H, W, C], transpose it"
        )
    return tensor


def _channels_first(pixels: np.ndarray) -> Tensor:
    # a copy, since arrays of pictures may be read-only
    return torch.from_numpy(np.array(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)))


def check_same(image: Tensor, shape: Shape, dtype: torch.dtype, i: int) -> None:
    """Raise unless image ``i`` is like the first one, with legal values."""
    if tuple(image.shape) != shape or image.dtype != dtype:
        raise ValueError(
            f"dataset: got {image.dtype} {tuple(image.shape)} as image {i} where the first is {dtype} {shape}; resize "
            "and convert all to the same"
        )
    check_images(image[None])
