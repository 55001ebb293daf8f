"""Smooth-Reduce: one vote from the reduced scores of many noisy patches of an image, or sub-videos of a video.

Source: "Smooth-Reduce: Leveraging Patches for Improved Certified Robustness", Algorithm 1, which is unsound as printed.
It draws independent noise for each patch and reports the radius of plain smoothing. In that case, however, the smoothed
input is the stack ``(P_1 x, ..., P_k x)``, which a perturbation delta of x moves by up to L times its norm, where L is
the operator norm of the stacked P_i. Two rules are sound, for any base classifier, patches and reduction:

* ``noise="image"``: one draw of noise for the image, from which all patches are then taken. The choice of patches and
  their reduction are part of the base classifier, and the radius is that of plain smoothing.
* ``noise="patch"``: independent noise for each patch, and the radius divided by L. Patches drawn at random form a
  mixture of such classifiers. With noise of standard deviation 1, a perturbation of norm c lowers a probability p of
  one of them to ``Phi(Phi^-1(p) - c)`` at worst. This is convex in p and decreasing in c, so the mean over the draws
  falls no lower than for the mean p and the largest L; the upper bound is concave, and the same argument applies.

The first is the paper's Corollary 1. Its Theorem 2, on failure probabilities, assumes that patches fail independently,
and its Section 2 claims alpha / k; neither is used here.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from certify.checks import check_integer
from certify.draws import Draws
from certify.gaussian import GaussianScheme, added
from certify.images import IMAGES, VIDEOS, Shape
from certify.inference import BaseClassifier
from certify.scheme import SampledScheme, needed
from certify.smooth_reduce_patches import QUARTERS, Axis, dense_starts, dense_windows, resize, stack_norm, windows
from certify.smooth_reduce_scores import Reduce, Reduced

NoiseOn = Literal["image", "patch"]

_PLACES, _PICK, _CHUNK = 8, 9, 10  # substreams of the random numbers; noise uses the draws themselves


@dataclass(frozen=True)
class _SmoothReduce(GaussianScheme):
    """Base of the image and the video scheme. See :class:`SmoothReduce`."""

    stride: int | None = field(default=None, kw_only=True)
    count: int | None = field(default=None, kw_only=True)
    reduce: Reduce = field(default="mean", kw_only=True)
    noise: NoiseOn = field(default="image", kw_only=True)
    as_printed: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if (self.stride is None) == (self.count is None):
            raise ValueError(
                f"stride, count: got {self.stride} and {self.count}, expected exactly one of them: stride for dense "
                "patches that far apart, or count for that many random ones"
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
            raise ValueError(
                "as_printed: got True with noise='image', where the printed radii are sound; expected noise='patch'"
            )
        super().__post_init__()

    @abstractmethod
    def axes(self, shape: Shape) -> tuple[Axis, ...]:
        """The axes along which patches are windows; raises if patches do not fit an image of ``shape``."""

    @property
    @abstractmethod
    def _resize_factor(self) -> int:
        """The factor by which resizing multiplies values, to keep them integers."""

    def doubts(self) -> list[str]:
        return [*(["as printed"] if self.as_printed else []), *super().doubts()]

    def certificates(self) -> dict[str, SampledScheme]:
        if self.noise == "image":
            return {}
        return {"proven": replace(self, as_printed=False), "printed": replace(self, as_printed=True)}

    @property
    def refinement(self) -> int:
        return self._resize_factor if self.noise == "patch" else 1

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
        """L, an upper bound on the factor by which the stack of patches stretches a perturbation, for ``shape``.

        Without resizing, it is the square root of the largest number of patches that cover a pixel; random patches may
        all cover the same one.
        """
        return stack_norm(self.axes(shape), self.stride, self.count)

    def stretch(self, shape: Shape | None) -> float:
        if self.noise == "image" or self.as_printed:
            return 1.0
        return self.operator_norm(needed(shape, self))

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
        """Start positions of ``count`` patches, uniform and with replacement."""
        number, starts = draws.integers(math.prod(axis.places for axis in axes), count), []
        for axis in reversed(axes):
            starts.append(number % axis.places)
            number = number // axis.places
        return starts[::-1]

    def _noised(self, x: Tensor, draws: Draws, axes: tuple[Axis, ...], cut: Callable[[Tensor], Tensor]) -> Tensor:
        """Values of the patches that ``cut`` takes from a resized image, with noise on the patches or on the image."""
        numbers = self.numbers(x)[:, None]
        if self.noise == "image":
            numbers = added(numbers, self.draw_noise(draws, tuple(x.shape[1:])))
        if self._resize_factor > 1:
            numbers = resize(numbers, axes)
        patches = cut(numbers)
        if self.noise == "patch":
            noise = self.draw_noise(draws, tuple(patches.shape[2:]))
            # floats are not in grid steps, so the noise has to be scaled by the same factor as the resized values
            patches = added(patches, noise if self.sound else noise.mul_(self._resize_factor))
        return self.values(patches, self._resize_factor)


@dataclass(frozen=True)
class SmoothReduce(_SmoothReduce):
    """Gaussian smoothing of a patch classifier: its scores on the patches of a copy are reduced to one vote.

    Guarantee, for inputs on the grid ``i / q``: the prediction is the same for every input on the grid within l2
    distance ``radius``. With ``noise="image"`` this is the radius of :class:`~certify.gaussian.GaussianNoise`, with
    ``noise="patch"`` that radius divided by :meth:`operator_norm`.

    The base classifier takes patches ``[N, C, *size]``.

    Attributes:
        sigma: standard deviation of the noise.
        size: size of a patch in pixels, one number or (height, width).
        resize: size to which the image is resized before patches are taken, in the same form; bilinear, at positions
            rounded to quarters of a pixel.
        stride: each copy has all patches that lie ``stride`` pixels apart, from the upper left corner on; or
        count: each copy has that many patches at random positions.
        reduce: ``"mean"`` of the scores, or ``"max"`` of their soft-max.
        noise: on the ``"image"``, or on each ``"patch"`` after resizing.
        as_printed: with noise on patches, use the radii of Algorithm 1 as printed, not divided by the norm. They are
            not certificates, and their threat, and so everything that shows them, says so. Votes are the same.
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
    def _resize_factor(self) -> int:
        return 1 if self.resize is None else QUARTERS**2

    def axes(self, shape: Shape) -> tuple[Axis, ...]:
        pixels = shape[1:]
        resized = pixels if self.resize is None else _pair(self.resize)
        if any(window > side for window, side in zip(_pair(self.size), resized, strict=True)):
            got, of = ("x".join(map(str, sides)) for sides in (_pair(self.size), resized))
            raise ValueError(f"size: got patches of {got} pixels for images of {of}; use a smaller size, or resize")
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
    """Smooth-Reduce for videos ``[B, C, T, H, W]``: sub-videos, cut into chunks, take the role of patches.

    The base classifier takes chunks ``[N, C, chunk, H, W]``; the scores of a sub-video are the mean over its chunks.
    For the guarantee and all other parameters, see :class:`SmoothReduce`. Chunks of one sub-video share no frame, so
    the operator norm is the square root of the largest number of chunks, or sub-videos, that cover a frame.

    Attributes:
        sigma: standard deviation of the noise.
        frames: length of a sub-video; 64 and 128 in the paper.
        chunk: frames of a chunk, a divisor of ``frames``; 8 and 16 in the paper.
        stride: sub-videos start ``stride`` frames apart; or
        count: that many sub-videos at random positions.
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
    def _resize_factor(self) -> int:
        return 1

    def axes(self, shape: Shape) -> tuple[Axis, ...]:
        if self.frames > shape[1]:
            raise ValueError(f"frames: got sub-videos of {self.frames} for videos of only {shape[1]}; use fewer")
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
