"""The restarts of an attack on a batch of images, run in parallel."""

from __future__ import annotations

import torch
from torch import Tensor

from certify.attacks.oracle import Oracle
from certify.draws import ATTACK, Draws
from certify.threats import Unit


class Jobs:
    """One job per (image, restart); a job depends only on its image, its restart and the seed.

    Args:
        oracle: answers the queries.
        which: int64 ``[K]``, indices in the batch of the images to attack.
        restarts: jobs per image.
        unit: what counts as one change.
        seed: of the attack's own random choices.
        share: maximum number of queries per job; None for no limit.
    """

    def __init__(
        self, oracle: Oracle, which: Tensor, *, restarts: int, unit: Unit, seed: int, share: int | None
    ) -> None:
        self.oracle, self.unit, self._seed, self._share = oracle, unit, seed, share
        self.which = which.repeat_interleave(restarts)
        self.restart = torch.arange(restarts, device=which.device).repeat(len(which))
        self.original = oracle.images[self.which]
        self.spent = torch.zeros_like(self.which)

    def __len__(self) -> int:
        return len(self.which)

    def may_ask(self) -> Tensor:
        """bool ``[J]``: the job has queries left."""
        return torch.ones_like(self.spent, dtype=torch.bool) if self._share is None else self.spent < self._share

    def adversarial(self, rows: Tensor, candidates: Tensor) -> Tensor:
        """Whether the classifier is wrong or abstains on one candidate for each job in ``rows`` (int64 ``[N]``)."""
        if len(rows) == 0:
            return torch.zeros(0, dtype=torch.bool, device=rows.device)
        self.spent[rows] += 1
        which = self.which[rows]
        return self.oracle.classes(candidates, which) != self.oracle.labels[which]

    def uniforms(self, rows: Tensor, number: Tensor | int, part: int) -> Tensor:
        """A random number for each unit of the images of the jobs ``rows``: float64 ``[N, units]``.

        Args:
            number: selects the numbers within ``part``; below 2^16, so that no two restarts share any.
        """
        if len(rows) == 0:
            return torch.empty((0, self.units), dtype=torch.float64, device=rows.device)
        item = self.oracle.index[self.which[rows]]
        copy = (self.restart[rows] << 16) + number
        draws = Draws(self._seed, ATTACK, item[:, None], copy[:, None], part)
        return draws.uniforms(self.units)[:, 0]

    @property
    def units(self) -> int:
        """Pixels or features of an image."""
        _, channels, height, width = self.original.shape
        return height * width * (channels if self.unit == "feature" else 1)

    def per_feature(self, values: Tensor) -> Tensor:
        """Values per unit ``[N, units]`` laid out to broadcast over images ``[N, C, H, W]``."""
        _, channels, height, width = self.original.shape
        return values.view(len(values), channels if self.unit == "feature" else 1, height, width)

    def changed(self, candidates: Tensor) -> Tensor:
        """Which units of each job's candidate differ from its image: bool ``[J, units]``."""
        different = candidates != self.original
        return (different.any(1) if self.unit == "pixel" else different).flatten(1)
