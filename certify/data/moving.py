"""Generated clips of moving shapes; no single frame reveals the class.

    python -m scripts.train runs/moving --data moving-shapes --model cnn3d --scheme "UniformNoise.from_sigma(0.25)" \\
        --epochs 6 --batch-size 32 --lr 0.05
    python -m scripts.certify runs/moving/test --checkpoint runs/moving --n 1000 --max 50
"""

from __future__ import annotations

import torch
from torch import Tensor

from certify.checks import check_integer
from certify.draws import DATA, Draws

SHAPES = ("square", "diamond")
DIRECTIONS = {"right": (0, 1), "left": (0, -1), "down": (1, 0), "up": (-1, 0)}
CLASSES = tuple(f"{shape} {direction}" for shape in SHAPES for direction in DIRECTIONS)
_COUNT = {"train": 800, "test": 200}


def moving_shapes(split: str, *, frames: int = 8, size: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Bright squares and diamonds that move one pixel per frame in one of four directions; the same on every machine.

    A shape that leaves on one side re-enters on the opposite one. Position, brightness (128 to 255) and background
    (0 to 63) are random, and so is the size of the shape: about a third to half of the frame.

    Args:
        split: ``"train"`` (800 clips) or ``"test"`` (200 others).
        frames: frames per clip, at least 2.
        size: height and width, at least 8.
        seed: of the random numbers.

    Returns:
        uint8 ``[N, 1, frames, size, size]`` and labels, see ``CLASSES``.
    """
    check_integer("frames", frames, 2)
    check_integer("size", size, 8)
    first = 0 if split == "train" else _COUNT["train"]
    items = torch.arange(first, first + _COUNT[split])
    labels = items % len(CLASSES)
    words = Draws.of(seed, DATA, items, range(1)).substream(2).words(5)[:, 0]
    row, column = words[:, 0] % size, words[:, 1] % size
    bright, dark = 128 + words[:, 2] % 128, words[:, 3] % 64
    side = size // 3 + words[:, 4] % (size // 2 - size // 3 + 1)
    steps = torch.tensor(list(DIRECTIONS.values()))[labels % len(DIRECTIONS)]
    at = torch.stack((row, column), 1)[:, None] + torch.arange(frames)[None, :, None] * steps[:, None]
    # twice the distance from the centre of the shape, on a frame that wraps around: [N, frames, 2, size]
    apart = 2 * ((torch.arange(size) - at[..., None]) % size) - (side[:, None, None, None] - 1)
    apart = torch.minimum(apart.abs(), (2 * size - apart).abs())
    down, right = apart[:, :, 0, :, None], apart[:, :, 1, None, :]
    reach = side[:, None, None, None]
    square, diamond = torch.maximum(down, right) < reach, down + right < reach
    inside = torch.where((labels < len(DIRECTIONS))[:, None, None, None], square, diamond)
    pixels = torch.where(inside, bright[:, None, None, None], dark[:, None, None, None])
    return pixels.to(torch.uint8)[:, None], labels
