"""Data sets stored as folders of image files: ImageNet and GTSRB. Files are decoded on demand."""

from __future__ import annotations

import csv
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

Box = tuple[int, int, int, int]
LOSSLESS = ("1", "L", "P", "RGB")  # Pillow modes that convert to 8-bit RGB without loss
IMAGE_SUFFIXES = {".jpeg", ".jpg", ".png", ".ppm"}


class FolderImages:
    """Image files as a uint8 tensor ``[N, C, size, size]`` that reads images when they are indexed.

    Args:
        files: one path per image.
        size: height and width of the result.
        resize: if given, the shorter side is first resized to this and the centre is cropped (ImageNet); otherwise
            the whole image (or its box) is resized to ``size``, bilinearly.
        boxes: (left, upper, right, lower) to crop before resizing, one per file.
        equalize: equalize the histogram of each channel, after resizing: smaller images may have fewer pixels than
            levels.
        strict: for the user's own files, about which nothing is known: images that cannot be converted to RGB without
            loss are refused, and files are identified by their contents, which :meth:`listing` then reads.
        channels: C, 3 or 1; with 1, images in colour are refused.
    """

    def __init__(
        self,
        files: Sequence[Path],
        size: int,
        *,
        resize: int | None = None,
        boxes: Sequence[Box] | None = None,
        equalize: bool = False,
        strict: bool = False,
        channels: int = 3,
    ) -> None:
        self.files, self.size, self.resize, self.boxes, self.equalize = list(files), size, resize, boxes, equalize
        self.strict, self.channels = strict, channels

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.files), self.channels, self.size, self.size

    def __len__(self) -> int:
        return len(self.files)

    def listing(self) -> bytes:
        """Names and sizes of the files (or checksums), in order, and how they are cropped and resized."""
        lines = [
            f"{path.parent.name}/{path.name} "
            + (hashlib.sha256(path.read_bytes()).hexdigest() if self.strict else str(path.stat().st_size))
            for path in self.files
        ]
        how = f"{self.size} {self.resize} {self.boxes}" + (" equalized" if self.equalize else "")
        how += "" if self.channels == 3 else " grey"
        return "\n".join([*lines, how]).encode()

    def originals(self) -> Iterator[Tensor]:
        """The images at their original sizes, one by one: uint8 ``[C, H, W]``."""
        for i in range(len(self)):
            yield _channels_first([self._original(i)])[0]

    def __getitem__(self, index: Tensor) -> Tensor:
        return self._read_all(self._whole, [(int(i),) for i in index])

    def random_resized_crops(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """ImageNet training images: random crops of 8 to 100 % of the area, resized and randomly flipped."""
        numbers = torch.rand(len(index), 5, generator=generator).tolist()
        return self._read_all(self._random_crop, [(int(i), u) for i, u in zip(index, numbers, strict=True)])

    def _read_all(self, read: Callable[..., Image.Image], arguments: list[tuple[Any, ...]]) -> Tensor:
        # decoding releases the interpreter lock
        with ThreadPoolExecutor(min(len(arguments), os.cpu_count() or 1)) as pool:
            return _channels_first(list(pool.map(lambda a: read(*a), arguments)))

    def _original(self, i: int) -> Image.Image:
        try:
            with Image.open(self.files[i]) as file:
                lossless = file.mode in LOSSLESS and "transparency" not in file.info
                if lossless or not self.strict:
                    return self._converted(file.convert("RGB"), i)
                mode = file.mode
        except _InColourError:
            raise
        except Exception as error:  # a damaged image can fail in any way
            raise ValueError(f"{self.files[i]}: cannot be decoded ({error}); replace the file") from error
        raise ValueError(
            f"{self.files[i]}: got an image of mode {mode}, or with transparency, expected 8-bit grayscale or colour "
            "without transparency; convert it in a way that suits the data"
        )

    def _converted(self, image: Image.Image, i: int) -> Image.Image:
        """An RGB image as it is, or as a grey one if that is the same."""
        if self.channels == 3:
            return image
        red, green, blue = (np.array(image.getchannel(name)) for name in "RGB")
        if not (np.array_equal(red, green) and np.array_equal(green, blue)):
            raise _InColourError(f"{self.files[i]}: got an image in colour with channels=1; leave channels out")
        return image.getchannel("R")

    def _open(self, i: int) -> Image.Image:
        image = self._original(i)
        return image if self.boxes is None else image.crop(self.boxes[i])

    def _whole(self, i: int) -> Image.Image:
        image = resized(self._open(i), self.size, self.resize)
        return ImageOps.equalize(image) if self.equalize else image

    def _random_crop(self, i: int, u: list[float]) -> Image.Image:
        image = self._open(i)
        area = (0.08 + 0.92 * u[0]) * image.width * image.height
        ratio = (3 / 4) * (16 / 9) ** u[1]  # log-uniform between 3/4 and 4/3
        width = min(image.width, max(1, round(math.sqrt(area * ratio))))
        height = min(image.height, max(1, round(math.sqrt(area / ratio))))
        left, top = int(u[2] * (image.width - width + 1)), int(u[3] * (image.height - height + 1))
        image = image.crop((left, top, left + width, top + height))
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if u[4] < 0.5 else image


class _InColourError(ValueError):
    """An image in colour where grey ones are expected."""


def _channels_first(images: Sequence[Image.Image]) -> Tensor:
    """Images of one size and mode: uint8 ``[N, C, H, W]``."""
    pixels = torch.from_numpy(np.stack([np.array(image) for image in images]))
    return pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()


def resized(image: Image.Image, size: int, resize: int | None) -> Image.Image:
    """The whole image resized to a square of side ``size``, or its centre crop after the shorter side is resized to
    ``resize``."""
    if resize is None:
        return image.resize((size, size), Image.Resampling.BILINEAR)
    scale = resize / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    return image.crop((left, top, left + size, top + size))


def existing(candidates: Sequence[Path], what: str) -> Path:
    """The first folder that exists; raises FileNotFoundError if none does."""
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"{what}: none of {', '.join(map(str, candidates))} exists; point --data-root to the parent"
    )


