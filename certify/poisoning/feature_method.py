"""The contract of a way to learn features from images without labels, for SS-DPA."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn


class Learning(Protocol):
    """Features in the process of being learned, one epoch after the other, with deterministic kernels.

    Attributes:
        module: maps images to features, as learned so far.
        steps_per_epoch: how often an epoch calls ``on_step``.
    """

    @property
    def module(self) -> nn.Module: ...

    @property
    def steps_per_epoch(self) -> int: ...

    def epoch(self, number: int, on_step: Callable[[], None]) -> float:
        """Learn for one epoch, counted from 0; returns its mean loss."""
        ...

    def converged(self, losses: list[float]) -> bool:
        """Whether further epochs would change nothing, given the losses of all epochs so far."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next epoch depends on, other than its number."""
        ...

    def load(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of :meth:`tensors`."""
        ...


class FeatureMethod(ABC):
    """How features are learned from images alone. Subclasses are frozen dataclasses.

    Attributes:
        epochs: largest number of passes over the images.
        seed: of everything random.
    """

    epochs: int
    seed: int

    @abstractmethod
    def begin(self, images: Tensor, device: torch.device) -> Learning:
        """Start to learn from images ``[N, C, H, W]``, uint8 or floats in [0, 1], which are already checked; raises
        ``ValueError`` if the method cannot use them."""

    @abstractmethod
    def module(self, shape: tuple[int, ...]) -> nn.Module:
        """A module for images ``[B, *shape]`` that learned features can be loaded into."""

    def output(self, features: Tensor) -> Tensor:
        """Final transformation of the features; by default the identity."""
        return features
