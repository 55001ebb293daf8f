"""Data of one's own by name: NPZ files and folders of images, in Python and in the command lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from certify import RandomizedAblation, Smoothed
from certify.data import Dataset, check_files, load
from certify.results import read_config, read_rows
from scripts import certify as certify_script
from scripts import poisoning as poisoning_script
from scripts import train as train_script


def arrays(classes: int = 3, size: int = 8) -> dict[str, np.ndarray]:
    """Images whose brightest row is their class."""
    rng, found = np.random.default_rng(0), {}
    for part, count in (("train", 60), ("test", 12)):
        labels = np.arange(count) % classes
        images = rng.integers(0, 60, (count, size, size), dtype=np.uint8)
        images[np.arange(count), labels * 2] = 250
        found |= {f"{part}_images": images, f"{part}_labels": labels}
    return found


def save(path: Path, **changes: np.ndarray | None) -> str:
    kept: dict[str, Any] = {name: array for name, array in (arrays() | changes).items() if array is not None}
    np.savez(path, **kept)
    return f"npz(path={str(path)!r})"


def test_npz(tmp_path):
    name, expected = save(tmp_path / "mine.npz"), arrays()
    for part in ("train", "test"):
        data = load(name, part)
        assert (data.name, data.num_classes, data.shape, data.split) == (name, 3, (1, 8, 8), part)
        assert np.array_equal(data.batch(range(len(data)))[0][:, 0], expected[f"{part}_images"])
        assert data.labels.tolist() == expected[f"{part}_labels"].tolist()
    check_files(name)
    colour = save(tmp_path / "colour.npz", test_images=np.zeros((12, 3, 8, 8), np.uint8))
    assert load(colour, "test").shape == (3, 8, 8)
    # classes are those of both parts
    other = save(tmp_path / "other.npz", test_labels=np.full(12, 4, np.int32))
    assert load(other, "train").num_classes == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": np.zeros(60)}, r"got train_labels float64 \(60,\), expected integers"),
        ({"train_images": np.full((60, 8, 8), 1.5)}, r"got NaN or values outside \[0, 1\] in image 0"),
        ({"train_images": np.zeros((60, 8, 8), np.int64)}, r"convert 0 to 255 with \.astype\('uint8'\)"),
        ({"train_images": np.zeros((60, 8, 8), bool)}, r"convert booleans with 255 \* x\.astype\('uint8'\)"),
        ({"train_images": np.zeros(60, np.uint8)}, r"expected uint8 or floats .*, or as vectors \[N, D\]"),
        ({"train_images": np.zeros((60, 8, 8, 3), np.uint8)}, r"channels last, expected \[N, C, H, W\]"),
        ({"train_images": None}, "expected train_images and train_labels"),
        ({"train_labels": None}, "expected train_images and train_labels"),
        ({"train_labels": np.arange(59) % 3}, "got 60 images and 59 labels"),
        ({"train_labels": np.arange(60) % 3 - 1}, r"got labels in \[-1, 1\]"),
        ({"train_images": np.array([{}] * 60)}, "cannot be read as an NPZ file of plain arrays"),
    ],
)
def test_arrays_that_are_no_data_set(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load(save(tmp_path / "mine.npz", **changes), "train")


def test_vectors_and_floats(tmp_path):
    vectors = np.arange(600, dtype=np.float32).reshape(60, 10) / 600
    data = load(save(tmp_path / "mine.npz", train_images=vectors, test_images=vectors[:12]), "train")
    assert data.shape == (10, 1, 1)
    assert data.images.dtype == torch.float32
    scheme = RandomizedAblation(3, unit="feature")
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(20, data.num_classes))
    result = Smoothed(net, scheme, data.num_classes, n0=10, n=50).certify(data.batch([0, 1])[0])
    assert result.radius.shape == (2,)


def test_damaged_and_missing_files(tmp_path):
    name = save(tmp_path / "mine.npz")
    whole = (tmp_path / "mine.npz").read_bytes()
    (tmp_path / "mine.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be read as an NPZ file"):
        load(name, "train")
    (tmp_path / "mine.npz").unlink()
    for read in (check_files, lambda name: load(name, "train")):
        with pytest.raises(FileNotFoundError, match=r"npz: no file .*numpy\.savez"):
            read(name)
    for text in ("npz", "folder", "folder(size=3)", "folder(paths='x', size=3)", "npz(path=3)"):
        with pytest.raises(ValueError, match="expected a path, as in"):
            load(text, "train")
    with pytest.raises(ValueError, match=r"expected options as in npz\(path='mine\.npz', classes=10\)"):
        load("npz(path='a.npz', size=3)", "train")


def test_an_array_and_damaged_bytes(tmp_path):
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ValueError, match="cannot be read as an NPZ file"):
        load(f"npz(path={str(tmp_path / 'one.npy')!r})", "train")
    saved: dict[str, Any] = arrays()
    np.savez_compressed(tmp_path / "mine.npz", **saved)
    whole = (tmp_path / "mine.npz").read_bytes()
    refused = 0
    for place in range(0, len(whole), 97):
        damaged = bytearray(whole)
        damaged[place] ^= 0x55
        (tmp_path / "mine.npz").write_bytes(damaged)
        try:
            load(f"npz(path={str(tmp_path / 'mine.npz')!r})", "train")
        except ValueError as error:
            refused += "mine.npz" in str(error)
    assert refused > 5


def save_pictures(root: Path, **classes: int) -> str:
    for part, count in (("train", 4), ("val", 2)):
        for name, level in classes.items():
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(np.full((10, 14, 3), level + i, np.uint8)).save(root / part / name / f"{i}.png")
    return f"folder(path={str(root)!r}, size=8)"


def test_folder(tmp_path):
    name = save_pictures(tmp_path / "mine", dark=10, bright=200)
    check_files(name)
    data = load(name, "test")
    assert (data.num_classes, data.shape, data.labels.tolist()) == (2, (3, 8, 8), [0, 0, 1, 1])
    assert data.batch([3])[0].unique().tolist() == [11]
    assert len(load(name, "train")) == 8
    assert load(name.replace("size=8", "size=8, resize=9"), "train").shape == (3, 8, 8)
    # hidden folders are no classes
    (tmp_path / "mine/train/.ipynb_checkpoints").mkdir()
    assert load(name, "train").num_classes == 2
    # data of one's own are told apart by what is in the files
    file = tmp_path / "mine/val/dark/0.ppm"
    checksums = []
    for level in (99, 98):
        Image.fromarray(np.full((10, 14, 3), level, np.uint8)).save(file)
        checksums.append(load(name, "test").checksum())
    assert checksums[0] != checksums[1]
    file.unlink()
    # a class without test images keeps the numbers of the others
    for file in (tmp_path / "mine/val/bright").iterdir():
        file.unlink()
    (tmp_path / "mine/val/bright").rmdir()
    assert load(name, "test").labels.tolist() == [1, 1]
    (tmp_path / "mine/val/new").mkdir()
    with pytest.raises(ValueError, match=r"got the class new in .*, which has no training images"):
        load(name, "test")
    with pytest.raises(ValueError, match="size: got 0, expected an integer number of pixels"):
        load(name.replace("size=8", "size=0"), "test")
    for folder in ("none", "mine/train"):
        with pytest.raises(
            FileNotFoundError, match=r"folder: no .*expected it with one folder of image files per class"
        ):
            load(f"folder(path={str(tmp_path / folder)!r}, size=8)", "train")
    (tmp_path / "mine/train/empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no image files \(.*\.png.*\) in .*empty; remove the folder"):
        load(name, "train")


def test_a_folder_of_grey_pictures(tmp_path):
    name = save_pictures(tmp_path / "mine", dark=10, bright=200)
    grey = name.replace("size=8", "size=8, channels=1")
    Image.fromarray(np.full((10, 14), 77, np.uint8)).save(tmp_path / "mine/val/dark/0.png")
    colour, data = load(name, "test"), load(grey, "test")
    assert data.shape == (1, 8, 8)
    assert data.checksum() != colour.checksum()
    assert torch.equal(data.batch([0, 3])[0], colour.batch([0, 3])[0][:, :1])
    assert data.batch([2])[0].unique().tolist() == [77]
    Image.new("RGB", (10, 14), (10, 11, 10)).save(tmp_path / "mine/val/dark/1.png")
    with pytest.raises(ValueError, match=r"1.png: got an image in colour with channels=1; leave channels out"):
        load(grey, "test").batch([2, 3])
    with pytest.raises(ValueError, match="got channels=2, expected 3, or 1 for grey images"):
        load(name.replace("size=8", "size=8, channels=2"), "test")


@pytest.mark.parametrize("mode", ["I;16", "RGBA", "LA", "CMYK"])
def test_pictures_that_lose_something_are_refused(tmp_path, mode):
    name = save_pictures(tmp_path / "mine", dark=10)
    Image.new(mode, (10, 14)).save(tmp_path / f"mine/val/dark/1.{'jpg' if mode == 'CMYK' else 'png'}")
    with pytest.raises(ValueError, match=f"got an image of mode {mode}, or with transparency"):
        load(name, "test").batch([0, 1])


def test_commands_take_them(tmp_path):
    name = save(tmp_path / "mine.npz")
    train_script.main(
        train_script.Args(out=tmp_path / "run", data=name, scheme="DeterministicAblation(alpha=2)", epochs=12, lr=0.05)
    )
    certify_script.main(certify_script.Args(out=tmp_path / "test", checkpoint=tmp_path / "run"))
    rows = read_rows(tmp_path / "test")
    assert read_config(tmp_path / "test")["data"] == name
    assert len(rows["idx"]) == 12
    name = name.replace(")", ", classes=3)")
    options: dict[str, Any] = {"data": name, "partition": "ContentHash(5)", "learner": "NearestNeighbors(1)"}
    poisoning_script.main(poisoning_script.Args("all", tmp_path / "ensemble", **options))
    rows = read_rows(tmp_path / "ensemble/test/plurality-samples")
    assert rows["correct"].mean() > 0.5
    assert torch.tensor(rows["radius"]).max() == 2


def test_a_network_for_digits_is_pointed_out_for_photographs(tmp_path, capsys):
    photographs = {f"{part}_images": np.zeros((n, 3, 32, 32), np.uint8) for part, n in (("train", 60), ("test", 12))}
    name = save(tmp_path / "mine.npz", **photographs)
    args: Any = train_script.Args(
        out=tmp_path / "run", data=name, scheme="BandAblation(width=4)", epochs=1, model="mnist_cnn"
    )
    train_script.main(args)
    assert "note: mnist_cnn is meant for small grayscale images and has " in capsys.readouterr().out
    train_script.main(train_script.Args(out=tmp_path / "grey", data="digits", scheme="BandAblation(width=4)", epochs=1))
    assert "mnist_cnn" not in capsys.readouterr().out


def test_few_updates_are_pointed_out(tmp_path, capsys):
    def said(name: str, **options: Any) -> str:
        train_script.main(train_script.Args(tmp_path / name, data="digits", scheme="BandAblation(width=4)", **options))
        return capsys.readouterr().out

    assert "note: 12 updates are few for a network that is trained from scratch" in said("few", epochs=1)
    assert "updates are few" not in said("many", epochs=1, batch_size=4)
    assert "updates are few" not in said("further", epochs=1, init=str(tmp_path / "many"))


def test_given_classes(tmp_path):
    name = save(tmp_path / "mine.npz")
    assert not load(name, "train").classes_known
    data = load(name.replace(")", ", classes=7)"), "train")
    assert (data.num_classes, data.classes_known) == (7, True)
    with pytest.raises(ValueError, match=r"mine\.npz: got labels in \[0, 2\], expected 0\.\.1"):
        load(name.replace(")", ", classes=2)"), "test")
    with pytest.raises(ValueError, match="got classes='a', expected an integer"):
        load(name.replace(")", ", classes='a')"), "test")
    name = save_pictures(tmp_path / "own", dark=10, bright=200)
    assert not load(name, "train").classes_known
    data = load(name.replace("size=8", "size=8, classes=('dark', 'none', 'bright')"), "test")
    assert (data.num_classes, data.classes_known, sorted(set(data.labels.tolist()))) == (3, True, [0, 2])
    with pytest.raises(ValueError, match=r"got the class bright in .*, which is none of dark, none"):
        load(name.replace("size=8", "size=8, classes=('dark', 'none')"), "train")
    with pytest.raises(ValueError, match="expected the names of two or more folders"):
        load(name.replace("size=8", "size=8, classes='dark'"), "train")


@pytest.mark.parametrize("step", ["train", "all"])
def test_no_certificate_where_a_poisoned_label_makes_a_class(tmp_path, step):
    """One sample of a class that nobody else has would give every model another last layer."""
    name = save(tmp_path / "mine.npz")
    options: dict[str, Any] = {"data": name, "partition": "ContentHash(5)", "learner": "NearestNeighbors(1)"}
    with pytest.raises(ValueError, match=r"one poisoned sample could change all models.*npz\(\.\.\., classes=10\)"):
        poisoning_script.main(poisoning_script.Args(step, tmp_path / "ensemble", **options))
    assert not (tmp_path / "ensemble").exists()


def test_parts_that_do_not_fit_are_found_before_training(tmp_path):
    name = save(tmp_path / "mine.npz", test_images=np.zeros((12, 16, 16), dtype=np.uint8))
    args: Any = train_script.Args(out=tmp_path / "run", data=name, scheme="DeterministicAblation(alpha=2)", epochs=1)
    with pytest.raises(ValueError, match=r"images \(1, 8, 8\) for training, but 3 and \(1, 16, 16\) for testing"):
        train_script.main(args)
    options: dict[str, Any] = {"partition": "ContentHash(5)", "learner": "NearestNeighbors(1)"}
    with pytest.raises(ValueError, match=r"\(1, 16, 16\) for testing"):
        poisoning_script.main(
            poisoning_script.Args("all", tmp_path / "models", data=name.replace(")", ", classes=3)"), **options)
        )
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "models").exists()


def test_data_in_memory_are_checked():
    labels = torch.zeros(8, dtype=torch.int64)
    images = torch.rand(8, 1, 8, 8)
    images[3, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="got NaN or values outside"):
        Dataset("mine", "test", images, labels, 2)
    with pytest.raises(ValueError, match="looks like channels last"):
        Dataset("mine", "test", torch.zeros(8, 8, 8, 3, dtype=torch.uint8), labels, 2)


def test_a_folder_that_cannot_be_written_to_is_told_before_training(tmp_path):
    (tmp_path / "file").write_text("here already")
    for out in (tmp_path / "file", tmp_path / "file/run"):
        args: Any = train_script.Args(
            out=out, data=save(tmp_path / "mine.npz"), scheme="DeterministicAblation(alpha=2)"
        )
        args.epochs = 10**9  # forever
        with pytest.raises(ValueError, match=r"out: cannot write to .*file.* choose another folder"):
            train_script.main(args)
