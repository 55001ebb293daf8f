"""DriveSeek's goals as an image for a convolutional network (dissertation, Appendix G.6.6, Figure G.12)."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rl.deep_sets import STATE, GoalSet, GoalSetEncoder

PIXELS = 8  # per unit of length: a pixel is 0.125 units wide
SQUARE = 4  # side of each square in pixels; squares overlap if their positions are less than half a unit apart


class GoalImage(GoalSetEncoder):
    """The "Nature CNN" on an image of DriveSeek, followed by the state.

    Each integer point between -bound and bound has a cell of 8 x 8 pixels. The red channel has a square in the middle
    of each goal's cell, with value b^2 (differentiable); the green channel a square around the position, and the blue
    channel one around the next position if the action were zero. The squares of position and goal overlap if the
    position rounds to the goal, up to a single pixel. Anything outside the image is invisible. Positions live on a
    torus whose edges are the bounds of the observation space. After the convolutions comes a single linear layer
    without ReLU, in place of the Nature network's 512 units.

    Args:
        bound: largest absolute coordinate of a goal.
        embedding_dim: outputs of the layer after the convolutions.

    The state consists of position (2), rounded position (2), and sine and cosine of the heading; a step has length 1.
    """

    def __init__(self, observation_space: spaces.Dict, bound: int = 10, embedding_dim: int = 20) -> None:
        super().__init__(observation_space, embedding_dim)
        self.check_positive(bound=[bound])
        if self.item_dim != 2 or self.state_dim != 6:
            raise ValueError(
                f"policy: got goals of {self.item_dim} and states of {self.state_dim} numbers, expected 2 and 6 as in "
                "DriveSeek; use another encoder"
            )
        self.bound, self.cells = bound, 2 * bound + 1
        edge = float(observation_space[STATE].high[0])  # type: ignore[attr-defined]
        self.edge = edge if np.isfinite(edge) else float(bound)
        side = self.cells * PIXELS
        for kernel, stride in ((8, 4), (4, 2), (3, 1)):
            side = (side - kernel) // stride + 1
        if side < 1:
            raise ValueError(f"bound: got {bound}, expected at least 2: the image is too small for the convolutions")
        self.cnn = nn.Sequential(
            nn.Conv2d(3, 32, 8, stride=4),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * side * side, embedding_dim),
        )

    def embed(self, goals: GoalSet) -> Tensor:
        return self.cnn(self.paint(goals))

    def paint(self, goals: GoalSet) -> Tensor:
        """The image ``[B, 3, side, side]``, whose first coordinate points down; differentiable in the gates."""
        position = goals.state[:, :2].detach()
        direction = goals.state[:, 4:6].flip(1).detach()  # cosine and sine
        ahead = (position + direction + self.edge) % (2 * self.edge) - self.edge
        return torch.stack([self._goals(goals), self._square(position), self._square(ahead)], dim=1)

    def _goals(self, goals: GoalSet) -> Tensor:
        cell = goals.items.detach().round() + self.bound
        seen = (goals.gates.detach() != 0) & ((cell >= 0) & (cell < self.cells)).all(dim=2)
        rows, columns = seen.nonzero(as_tuple=True)
        x, y = cell[rows, columns].long().unbind(dim=1)
        plane = goals.gates.new_zeros(len(cell) * self.cells**2)
        plane = plane.index_add(0, (rows * self.cells + x) * self.cells + y, goals.gates[rows, columns].square())
        margin = (PIXELS - SQUARE) // 2
        middle = torch.zeros(PIXELS, PIXELS).to(plane)
        middle[margin:-margin, margin:-margin] = 1
        pixels = plane.view(-1, self.cells, 1, self.cells, 1) * middle[:, None, :]
        return pixels.view(-1, self.cells * PIXELS, self.cells * PIXELS)

    def _square(self, centre: Tensor) -> Tensor:
        first = ((centre + self.bound + 0.5) * PIXELS).floor() - SQUARE // 2
        along = torch.arange(self.cells * PIXELS).to(first) - first[:, :, None]
        inside = ((along >= 0) & (along < SQUARE)).to(first)  # [B, 2, side]
        return inside[:, 0, :, None] * inside[:, 1, None, :]
