"""Triangle meshes: the OFF format, points on their surface, and surfaces of revolution."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh.

    Attributes:
        vertices: float64 ``[V, 3]``.
        triangles: int64 ``[T, 3]``, indices of vertices.
    """

    vertices: np.ndarray
    triangles: np.ndarray


def parse_off(data: bytes, source: str) -> Mesh:
    """The mesh in an OFF file; polygons are split into triangle fans, colours and comments are ignored.

    Some published files of ModelNet have the counts on the first line, without even a space: ``OFF490 518 0``. They
    are accepted, too.
    """
    lines = [line for line in (line.split(b"#")[0].strip() for line in data.splitlines()) if line]
    if not lines or not lines[0].startswith(b"OFF"):
        start = lines[0][:20] if lines else b""
        raise ValueError(f"{source}: got a file that starts with {start!r}, expected OFF; fetch it again")
    glued = lines[0][3:].strip()
    counts, body = (glued, lines[1:]) if glued else (b"".join(lines[1:2]), lines[2:])
    try:
        num_vertices, num_faces = (int(n) for n in counts.split()[:2])
    except ValueError as error:
        raise ValueError(f"{source}: got counts {counts[:40]!r}, expected 'vertices faces edges'") from error
    if num_vertices < 3 or num_faces < 1:
        raise ValueError(f"{source}: got {num_vertices} vertices and {num_faces} faces, expected a surface")
    if len(body) < num_vertices + num_faces:
        raise ValueError(
            f"{source}: got {len(body)} lines, but the header announces {num_vertices} vertices and {num_faces} faces; "
            "the file is truncated, fetch it again"
        )
    try:
        vertices = _vertices(body[:num_vertices])
        triangles = _triangles(body[num_vertices : num_vertices + num_faces])
    except (ValueError, IndexError) as error:
        raise ValueError(f"{source}: not a mesh ({error}); fetch it again") from error
    if not np.isfinite(vertices).all():
        raise ValueError(f"{source}: got NaN or infinite vertices, expected numbers")
    if triangles.min() < 0 or triangles.max() >= num_vertices:
        raise ValueError(
            f"{source}: got vertex numbers {triangles.min()} to {triangles.max()}, expected 0 to {num_vertices - 1}"
        )
    return Mesh(vertices, triangles)


def _vertices(lines: list[bytes]) -> np.ndarray:
    numbers = b" ".join(lines).split()
    if len(numbers) != 3 * len(lines):  # colours follow the coordinates
        rows = [line.split()[:3] for line in lines]
        if any(len(row) < 3 for row in rows):
            raise ValueError("a vertex has fewer than 3 coordinates")
        numbers = [number for row in rows for number in row]
    return np.array(numbers, dtype=np.float64).reshape(-1, 3)


def _triangles(lines: list[bytes]) -> np.ndarray:
    numbers = b" ".join(lines).split()
    if len(numbers) == 4 * len(lines):
        faces = np.array(numbers, dtype=np.int64).reshape(-1, 4)
        if (faces[:, 0] == 3).all():
            return faces[:, 1:]
    fans = []
    for line in lines:
        words = line.split()
        corners = int(words[0])
        face = [int(word) for word in words[1 : corners + 1]]  # a colour may follow
        if corners < 3 or len(face) < corners:
            raise ValueError(f"got the face {line[:40]!r} with {corners} corners")
        fans += [(face[0], face[i], face[i + 1]) for i in range(1, corners - 1)]
    return np.array(fans, dtype=np.int64)


def sample_surface(mesh: Mesh, uniforms: np.ndarray, source: str = "mesh") -> np.ndarray:
    """Points on the surface, uniform by area: float64 ``[N, 3]``.

    Args:
        uniforms: ``[N, 3]``, independent and uniform on (0, 1).
        source: name of the mesh in error messages.
    """
    a, b, c = (mesh.vertices[mesh.triangles[:, i]] for i in range(3))
    cross = np.cross(b - a, c - a)
    area = np.sqrt((cross**2).sum(1))
    total = area.sum()
    if not (math.isfinite(total) and total > 0):
        raise ValueError(f"{source}: got a surface of area {total / 2:g}, expected a finite one above 0")
    # divided before the sum, so that the last entry is 1 up to rounding at any scale
    cumulative = np.cumsum(area / total)
    chosen = np.searchsorted(cumulative, uniforms[:, 0] * cumulative[-1], side="right").clip(max=len(area) - 1)
    root = np.sqrt(uniforms[:, 1])[:, None]
    along = uniforms[:, 2][:, None]
    return (1 - root) * a[chosen] + root * (1 - along) * b[chosen] + root * along * c[chosen]


def revolve(profile: np.ndarray, segments: int) -> Mesh:
    """The surface of revolution of a curve around the second axis.

    Args:
        profile: ``[P, 2]``, points (distance from the axis, height) of the curve.
        segments: number of segments of a full turn; with 4, a cylinder becomes a box.
    """
    turn = 2 * np.pi * np.arange(segments) / segments
    radius, height = profile[:, 0][:, None], profile[:, 1][:, None]
    ring = (radius * np.cos(turn), np.broadcast_to(height, (len(profile), segments)), radius * np.sin(turn))
    number = np.arange(len(profile) * segments).reshape(len(profile), segments)
    beside = np.roll(number, -1, axis=1)
    lower, upper = (number[:-1], beside[:-1]), (number[1:], beside[1:])
    halves = [np.stack((lower[0], lower[1], upper[0]), -1), np.stack((lower[1], upper[1], upper[0]), -1)]
    return Mesh(np.stack(ring, -1).reshape(-1, 3), np.concatenate(halves).reshape(-1, 3))
