"""Data sets by name. Images and clips stay 8-bit until a scheme makes copies; point clouds are floats in [0, 1]."""

from __future__ import annotations

import ast
import hashlib
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from certify.data.cifar import cifar10_files, read_cifar10
from certify.data.folders import FolderImages, gtsrb_files, imagenet_files, imagenet_folder
from certify.data.idx import idx_files, read_idx_pair
from certify.data.modelnet import modelnet40_reader, read_modelnet40
from certify.data.moving import CLASSES, moving_shapes
from certify.data.own import check_labels, class_folders, image_size, npz_file, read_folder, read_npz
from certify.data.points import SHAPES, shapes
from certify.data.videos import FolderClips, Sampling, video_files
from certify.images import Shape, channels_first
from certify.registry import check_same_place

Split = Literal["train", "test"]


class LazyImages(Protocol):
    """Images that are read on demand, instead of a tensor that holds them."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor, /) -> Tensor: ...

    def listing(self) -> bytes:
        """Bytes that identify these images, without reading them."""
        ...


@dataclass(frozen=True)
class Dataset:
    """Images and labels.

    Attributes:
        name, split: as passed to :func:`load`.
        images: uint8 ``[N, C, H, W]``, or a :class:`~certify.data.folders.FolderImages` that reads them on demand;
            for point clouds, float32 ``[N, 3, points, 1]``; for clips, uint8 ``[N, C, T, H, W]``, or a
            :class:`~certify.data.videos.FolderClips`; for data of your own, see :func:`~certify.data.from_torch`.
        labels: int64 ``[N]``.
        num_classes: number of classes.
        kind: whether an item is a picture, an unordered set of points, or a clip.
        mirrored: augmentation may assume that a mirror image has the same label.
        classes_known: the classes were known before the labels were seen. Otherwise they were inferred from labels or
            folders, so that a single sample can change their number: no certificate against poisoned samples holds.
    """

    name: str
    split: Split
    images: Tensor | LazyImages
    labels: Tensor
    num_classes: int
    kind: Literal["picture", "points", "clip"] = "picture"
    mirrored: bool = True
    classes_known: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.labels, Tensor) or self.labels.dtype != torch.int64 or self.labels.ndim != 1:
            got = type(self.labels).__name__
            if isinstance(self.labels, Tensor):
                got = f"{self.labels.dtype} {tuple(self.labels.shape)}"
            raise ValueError(f"{self.name}: got labels {got}, expected an int64 tensor [N] of classes, counted from 0")
        if isinstance(self.images, np.ndarray):
            raise TypeError(f"{self.name}: got images as a NumPy array, expected a tensor: torch.from_numpy(images)")
        if isinstance(self.images, Tensor) and self.images.ndim not in (4, 5):
            raise ValueError(
                f"{self.name}: got images {tuple(self.images.shape)}, expected [N, C, H, W], or clips [N, C, T, H, W]"
            )
        if isinstance(self.images, Tensor) and self.images.ndim == 4 and not channels_first(self.images.shape[1:]):
            raise ValueError(
                f"{self.name}: got images {tuple(self.images.shape)}, which looks like channels last, expected "
                "[N, C, H, W]; use images.permute(0, 3, 1, 2)"
            )
        if isinstance(self.images, Tensor) and self.images.is_floating_point():
            legal = ((self.images >= 0) & (self.images <= 1)).flatten(1).all(1)
            if not legal.all():
                raise ValueError(
                    f"{self.name}: got NaN or values outside [0, 1] in image {int(legal.int().argmin())}; scale the "
                    "data first"
                )
        if len(self.images) != len(self.labels) or len(self.labels) == 0:
            raise ValueError(
                f"{self.name}: got {len(self.images)} images and {len(self.labels)} labels, expected equally many, and "
                "at least one"
            )
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= self.num_classes:
            raise ValueError(
                f"{self.name}: got labels in [{low}, {high}], expected 0..{self.num_classes - 1}; count classes from "
                "0, or fetch the data set again if its files are damaged"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> Shape:
        """Shape of one item: (C, H, W), or (C, T, H, W) for clips."""
        return tuple(self.images.shape[1:])

    def batch(self, index: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels of the given indices."""
        index = torch.as_tensor(index, dtype=torch.int64)
        return self.images[index], self.labels[index]

    def checksum(self) -> str:
        """SHA-256 of labels and images; for images read on demand, of the labels and the images' listing."""
        digest = hashlib.sha256(self.labels.numpy().tobytes())
        if isinstance(self.images, Tensor):
            digest.update(self.images.contiguous().numpy().tobytes())
        else:
            digest.update(self.images.listing())
        return digest.hexdigest()

    def channel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, in [0, 1], over all pixels of all images."""
        if not isinstance(self.images, Tensor):
            raise ValueError(
                f"{self.name}: channel statistics are only computed for data sets in memory; give --mean and --std"
            )
        if self.kind == "points":
            raise ValueError(f"{self.name}: point clouds are already scaled; train without normalization")
        if self.images.dtype != torch.uint8:
            each = self.images.transpose(0, 1).flatten(1).double()
            mean, std = ([round(value, 4) for value in found.tolist()] for found in (each.mean(1), each.std(1)))
            return tuple(mean), tuple(std)
        means, stds = [], []
        levels = torch.arange(256, dtype=torch.float64) / 255
        for channel in self.images.unbind(1):
            share = torch.bincount(channel.flatten(), minlength=256) / channel.numel()
            mean = (share * levels).sum()
            means.append(round(mean.item(), 4))
            stds.append(round((share * (levels - mean) ** 2).sum().sqrt().item(), 4))
        return tuple(means), tuple(stds)


def default_root() -> Path:
    """``$CERTIFY_DATA``, or ``data`` in the working directory."""
    return Path(os.environ.get("CERTIFY_DATA", "data"))


def _selectable(read: Callable[[Path, Split], Dataset]) -> Callable[..., Dataset]:
    """A reader with the option ``only``, see :func:`load`."""

    def reader(root: Path, split: Split, *, only: tuple[int, ...] | None = None) -> Dataset:
        data = read(root, split)
        return data if only is None else _only(data, only)

    return reader


def _only(data: Dataset, classes: Any) -> Dataset:
    """The items of some classes, in their order; class ``classes[i]`` becomes class i."""
    legal = isinstance(classes, tuple) and all(type(each) is int for each in classes) and len(classes) >= 2
    if not legal or len(set(classes)) < len(classes) or not set(classes) <= set(range(data.num_classes)):
        raise ValueError(
            f"{data.name}: got only={classes!r}, expected two or more distinct classes from 0 to "
            f"{data.num_classes - 1}, as in only=(1, 7)"
        )
    number = torch.full((data.num_classes,), -1)
    number[list(classes)] = torch.arange(len(classes))
    labels = number[data.labels]
    index = (labels >= 0).nonzero()[:, 0]
    return replace(data, images=data.images[index], labels=labels[index], num_classes=len(classes))


def _digits(root: Path, split: Split) -> Dataset:
    """The 8x8 digits of scikit-learn, scaled from 0..16 to 8 bits; a fixed random fifth is the test set."""
    from sklearn.datasets import load_digits  # heavy import, only for this data set

    pixels, target = load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(target))
    held_out = len(order) // 5
    chosen = order[:held_out] if split == "test" else order[held_out:]
    images = np.rint(pixels[chosen].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return Dataset("digits", split, torch.from_numpy(images)[:, None], torch.from_numpy(target[chosen]).long(), 10)


def _part(split: Split) -> str:
    return "train" if split == "train" else "t10k"


def _idx(name: str) -> Callable[[Path, Split], Dataset]:
    def read(root: Path, split: Split) -> Dataset:
        images, labels = read_idx_pair(root, name, _part(split))
        return Dataset(name, split, torch.from_numpy(images)[:, None], torch.from_numpy(labels).long(), 10)

    return read


def _cifar10(root: Path, split: Split) -> Dataset:
    images, labels = read_cifar10(root, split)
    return Dataset("cifar10", split, torch.from_numpy(images), torch.from_numpy(labels).long(), 10)


def _imagenet(root: Path, split: Split) -> Dataset:
    files, labels, classes = imagenet_files(root, split)
    images = FolderImages(files, 224, resize=256)
    return Dataset("imagenet", split, images, torch.tensor(labels), classes, classes_known=False)


def _gtsrb(root: Path, split: Split, *, whole: bool = False, equalize: bool = False) -> Dataset:
    """Signs at 48x48 pixels, cropped to their boxes unless ``whole``; some signs are mirror images of others."""
    files, labels, boxes = gtsrb_files(root, split)
    images = FolderImages(files, 48, boxes=None if whole else boxes, equalize=equalize)
    return Dataset("gtsrb", split, images, torch.tensor(labels), 43, mirrored=False)


def _modelnet40(root: Path, split: Split) -> Dataset:
    images, labels, classes = read_modelnet40(root, split)
    return Dataset("modelnet40", split, images, labels, classes, "points", classes_known=False)


def _shapes(root: Path, split: Split) -> Dataset:
    images, labels = shapes(split)
    return Dataset("shapes", split, images, labels, len(SHAPES), "points")


def _ucf101(root: Path, split: Split, *, fold: int = 1, **sampling: Any) -> Dataset:
    videos, labels, classes = video_files(root, split, fold=fold)
    clips = FolderClips(videos, Sampling(**sampling))
    clips.check()
    return Dataset("ucf101", split, clips, torch.tensor(labels), classes, "clip", classes_known=False)


def _moving_shapes(root: Path, split: Split, **options: int) -> Dataset:
    clips, labels = moving_shapes(split, **options)
    return Dataset("moving-shapes", split, clips, labels, len(CLASSES), "clip", mirrored=False)


def _npz(root: Path, split: Split, *, path: str, classes: int | None = None) -> Dataset:
    images, labels, seen = read_npz(path, split)
    if classes is not None:
        check_labels(labels, classes, path)
    number, known = seen if classes is None else classes, classes is not None
    return Dataset("npz", split, torch.from_numpy(images), torch.from_numpy(labels), number, classes_known=known)


def _folder(
    root: Path,
    split: Split,
    *,
    path: str,
    size: int,
    resize: int | None = None,
    classes: tuple[str, ...] | None = None,
    channels: int = 3,
) -> Dataset:
    """Square images of side ``size``: the whole image resized, or a centre crop after resizing its shorter side to
    ``resize``; grey ones with ``channels=1``."""
    pixels = image_size(size, resize)
    if isinstance(channels, bool) or not isinstance(channels, int) or channels not in (1, 3):
        raise ValueError(f"folder: got channels={channels!r}, expected 3, or 1 for grey images")
    files, labels, number = read_folder(path, split, classes)
    images = FolderImages(files, pixels[0], resize=pixels[1], strict=True, channels=channels)
    return Dataset("folder", split, images, torch.tensor(labels), number, classes_known=classes is not None)


DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": _selectable(_digits),
    "mnist": _selectable(_idx("mnist")),
    "fashion-mnist": _selectable(_idx("fashion-mnist")),
    "cifar10": _selectable(_cifar10),
    "imagenet": _imagenet,
    "gtsrb": _gtsrb,
    "shapes": _shapes,
    "modelnet40": _modelnet40,
    "moving-shapes": _moving_shapes,
    "ucf101": _ucf101,
    "npz": _npz,
    "folder": _folder,
}
# Find the files of a data set without reading them, and raise if there are none.
_FILES: dict[str, Callable[..., object]] = {
    "mnist": lambda root, split: idx_files(root, "mnist", _part(split)),
    "fashion-mnist": lambda root, split: idx_files(root, "fashion-mnist", _part(split)),
    "cifar10": cifar10_files,
    "imagenet": imagenet_folder,  # listing its files takes minutes on a slow disk
    "gtsrb": gtsrb_files,
    "modelnet40": modelnet40_reader,
    "ucf101": video_files,
    "npz": lambda root, split, path, **options: npz_file(path),
    "folder": lambda root, split, path, **options: class_folders(path, split),
}
_OWN = ("npz", "folder")  # the user's own data, whose names contain a path
own_datasets: set[str] = set()  # names given by register_dataset, which are in DATASETS, too
_WITH_OPTIONS = {
    "digits": "only=(1, 7)",
    "mnist": "only=(1, 7)",
    "fashion-mnist": "only=(1, 7)",
    "cifar10": "only=(1, 7)",
    "gtsrb": "whole=True, equalize=True",
    "moving-shapes": "frames=8, size=16",
    "ucf101": "frames=16, stride=2, size=112, resize=128, fold=1",
    "npz": "path='mine.npz', classes=10",
    "folder": "path='mine', size=32, resize=36, classes=('cat', 'dog'), channels=1",
}


def parse_name(text: str) -> tuple[str, dict[str, Any]]:
    """Split ``"ucf101(frames=8, stride=2)"`` into the name and its options."""
    name, bracket, rest = text.strip().partition("(")
    if name not in DATASETS:
        raise ValueError(
            f"data set: got {text!r}, expected one of {', '.join(DATASETS)}; one of your own is known once the module "
            "that calls certify.data.register_dataset is imported (--import MODULE)"
        )
    if not bracket and name not in _OWN:
        return name, {}
    if name not in _WITH_OPTIONS and name not in own_datasets:
        raise ValueError(f"data set: got {text!r}, but {name} takes no options; give its name alone")
    try:
        call = ast.parse(f"f({rest if bracket else ')'}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError("not a list of options")
        options = {str(option.arg): ast.literal_eval(option.value) for option in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"data set: got {text!r}, expected options as in {_usage(name)}") from error
    if name in _OWN and not isinstance(options.get("path"), str):
        raise ValueError(f"data set: got {text!r}, expected a path, as in {_usage(name)}")
    return name, options


def _usage(name: str) -> str:
    """A data set with its options, for messages."""
    if name not in own_datasets:
        return f"{name}({_WITH_OPTIONS[name]})"
    options = list(inspect.signature(DATASETS[name]).parameters.values())[2:]
    named = {each.name: each.default for each in options if each.kind is not each.VAR_KEYWORD}
    texts = (f"{key}={'...' if value is inspect.Parameter.empty else repr(value)}" for key, value in named.items())
    return f"{name}({', '.join(texts)})"


def register_dataset(name: str, read: Callable[..., Dataset]) -> None:
    """Give a data set of your own a name that :func:`load` and the command lines know.

    Call it in a module of yours, which a command line reads with ``--import MODULE``.

    Args:
        name: as in ``--data NAME``; letters, digits, ``-`` and ``_``, beginning with a letter.
        read: ``read(root, split)`` returns the ``"train"`` or ``"test"`` part, with :func:`~certify.data.from_torch`
            for instance; ``root`` is the folder of the data sets, ``--data-root``. Further keyword arguments are
            options that the name may have, ``--data "NAME(size=64)"``: numbers, strings and tuples of them. A function
            at the top level of its module. Both parts have images of one shape, and the same classes.

    Certificates against poisoned data count changed samples. They hold only if a changed sample changes nothing but
    itself here: no normalization, selection or order that depends on other samples. If the number of classes is read
    from the data, the :class:`Dataset` must say ``classes_known=False``, and such certificates are refused.

    Raises:
        ValueError: if the name is not of this form, or belongs to another data set; if ``read`` is a lambda.
    """
    legal = name[:1].isalpha() and name.replace("-", "_").isidentifier()
    if not legal or name in DATASETS.keys() - own_datasets:
        raise ValueError(
            f"data set: got the name {name!r}, expected a new name of letters, digits, - and _, beginning with a letter"
        )
    check_same_place("data set", name, DATASETS.get(name, read), read)
    own_datasets.add(name)
    DATASETS[name] = read


def load(name: str, split: Split, root: str | Path | None = None) -> Dataset:
    """Read a data set.

    Args:
        name: one of ``DATASETS``. Some take options, such as ``"ucf101(frames=8, stride=2)"`` or
            ``"gtsrb(whole=True, equalize=True)"``, which become part of the data set's name.
            ``"mnist(only=(1, 7))"`` has only the items of these classes, which become classes 0 and 1; also digits,
            fashion-mnist and cifar10. Certificates against poisoned data are then about these samples and labels:
            whatever gives a sample a label of another class also removes it. For your own data:
            ``"npz(path='mine.npz')"`` or ``"folder(path='mine', size=32)"`` (:mod:`certify.data.own`).
        split: ``"train"`` or ``"test"`` (for ImageNet, the validation set).
        root: folder that holds the data sets; by default :func:`default_root`.
    """
    known, options = parse_name(name)
    if split not in ("train", "test"):
        raise ValueError(f"split: got {split!r}, expected 'train' or 'test'")
    folder = default_root() if root is None else Path(root)
    text = f"{known}({', '.join(f'{key}={value!r}' for key, value in options.items())})" if options else known
    if known in own_datasets:
        return _own(text, known, folder, split, options)
    if not options:
        return DATASETS[known](folder, split)
    try:
        data = DATASETS[known](folder, split, **options)
    except TypeError as error:
        raise ValueError(f"data set: got {name!r}, expected options as in {_usage(known)}") from error
    return replace(data, name=text)


def _own(text: str, name: str, root: Path, split: Split, options: dict[str, Any]) -> Dataset:
    """A part of a data set of :func:`register_dataset`, whatever its code calls it."""
    try:
        inspect.signature(DATASETS[name]).bind(root, split, **options)
    except TypeError as error:
        raise ValueError(f"data set: got {text}, expected options as in {_usage(name)} ({error})") from error
    data = DATASETS[name](root, split, **options)
    if not isinstance(data, Dataset):
        raise TypeError(
            f"data set: got a {type(data).__name__} from the code of {name}, expected a certify.data.Dataset; "
            "from_torch(...) makes one of any map-style data set of PyTorch"
        )
    return replace(data, name=text, split=split)


def both_parts(name: str, root: str | Path | None = None) -> tuple[Dataset, Dataset]:
    """The training and the test set; raises if their image shapes or numbers of classes differ."""
    train, test = load(name, "train", root), load(name, "test", root)
    if train.shape != test.shape or train.num_classes != test.num_classes:
        raise ValueError(
            f"{train.name}: got {train.num_classes} classes and images {train.shape} for training, but "
            f"{test.num_classes} and {test.shape} for testing; expected the same"
        )
    return train, test


def check_files(name: str, root: str | Path | None = None) -> None:
    """Raise FileNotFoundError unless the files of both splits of a data set are where :func:`load` looks for them.

    Images are not read; those of ImageNet are not even listed.
    """
    known, options = parse_name(name)
    folder = default_root() if root is None else Path(root)
    own = options if known in _OWN else {}
    for split in ("train", "test") if known in _FILES else ():
        _FILES[known](folder, split, **own)
