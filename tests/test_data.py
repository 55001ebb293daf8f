"""Readers of every data set on generated files in the published layouts, and fetching from sources that break."""

from __future__ import annotations

import csv
import gzip
import http.server
import io
import os
import pickle
import re
import struct
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from certify.data import DATASETS, Dataset, check_files, default_root, load
from certify.data import fetch as fetching
from certify.data.cifar import parse_binary, parse_python, write_binary
from certify.data.fetch import Source, array_checksum, download, fetch, verify
from certify.data.folders import FolderImages
from certify.data.idx import parse_idx, write_idx


def random_bytes(*shape: int, seed: int = 0, high: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape, dtype=np.uint8)


def idx_arrays() -> dict[str, np.ndarray]:
    return {
        "train_images": random_bytes(6, 28, 28),
        "train_labels": random_bytes(6, high=10),
        "test_images": random_bytes(4, 28, 28, seed=1),
        "test_labels": random_bytes(4, seed=1, high=10),
    }


IDX_NAMES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}


def write_idx_files(folder: Path, arrays: dict[str, np.ndarray], *, gz: bool = False) -> None:
    folder.mkdir(parents=True)
    for part, name in IDX_NAMES.items():
        data = write_idx(arrays[part])
        (folder / (name + ".gz" if gz else name)).write_bytes(gzip.compress(data) if gz else data)


# IDX: MNIST and Fashion-MNIST


@pytest.mark.parametrize("shape", [(3,), (2, 5), (4, 3, 2)])
@pytest.mark.parametrize("gz", [False, True])
def test_idx_round_trip(shape, gz):
    array = random_bytes(*shape)
    data = write_idx(array)
    read = parse_idx(gzip.compress(data) if gz else data, "file")
    assert read.dtype == np.uint8
    assert np.array_equal(read, array)


def test_idx_header_is_the_published_one():
    images = random_bytes(2, 28, 28)
    assert write_idx(images) == struct.pack(">IIII", 0x803, 2, 28, 28) + images.tobytes()
    assert write_idx(images[0, 0]) == struct.pack(">II", 0x801, 28) + images[0, 0].tobytes()


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mnist", "mnist"),
        ("mnist", "MNIST/raw"),
        ("mnist", "."),
        ("fashion-mnist", "fashion-mnist"),
        ("fashion-mnist", "FashionMNIST/raw"),
    ],
)
def test_idx_layouts(tmp_path, name, folder, gz):
    arrays = idx_arrays()
    write_idx_files(tmp_path / "root" / folder if folder != "." else tmp_path / "root", arrays, gz=gz)
    for split in ("train", "test"):
        data = load(name, split, tmp_path / "root")
        assert (data.name, data.split, data.num_classes, data.shape) == (name, split, 10, (1, 28, 28))
        assert data.images.dtype == torch.uint8
        assert data.labels.dtype == torch.int64
        assert np.array_equal(data.images[:, 0].numpy(), arrays[f"{split}_images"])
        assert np.array_equal(data.labels.numpy(), arrays[f"{split}_labels"])


def test_idx_names_with_a_dot(tmp_path):
    arrays = idx_arrays()
    (tmp_path / "t10k-images.idx3-ubyte").write_bytes(write_idx(arrays["test_images"]))
    (tmp_path / "t10k-labels.idx1-ubyte").write_bytes(write_idx(arrays["test_labels"]))
    assert np.array_equal(load("mnist", "test", tmp_path).images[:, 0].numpy(), arrays["test_images"])


def test_idx_of_other_values_is_refused():
    with pytest.raises(ValueError, match="some-file: got no IDX header, expected an IDX file of 8-bit values"):
        parse_idx(b"\x00\x00\x0d\x01" + struct.pack(">If", 1, 0.5), "some-file")


IDX_FILE = write_idx(random_bytes(3, 4, 5))


@pytest.mark.parametrize("length", [0, 3, 4, 9, 15, 16, len(IDX_FILE) - 1])
def test_truncated_idx(length):
    with pytest.raises(ValueError, match="some-file: "):
        parse_idx(IDX_FILE[:length], "some-file")


def test_truncated_idx_says_how_much_is_missing():
    with pytest.raises(ValueError, match=r"got 59 bytes of data, but the header announces 60 \(3 x 4 x 5\).*truncated"):
        parse_idx(IDX_FILE[:-1], "some-file")


def damaged_gzip(kind: str) -> bytes:
    data = gzip.compress(IDX_FILE, mtime=0)
    if kind == "truncated":
        return data[: len(data) // 2]
    if kind == "wrong check sum":
        return data[:-8] + bytes(4) + data[-4:]
    return data[:10] + b"\xff" * 8 + data[18:]  # the header is whole, the compressed stream is not


@pytest.mark.parametrize("kind", ["truncated", "wrong check sum", "broken stream"])
def test_damaged_gzip_names_the_file(kind):
    with pytest.raises(ValueError, match="some-file"):
        parse_idx(damaged_gzip(kind), "some-file")


# CIFAR-10


CIFAR_FILES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]


def cifar_batches() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {
        name: (random_bytes(4, 3, 32, 32, seed=i), random_bytes(4, seed=i, high=10))
        for i, name in enumerate(CIFAR_FILES)
    }


