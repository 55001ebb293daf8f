"""Videos in folders: ``class/clip/frame_0001.jpg``, ``class/clip.npz`` or ``class/clip.gif``.

No video codec is needed: extract the frames once, with any tool. The layout is that of UCF-101, with its published
lists of training and test clips, or with one folder per split:

    ROOT/ucf101/frames/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01/frame_0001.jpg
    ROOT/ucf101/ucfTrainTestlist/trainlist01.txt

    ROOT/ucf101/train/ApplyEyeMakeup/...
    ROOT/ucf101/test/ApplyEyeMakeup/...

An ``.npz`` file holds one uint8 array, ``[T, H, W, 3]``, ``[T, H, W, 1]`` or ``[T, H, W]``.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image, ImageSequence
from torch import Tensor

from certify.checks import check_integer
from certify.data.folders import IMAGE_SUFFIXES, existing, resized

Short = Literal["refuse", "loop"]
_FILES = (".npz", ".gif")


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video make a clip, and how they are resized.

    Attributes:
        frames: frames per clip.
        stride: take every ``stride``-th frame.
        size: height and width of the result.
        resize: if given, the shorter side is first resized to this and the centre is cropped; otherwise the whole
            frame is resized to ``size``, bilinearly.
        short: whether a video with fewer than ``(frames - 1) * stride + 1`` frames is refused or looped.
    """

    frames: int = 16
    stride: int = 1
    size: int = 112
    resize: int | None = None
    short: Short = "refuse"

    def __post_init__(self) -> None:
        for name in ("frames", "stride", "size"):
            check_integer(name, getattr(self, name), 1)
        if self.resize is not None:
            check_integer("resize", self.resize, self.size)
        if self.short not in get_args(Short):
            raise ValueError(f"short: got {self.short!r}, expected one of {', '.join(get_args(Short))}")

    @property
    def span(self) -> int:
        """Number of video frames from the first to the last frame of a clip."""
        return (self.frames - 1) * self.stride + 1

    def chosen(self, count: int, start: float, source: Path) -> list[int]:
        """Indices of the frames of a clip.

        Args:
            count: number of frames of the video.
            start: where the clip starts, as a share (in [0, 1)) of the possible starts; one half is the centre.
            source: path of the video, for error messages.
        """
        if count < 1 or (count < self.span and self.short == "refuse"):
            raise ValueError(
                f"{source}: got {count} frames, expected at least {self.span} ({self.frames} with stride "
                f"{self.stride}); ask for fewer frames, a smaller stride, or give short='loop'"
            )
        first = int(start * (max(0, count - self.span) + 1))
        return [(first + i * self.stride) % count for i in range(self.frames)]


