"""Pictures of episodes, drawn with Pillow on plain arrays: no display, no window, the same size for every state."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from envs.batch import Episode

WIDTH, HEADER, MARGIN = 640, 44, 24
PAPER, INK, FAINT, GRID = (255, 255, 255), (35, 35, 40), (150, 150, 155), (228, 228, 232)
BLUE, GREEN, ORANGE, RED = (40, 100, 190), (30, 150, 80), (240, 180, 80), (205, 50, 45)
_MAX_LANES = 40


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _canvas(height: int, episode: Episode, steps: int, status: str, color: tuple[int, int, int]):
    """An empty picture with a line on top: step, reward of the last step and of the episode, and a status."""
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
    """One lane per coordinate: the goal's interval, the path so far and the current position, green inside."""
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
    """The bits above those of the goal; bits that differ are framed red, the last one flipped has a dot."""
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
    """How far the state is along the goal, over time; dashed, the fastest way; grey, a second half of the state."""
    height, bottom = 320, HEADER + 320 - 36
    length = float(np.linalg.norm(episode.goal)) or 1.0
    halves = np.array([state.reshape(-1, d) @ episode.goal / length for state in episode.states])  # [t + 1, halves]
    image, pen = _canvas(height, episode, steps, f"projection on the goal {halves[-1, 0]:.2f}", BLUE)
    if halves.shape[1] == 2:
        pen.text((WIDTH / 2, HEADER / 2), f"stored {halves[-1, 1]:.2f}", FAINT, _font(15), "lm")
    first, left, right = float(halves[0, 0]), MARGIN + 40, WIDTH - MARGIN
    low, high = min(first - steps, 0), max(first + steps, 0)  # a step moves by 1 at most

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