class Python2Pickler(pickle._Pickler):
    """Writes strings as Python 2 did: one kind for text and bytes, and the old place of NumPy's constructors."""

    dispatch: ClassVar[dict] = dict(pickle._Pickler.dispatch)

    def save_string(self, value: str | bytes) -> None:
        data = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string


def cifar_pickle(images: np.ndarray, labels: np.ndarray, protocol: int) -> bytes:
    content = {
        b"data": images.reshape(len(images), -1),
        b"labels": labels.tolist(),
        b"batch_label": b"testing batch 1 of 1",
        b"filenames": [b"cat_s_000001.png"] * len(images),
    }
    return pickle.dumps(content, protocol)


def published_cifar_pickle(images: np.ndarray, labels: np.ndarray, path: Path) -> bytes:
    with path.open("wb") as handle:
        content = {"data": images.reshape(len(images), -1), "labels": labels.tolist()}
        Python2Pickler(handle, 2).dump(content)
    return path.read_bytes().replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n")


def write_cifar(root: Path, *, python: bool, protocol: int = 2) -> None:
    folder = root / ("cifar-10-batches-py" if python else "cifar-10-batches-bin")
    folder.mkdir(parents=True)
    for name, (images, labels) in cifar_batches().items():
        if python:
            (folder / name).write_bytes(cifar_pickle(images, labels, protocol))
        else:
            (folder / f"{name}.bin").write_bytes(write_binary(images, labels))


@pytest.mark.parametrize("base", ["", "cifar10"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_cifar_layouts_give_equal_arrays(tmp_path, split, base):
    write_cifar(tmp_path / "binary" / base, python=False)
    write_cifar(tmp_path / "python" / base, python=True)
    binary, python = (load("cifar10", split, tmp_path / layout) for layout in ("binary", "python"))
    parts = [v for k, v in cifar_batches().items() if k.startswith("test") == (split == "test")]
    assert binary.shape == (3, 32, 32)
    assert np.array_equal(binary.images.numpy(), np.concatenate([images for images, _ in parts]))
    assert np.array_equal(binary.labels.numpy(), np.concatenate([labels for _, labels in parts]))
    assert torch.equal(python.images, binary.images)
    assert torch.equal(python.labels, binary.labels)
    assert python.images.dtype == binary.images.dtype == torch.uint8


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_pickles_of_python_3(protocol):
    images, labels = cifar_batches()["test_batch"]
    read_images, read_labels = parse_python(cifar_pickle(images, labels, protocol), "file")
    assert np.array_equal(read_images, images)
    assert np.array_equal(read_labels, labels)


def test_pickles_of_python_2(tmp_path):
    images, labels = cifar_batches()["test_batch"]
    data = published_cifar_pickle(images, labels, tmp_path / "batch")
    assert b"numpy.core.multiarray" in data
    read_images, read_labels = parse_python(data, "file")
    assert np.array_equal(read_images, images)
    assert np.array_equal(read_labels, labels)


class Payload:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("shell", [True, False])
def test_malicious_pickle_is_refused_and_not_run(tmp_path, protocol, shell):
    marker = tmp_path / "ran"
    call = (os.system, f"touch {marker}") if shell else (eval, f"open({str(marker)!r}, 'w').close()")
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    content = {b"data": Payload(*call), b"labels": [0]}
    (folder / "test_batch").write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(ValueError, match=r"test_batch: .* the file was refused"):
        load("cifar10", "test", tmp_path)
    assert not marker.exists()


def test_malicious_object_array_is_refused(tmp_path):
    marker = tmp_path / "ran"
    array = np.array([Payload(os.system, f"touch {marker}")], dtype=object)
    with pytest.raises(ValueError, match="refused"):
        parse_python(pickle.dumps({b"data": array, b"labels": [0]}, 2), "file")
    assert not marker.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a pickle",
        cifar_pickle(*cifar_batches()["test_batch"], 2)[:-100],
        pickle.dumps({b"data": np.zeros((1, 3072), np.uint8)}, 2),
        pickle.dumps({b"data": np.zeros((1, 100), np.uint8), b"labels": [0]}, 2),
        pickle.dumps([1, 2], 2),
    ],
    ids=["empty", "text", "truncated", "no labels", "other shape", "no dictionary"],
)
def test_other_pickles_name_the_file(data):
    with pytest.raises(ValueError, match="some-file: not a CIFAR-10 batch"):
        parse_python(data, "some-file")


def test_binary_round_trip():
    images, labels = cifar_batches()["test_batch"]
    data = write_binary(images, labels)
    assert len(data) == 4 * 3073
    assert data[3073] == labels[1]
    read_images, read_labels = parse_binary(data, "file")
    assert np.array_equal(read_images, images)
    assert np.array_equal(read_labels, labels)


@pytest.mark.parametrize("length", [0, 1, 3072, 4 * 3073 - 1])
def test_truncated_binary(length):
    data = write_binary(*cifar_batches()["test_batch"])
    with pytest.raises(ValueError, match=f"some-file: got {length} bytes, expected a multiple of 3073.*truncated"):
        parse_binary(data[:length], "some-file")


# ImageNet


