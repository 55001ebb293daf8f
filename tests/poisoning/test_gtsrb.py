"""Images that are resized: certificates speak of what they were before."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from certify.data import load
from certify.poisoning.job import read_job
from certify.results import read_rows
from scripts import poisoning, train_features
from scripts.parts import poisoning_inputs


def _save(folder, name: str, label: int, seed: int) -> str:
    """A noisy image of a size and colour of its own; returns its line of the table."""
    draw = np.random.default_rng(seed)
    height, width = draw.integers(15, 24, 2)
    pixels = draw.integers(0, 60, (height, width, 3), dtype=np.uint8)
    pixels[..., label % 3] += 120
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / name)
    return f"{name};{width};{height};1;2;{width - 2};{height - 3};{label}\n"


@pytest.fixture
def root(tmp_path):
    """12 training images of 3 classes and 6 test images, in the layout of GTSRB."""
    header = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"
    base = tmp_path / "gtsrb"
    for label in range(3):
        folder = base / "Final_Training" / "Images" / f"{label:05d}"
        lines = [_save(folder, f"{i:05d}.ppm", label, 10 * label + i) for i in range(4)]
        (folder / f"GT-{label:05d}.csv").write_text(header + "".join(lines))
    test = base / "Final_Test" / "Images"
    lines = [_save(test, f"{i:05d}.ppm", i % 3, 100 + i) for i in range(6)]
    (test / "GT-final_test.csv").write_text(header + "".join(lines))
    return tmp_path


@pytest.mark.parametrize("data", ["gtsrb", "gtsrb(whole=True, equalize=True)"])
def test_the_partition_is_of_the_original_pixels(root, data):
    args = poisoning.Args("all", root / "run", data=data, partition="PixelSum(4)", data_root=root)
    args.learner = "NearestNeighbors()"
    poisoning.main(args)
    images = load(data, "train", root).images
    sums = torch.tensor([int(original.sum(dtype=torch.int64)) % 4 for original in images.originals()])
    job = read_job(root / "run")
    for i, state in enumerate(job.states(range(4))):
        assert state["samples"].shape[1:] == (3, 48, 48)
        own = images[torch.arange(12)][sums == i]
        assert sorted(state["samples"].flatten(1).tolist()) == sorted(own.flatten(1).tolist())
    rows = read_rows(root / "run" / "test" / "plurality-samples")
    assert len(rows["idx"]) == 6


def test_features_are_learned_from_resized_images(root):
    train_features.main(
        train_features.Args(root / "f", "gtsrb", "RotNet('small_cnn', epochs=1, batch_size=6)", data_root=root)
    )
    poisoning.main(
        poisoning.Args(
            "all",
            root / "run",
            data="gtsrb",
            partition="SortedIndex(3)",
            learner="Network('linear', steps=5, batch_size=4)",
            features=root / "f",
            data_root=root,
        )
    )
    assert [len(state) > 0 for state in read_job(root / "run").states(range(3))] == [True] * 3
    summary = json.loads((root / "run" / "report.json").read_text())
    assert "poisoning (training labels flipped)" in json.dumps(summary)
    with pytest.raises(ValueError, match="add flip=False"):
        train_features.main(train_features.Args(root / "g", "gtsrb", "SimCLR()", data_root=root))


def test_data_that_does_not_fit_into_memory_is_refused(root, monkeypatch):
    monkeypatch.setattr(poisoning_inputs, "_LARGEST", 1 << 16)
    with pytest.raises(ValueError, match="of memory, expected at most 0 GiB"):
        poisoning.main(poisoning.Args("train", root / "run", data="gtsrb", data_root=root))
    assert not (root / "run").exists()
