"""Learners for workers: they are imported by name there, so they are no part of a test module."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from certify.poisoning import NearestNeighbors, Network, Part, State


@dataclass(frozen=True)
class DyingNetwork(Network):
    """A network whose training is killed in its middle, once for each of ``times`` (0: always)."""

    folder: str = ""
    times: int = 1

    def fit_many(self, parts, *, num_classes: int, device: torch.device) -> list[State]:
        states = super().fit_many(parts, num_classes=num_classes, device=device)
        if parts[0].seed == 2:
            deaths = len(list(Path(self.folder).iterdir()))
            if self.times == 0 or deaths < self.times:
                (Path(self.folder) / f"{deaths}-{os.getpid()}").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return states


@dataclass(frozen=True)
class FailingNeighbors(NearestNeighbors):
    """A learner that does not like some parts."""

    def fit(self, part: Part, *, num_classes: int, device: torch.device) -> State:
        if part.seed == 3:
            raise ValueError("this part cannot be learned")
        return super().fit(part, num_classes=num_classes, device=device)


def hold(folder: str, task: int) -> bytes:
    """A task that takes long, but for the first one."""
    if task > 0:
        (Path(folder) / f"begun-{task}").touch()
        time.sleep(100)
        (Path(folder) / f"ended-{task}").touch()
    return b"done"