def save_image(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize("folder", ["imagenet/val", "val"])
def test_imagenet_classes_are_numbered_alphabetically(tmp_path, folder):
    colours = {"n03000000": 30, "n01000000": 10, "n02000000": 20}
    for synset, colour in colours.items():
        save_image(tmp_path / folder / synset / "b.png", np.full((40, 30, 3), colour, np.uint8))
        save_image(tmp_path / folder / synset / "a.JPEG", np.full((30, 40, 3), colour, np.uint8))
    (tmp_path / folder / "n01000000" / "notes.txt").write_text("not an image")
    data = load("imagenet", "test", tmp_path)
    assert len(data) == 6
    assert data.num_classes == 3
    assert data.shape == (3, 224, 224)
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    images, labels = data.batch([5, 0, 3])
    assert images.shape == (3, 3, 224, 224)
    assert images.dtype == torch.uint8
    assert labels.tolist() == [2, 0, 1]
    assert images[:, 0, 100, 100].tolist() == [30, 10, 20]


def test_imagenet_splits_are_different_folders(tmp_path):
    save_image(tmp_path / "imagenet" / "train" / "n1" / "a.png", np.zeros((20, 20), np.uint8))
    assert len(load("imagenet", "train", tmp_path)) == 1
    with pytest.raises(FileNotFoundError, match=r"imagenet: none of .*val.* exists"):
        load("imagenet", "test", tmp_path)


@pytest.mark.parametrize("wide", [True, False])
def test_imagenet_crops_the_centre(tmp_path, wide):
    """Of 640 x 320 pixels, resized to 512 x 256, the central 224 show the original's central 280."""
    pixels = np.zeros((320, 640, 3), np.uint8)
    pixels[..., 0] = 255
    pixels[18:302, 178:462] = (0, 255, 0)
    outside = np.array(pixels)
    outside[26:294, 186:454] = (255, 0, 0)
    for name, image in (("a", pixels), ("b", outside)):
        save_image(tmp_path / "val" / "n1" / f"{name}.png", image if wide else image.transpose(1, 0, 2))
    whole, border = load("imagenet", "test", tmp_path).batch([0, 1])[0]
    assert torch.equal(whole, torch.tensor([0, 255, 0], dtype=torch.uint8)[:, None, None].expand(3, 224, 224))
    edge = border[1, [0, -1, 112, 112], [112, 112, 0, -1]]
    assert (edge > 200).all()
    assert border[1, 112, 112] == 0


def test_imagenet_converts_to_colour(tmp_path):
    save_image(tmp_path / "val" / "n1" / "grey.png", np.full((300, 260), 77, np.uint8))
    image = load("imagenet", "test", tmp_path).batch([0])[0]
    assert image.shape == (1, 3, 224, 224)
    assert (image == 77).all()


def test_imagenet_without_images(tmp_path):
    (tmp_path / "val" / "n1").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no image files in the class folders"):
        load("imagenet", "test", tmp_path)


def undecodable(kind: str, tmp_path: Path) -> bytes:
    if kind == "text":
        return b"not an image"
    save_image(tmp_path / "whole.png", random_bytes(300, 300, 3))
    data = (tmp_path / "whole.png").read_bytes()
    if kind == "truncated":
        return data[: len(data) // 2]
    if kind == "broken chunk":
        first = data.index(b"IDAT")
        second = data.index(b"IDAT", first + 4)
        return data[:second] + b"\xf0\x8c\xe2g" + data[second + 4 :]
    return b"P6\n60X255\n255\n" + bytes(100)


@pytest.mark.parametrize("kind", ["text", "truncated", "broken chunk", "broken header"])
def test_undecodable_image_is_named(tmp_path, kind):
    path = tmp_path / "val" / "n1" / ("damaged.ppm" if kind == "broken header" else "damaged.png")
    path.parent.mkdir(parents=True)
    path.write_bytes(undecodable(kind, tmp_path))
    data = load("imagenet", "test", tmp_path)
    with pytest.raises(ValueError, match=re.escape(f"{path}: cannot be decoded")):
        data.batch([0])


def test_folder_has_no_statistics(tmp_path):
    save_image(tmp_path / "val" / "n1" / "a.png", np.zeros((20, 20), np.uint8))
    with pytest.raises(ValueError, match="give --mean and --std"):
        load("imagenet", "test", tmp_path).channel_statistics()


# GTSRB


GTSRB_HEADER = ("Filename", "Width", "Height", "Roi.X1", "Roi.Y1", "Roi.X2", "Roi.Y2", "ClassId")


def write_gtsrb_table(path: Path, signs: list[tuple[str, int]]) -> None:
    """A table of signs that fill columns 5..24 and rows 7..20, both inclusive, of 30 x 28 images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle, delimiter=";")
        writer.writerow(GTSRB_HEADER)
        writer.writerows([name, 30, 28, 5, 7, 24, 20, label] for name, label in signs)


def save_sign(path: Path, colour: tuple[int, int, int]) -> None:
    """A sign with a white lower right corner on black ground."""
    pixels = np.zeros((28, 30, 3), np.uint8)
    pixels[7:21, 5:25] = colour
    pixels[20, 24] = 255
    save_image(path, pixels)


def gtsrb_train(folder: Path) -> None:
    for label in (0, 42):
        images = folder / f"{label:05d}"
        write_gtsrb_table(images / f"GT-{label:05d}.csv", [("00000_00000.ppm", label), ("00000_00001.ppm", label)])
        for i in range(2):
            save_sign(images / f"00000_0000{i}.ppm", (label + 100, i + 50, 200))


@pytest.mark.parametrize("layout", ["gtsrb/GTSRB", "gtsrb", "GTSRB"])
def test_gtsrb_train(tmp_path, layout):
    gtsrb_train(tmp_path / layout / "Final_Training" / "Images")
    data = load("gtsrb", "train", tmp_path)
    assert data.num_classes == 43
    assert data.shape == (3, 48, 48)
    assert data.labels.tolist() == [0, 0, 42, 42]
    images, labels = data.batch(torch.tensor([3, 0]))
    assert labels.tolist() == [42, 0]
    assert images.dtype == torch.uint8
    expected = torch.tensor([[142, 51, 200], [100, 50, 200]], dtype=torch.uint8)
    assert torch.equal(images[..., :40, :], expected[:, :, None, None].expand(2, 3, 40, 48))
    assert torch.equal(images[..., :, :40], expected[:, :, None, None].expand(2, 3, 48, 40))
    assert (images[..., 47, 47] == 255).all()


@pytest.mark.parametrize("table", ["gtsrb/GTSRB/Final_Test/Images/GT-final_test.csv", "gtsrb/GT-final_test.csv"])
def test_gtsrb_test(tmp_path, table):
    images = tmp_path / "gtsrb" / "GTSRB" / "Final_Test" / "Images"
    write_gtsrb_table(tmp_path / table, [("00000.ppm", 16), ("00001.ppm", 1)])
    for i in range(2):
        save_sign(images / f"0000{i}.ppm", (i + 1, 2, 3))
    data = load("gtsrb", "test", tmp_path)
    assert data.labels.tolist() == [16, 1]
    assert data.batch([0, 1])[0][:, :, 47, 0].tolist() == [[1, 2, 3], [2, 2, 3]]


def test_the_table_without_labels_is_not_enough(tmp_path):
    images = tmp_path / "gtsrb" / "Final_Test" / "Images"
    save_sign(images / "00000.ppm", (1, 2, 3))
    (images / "GT-final_test.test.csv").write_text(";".join(GTSRB_HEADER[:-1]) + "\n")
    with pytest.raises(FileNotFoundError, match="download the benchmark's ground truth"):
        load("gtsrb", "test", tmp_path)


def test_gtsrb_whole_and_equalized(tmp_path):
    gtsrb_train(tmp_path / "gtsrb" / "Final_Training" / "Images")
    signs, whole = load("gtsrb", "train", tmp_path), load("gtsrb(whole=True)", "train", tmp_path)
    equal = load("gtsrb(whole=True, equalize=True)", "train", tmp_path)
    assert equal.name == "gtsrb(whole=True, equalize=True)"
    assert len({data.checksum() for data in (signs, whole, equal)}) == 3
    assert not signs.mirrored
    plain = whole.batch([2])[0]
    assert plain[0, :, 0, 0].tolist() == [0, 0, 0]  # the black ground of the whole image
    after = equal.batch([2])[0]
    assert after.shape == plain.shape
    for before, channel in zip(plain[0], after[0], strict=True):
        levels, place = before.unique(return_inverse=True)
        as_mapped = [channel.flatten()[place.flatten() == i].unique().tolist() for i in range(len(levels))]
        assert all(len(values) == 1 for values in as_mapped)
        assert sorted(as_mapped) == as_mapped
    assert after[0].flatten(1).max(1).values.tolist() == [255, 255, 255]
    [original] = [image for i, image in enumerate(signs.images.originals()) if i == 2]
    assert original.shape == (3, 28, 30)
    assert original[:, 8, 6].tolist() == [142, 50, 200]
    assert original[:, 0, 0].tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match=re.escape("expected options as in gtsrb(whole=True, equalize=True)")):
        load("gtsrb(size=32)", "train", tmp_path)


def test_gtsrb_labels_out_of_range(tmp_path):
    images = tmp_path / "gtsrb" / "Final_Training" / "Images" / "00043"
    write_gtsrb_table(images / "GT-00043.csv", [("0.ppm", 0), ("1.ppm", 43)])
    with pytest.raises(ValueError, match=re.escape("gtsrb: got labels in [0, 43], expected 0..42")):
        load("gtsrb", "train", tmp_path)


def test_box_is_cut_out_before_resizing(tmp_path):
    pixels = random_bytes(40, 50, 3)
    save_image(tmp_path / "a.png", pixels)
    images = FolderImages([tmp_path / "a.png"], 8, boxes=[(10, 20, 18, 28)])
    assert images.shape == (1, 3, 8, 8)
    assert np.array_equal(images[torch.tensor([0])][0].permute(1, 2, 0).numpy(), pixels[20:28, 10:18])


# All data sets


def test_digits():
    from sklearn.datasets import load_digits

    train, test = load("digits", "train"), load("digits", "test")
    assert (len(train), len(test)) == (1438, 359)
    for data in (train, test):
        assert data.shape == (1, 8, 8)
        assert data.images.dtype == torch.uint8
        assert data.labels.dtype == torch.int64
        assert data.num_classes == 10
        assert data.labels.unique().tolist() == list(range(10))
    # together the two are all digits, each as often as there: they share none
    pixels, target = load_digits(return_X_y=True)
    everything = torch.from_numpy(np.rint(pixels * 255 / 16).astype(np.uint8)).view(-1, 64)
    rows = torch.cat((everything, torch.from_numpy(target).to(torch.uint8)[:, None]), 1)
    parts = [torch.cat((d.images.flatten(1), d.labels.to(torch.uint8)[:, None]), 1) for d in (train, test)]
    assert sorted(map(tuple, torch.cat(parts).tolist())) == sorted(map(tuple, rows.tolist()))


def test_digits_are_always_the_same():
    assert torch.equal(load("digits", "test").images, load("digits", "test").images)


def test_channel_statistics():
    pixels = random_bytes(7, 3, 5, 6)
    pixels[:, 1] //= 4
    pixels[:, 2] = 255
    data = Dataset("some", "train", torch.from_numpy(pixels), torch.zeros(7, dtype=torch.int64), 2)
    mean, std = data.channel_statistics()
    scaled = pixels.astype(np.float64) / 255
    assert mean == pytest.approx(scaled.mean((0, 2, 3)), abs=6e-5)
    assert std == pytest.approx(scaled.std((0, 2, 3)), abs=6e-5)
    assert (mean[2], std[2]) == (1, 0)


def test_checksum_depends_on_images_and_labels():
    images, labels = torch.from_numpy(random_bytes(4, 1, 3, 3)), torch.tensor([0, 1, 1, 0])

    def checksum(images: torch.Tensor, labels: torch.Tensor) -> str:
        return Dataset("some", "train", images, labels, 2).checksum()

    first = checksum(images, labels)
    assert checksum(images.transpose(2, 3).contiguous().transpose(2, 3), labels.clone()) == first
    assert checksum(images ^ (torch.arange(36).view(4, 1, 3, 3) == 35), labels) != first
    assert checksum(images, 1 - labels) != first


def test_checksum_of_a_folder_depends_on_its_files(tmp_path):
    for name in ("a", "b"):
        save_image(tmp_path / "val" / "n1" / f"{name}.png", random_bytes(20, 20))
    first = load("imagenet", "test", tmp_path).checksum()
    assert load("imagenet", "test", tmp_path).checksum() == first
    (tmp_path / "val" / "n1" / "b.png").rename(tmp_path / "val" / "n1" / "c.png")
    renamed = load("imagenet", "test", tmp_path).checksum()
    save_image(tmp_path / "val" / "n1" / "c.png", random_bytes(21, 20))
    assert len({first, renamed, load("imagenet", "test", tmp_path).checksum()}) == 3


def test_batch_takes_any_index():
    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 1, 2, 2)
    data = Dataset("some", "train", images, torch.arange(5), 5)
    for index in ([4, 0], torch.tensor([4, 0]), range(4, -1, -4)):
        batch, labels = data.batch(index)
        assert batch[:, 0, 0, 0].tolist() == labels.tolist() == [4, 0]


@pytest.mark.parametrize(("labels", "classes"), [([0, 10], 10), ([-1, 3], 10), ([0, 2], 2)])
def test_labels_out_of_range(labels, classes):
    with pytest.raises(ValueError, match=re.escape(f"some: got labels in [{labels[0]}, {labels[1]}]")):
        Dataset("some", "train", torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor(labels), classes)


@pytest.mark.parametrize(("images", "labels"), [(2, 3), (0, 0)])
def test_images_and_labels_go_together(images, labels):
    with pytest.raises(ValueError, match=f"some: got {images} images and {labels} labels"):
        Dataset(
            "some",
            "train",
            torch.zeros(images, 1, 4, 4, dtype=torch.uint8),
            torch.zeros(labels, dtype=torch.int64),
            10,
        )


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_missing_files_name_the_fetch_command(tmp_path, name):
    for split in ("train", "test"):
        with pytest.raises(FileNotFoundError, match=f"{name}: .*run 'python -m scripts.fetch {name}'"):
            load(name, split, tmp_path)


@pytest.mark.parametrize("name", ["imagenet", "gtsrb"])
def test_missing_folders_name_the_option(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=f"{name}: none of .* exists; point --data-root"):
        load(name, "test", tmp_path)


@pytest.mark.parametrize("name", [name for name in DATASETS if name not in ("npz", "folder")])
def test_files_are_looked_for_without_reading_them(monkeypatch, tmp_path, name):
    """What is built in needs no files; of the others, both splits have to be there."""
    monkeypatch.setenv("CERTIFY_DATA", str(tmp_path))
    if name in ("digits", "shapes", "moving-shapes"):
        check_files(name)
        return
    with pytest.raises(FileNotFoundError, match=f"^{name}: no"):
        check_files(name)
    made = {
        "mnist": [f"mnist/{part}" for part in IDX_NAMES.values()],
        "fashion-mnist": [f"FashionMNIST/raw/{part}.gz" for part in IDX_NAMES.values()],
        "cifar10": [
            f"cifar10/cifar-10-batches-py/{batch}"
            for batch in ("test_batch", *(f"data_batch_{i}" for i in range(1, 6)))
        ],
        "imagenet": ["imagenet/val/n01440764/a.JPEG", "imagenet/train/n01440764/a.JPEG"],
        "gtsrb": ["gtsrb/Final_Training/Images/00000/GT-00000.csv", "gtsrb/Final_Test/Images/GT-final_test.csv"],
        "modelnet40": ["ModelNet40/chair/train/a.off", "ModelNet40/chair/test/a.off"],
        "ucf101": ["ucf101/train/Archery/a.gif", "ucf101/test/Archery/b.gif"],
    }[name]
    for i, path in enumerate(made):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
        if i < len(made) - 1:
            with pytest.raises(FileNotFoundError, match=name):
                check_files(name)
    check_files(name)


def test_unknown_names():
    with pytest.raises(ValueError, match=f"data set: got 'svhn', expected one of {', '.join(DATASETS)}"):
        load("svhn", "test")
    with pytest.raises(ValueError, match="split: got 'validation'"):
        load("digits", "validation")


def test_default_root(monkeypatch, tmp_path):
    monkeypatch.delenv("CERTIFY_DATA", raising=False)
    assert default_root() == Path("data")
    monkeypatch.setenv("CERTIFY_DATA", str(tmp_path))
    assert default_root() == tmp_path
    write_idx_files(tmp_path / "mnist", idx_arrays())
    assert len(load("mnist", "test")) == 4


# Fetching


def checksums(arrays: dict[str, np.ndarray]) -> dict[str, str]:
    return {part: array_checksum(array) for part, array in arrays.items()}


def test_checksum_depends_on_values_and_shape_only():
    array = random_bytes(4, 6)
    assert array_checksum(array) == array_checksum(np.asfortranarray(array)) == array_checksum(array.copy())
    assert array_checksum(array) != array_checksum(array.reshape(6, 4))
    changed = array.copy()
    changed[3, 5] ^= 1
    assert array_checksum(changed) != array_checksum(array)


@pytest.mark.parametrize("part", IDX_NAMES)
def test_verify_finds_one_changed_bit(monkeypatch, part):
    arrays = idx_arrays()
    monkeypatch.setitem(fetching.CHECKSUMS, "mnist", checksums(arrays))
    verify("mnist", arrays)
    arrays[part].flat[-1] ^= 1
    with pytest.raises(ValueError, match=f"mnist, {part}: got checksum .*damaged download"):
        verify("mnist", arrays)


def test_every_source_has_checksums():
    assert fetching.SOURCES.keys() == fetching.CHECKSUMS.keys()
    for parts in fetching.CHECKSUMS.values():
        assert set(parts) == set(IDX_NAMES)
        assert all(re.fullmatch("[0-9a-f]{64}", value) for value in parts.values())


def failing(error: Exception):
    def read(cache: Path, report: fetching.Report) -> fetching.Arrays:
        raise error

    return read


def giving(arrays: dict[str, np.ndarray]):
    def read(cache: Path, report: fetching.Report) -> fetching.Arrays:
        cache.mkdir(parents=True)
        (cache / "download").write_bytes(b"content")
        report("downloading")
        return arrays

    return read


def fake(monkeypatch, name: str, arrays: dict[str, np.ndarray], *readers) -> None:
    sources = tuple(Source(f"source{i}", read) for i, read in enumerate(readers, start=1))
    monkeypatch.setitem(fetching.SOURCES, name, sources)
    monkeypatch.setitem(fetching.CHECKSUMS, name, checksums(arrays))


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_fetch_tries_sources_in_turn(monkeypatch, tmp_path, name):
    arrays, reports = idx_arrays(), []
    damaged = arrays | {"test_labels": (arrays["test_labels"] + 1) % 10}
    never = failing(AssertionError("the source after the first that works is not asked"))
    fake(monkeypatch, name, arrays, failing(OSError("offline")), giving(damaged), giving(arrays), never)
    written = fetch(name, tmp_path, report=reports.append)
    assert reports == ["downloading", "downloading"]
    assert all(path.exists() for path in written)
    for split in ("train", "test"):
        data = load(name, split, tmp_path)
        assert np.array_equal(data.images[:, 0].numpy(), arrays[f"{split}_images"])
        assert np.array_equal(data.labels.numpy(), arrays[f"{split}_labels"])
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == sorted(written)


def test_fetched_cifar_can_be_read(monkeypatch, tmp_path):
    arrays = {
        "train_images": random_bytes(50_000, 3, 1, 1),  # one pixel each, to be small
        "train_labels": random_bytes(50_000, high=10),
        "test_images": random_bytes(5, 3, 32, 32, seed=1),
        "test_labels": random_bytes(5, seed=1, high=10),
    }
    fake(monkeypatch, "cifar10", arrays, giving(arrays))
    written = fetch("cifar10", tmp_path, report=str)
    folder = tmp_path / "cifar10" / "cifar-10-batches-bin"
    assert sorted(written) == sorted(folder / f"{name}.bin" for name in CIFAR_FILES)
    data = load("cifar10", "test", tmp_path)
    assert np.array_equal(data.images.numpy(), arrays["test_images"])
    assert np.array_equal(data.labels.numpy(), arrays["test_labels"])
    batches = [(folder / f"data_batch_{i}.bin").read_bytes() for i in range(1, 6)]
    assert {len(batch) for batch in batches} == {10_000 * 4}
    assert b"".join(batches) == write_binary(arrays["train_images"], arrays["train_labels"])


def test_fetch_reports_every_failure(monkeypatch, tmp_path):
    arrays = idx_arrays()
    damaged = arrays | {"train_images": 255 - arrays["train_images"]}
    fake(monkeypatch, "mnist", arrays, failing(OSError("no route to host")), giving(damaged), giving({}))
    with pytest.raises(OSError, match="mnist: no source worked") as caught:
        fetch("mnist", tmp_path, report=str)
    message = str(caught.value)
    assert "source1: no route to host" in message
    assert "source2: mnist, train_images: got checksum" in message
    assert "source3: " in message
    assert "by hand" in message
    assert not (tmp_path / "mnist").exists()


@pytest.mark.parametrize("kind", ["truncated", "wrong check sum", "broken stream"])
def test_damaged_file_does_not_keep_fetch_from_the_next_source(monkeypatch, tmp_path, kind):
    arrays = idx_arrays()

    def damaged(cache: Path, report: fetching.Report) -> fetching.Arrays:
        return {part: parse_idx(damaged_gzip(kind), part) for part in IDX_NAMES}

    fake(monkeypatch, "mnist", arrays, damaged, giving(arrays))
    fetch("mnist", tmp_path, report=str)
    assert len(load("mnist", "train", tmp_path)) == 6


def test_damaged_downloads_are_not_kept(monkeypatch, tmp_path):
    arrays, attempts = idx_arrays(), []

    def read(cache: Path, report: fetching.Report) -> fetching.Arrays:
        cache.mkdir(parents=True, exist_ok=True)
        path = cache / "images.gz"
        if not path.exists():
            attempts.append(path)
            whole = gzip.compress(write_idx(arrays["train_images"]))
            path.write_bytes(whole if len(attempts) > 1 else whole[:100])
        return arrays | {"train_images": parse_idx(path.read_bytes(), str(path))}

    fake(monkeypatch, "mnist", arrays, read)
    with pytest.raises(OSError, match="no source worked"):
        fetch("mnist", tmp_path, report=str)
    fetch("mnist", tmp_path, report=str)
    assert len(load("mnist", "train", tmp_path)) == 6


def damaged_archive(kind: str) -> bytes:
    if kind == "a page":
        return b"<html>not available here</html>"
    if kind == "other content":
        return gzip.compress(bytes(100) + b"not a tar archive")
    if kind == "other files":
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            archive.addfile(tarfile.TarInfo("readme.html"))
        return buffer.getvalue()
    return damaged_gzip(kind)


@pytest.mark.parametrize(
    "kind", ["truncated", "wrong check sum", "broken stream", "a page", "other content", "other files"]
)
def test_damaged_archive_is_reported_and_not_kept(tmp_path, kind):
    path = tmp_path / ".downloads" / "cifar10-original" / "cifar-10-binary.tar.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(damaged_archive(kind))
    with pytest.raises(OSError, match=r"(?s)cifar10: no source worked.*original: "):
        fetch("cifar10", tmp_path, source="original", report=str)
    assert not path.exists()


def test_fetch_from_one_source(monkeypatch, tmp_path):
    arrays = idx_arrays()
    fake(monkeypatch, "mnist", arrays, giving(arrays), failing(OSError("offline")))
    with pytest.raises(OSError, match="source2: offline"):
        fetch("mnist", tmp_path, source="source2", report=str)
    assert fetch("mnist", tmp_path, source="source1", report=str)
    with pytest.raises(ValueError, match="source: got 'source3', expected one of source1, source2"):
        fetch("mnist", tmp_path, source="source3", report=str)


def test_fetch_of_an_unknown_data_set(tmp_path):
    with pytest.raises(ValueError, match="data set: got 'svhn', expected one of mnist, fashion-mnist, cifar10"):
        fetch("svhn", tmp_path)


# Downloads


CONTENT = random_bytes(5000).tobytes()


@contextmanager
def server(monkeypatch, requests: int, *, ranges: bool = True, cut: int = 0) -> Iterator[tuple[str, list[str | None]]]:
    """Serves CONTENT at most ``requests`` times; yields its address and the Range header of each request.

    Args:
        ranges: whether Range is honoured or ignored.
        cut: bytes that the first answer announces but does not send.
    """
    seen: list[str | None] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            seen.append(asked)
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and ranges else 0
            if start >= len(CONTENT):
                self.send_response(416)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if asked and ranges else 200)
            if asked and ranges:
                self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
            self.send_header("Content-Length", str(len(CONTENT) - start))
            self.end_headers()
            self.wfile.write(CONTENT[start : len(CONTENT) - (cut if len(seen) == 1 else 0)])

        def log_message(self, format: str, *args: object) -> None:
            pass

    monkeypatch.setenv("no_proxy", "*")
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.timeout = 2
        thread = threading.Thread(target=lambda: [listening.handle_request() for _ in range(requests)], daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_address[1]}/file.gz", seen
        finally:
            thread.join(10)


def test_download(monkeypatch, tmp_path):
    path, reports = tmp_path / "file.gz", []
    with server(monkeypatch, 1) as (url, seen):
        download(url, path, reports.append)
    assert path.read_bytes() == CONTENT
    assert seen == [None]
    assert reports == [url]
    assert list(tmp_path.iterdir()) == [path]


def test_download_resumes_a_part(monkeypatch, tmp_path):
    path, reports = tmp_path / "file.gz", []
    (tmp_path / "file.gz.part").write_bytes(CONTENT[:1234])
    with server(monkeypatch, 1) as (url, seen):
        download(url, path, reports.append)
    assert path.read_bytes() == CONTENT
    assert seen == ["bytes=1234-"]
    assert reports == [f"{url} from byte 1,234"]
    assert list(tmp_path.iterdir()) == [path]


def test_download_starts_anew_if_ranges_are_ignored(monkeypatch, tmp_path):
    path = tmp_path / "file.gz"
    (tmp_path / "file.gz.part").write_bytes(b"x" * 1234)
    with server(monkeypatch, 1, ranges=False) as (url, seen):
        download(url, path, str)
    assert path.read_bytes() == CONTENT
    assert seen == ["bytes=1234-"]


def test_download_accepts_a_part_that_is_whole(monkeypatch, tmp_path):
    path = tmp_path / "file.gz"
    (tmp_path / "file.gz.part").write_bytes(CONTENT)
    with server(monkeypatch, 1) as (url, seen):
        download(url, path, str)
    assert path.read_bytes() == CONTENT
    assert seen == ["bytes=5000-"]


@pytest.mark.parametrize("have", [0, 2000])
def test_download_that_ends_early_is_continued(monkeypatch, tmp_path, have):
    path, part = tmp_path / "file.gz", tmp_path / "file.gz.part"
    if have:
        part.write_bytes(CONTENT[:have])
    with server(monkeypatch, 1, cut=1000) as (url, _), pytest.raises(OSError, match="the connection ended early"):
        download(url, path, str)
    assert part.read_bytes() == CONTENT[:4000]
    assert not path.exists()
    with server(monkeypatch, 1) as (url, seen):
        download(url, path, str)
    assert path.read_bytes() == CONTENT
    assert seen == ["bytes=4000-"]


def test_fetch_continues_what_broke_off(monkeypatch, tmp_path):
    arrays = idx_arrays()
    with server(monkeypatch, 2, cut=1000) as (url, seen):

        def read(cache: Path, report: fetching.Report) -> fetching.Arrays:
            cache.mkdir(parents=True, exist_ok=True)
            download(url, cache / "file.gz", report)
            assert (cache / "file.gz").read_bytes() == CONTENT
            return arrays

        fake(monkeypatch, "mnist", arrays, read)
        with pytest.raises(OSError, match=r"source1: .*the connection ended early"):
            fetch("mnist", tmp_path, report=str)
        fetch("mnist", tmp_path, report=str)
    assert seen == [None, "bytes=4000-"]
    assert len(load("mnist", "test", tmp_path)) == 4


def test_download_of_what_is_there_asks_nobody(tmp_path):
    path = tmp_path / "file.gz"
    path.write_bytes(b"here")
    download("http://127.0.0.1:1/file.gz", path, str)
    assert path.read_bytes() == b"here"


def test_download_errors_are_os_errors(monkeypatch, tmp_path):
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(OSError):
        download("http://127.0.0.1:1/file.gz", tmp_path / "file.gz", str)
    assert not (tmp_path / "file.gz").exists()


@pytest.mark.network
def test_fetch_mnist(tmp_path):
    fetch("mnist", tmp_path)
    train, test = load("mnist", "train", tmp_path), load("mnist", "test", tmp_path)
    assert (len(train), len(test)) == (60_000, 10_000)
    assert train.shape == test.shape == (1, 28, 28)
    mean, std = train.channel_statistics()
    assert mean == pytest.approx((0.1307,), abs=1e-4)
    assert std == pytest.approx((0.3081,), abs=1e-4)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(4, 1, dtype=torch.int64), r"labels torch.int64 \(4, 1\), expected an int64 tensor \[N\]"),
        (torch.zeros(4), "labels torch.float32"),
        ([0, 1, 2, 3], "labels list"),
        (torch.tensor([1, 2, 3, 10]), r"labels in \[1, 10\], expected 0..9; count classes from 0"),
    ],
)
def test_labels_of_ones_own_data(labels, message):
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=message):
        Dataset("mine", "test", images, labels, num_classes=10)
    with pytest.raises(ValueError, match=r"images \(4, 8, 8\), expected \[N, C, H, W\]"):
        Dataset("mine", "test", images[:, 0], torch.zeros(4, dtype=torch.int64), num_classes=10)


@pytest.mark.parametrize("split", ["train", "test"])
def test_only_some_classes(split):
    whole, some = load("digits", split), load("digits(only=(7, 1, 4))", split)
    assert isinstance(whole.images, torch.Tensor)
    kept = torch.isin(whole.labels, torch.tensor([1, 4, 7]))
    assert torch.equal(some.images, whole.images[kept])
    assert torch.equal(torch.tensor([7, 1, 4])[some.labels], whole.labels[kept])
    assert (some.num_classes, some.name, some.split) == (3, "digits(only=(7, 1, 4))", split)
    assert some.checksum() != load("digits(only=(1, 7, 4))", split).checksum()


@pytest.mark.parametrize(
    "only",
    ["()", "(1,)", "7", "'17'", "('1', '7')", "(1, 1)", "(-1, 7)", "(1, 10)", "(True, False)", "(1.0, 7.0)", "[1, 7]"],
)
def test_classes_that_are_none(only):
    with pytest.raises(ValueError, match=r"expected two or more distinct classes from 0 to 9, as in only=\(1, 7\)"):
        load(f"digits(only={only})", "train")