class FolderClips:
    """The central clip of each video, as a uint8 tensor ``[N, 3, frames, size, size]`` that reads clips when indexed.

    Args:
        videos: one folder of frames, ``.npz`` or ``.gif`` file per video.
        sampling: which frames, and at which size.
    """

    def __init__(self, videos: Sequence[Path], sampling: Sampling) -> None:
        self.videos, self.sampling = list(videos), sampling

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.videos), 3, self.sampling.frames, self.sampling.size, self.sampling.size

    def __len__(self) -> int:
        return len(self.videos)

    def check(self) -> None:
        """Raise if a folder of frames has gaps or too few frames; ``.npz`` and ``.gif`` files are checked when read."""
        for video in self.videos:
            if video.is_dir():
                self.sampling.chosen(len(_frame_files(video)), 0.5, video)

    def listing(self) -> bytes:
        """Names of the videos, their numbers of frames, the sizes of their first and last files, and the sampling.

        Not the sizes of all files: UCF-101 has two million frames.
        """
        lines = []
        for video in self.videos:
            files = _frame_files(video) if video.is_dir() else [video]
            sizes = [file.stat().st_size for file in (files[0], files[-1])]
            lines.append(f"{video.parent.name}/{video.name} {len(files)} {sizes}")
        return "\n".join([*lines, repr(self.sampling)]).encode()

    def __getitem__(self, index: Tensor) -> Tensor:
        return self._read_all([(int(i), 0.5) for i in index])

    def random_clips(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Training clips, each starting at a random frame of its video."""
        starts = torch.rand(len(index), generator=generator, dtype=torch.float64).tolist()
        return self._read_all(list(zip(map(int, index), starts, strict=True)))

    def _read_all(self, arguments: list[tuple[int, float]]) -> Tensor:
        with ThreadPoolExecutor(min(len(arguments), os.cpu_count() or 1)) as pool:  # decoding releases the lock
            clips = list(pool.map(lambda a: self._clip(*a), arguments))
        return torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3).contiguous()

    def _clip(self, i: int, start: float) -> np.ndarray:
        """One clip, uint8 ``[frames, size, size, 3]``."""
        video, sampling = self.videos[i], self.sampling
        if not video.exists():
            raise FileNotFoundError(f"{video}: no such video, but it existed when the data set was listed")
        if video.is_dir():
            files = _frame_files(video)
            frames = [_decoded(files[j], _first_frame) for j in sampling.chosen(len(files), start, video)]
        else:
            every = _decoded(video, _npz_frames if video.suffix.lower() == ".npz" else _gif_frames)
            frames = [every[j] for j in sampling.chosen(len(every), start, video)]  # short videos may repeat some
        fitted = {id(frame): np.array(resized(frame, sampling.size, sampling.resize)) for frame in frames}
        return np.stack([fitted[id(frame)] for frame in frames])


def _decoded(path: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(path)
    except Exception as error:  # a damaged file can fail in any way
        raise ValueError(f"{path}: cannot be decoded ({error}); replace the file") from error


def _first_frame(path: Path) -> Image.Image:
    with Image.open(path) as file:
        return file.convert("RGB")


def _gif_frames(path: Path) -> list[Image.Image]:
    with Image.open(path) as file:
        return [frame.convert("RGB") for frame in ImageSequence.Iterator(file)]


def _npz_frames(path: Path) -> list[Image.Image]:
    if not zipfile.is_zipfile(path):
        raise ValueError("not an .npz file")
    with np.load(path, allow_pickle=False) as file:
        if len(file.files) != 1:
            raise ValueError(f"got {len(file.files)} arrays, expected one")
        frames = file[file.files[0]]
    if frames.dtype != np.uint8 or frames.ndim not in (3, 4) or (frames.ndim == 4 and frames.shape[3] not in (1, 3)):
        raise ValueError(f"got {frames.dtype} {frames.shape}, expected uint8 [T, H, W, 3], [T, H, W, 1] or [T, H, W]")
    if frames.ndim == 4 and frames.shape[3] == 1:
        frames = frames[..., 0]
    return [Image.fromarray(frame).convert("RGB") for frame in frames]


def _frame_files(folder: Path) -> list[Path]:
    """The frames of a video in the order of their numbers, which must be consecutive."""
    files = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise ValueError(f"{folder}: got no frames, expected files such as frame_0001.jpg; extract the video again")
    numbers: dict[int, Path] = {}
    for path in files:
        digits = re.search(r"(\d+)$", path.stem)
        if digits is None:
            raise ValueError(f"{path}: got a name without a number at its end, expected one such as frame_0001.jpg")
        number = int(digits.group(1))
        if number in numbers:
            raise ValueError(f"{folder}: got {numbers[number].name} and {path.name}, expected each frame once")
        numbers[number] = path
    first, last = min(numbers), max(numbers)
    missing = [number for number in range(first, last + 1) if number not in numbers]
    if missing:
        raise ValueError(
            f"{folder}: frame {missing[0]} of {first} to {last} is missing ({len(missing)} in all); extract it again"
        )
    return [numbers[number] for number in range(first, last + 1)]


def _is_video(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() in _FILES


def _videos_in(folder: Path) -> list[tuple[str, Path]]:
    """(class, video) of every video in the class folders, in alphabetical order."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    return [(each.name, video) for each in classes for video in sorted(each.iterdir()) if _is_video(video)]


def video_files(root: Path, split: str, *, fold: int = 1) -> tuple[list[Path], list[int], int]:
    """Videos, labels and the number of classes; classes are numbered alphabetically.

    Args:
        root: folder that holds ``ucf101``.
        split: ``"train"`` or ``"test"``.
        fold: which of the published lists to use (1 to 3), where there are lists.
    """
    check_integer("fold", fold, 1)
    base = existing([root / "ucf101"], "ucf101")
    if (base / split).is_dir():
        names = sorted({path.name for part in ("train", "test") for path in (base / part).glob("*/")})
        found = _videos_in(base / split)
    else:
        frames = existing([base / "frames", base / "UCF-101"], "ucf101")
        names = sorted(path.name for path in frames.iterdir() if path.is_dir())
        found = _listed(base, frames, split, fold)
    if not found:
        raise FileNotFoundError(f"ucf101: no videos for {split} in {base}; expected class/clip/frame_0001.jpg there")
    number = {name: label for label, name in enumerate(names)}
    return [video for _, video in found], [number[name] for name, _ in found], len(names)


def _listed(base: Path, frames: Path, split: str, fold: int) -> list[tuple[str, Path]]:
    """The videos of a published list: lines such as ``Archery/v_Archery_g01_c01.avi 3``."""
    path = base / "ucfTrainTestlist" / f"{split}list{fold:02d}.txt"
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such list; put the published lists there, or create {base / split}")
    found = []
    for line in path.read_text().splitlines():
        if not line.strip():
            continue
        name = Path(line.split()[0])
        beside = frames / name.parent / name.stem
        candidates = [beside, *(beside.with_name(beside.name + suffix) for suffix in _FILES)]
        video = next((candidate for candidate in candidates if candidate.exists()), None)
        if video is None:
            raise FileNotFoundError(f"{beside}: no such folder of frames, .npz or .gif, but {path.name} lists the clip")
        found.append((name.parent.name, video))
    return found