def imagenet_folder(root: Path, split: str) -> Path:
    """``train/`` or ``val/``, in ``imagenet/`` or directly in ``root``."""
    name = "val" if split == "test" else "train"
    return existing([root / "imagenet" / name, root / name], "imagenet")


def imagenet_files(root: Path, split: str) -> tuple[list[Path], list[int], int]:
    """Files and labels of ``train/`` or ``val/`` with one folder per class; classes are numbered alphabetically."""
    folder = imagenet_folder(root, split)
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    files: list[Path] = []
    labels: list[int] = []
    for label, synset in enumerate(classes):
        found = sorted(path for path in (folder / synset).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        files += found
        labels += [label] * len(found)
    if not files:
        raise FileNotFoundError(f"imagenet: no image files in the class folders of {folder}")
    return files, labels, len(classes)


def gtsrb_files(root: Path, split: str) -> tuple[list[Path], list[int], list[Box]]:
    """Files, labels and sign boxes of the German Traffic Sign Recognition Benchmark in its official layout.

    Training: ``Final_Training/Images/000ii/GT-000ii.csv``; test: ``Final_Test/Images`` with ``GT-final_test.csv``
    (the file with labels, next to the images or in ``root/gtsrb``).
    """
    part = "Final_Test" if split == "test" else "Final_Training"
    base = root / "gtsrb"
    folder = existing(
        [base / "GTSRB" / part / "Images", base / part / "Images", root / "GTSRB" / part / "Images"], "gtsrb"
    )
    if split == "train":
        tables = sorted(folder.glob("*/GT-*.csv"))
    else:
        tables = [path for path in (folder / "GT-final_test.csv", base / "GT-final_test.csv") if path.exists()][:1]
    if not tables:
        raise FileNotFoundError(f"gtsrb: no GT-*.csv with labels for {folder}; download the benchmark's ground truth")
    files: list[Path] = []
    labels: list[int] = []
    boxes: list[Box] = []
    for table in tables:
        images = table.parent if split == "train" else folder
        with table.open(newline="") as handle:
            for row in csv.DictReader(handle, delimiter=";"):
                files.append(images / row["Filename"])
                labels.append(int(row["ClassId"]))
                left, top, right, bottom = (int(row[f"Roi.{corner}"]) for corner in ("X1", "Y1", "X2", "Y2"))
                boxes.append((left, top, right + 1, bottom + 1))  # the table's corners are inclusive
    return files, labels, boxes
