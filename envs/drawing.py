"""Pictures of episodes, drawn with Pillow: no display or window needed, and the same size for every state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from envs.geometry import wrapped
from envs.task import Episode

WIDTH, HEADER, MARGIN = 640, 44, 24
PAPER, INK, FAINT, GRID = (255, 255, 255), (35, 35, 40), (150, 150, 155), (228, 228, 232)
BLUE, GREEN, ORANGE, RED = (40, 100, 190), (30, 150, 80), (240, 180, 80), (205, 50, 45)
CYAN, MAGENTA = (120, 215, 230), (215, 60, 175)
_MAX_LANES = 40
_FINE = 2  # maps are drawn larger and scaled down, for smooth lines


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _canvas(height: int, episode: Episode, steps: int, status: str, color: tuple[int, int, int]):
    """An empty picture with a header line: step, reward of the last step, return of the episode, and a status."""
    image = Image.new("RGB", (WIDTH, HEADER + height), PAPER)
    pen = ImageDraw.Draw(image)
    text = f"step {len(episode.rewards)} of {steps}"
    if episode.rewards:
        text += f"     reward {episode.rewards[-1]:.4g}     return {sum(episode.rewards):.4g}"
    pen.text((MARGIN, HEADER / 2), text, INK, _font(15), "lm")
    pen.text((WIDTH - MARGIN, HEADER / 2), status, color, _font(15), "rm")
    return image, pen


def _status(episode: Episode) -> tuple[str, tuple[int, int, int]]:
    return ("goal reached", GREEN) if episode.reached else ("not reached yet", FAINT)


def lanes(episode: Episode, bound: float, eps: float, steps: int) -> Image.Image:
    """One lane per coordinate: the goal's interval, the path so far and the current position, green if inside."""
    state, goal = episode.states[-1], episode.goal
    shown = min(len(goal), _MAX_LANES)
    pitch = 22 if shown <= 20 else 14
    inside = np.abs(state - goal) <= np.float32(eps)
    image, pen = _canvas(shown * pitch + MARGIN, episode, steps, *_status(episode))
    pen.text((WIDTH / 2, HEADER / 2), f"{inside.sum()} of {len(goal)} inside", INK, _font(15), "lm")

    def across(value: float) -> float:
        return WIDTH / 2 + value / bound * (WIDTH / 2 - MARGIN)

    for i in range(shown):
        middle, half = HEADER + (i + 0.5) * pitch, pitch * 0.36
        pen.line([across(-bound), middle, across(bound), middle], GRID, 1)
        low, high = across(max(goal[i] - eps, -bound)), across(min(goal[i] + eps, bound))
        pen.rectangle([min(low, high - 3), middle - half, high, middle + half], ORANGE)
        path = [across(past[i]) for past in episode.states]
        pen.line([min(path), middle, max(path), middle], FAINT, 2)
        for x in path[:-1]:
            pen.line([x, middle - 2, x, middle + 2], FAINT, 1)
        color, radius = GREEN if inside[i] else BLUE, pitch * 0.22
        pen.ellipse([path[-1] - radius, middle - radius, path[-1] + radius, middle + radius], color)
    floor = HEADER + shown * pitch
    pen.line([across(0), HEADER, across(0), floor], GRID, 1)
    hidden = f", {shown} of {len(goal)} coordinates shown" if shown < len(goal) else ""
    pen.text((across(-bound), floor + MARGIN / 2), f"{-bound:g}", FAINT, _font(12), "lm")
    pen.text((across(0), floor + MARGIN / 2), f"0{hidden}", FAINT, _font(12), "mm")
    pen.text((across(bound), floor + MARGIN / 2), f"{bound:g}", FAINT, _font(12), "rm")
    return image


