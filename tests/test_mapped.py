"""Data sets of PyTorch as data sets of this project."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from certify import DeterministicAblation, Smoothed, certify_dataset
from certify.data import Dataset, from_torch, load
from certify.results import read_config, read_rows

DIGITS = load("digits", "test")
assert isinstance(DIGITS.images, torch.Tensor)
IMAGES: torch.Tensor = DIGITS.images


class Pictures:
    """The first digits as what a data set of torchvision may give."""

    def __init__(self, form, count=6):
        self.form, self.count, self.reads = form, count, 0

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        self.reads += 1
        return self.form(IMAGES[i], i), int(DIGITS.labels[i])


FORMS = {
    "bytes": lambda image, i: image,
    "picture": lambda image, i: Image.fromarray(image[0].numpy()),
    "array": lambda image, i: image[0].numpy(),
    "array with channels": lambda image, i: image.permute(1, 2, 0).numpy(),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_images_and_labels_are_those_of_the_items(form):
    pictures = Pictures(form)
    data = from_torch(pictures, "mine", num_classes=10)
    assert isinstance(data, Dataset)
    assert (data.name, data.split, len(data), data.shape) == ("mine", "test", 6, (1, 8, 8))
    images, labels = data.batch([4, 1])
    assert images.dtype == torch.uint8
    assert torch.equal(images, IMAGES[[4, 1]])
    assert torch.equal(labels, DIGITS.labels[[4, 1]])
    # the checksum is of what is seen, whatever the items are
    assert data.checksum() == from_torch(Pictures(FORMS["bytes"]), "mine", num_classes=10).checksum()
    other = from_torch(Pictures(lambda image, i: image + (i == 5)), "mine", num_classes=10)
    assert data.checksum() != other.checksum()


def test_colour_and_floats():
    colour = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    data = from_torch([(Image.fromarray(pixels), 0) for pixels in colour], "colour", num_classes=2)
    assert torch.equal(data.batch([2])[0][0], torch.from_numpy(colour[2]).permute(2, 0, 1))
    floats = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    data = from_torch(TensorDataset(floats, torch.tensor([1, 0, 1])), "floats", num_classes=2)
    assert torch.equal(data.batch([0, 2])[0], floats[[0, 2]])
    assert data.labels.tolist() == [1, 0, 1]


def test_nothing_is_read_before_it_is_needed():
    pictures = Pictures(FORMS["bytes"])
    data = from_torch(pictures, "mine", num_classes=10, labels=DIGITS.labels[:6], fingerprint="version 2")
    read = pictures.reads
    data.batch([5])
    assert pictures.reads == read + 1
    assert read <= 7
    other = from_torch(pictures, "mine", num_classes=10, labels=DIGITS.labels[:6], fingerprint="version 3")
    assert data.checksum() != other.checksum()


def test_results_are_those_of_the_same_images_in_memory(tmp_path):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(128, 10))
    smoothed = Smoothed(model, DeterministicAblation(alpha=4), num_classes=10)
    whole = Dataset("digits", "test", IMAGES[:6], DIGITS.labels[:6], 10)
    certify_dataset(smoothed, whole, tmp_path / "memory")
    data = from_torch(Pictures(FORMS["picture"]), "mine", num_classes=10)
    certify_dataset(smoothed, data, tmp_path / "lazy", index=range(3))
    certify_dataset(smoothed, data, tmp_path / "lazy", resume=True)
    memory, lazy = read_rows(tmp_path / "memory"), read_rows(tmp_path / "lazy")
    for column in ("idx", "label", "predict", "radius"):
        assert (memory[column] == lazy[column]).all()
    assert read_config(tmp_path / "lazy")["data"] == "mine"
    changed = from_torch(Pictures(lambda image, i: image + (i == 5)), "mine", num_classes=10)
    with pytest.raises(ValueError, match="data_sha256"):
        certify_dataset(smoothed, changed, tmp_path / "lazy", resume=True)


class Stream(IterableDataset):
    def __iter__(self):
        yield IMAGES[0], 0


GREY = IMAGES[0]
REFUSED = {
    "a loader": (
        DataLoader(TensorDataset(GREY[None], torch.tensor([0]))),
        TypeError,
        r"got a DataLoader, expected .* loader\.dataset",
    ),
    "a stream": (Stream(), TypeError, "got Stream, expected a map-style data set"),
    "a generator": (iter([(GREY, 0)]), TypeError, "expected a map-style data set"),
    "nothing": ([], ValueError, "got no items"),
    "no labels": ([GREY], TypeError, r"got Tensor for item 0, expected \(image, label\)"),
    "normalized": ([(GREY.float() - 8, 0)], ValueError, "put any normalization inside the base classifier"),
    "later normalized": ([(GREY / 255, 0)] * 4 + [(GREY.float(), 0)], ValueError, r"got values in .*expected \[0, 1\]"),
    "random": (
        Pictures(lambda image, i: torch.rand(1, 8, 8)),
        ValueError,
        "item 0 gave a different image when it was read",
    ),
    "channels first": ([(np.zeros((3, 32, 32), np.uint8), 0)], ValueError, "transpose it"),
    "one channel first": ([(np.zeros((1, 28, 28), np.uint8), 0)], ValueError, "transpose it"),
    "channels last": ([(torch.zeros(32, 32, 3), 0)], ValueError, r"\[32, 32, 3\]\), expected tensors \[C, H, W\]"),
    "fractions as labels": ([(GREY, 1.9)], TypeError, r"got 1\.9 as label 0, expected an integer"),
    "text as labels": ([(GREY, "2")], TypeError, "got '2' as label 0"),
    "sizes": ([(GREY, 0)] * 4 + [(GREY[:, :5], 0)], ValueError, "as image 4, but the first one is torch.uint8"),
    "types": ([(GREY, 0)] * 4 + [(GREY / 255, 0)], ValueError, "as image 4, but the first one is torch.uint8"),
    "flat": ([(GREY[0], 0)], ValueError, r"got shape \(8, 8\) as image 0"),
    "palette": ([(Image.new("P", (8, 8)), 0)], ValueError, "mode P as item 0, expected L or RGB"),
    "float arrays": ([(np.zeros((8, 8)), 0)], TypeError, "got an array of float64"),
    "text": ([("zero.png", 0)], TypeError, "got str as image 0"),
    "labels": ([(GREY, 10)], ValueError, r"got labels in \[10, 10\]"),
}


@pytest.mark.parametrize(("dataset", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_certified_is_refused_with_advice(dataset, error, message):
    with pytest.raises(error, match=message):
        from_torch(dataset, "mine", num_classes=10)


def test_shapes_that_are_no_mistake():
    """Features as an image of one pixel, a signal of many channels, a cloud of points."""
    for shape in ((64, 1, 1), (12, 1, 100), (3, 1024, 1)):
        assert from_torch([(torch.zeros(shape), 0)], "mine", num_classes=2).shape == shape


def test_items_that_change_are_found_when_they_are_used():
    later = False

    class Changing(Pictures):
        def __getitem__(self, i):
            image, label = super().__getitem__(i)
            return image + (later and i == 5), label

    data = from_torch(Changing(FORMS["bytes"]), "mine", num_classes=10)
    later = True
    data.batch([4])
    with pytest.raises(ValueError, match="item 5 gave a different image when it was read again"):
        data.batch([4, 5])


def test_a_buffer_that_is_filled_again_and_again():
    buffer = torch.zeros(1, 8, 8, dtype=torch.uint8)
    data = from_torch(Pictures(lambda image, i: buffer.copy_(image)), "mine", num_classes=10)
    assert torch.equal(data.batch([0, 3])[0], IMAGES[[0, 3]])
