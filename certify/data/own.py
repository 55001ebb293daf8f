"""The user's own data, for the command lines: arrays in an NPZ file, or image files in one folder per class."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from certify.data.folders import IMAGE_SUFFIXES
from certify.images import channels_first

_EXAMPLE = "numpy.savez(path, train_images=..., train_labels=..., test_images=..., test_labels=...)"


def npz_file(path: str) -> Path:
    """The file; raises if it does not exist."""
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"npz: no file {file}; {_EXAMPLE} makes one")
    return file


def check_labels(labels: np.ndarray, classes: Any, name: str) -> None:
    """Raise unless ``classes`` is an integer of at least 2, and all labels are in 0..classes - 1."""
    if type(classes) is not int or classes < 2:
        raise ValueError(f"npz: got classes={classes!r}, expected an integer, at least 2")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"{name}: got labels in [{labels.min()}, {labels.max()}], expected 0..{classes - 1}")


def read_npz(path: str, split: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Images ``[N, C, H, W]``, labels int64 ``[N]``, and the number of classes in both splits.

    The file holds ``train_images``, ``train_labels``, ``test_images`` and ``test_labels``, or one split only; images
    are uint8 or floats in [0, 1], ``[N, H, W]`` or ``[N, C, H, W]``; vectors ``[N, D]`` become images of one pixel with
    D channels. Labels are integers, counted from 0. Pickled objects are never loaded.
    """
    file = npz_file(path)
    try:
        with file.open("rb") as handle, np.lib.npyio.NpzFile(handle, allow_pickle=False) as arrays:
            parts = {name: arrays[f"{name}_labels"] for name in ("train", "test") if f"{name}_labels" in arrays}
            images = arrays.get(f"{split}_images")
            known = ", ".join(arrays)
    except (ValueError, OSError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{file}: cannot be read as an NPZ file of plain arrays ({error}); {_EXAMPLE}") from error
    if images is None or split not in parts:
        raise ValueError(f"{file}: got {known or 'no arrays'}, expected {split}_images and {split}_labels")
    for name, labels in parts.items():
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) == 0:
            raise ValueError(
                f"{file}: got {name}_labels {labels.dtype} {labels.shape}, expected integers [N], at least one"
            )
    if images.dtype.kind == "f" and images.dtype.itemsize in (4, 8):
        images = images.astype(images.dtype.newbyteorder("="))
    if images.dtype not in (np.uint8, np.float32, np.float64) or images.ndim not in (2, 3, 4):
        kind = images.dtype.kind
        advice = "; convert 0 to 255 with .astype('uint8')" if kind in "iu" else ""
        advice = "; convert booleans with 255 * x.astype('uint8')" if kind == "b" else advice
        raise ValueError(
            f"{file}: got {split}_images {images.dtype} {images.shape}, expected uint8 or floats in [0, 1], as images "
            f"[N, H, W] or [N, C, H, W], or as vectors [N, D]{advice}"
        )
    if images.ndim == 2:
        images = images[:, :, None, None]
    if images.ndim == 4 and not channels_first(images.shape[1:]):
        raise ValueError(
            f"{file}: got {split}_images {images.shape}, which looks like channels last, expected [N, C, H, W]; use "
            "images.transpose(0, 3, 1, 2)"
        )
    classes = 1 + max(int(labels.max()) for labels in parts.values())
    return images if images.ndim == 4 else images[:, None], parts[split].astype(np.int64), classes


def class_folders(path: str, split: str) -> Path:
    """``PATH/train``, or ``PATH/test`` (``PATH/val`` if that does not exist)."""
    names = ("train",) if split == "train" else ("test", "val")
    found = [Path(path) / name for name in names if (Path(path) / name).is_dir()]
    if not found:
        folders = " or ".join(str(Path(path) / name) for name in names)
        raise FileNotFoundError(f"folder: no {folders}; expected it with one folder of image files per class")
    return found[0]


def _classes(path: str, split: str) -> list[str]:
    folders = (entry.name for entry in class_folders(path, split).iterdir() if entry.is_dir())
    return sorted(name for name in folders if not name.startswith("."))


def read_folder(path: str, split: str, names: Any = None) -> tuple[list[Path], list[int], int]:
    """Files, labels and the number of classes.

    Args:
        names: of the classes, in order; by default the training set's folders, in alphabetical order.
    """
    given = names is not None
    if given and not (isinstance(names, tuple) and len(set(names)) == len(names) >= 2):
        raise ValueError(f"folder: got classes={names!r}, expected the names of two or more folders: ('cat', 'dog')")
    classes = list(names) if given else _classes(path, "train")
    own = _classes(path, split)
    unknown = sorted(set(own) - set(classes))
    if unknown:
        why = f"which is none of {', '.join(map(str, classes))}" if given else "which has no training images"
        raise ValueError(f"folder: got the class {unknown[0]} in {class_folders(path, split)}, {why}")
    files: list[Path] = []
    labels: list[int] = []
    for name in own:
        found = sorted(f for f in (class_folders(path, split) / name).iterdir() if f.suffix.lower() in IMAGE_SUFFIXES)
        if not found and not given:
            raise FileNotFoundError(
                f"folder: no image files ({', '.join(sorted(IMAGE_SUFFIXES))}) in {class_folders(path, split) / name}; "
                "remove the folder if it is not a class"
            )
        files += found
        labels += [classes.index(name)] * len(found)
    if not files:
        raise FileNotFoundError(f"folder: no class folders in {class_folders(path, split)}")
    return files, labels, len(classes)


def image_size(size: Any, resize: Any) -> tuple[int, int | None]:
    """Validated sizes of square images, in pixels."""
    for name, value in (("size", size), ("resize", resize)):
        if not (type(value) is int and value >= 1) and not (name == "resize" and value is None):
            raise ValueError(f"{name}: got {value!r}, expected an integer number of pixels, at least 1")
    return size, resize
