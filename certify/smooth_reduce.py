"""Smooth-Reduce: one vote from the reduced scores of many noised patches of an image, or sub-videos of a video.

Source: "Smooth-Reduce: Leveraging Patches for Improved Certified Robustness", Algorithm 1, which is not sound as
printed. It draws independent noise for each patch and reports the radius of plain smoothing. But to the theorem the
smoothed object is then the stack ``(P_1 x, ..., P_k x)``, which a perturbation delta of x moves by up to L times its
length, L the operator norm of the stacked P_i. Two rules are sound, from any base classifier, patches and reduction:

* ``noise="image"``: one draw of noise for the image, of which all patches are taken. What they are and how they are
  reduced is part of the base classifier, and the radius that of plain smoothing.
* ``noise="patch"``: independent noise for each patch, and the radius divided by L. Patches drawn at random mix many
  such classifiers. With noise of deviation 1, a perturbation of length c takes a probability p of one of them to
  ``Phi(Phi^-1(p) - c)`` at worst. That is convex in p and falls with c, so that the mean over the draws falls no deeper
  than for the mean of p and the largest L; what it may rise to is concave, likewise.

The first is the paper's Corollary 1. Its Theorem 2, on failure probabilities, assumes that patches fail independently;
nothing here uses it.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from certify.draws import Draws
from certify.gaussian import GaussianScheme, added
from certify.images import IMAGES, VIDEOS, Shape
from certify.inference import BaseClassifier
from certify.patch_operators import QUARTERS, Axis, dense_starts, dense_windows, resize, stack_norm, windows
from certify.reduced import Reduce, Reduced
from certify.scheme import SampledScheme, check_integer

NoiseOn = Literal["image", "patch"]

_PLACES, _PICK, _CHUNK = 8, 9, 10  # parts of the random numbers; noise has those of the draws themselves


@dataclass(frozen=True)
class _SmoothReduce(GaussianScheme):
    """What images and videos share. See :class:`SmoothReduce`."""

    stride: int | None = field(default=None, kw_only=True)
    count: int | None = field(default=None, kw_only=True)
    reduce: Reduce = field(default="mean", kw_only=True)
    noise: NoiseOn = field(default="image", kw_only=True)
    as_printed: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if (self.stride is None) == (self.count is None):
            raise ValueError(
                f"stride, count: got {self.stride} and {self.count}, expected one of them: patches everywhere, stride "
                "apart, or that many at random"
            )
        if self.stride is not None:
            check_integer("stride", self.stride, 1)
        else:
            assert self.count is not None
            check_integer("count (patches)", self.count, 1, 1 << 12)
        for name, choices in (("reduce", Reduce), ("noise", NoiseOn)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected one of {', '.join(get_args(choices))}")
        if self.as_printed and self.noise == "image":
            raise ValueError("as_printed: is for noise='patch'; with noise on the image, radii as printed are sound")
        super().__post_init__()

    @abstractmethod
    def axes(self, shape: Shape) -> tuple[Axis, ...]:
        """The axes along which patches are windows; raises if an image of ``shape`` has none."""

    @property
    @abstractmethod
    def _resizes(self) -> int:
        """By how much resizing may multiply values."""

    def doubts(self) -> list[str]:
        return [*(["as printed"] if self.as_printed else []), *super().doubts()]

    def certificates(self) -> dict[str, SampledScheme]:
        if self.noise == "image":
            return {}
        return {"proven": replace(self, as_printed=False), "printed": replace(self, as_printed=True)}

    @property
    def refinement(self) -> int:
        return self._resizes if self.noise == "patch" else 1

    def check(self, x: Tensor, layouts: tuple[str, ...] = (IMAGES, VIDEOS)) -> None:
        super().check(x, layouts)
        self.axes(tuple(x.shape[1:]))  # raises where patches do not fit

    def patches(self, shape: Shape) -> int:
        """k, the number of patches of an image of ``shape``."""
        axes = self.axes(shape)
        return self.count or len(dense_starts(axes, self.stride or 1))

    def patch_shape(self, shape: Shape) -> Shape:
        sizes = list(shape)
        for axis in self.axes(shape):
            sizes[axis.dim - 2] = axis.window
        return tuple(sizes)

    def noisy_features(self, shape: Shape) -> int:
        return math.prod(shape) if self.noise == "image" else self.patches(shape) * math.prod(self.patch_shape(shape))

    def operator_norm(self, shape: Shape) -> float:
        """L, by how much the stack of patches may stretch a perturbation of an image of ``shape``; never too small.

        Without resizing it is the root of the largest number of patches that cover a pixel; of random ones, all may.
        """
        return stack_norm(self.axes(shape), self.stride, self.count)

    def stretch(self, shape: Shape | None) -> float:
        if self.noise == "image" or self.as_printed:
            return 1.0
        if shape is None:
            raise ValueError("shape: noise on patches needs the image shape, on which the radius depends")
        return self.operator_norm(shape)

    def classifier(self, base_classifier: BaseClassifier) -> BaseClassifier:
        return Reduced(base_classifier, self.reduce)

    def sample(self, x: Tensor, draws: Draws) -> Tensor:
        """Stacks of patches, float32 ``[B, n, k, C, h, w]``."""
        axes = self.axes(tuple(x.shape[1:]))
        if self.count is None:
            return self._noised(x, draws, axes, lambda image: dense_windows(image, axes, self.stride or 1))
        starts = self._random_starts(axes, draws.substream(_PLACES), self.count)
        return self._noised(x, draws, axes, lambda image: windows(image, starts, axes))

    def sample_inputs(self, x: Tensor, draws: Draws) -> Tensor:
        """One random patch of each copy."""
        return self._one_patch(x, draws)[:, :, 0]

    def _one_patch(self, x: Tensor, draws: Draws) -> Tensor:
        axes = self.axes(tuple(x.shape[1:]))
        picks = draws.substream(_PICK)
        if self.count is not None:
            starts = self._random_starts(axes, picks, 1)
        else:
            dense = torch.tensor(dense_starts(axes, self.stride or 1), device=x.device)
            starts = [*dense.T[:, picks.integers(len(dense), 1)]]
        return self._noised(x, draws, axes, lambda image: windows(image, starts, axes))

    def _random_starts(self, axes: tuple[Axis, ...], draws: Draws, count: int) -> list[Tensor]:
        """Where ``count`` patches start, each place as likely, with replacement."""
        number, starts = draws.integers(math.prod(axis.places for axis in axes), count), []
        for axis in reversed(axes):
            starts.append(number % axis.places)
            number = number // axis.places
        return starts[::-1]

    def _noised(self, x: Tensor, draws: Draws, axes: tuple[Axis, ...], cut: Callable[[Tensor], Tensor]) -> Tensor:
        """Values of the patches that ``cut`` takes of a resized image, with noise on these or on the image."""
        numbers = self.numbers(x)[:, None]
        if self.noise == "image":
            numbers = added(numbers, self.draw_noise(draws, tuple(x.shape[1:])))
        if self._resizes > 1:
            numbers = resize(numbers, axes)
        patches = cut(numbers)
        if self.noise == "patch":
            noise = self.draw_noise(draws, tuple(patches.shape[2:]))
            # floats are not in steps: there the noise, too, is multiplied by what resizing has multiplied values by
            patches = added(patches, noise if self.sound else noise.mul_(self._resizes))
        return self.values(patches, self._resizes)


@dataclass(frozen=True)
class SmoothReduce(_SmoothReduce):
    """Gaussian smoothing of a classifier of patches: their scores, reduced, are one vote.

    Guarantee, for inputs on the grid ``i / q``: the prediction is the same for every input on it within l2 distance
    ``radius``. With ``noise="image"`` that is the radius of :class:`~certify.gaussian.GaussianNoise`, with
    ``noise="patch"`` the same divided by :meth:`operator_norm`.

    The base classifier takes patches ``[N, C, *size]``.

    Attributes:
        sigma: standard deviation of the noise.
        size: of a patch in pixels, one number or (height, width).
        resize: of the image, before patches are taken, likewise: bilinear, at positions rounded to quarters of a pixel.
        stride: patches that are ``stride`` pixels apart, from the upper left corner on, all of them in each copy; or
        count: that many at random places, drawn for each copy.
        reduce: ``"mean"`` of the scores, or ``"max"`` of their soft-max.
        noise: on the ``"image"``, or on each ``"patch"``, after resizing.
        as_printed: with noise on patches, radii as Algorithm 1 prints them, not divided by the norm. They are not
            certificates: their threat says so, and with it everything that shows them. Votes are the same.
        sound, q: see :class:`~certify.gaussian.GaussianNoise`.
    """

    size: int | tuple[int, int]
    resize: int | tuple[int, int] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name, value in (("size", self.size), ("resize", self.resize)):
            for side in value if isinstance(value, tuple) else (value,):
                if side is not None:
                    check_integer(f"{name} (pixels)", side, 1)
            if isinstance(value, tuple) and len(value) != 2:
                raise ValueError(f"{name}: got {value}, expected a number or (height, width)")
        super().__post_init__()

    @property
    def _resizes(self) -> int:
        return 1 if self.resize is None else QUARTERS**2

    def axes(self, shape: Shape) -> tuple[Axis, ...]:
        pixels = shape[1:]
        resized = pixels if self.resize is None else _pair(self.resize)
        if any(window > side for window, side in zip(_pair(self.size), resized, strict=True)):
            got, of = ("x".join(map(str, sides)) for sides in (_pair(self.size), resized))
            raise ValueError(f"size: got patches of {got} pixels, images have {of}; use a smaller size, or resize")
        dims = (3, 4)
        return tuple(map(Axis, dims, pixels, resized, _pair(self.size)))

    def check(self, x: Tensor, layouts: tuple[str, ...] = (IMAGES,)) -> None:
        super().check(x, layouts)

    def input_shape(self, shape: Shape) -> Shape:
        return self.patch_shape(shape)

    def inputs_per_copy(self, shape: Shape) -> int:
        return self.patches(shape)


@dataclass(frozen=True)
class SmoothReduceVideo(_SmoothReduce):
    """Smooth-Reduce of videos ``[B, C, T, H, W]``: sub-videos, cut into chunks, are what patches are of an image.

    The base classifier takes chunks ``[N, C, chunk, H, W]``; the scores of a sub-video are the mean over its chunks.
    Guarantee, and the meaning of all else: see :class:`SmoothReduce`. Chunks of one sub-video share no frame: the
    operator norm is the root of the largest number of chunks, or sub-videos, that cover a frame.

    Attributes:
        sigma: standard deviation of the noise.
        frames: of a sub-video; published are 64 and 128.
        chunk: frames of a chunk, a divisor of ``frames``; published are 8 and 16.
        stride: sub-videos that start ``stride`` frames apart; or
        count: that many, at random.
    """

    frames: int
    chunk: int

    def __post_init__(self) -> None:
        check_integer("frames (of a sub-video)", self.frames, 1)
        check_integer("chunk (frames)", self.chunk, 1, self.frames)
        if self.frames % self.chunk:
            raise ValueError(f"chunk: got {self.chunk} frames, expected a divisor of frames = {self.frames}")
        super().__post_init__()

    @property
    def _resizes(self) -> int:
        return 1

    def axes(self, shape: Shape) -> tuple[Axis, ...]:
        if self.frames > shape[1]:
            raise ValueError(f"frames: got sub-videos of {self.frames}, a video has only {shape[1]}; use fewer")
        return (Axis(3, shape[1], shape[1], self.frames),)

    def check(self, x: Tensor, layouts: tuple[str, ...] = (VIDEOS,)) -> None:
        super().check(x, layouts)

    def input_shape(self, shape: Shape) -> Shape:
        return (shape[0], self.chunk, *shape[2:])

    def inputs_per_copy(self, shape: Shape) -> int:
        return self.patches(shape) * (self.frames // self.chunk)

    def classifier(self, base_classifier: BaseClassifier) -> BaseClassifier:
        return Reduced(base_classifier, self.reduce, chunked=True)

    def sample(self, x: Tensor, draws: Draws) -> Tensor:
        """Stacks of chunks of sub-videos, float32 ``[B, n, k, frames / chunk, C, chunk, H, W]``."""
        return self._chunks(super().sample(x, draws))

    def sample_inputs(self, x: Tensor, draws: Draws) -> Tensor:
        """One random chunk of each copy."""
        chunks = self._chunks(self._one_patch(x, draws))[:, :, 0]
        pick = draws.substream(_CHUNK).integers(chunks.shape[2], 1).expand(*chunks.shape[:2], 1)
        return chunks.gather(2, pick.view(*pick.shape, 1, 1, 1, 1).expand(-1, -1, -1, *chunks.shape[3:]))[:, :, 0]

    def _chunks(self, sub_videos: Tensor) -> Tensor:
        return sub_videos.unflatten(4, (-1, self.chunk)).movedim(4, 3)


def _pair(sides: int | tuple[int, int]) -> tuple[int, int]:
    return sides if isinstance(sides, tuple) else (sides, sides)
