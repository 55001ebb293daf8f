"""Clips: generated ones, folders of frames, and the network and trainer that take them."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from certify import RandomizedAblation, Smoothed, UniformNoise
from certify.data import Dataset, load
from certify.data.moving import CLASSES, DIRECTIONS, moving_shapes
from certify.data.videos import FolderClips, Sampling, video_files
from certify.draws import EVALUATION, Draws
from certify.models import DenoisedSpec, ModelSpec, Normalize, build, read_spec
from certify.results import read_rows
from certify.training import Trainer, TrainingConfig, copy_statistics
from certify.training.augment import augmented, random_crop_and_flip
from scripts import attack as attack_script
from scripts import certify as certify_script
from scripts import train as train_script


def frame(value: int, height: int = 12, width: int = 16) -> np.ndarray:
    """A grey picture whose left half is black."""
    pixels = np.full((height, width, 3), value, np.uint8)
    pixels[:, : width // 2] = 0
    return pixels


def write_frames(folder: Path, count: int, first: int = 1) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(frame(10 * (i + 1))).save(folder / f"frame_{first + i:04d}.png")


def brightness(clips: Tensor) -> list[int]:
    """What :func:`frame` was given, of each frame of one clip ``[3, T, H, W]``."""
    return clips[0, :, -1, -1].tolist()


# moving shapes


def test_shapes_move_by_a_pixel_a_frame():
    clips, labels = moving_shapes("test", frames=6, size=12)
    assert clips.shape == (200, 1, 6, 12, 12)
    assert clips.dtype == torch.uint8
    assert torch.bincount(labels).tolist() == [25] * len(CLASSES)
    steps = list(DIRECTIONS.values())
    for clip, label in zip(clips[:, 0], labels.tolist(), strict=True):
        for before, after in itertools.pairwise(clip):
            assert torch.equal(before.roll(steps[label % 4], (0, 1)), after)


def test_shapes_are_squares_and_diamonds():
    clips, labels = moving_shapes("train", frames=2, size=17)
    assert len(clips) == 800
    inside = (clips[:, 0, 0] >= 128).flatten(1).sum(1)
    sides = torch.tensor([5, 6, 7, 8])
    squares = labels < 4
    assert set(inside[squares].tolist()) == set((sides**2).tolist())
    # lattice points within a diamond of that diameter, by counting
    diamonds = {
        sum(abs(2 * a - s + 1) + abs(2 * b - s + 1) < s for a in range(s) for b in range(s)) for s in (5, 6, 7, 8)
    }
    assert diamonds == set(inside[~squares].tolist())
    assert (clips[:, 0, 0].flatten(1).amin(1) < 64).all()


def test_moving_shapes_are_a_function_of_the_seed_and_the_split():
    first, again = moving_shapes("test")[0], moving_shapes("test")[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, moving_shapes("test", seed=1)[0])
    assert not torch.equal(first, moving_shapes("train")[0][:200])


def test_options_are_part_of_the_name():
    data = load("moving-shapes(frames=4, size=10)", "test")
    assert (data.name, data.shape, data.kind) == ("moving-shapes(frames=4, size=10)", (1, 4, 10, 10), "clip")
    assert load("moving-shapes", "test").name == "moving-shapes"
    assert load(data.name, "test").checksum() == data.checksum()
    assert isinstance(data.images, Tensor)
    levels = data.images.double() / 255
    for mean, std in (data.channel_statistics(), copy_statistics(None, data)):
        assert mean + std == pytest.approx((levels.mean().item(), levels.std(correction=0).item()), abs=1e-4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("moving-shapes(frames=1)", "frames: got 1, expected an integer at least 2"),
        ("moving-shapes(size=4)", "size: got 4"),
        ("moving-shapes(8)", r"expected options as in moving-shapes\(frames=8, size=16\)"),
        ("moving-shapes(frames=8", "expected options as in"),
        ("moving-shapes(frames=open('x'))", "expected options as in"),
        ("moving-shapes(speed=2)", "expected options as in"),
        ("shapes(size=4)", "shapes takes no options"),
        ("digits(size=4)", r"expected options as in digits\(only=\(1, 7\)\)"),
        ("films", "data set: got 'films', expected one of digits"),
    ],
)
def test_bad_names(name, message):
    with pytest.raises(ValueError, match=message):
        load(name, "test")


# folders


def ucf(root: Path) -> Path:
    """Two classes in folders for training and test: frames, an .npz and a .gif."""
    base = root / "ucf101"
    write_frames(base / "train" / "Archery" / "v1", 9)
    write_frames(base / "train" / "Bowling" / "v1", 5, first=0)
    (base / "test" / "Bowling").mkdir(parents=True)
    frames = np.stack([frame(10 * (i + 1)) for i in range(7)])
    np.savez(base / "test" / "Bowling" / "v2.npz", frames=frames)
    pictures = [Image.fromarray(each) for each in frames]
    pictures[0].save(base / "test" / "Bowling" / "v3.gif", save_all=True, append_images=pictures[1:])
    return root


def test_a_folder_of_videos(tmp_path):
    name = "ucf101(frames=3, stride=2, size=8)"
    data = load(name, "train", ucf(tmp_path))
    assert (data.name, data.shape, data.num_classes, data.labels.tolist()) == (name, (3, 3, 8, 8), 2, [0, 1])
    clips, _ = data.batch([0, 1])
    assert clips.shape == (2, 3, 3, 8, 8)
    assert brightness(clips[0]) == [30, 50, 70]  # the centre of nine frames
    assert brightness(clips[1]) == [10, 30, 50]
    assert (clips[0, :, :, :, 0] == 0).all()
    test = load(name, "test", tmp_path)
    assert test.labels.tolist() == [1, 1]  # classes are numbered over both parts
    for clip in test.batch([0, 1])[0]:
        assert brightness(clip) == pytest.approx([20, 40, 60], abs=2)
    assert test.checksum() != load("ucf101(frames=3, stride=1, size=8)", "test", tmp_path).checksum()
    with pytest.raises(ValueError, match="statistics are only computed for data sets in memory"):
        data.channel_statistics()


def test_clips_start_at_random_in_training(tmp_path):
    data = load("ucf101(frames=3, stride=2, size=8)", "train", ucf(tmp_path))
    assert isinstance(data.images, FolderClips)
    generator = torch.Generator().manual_seed(0)
    clips = data.images.random_clips(torch.zeros(60, dtype=torch.int64), generator)
    starts = {tuple(brightness(clip)) for clip in clips}
    assert starts == {(10 * i, 10 * i + 20, 10 * i + 40) for i in range(1, 6)}
    batch, labels = augmented(data, torch.tensor([0, 1]), generator)
    assert (batch.shape, labels.tolist()) == ((2, 3, 3, 8, 8), [0, 1])


def test_centre_crop(tmp_path):
    write_frames(tmp_path / "v", 1)
    whole = FolderClips([tmp_path / "v"], Sampling(1, size=8))[torch.tensor([0])]
    cut = FolderClips([tmp_path / "v"], Sampling(1, size=8, resize=12))[torch.tensor([0])]
    # of 16 columns, 4 to 11 are left: half of them black either way, but without a blurred edge
    assert (cut[0, 0, 0, 0, :4] == 0).all()
    assert (cut[0, 0, 0, 0, 4:] == 10).all()
    assert (whole[0, 0, 0, 0, [0, -1]] == torch.tensor([0, 10])).all()


def test_short_videos(tmp_path):
    write_frames(tmp_path / "v", 4)
    index = torch.tensor([0])
    with pytest.raises(ValueError, match=r"v: got 4 frames, expected at least 5 \(3 with stride 2\); ask for fewer"):
        FolderClips([tmp_path / "v"], Sampling(3, 2, size=8))[index]
    ucf(tmp_path / "root")
    with pytest.raises(ValueError, match="got 5 frames, expected at least 6"):  # before anything is read
        load("ucf101(frames=6, size=8)", "train", tmp_path / "root")
    looped = FolderClips([tmp_path / "v"], Sampling(6, 1, size=8, short="loop"))[index]
    assert brightness(looped[0]) == [10, 20, 30, 40, 10, 20]


def test_published_lists(tmp_path):
    base = tmp_path / "ucf101"
    for name in ("v_Archery_g01_c01", "v_Archery_g02_c01"):
        write_frames(base / "frames" / "Archery" / name, 2)
    write_frames(base / "frames" / "Bowling" / "v_Bowling_g01_c01", 2)
    lists = base / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "trainlist01.txt").write_text("Archery/v_Archery_g02_c01.avi 1\nBowling/v_Bowling_g01_c01.avi 2\n\n")
    (lists / "testlist01.txt").write_text("Archery/v_Archery_g01_c01.avi\n")
    (lists / "testlist02.txt").write_text("Archery/v_Archery_g09_c01.avi\n")
    videos, labels, classes = video_files(tmp_path, "train")
    assert [video.name for video in videos] == ["v_Archery_g02_c01", "v_Bowling_g01_c01"]
    assert (labels, classes) == ([0, 1], 2)
    assert video_files(tmp_path, "test")[1] == [0]
    with pytest.raises(
        FileNotFoundError, match=r"v_Archery_g09_c01: no such folder of frames.*testlist02.txt lists the clip"
    ):
        video_files(tmp_path, "test", fold=2)
    with pytest.raises(FileNotFoundError, match=r"trainlist03.txt: no such list"):
        video_files(tmp_path, "train", fold=3)
    with pytest.raises(FileNotFoundError, match=r"ucf101: none of"):
        video_files(tmp_path / "nowhere", "train")


def test_damaged_videos(tmp_path):
    def clip(path: Path) -> None:
        FolderClips([path], Sampling(2, size=8))[torch.tensor([0])]

    write_frames(tmp_path / "gap", 5)
    (tmp_path / "gap" / "frame_0003.png").unlink()
    (tmp_path / "empty").mkdir()
    write_frames(tmp_path / "twice", 2)
    (tmp_path / "twice" / "image_2.png").write_bytes((tmp_path / "twice" / "frame_0002.png").read_bytes())
    (tmp_path / "unnumbered").mkdir()
    Image.fromarray(frame(1)).save(tmp_path / "unnumbered" / "last.png")
    write_frames(tmp_path / "broken", 2)
    (tmp_path / "broken" / "frame_0001.png").write_bytes(b"no picture")
    np.savez(tmp_path / "float.npz", frames=np.zeros((2, 4, 4)))
    np.savez(tmp_path / "two.npz", a=np.zeros(2), b=np.zeros(2))
    np.savez(tmp_path / "objects.npz", frames=np.array([{}, None]))
    (tmp_path / "bad.npz").write_bytes(b"x")
    for name, message in {
        "gap": r"frame 3 of 1 to 5 is missing \(1 in all\)",
        "empty": "got no frames, expected files such as frame_0001.jpg",
        "twice": "expected each frame once",
        "unnumbered": "last.png: got a name without a number at its end",
        "broken": "frame_0001.png: cannot be decoded",
        "float.npz": r"got float64 \(2, 4, 4\), expected uint8",
        "two.npz": "got 2 arrays, expected one",
        "objects.npz": "cannot be decoded .*allow_pickle=False",
        "bad.npz": "not an .npz file",
    }.items():
        with pytest.raises(ValueError, match=message):
            clip(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no such video"):
        clip(tmp_path / "gone")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 0}, "frames: got 0"),
        ({"stride": 0}, "stride: got 0"),
        ({"resize": 100}, r"resize: got 100, expected an integer at least 112"),
        ({"short": "pad"}, "short: got 'pad', expected one of refuse, loop"),
    ],
)
def test_bad_sampling(options, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**options)


# augmentation, models


def test_all_frames_of_a_clip_are_cropped_alike():
    data = load("moving-shapes(frames=3, size=10)", "test")
    clips = torch.zeros(300, 1, 3, 9, 9, dtype=torch.uint8)
    clips[:, 0, :, 4, 3] = torch.tensor([100, 150, 200], dtype=torch.uint8)
    moved = random_crop_and_flip(clips, torch.Generator().manual_seed(0), padding=2)
    places = moved[:, 0].flatten(2).argmax(2)
    assert (places == places[:, :1]).all()
    assert {int(p) % 9 for p in places[:, 0]} == {1, 2, 3, 4, 5} | {3, 4, 5, 6, 7}
    unflipped = random_crop_and_flip(clips, torch.Generator().manual_seed(0), padding=2, flips=False)
    assert {int(p) % 9 for p in unflipped[:, 0, 0].flatten(1).argmax(1)} == {1, 2, 3, 4, 5}
    # images are cropped as ever, frame by frame
    images = random_crop_and_flip(clips[:, :, 0], torch.Generator().manual_seed(0), padding=2)
    assert torch.equal(images, moved[:, :, 0])
    assert not data.mirrored


@pytest.mark.parametrize("size", [(1, 1, 1), (8, 16, 16), (3, 9, 20)])
def test_network_of_clips(size):
    torch.manual_seed(0)
    model = build("cnn3d", 3, 7, size).eval()
    with torch.inference_mode():
        scores = model(torch.rand(2, 3, *size))
    assert scores.shape == (2, 7)
    assert not torch.equal(scores[0], scores[1])


def test_specs_of_clips():
    spec = ModelSpec("cnn3d", 1, 8, (4, 10, 10), (0.5,), (0.25,))
    assert spec.size == (4, 10, 10)
    assert read_spec(json.loads(json.dumps(asdict(spec)))) == spec
    with pytest.raises(ValueError, match="got cnn3d for inputs of size 10x10, expected a model for images"):
        build("cnn3d", 1, 8, 10)
    with pytest.raises(
        ValueError, match=r"got resnet18 for inputs of size 4x10x10, expected a model for clips \(cnn3d\)"
    ):
        build("resnet18", 1, 8, (4, 10, 10))
    with pytest.raises(ValueError, match="image_size: got"):
        ModelSpec("cnn3d", 1, 8, (2, 4, 10, 10))
    with pytest.raises(ValueError, match="got cnn3d, a classifier of clips"):
        DenoisedSpec("dncnn_small", 1, spec)


def test_normalization_of_clips():
    clips = torch.rand(2, 3, 3, 4, 5)  # as many frames as channels
    normalize = Normalize((0.1, 0.2, 0.3), (0.5, 0.6, 0.7), 3)
    frames = torch.stack([normalize(clips[:, :, t]) for t in range(3)], 2)
    assert torch.equal(normalize(clips), frames)


# certificates and training


def test_schemes_that_need_pixels_refuse_clips():
    clips = torch.zeros(1, 1, 4, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"got shape \(1, 1, 4, 8, 8\), expected \[B, C, H, W\]; videos"):
        RandomizedAblation(5).check(clips)
    UniformNoise(0.5).check(clips)


def test_a_clip_is_certified_like_the_same_numbers_in_an_image():
    torch.manual_seed(0)
    weights = torch.randn(3, 2 * 6 * 6)

    def classifier(x: Tensor) -> Tensor:
        return x.flatten(1) @ weights.T

    clips = torch.randint(0, 256, (3, 1, 2, 6, 6), dtype=torch.uint8)
    results = []
    for x in (clips, clips.reshape(3, 1, 12, 6)):
        smoothed = Smoothed(classifier, UniformNoise(2.0), 3, n0=50, n=300)
        results.append(smoothed.certify(x))
    assert torch.equal(results[0].prediction, results[1].prediction)
    assert torch.equal(results[0].radius, results[1].radius)


def few(data: Dataset, count: int) -> Dataset:
    return replace(data, images=data.images[torch.arange(count)], labels=data.labels[:count])


@pytest.mark.parametrize("loss", ["cross_entropy", "smoothadv"])
def test_training_on_clips(tmp_path, loss):
    data = few(load("moving-shapes(frames=4, size=8)", "train"), 32)
    config = TrainingConfig(
        epochs=2, batch_size=16, augment=True, loss=loss, attack_steps=1, noise_samples=1, noise_ramp=1
    )
    Trainer(data, UniformNoise(0.5), ModelSpec("cnn3d", 1, 8, (4, 8, 8)), config, tmp_path / "a").run()
    Trainer(data, UniformNoise(0.5), ModelSpec("cnn3d", 1, 8, (4, 8, 8)), config, tmp_path / "b").run()
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"got 8 classes and 8x8x8 pixels, expected the 8 and 4x8x8 of moving"):
        Trainer(data, UniformNoise(0.5), ModelSpec("cnn3d", 1, 8, (8, 8, 8)), config, tmp_path / "c")


def test_folders_from_training_to_certificates(tmp_path):
    root = ucf(tmp_path)
    train_script.main(
        train_script.Args(
            out=tmp_path / "run",
            scheme="UniformNoise(lam=0.5)",
            data="ucf101(frames=2, size=8)",
            model="cnn3d",
            epochs=1,
            batch_size=2,
            augment=True,
            data_root=root,
        )
    )
    certify_script.main(
        certify_script.Args(out=tmp_path / "test", checkpoint=tmp_path / "run", n0=8, n=20, data_root=root)
    )
    assert read_rows(tmp_path / "test")["idx"].tolist() == [0, 1]
    with pytest.raises(ValueError, match="there is no attack on clips"):
        attack_script.main(attack_script.Args(out=tmp_path / "attack", checkpoint=tmp_path / "run", data_root=root))
    with pytest.raises(ValueError, match="takes copies of 2x8x8 pixels"):
        certify_script.main(
            certify_script.Args(
                out=tmp_path / "other", checkpoint=tmp_path / "run", data="ucf101(frames=3, size=8)", data_root=root
            )
        )


@pytest.mark.slow
def test_motion_is_learned_under_noise(tmp_path):
    """Directions almost always; of shapes of a few pixels, most."""
    name, scheme = "moving-shapes(frames=6, size=12)", UniformNoise.from_sigma(0.25)
    spec, config = ModelSpec("cnn3d", 1, 8, (6, 12, 12)), TrainingConfig(epochs=5, batch_size=32, lr=0.05)
    module = Trainer(load(name, "train"), scheme, spec, config, tmp_path).run()
    images, labels = load(name, "test").batch(range(200))
    with torch.inference_mode():
        predicted = module(scheme.sample(images, Draws.of(0, EVALUATION, torch.arange(200), range(1)))[:, 0]).argmax(1)
    assert (predicted % 4 == labels % 4).float().mean() > 0.9
    assert (predicted == labels).float().mean() > 0.6