def bits(episode: Episode, steps: int) -> Image.Image:
    """The bits of the state above those of the goal; bits that differ have a red frame, the last one flipped a dot."""
    state, goal = episode.states[-1], episode.goal
    columns = min(len(goal), 20)
    cell = (WIDTH - 2 * MARGIN - 60) // columns if columns > 10 else 48
    rows = -(-len(goal) // columns)
    wrong = state != goal
    image, pen = _canvas(rows * (2 * cell + 26) + MARGIN // 2, episode, steps, *_status(episode))
    pen.text((WIDTH / 2, HEADER / 2), f"{wrong.sum()} of {len(goal)} bits differ", INK, _font(15), "lm")
    flipped = np.flatnonzero(state != episode.states[-2]) if len(episode.states) > 1 else np.array([], dtype=int)
    for row in range(rows):
        top = HEADER + row * (2 * cell + 26)
        for line, (name, values) in enumerate((("state", state), ("goal", goal))):
            y = top + line * (cell + 4)
            pen.text((MARGIN, y + cell / 2), name, INK, _font(14), "lm")
            for column, i in enumerate(range(row * columns, min((row + 1) * columns, len(goal)))):
                x = MARGIN + 60 + column * cell
                square = [x + 2, y + 2, x + cell - 3, y + cell - 3]
                frame, width = (RED, 3) if line == 0 and wrong[i] else (FAINT, 1)
                pen.rectangle(square, BLUE if values[i] else PAPER, frame, width)
                if line == 0 and i in flipped:
                    pen.ellipse([x + cell / 2 - 4, y + cell / 2 - 4, x + cell / 2 + 4, y + cell / 2 + 4], ORANGE)
    return image


def projections(episode: Episode, d: int, steps: int) -> Image.Image:
    """Projection of the state on the goal over time; dashed: the fastest way; grey: a second half of the state."""
    height, bottom = 320, HEADER + 320 - 36
    length = float(np.linalg.norm(episode.goal)) or 1.0
    halves = np.array([state.reshape(-1, d) @ episode.goal / length for state in episode.states])  # [t + 1, halves]
    image, pen = _canvas(height, episode, steps, f"projection on the goal {halves[-1, 0]:.2f}", BLUE)
    if halves.shape[1] == 2:
        pen.text((WIDTH / 2, HEADER / 2), f"stored {halves[-1, 1]:.2f}", FAINT, _font(15), "lm")
    first, left, right = float(halves[0, 0]), MARGIN + 40, WIDTH - MARGIN
    low, high = min(first - steps, 0), max(first + steps, 0)  # a step moves by at most 1

    def place(step: float, value: float) -> tuple[float, float]:
        return left + step / steps * (right - left), bottom - (value - low) / (high - low) * (bottom - HEADER)

    for step in range(0, steps + 1, max(1, steps // 10)):
        pen.line([place(step, low), place(step, high)], GRID, 1)
        pen.text((place(step, low)[0], bottom + 16), str(step), FAINT, _font(12), "mm")
    for value in (low, 0.0, high):
        pen.line([place(0, value), place(steps, value)], FAINT if value == 0 else GRID, 1)
        pen.text((left - 8, place(0, value)[1]), f"{value:.1f}", FAINT, _font(12), "rm")
    pace = 1.0 if halves.shape[1] == 1 else 0.5  # with two halves, every other step moves
    for dash in np.linspace(0, steps, 24, endpoint=False):
        pen.line([place(t, first + pace * t) for t in (dash, dash + steps / 48)], ORANGE, 2)
    for half, color in reversed(list(enumerate((BLUE, FAINT)[: halves.shape[1]]))):
        points = [place(t, float(value)) for t, value in enumerate(halves[:, half])]
        if len(points) > 1:
            pen.line(points, color, 2)
        for x, y in points:
            pen.ellipse([x - 4, y - 4, x + 4, y + 4], color)
    return image


@dataclass(frozen=True)
class View:
    """The square of the plane that a map shows, the same for a whole episode.

    Attributes:
        period: period of positions in both directions, if they wrap.
    """

    center: tuple[float, float]
    half: float
    period: float | None = None

    @classmethod
    def around(cls, points: NDArray[np.floating]) -> View:
        """A square that shows all points [n, 2] with some space around them."""
        low, high = points.min(0), points.max(0)
        x, y = ((low + high) / 2).tolist()
        return cls((x, y), max(12.0, float((high - low).max()) / 2 + 4))


def goal_map(
    episode: Episode,
    path: NDArray[np.floating],
    places: NDArray[np.floating],
    view: View,
    steps: int,
    heading: NDArray[np.floating] | None = None,
) -> Image.Image:
    """A map of a set of goals, as in Figure 8.4: goals cyan, goals reached blue, other places reached magenta.

    Args:
        path: positions so far [t + 1, 2].
        places: positions rounded to integer points [t + 1, 2]; the first does not count, since only arrivals do.
        heading: the direction of the agent [2], if it has one.
    """
    goals = {(x, y) for x, y in episode.goal[episode.goal[:, -1] != 0, :2].tolist()}
    visited = {(x, y) for x, y in places[1:].tolist()}
    found = len(goals & visited)
    image, pen = _canvas(WIDTH, episode, steps, f"{found} of {len(goals)} goals reached", BLUE if found else FAINT)
    colors = {CYAN: goals - visited, BLUE: goals & visited, MAGENTA: visited - goals}
    ground = _Map(view, WIDTH - 2 * MARGIN)
    for color, cells in colors.items():
        for cell in sorted(cells):
            ground.cell(cell, color)
    ground.walk(path)
    ground.agent(path[-1], heading)
    image.paste(ground.image(), (MARGIN, HEADER))
    ground.label(pen, MARGIN, HEADER)
    left = MARGIN + 190
    for color, name in ((CYAN, "goal"), (BLUE, "goal reached"), (MAGENTA, "other place reached")):
        middle = HEADER + WIDTH - MARGIN
        pen.rectangle([left, middle - 5, left + 10, middle + 5], color)
        pen.text((left + 17, middle), name, INK, _font(13), "lm")
        left += 45 + pen.textlength(name, _font(13))
    return image


class _Map:
    """A square picture of the plane, with y pointing up."""

    def __init__(self, view: View, size: int) -> None:
        self.view, self.size = view, size
        self.scale = size / (2 * view.half)
        self._image = Image.new("RGB", (size * _FINE, size * _FINE), PAPER)
        self._pen = ImageDraw.Draw(self._image)
        spacing = 5 if view.half <= 20 else 10
        self._ticks = [
            [
                t * spacing
                for t in range(math.ceil((c - view.half) / spacing), math.floor((c + view.half) / spacing) + 1)
            ]
            for c in view.center
        ]
        for x in self._ticks[0]:
            self._line((x, view.center[1] - view.half), (x, view.center[1] + view.half), GRID, 1)
        for y in self._ticks[1]:
            self._line((view.center[0] - view.half, y), (view.center[0] + view.half, y), GRID, 1)
        if view.period is not None:  # the edges at which positions wrap
            corners = [self._fine(sign * view.period / 2, sign * view.period / 2) for sign in (-1, 1)]
            (west, south), (east, north) = corners
            self._pen.rectangle([west, north, east, south], outline=FAINT, width=_FINE)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Pixel coordinates of a point in the finished picture."""
        (cx, cy), half = self.view.center, self.view.half
        return (x - cx + half) * self.scale, (cy + half - y) * self.scale

    def _fine(self, x: float, y: float) -> tuple[float, float]:
        across, down = self.place(x, y)
        return across * _FINE, down * _FINE

    def _line(self, start, end, color: tuple[int, int, int], width: float) -> None:
        self._pen.line([self._fine(*start), self._fine(*end)], color, round(width * _FINE))

    def _disc(self, center, radius: float, fill, outline=None, width: int = 0) -> None:
        x, y = self._fine(*center)
        r = radius * _FINE
        self._pen.ellipse([x - r, y - r, x + r, y + r], fill, outline, width * _FINE)

    def cell(self, center: tuple[float, float], color: tuple[int, int, int]) -> None:
        """The unit square of points that round to ``center``, less a thin gap."""
        x, y = self._fine(*center)
        r = max(self.scale * _FINE / 2 - _FINE / 2, 1)
        self._pen.rectangle([x - r, y - r, x + r, y + r], color)

    def walk(self, path: NDArray[np.floating]) -> None:
        """The path, with a ring at its start and a dot for each step; it crosses the edges where positions wrap."""
        path = path.astype(np.float64)
        period = self.view.period
        moves = np.diff(path, axis=0)
        shifts = np.zeros((1, 2))
        if period is not None:
            moves = wrapped(moves, period)
            shifts = period * np.array([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)])
        for start, move in zip(path[:-1], moves, strict=True):
            for shift in shifts:
                self._line(start + shift, start + shift + move, INK, 1.5)
        self._disc(path[0], 5, PAPER, INK, 2)
        for point in path[1:-1]:
            self._disc(point, 2.5, INK)

    def agent(self, position: NDArray[np.floating], heading: NDArray[np.floating] | None) -> None:
        """The agent, at the edge of the picture if it is outside, with a short line in the direction of its heading."""
        center, half = np.array(self.view.center), self.view.half
        position = np.clip(position, center - half, center + half)
        if heading is not None:
            self._line(position, position + 0.7 * heading, INK, 4)
        self._disc(position, 6.5, ORANGE, INK, 2)

    def image(self) -> Image.Image:
        """The finished picture, framed."""
        image = self._image.reduce(_FINE)
        ImageDraw.Draw(image).rectangle([0, 0, self.size - 1, self.size - 1], outline=FAINT)
        return image

    def label(self, pen: ImageDraw.ImageDraw, left: int, top: int) -> None:
        """Coordinates beside the picture, whose corner is at (left, top)."""
        for x in self._ticks[0]:
            pen.text((left + self.place(x, 0)[0], top + self.size + 9), str(x), FAINT, _font(11), "mm")
        for y in self._ticks[1]:
            pen.text((left - 4, top + self.place(0, y)[1]), str(y), FAINT, _font(11), "rm")
