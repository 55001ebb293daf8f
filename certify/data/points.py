"""Point clouds as images ``[3, N, 1]`` with values in [0, 1], and a small generated set of them.

Ablation then keeps whole points (``RandomizedAblation(keep=16)``), and an l0 certificate counts points. A cloud is
centred and scaled *before* the threat model applies: the adversary moves some points of the cloud that the classifier
is given to anywhere in the unit cube; points that would change the scaling are outside the certificate.

    python -m scripts.train runs/shapes --data shapes --model pointnet_small --scheme "RandomizedAblation(keep=16)" \\
        --epochs 10 --batch-size 32 --lr 0.05
    python -m scripts.certify runs/shapes/test --checkpoint runs/shapes --n 2000
    python -m scripts.report runs/shapes/test --top-k 1 3
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from certify.data.meshes import Mesh, revolve, sample_surface
from certify.draws import DATA, Draws

STEPS = 1 << 15  # coordinates are multiples of 2^-15: a cloud is the same on every machine, and 1 - x is exact


def normalized_levels(points: np.ndarray, source: str) -> np.ndarray:
    """A cloud ``[N, 3]`` with its mean moved to the centre of the unit cube and its farthest point scaled to the
    inscribed sphere, in steps of 2^-15: uint16 ``[N, 3]``, each in [0, 2^15]."""
    if not np.isfinite(points).all():
        raise ValueError(f"{source}: got NaN or infinite coordinates, expected numbers")
    centred = points - [math.fsum(axis) / len(points) for axis in points.T]
    x, y, z = centred.T
    radius = math.sqrt((x * x + y * y + z * z).max())
    if not (math.isfinite(radius) and radius > 0):
        raise ValueError(f"{source}: got a cloud of radius {radius:g}, expected a finite one above 0")
    return np.rint((0.5 + 0.5 * centred / radius).clip(0, 1) * STEPS).astype(np.uint16)


def as_images(levels: np.ndarray) -> Tensor:
    """Clouds ``[M, N, 3]`` in steps of 2^-15 as images: float32 ``[M, 3, N, 1]``."""
    return torch.from_numpy(levels.astype(np.float32) / STEPS).transpose(1, 2)[..., None].contiguous()


def uniforms(items: list[int], points: int, seed: int) -> np.ndarray:
    """Random numbers that select the points of clouds, a function of each cloud's index: ``[M, points, 3]``."""
    return Draws.of(seed, DATA, torch.tensor(items), range(points)).uniforms(3).numpy()


def _solids() -> dict[str, Mesh]:
    angle = np.linspace(0, np.pi, 25)
    around = np.linspace(0, 2 * np.pi, 25)
    can = np.array([(0, 1), (1, 1), (1, -1), (0, -1)])
    return {
        "sphere": revolve(np.stack((np.sin(angle), np.cos(angle)), 1), 48),
        "cube": revolve(can * [math.sqrt(2), 1], 4),
        "cylinder": revolve(can, 48),
        "cone": revolve(np.array([(0, 1), (1, -1), (0, -1)]), 48),
        "torus": revolve(np.stack((1 + 0.4 * np.cos(around), 0.4 * np.sin(around)), 1), 48),
    }


SHAPES = ("sphere", "cube", "cylinder", "cone", "torus")
_COUNT = {"train": 1000, "test": 250}


def shapes(split: str, *, points: int = 128, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Clouds on the surfaces of stretched, rotated solids: images ``[M, 3, points, 1]`` and labels, see ``SHAPES``.

    Every solid is stretched by a factor of 0.7 to 1.3 along each axis and rotated about the second one.
    """
    count = _COUNT[split]
    items = list(range(count) if split == "train" else range(_COUNT["train"], _COUNT["train"] + count))
    solids, where = _solids(), uniforms(items, points, seed)
    how = Draws.of(seed, DATA, torch.tensor(items), range(1)).substream(1).uniforms(4)[:, 0].numpy()
    levels, labels = [], [i % len(SHAPES) for i in range(count)]
    for label, u, (stretch, angle) in zip(labels, where, ((h[:3], 2 * np.pi * h[3]) for h in how), strict=True):
        solid = solids[SHAPES[label]]
        stretched = Mesh(solid.vertices * (0.7 + 0.6 * stretch), solid.triangles)
        x, y, z = sample_surface(stretched, u).T
        cos, sin = np.cos(angle), np.sin(angle)
        levels.append(normalized_levels(np.stack((cos * x - sin * z, y, sin * x + cos * z), 1), SHAPES[label]))
    return as_images(np.stack(levels)), torch.tensor(labels)
