"""The contract of a base learner: a deterministic function from one partition of the training set to a model."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from certify.registry import OwnClasses

State = dict[str, Tensor]  # a trained model


@dataclass(frozen=True)
class Part:
    """What one model is trained on.

    Attributes:
        samples: ``[n, F]`` or ``[n, C, H, W]``, in canonical order (sorted by content, then label); n may be 0.
        labels: int64 ``[n]``.
        seed: of everything random about the model.
    """

    samples: Tensor
    labels: Tensor
    seed: int


class Learner(ABC):
    """A training algorithm. Subclasses are frozen dataclasses.

    Soundness requires one thing: model i must be a function of its own part (and of the environment), bit for bit.
    Nothing about it, not even the shape of a computation, may depend on the contents of other parts. Random numbers
    come from ``part.seed``; for code that draws from the global generators of torch, NumPy or Python, ``fit`` starts
    these from it, too (:func:`seeded`).

    Attributes:
        own: learners defined outside this package, which texts may name, too.
    """

    own: ClassVar[OwnClasses] = OwnClasses()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "fit" in vars(cls):
            cls.fit = _with_own_chance(cls.fit)
        Learner.own.add(cls)

    def check(self, shape: tuple[int, ...], num_classes: int) -> None:  # noqa: B027 - most learners take anything
        """Raise ``ValueError``, before any work starts, if the learner does not support samples of this shape."""

    def check_samples(self, samples: Tensor) -> None:  # noqa: B027
        """Raise ``ValueError``, before any work starts, if the learner does not support the values of the samples."""

    @abstractmethod
    def fit(self, part: Part, *, num_classes: int, device: torch.device) -> State:
        """Train on one part of any size: empty, without some classes, with a single sample."""

    @abstractmethod
    def scores(self, states: Sequence[State], x: Tensor, *, num_classes: int) -> Tensor:
        """Scores of several trained models on ``x [B, ...]``: float ``[models, B, num_classes]``.

        Each score is a function of its model and its input alone, whatever other models and inputs come with them.
        """

    def fit_many(self, parts: Sequence[Part], *, num_classes: int, device: torch.device) -> list[State]:
        """Train on several parts at once. By default one after the other."""
        return [self.fit(part, num_classes=num_classes, device=device) for part in parts]


Fit = Callable[..., State]


def _with_own_chance(fit: Fit) -> Fit:
    """``fit``, with all global random number generators started from the seed of the part."""

    @wraps(fit)
    def seeded_fit(self: Learner, part: Part, **options: Any) -> State:
        with seeded(part.seed):
            return fit(self, part, **options)

    return seeded_fit


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within this context, the global generators of torch, NumPy and Python start from ``seed``; then they go on as if
    nothing had been drawn."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - what code of others may draw from
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=cuda):
        try:
            random.seed(seed)
            np.random.seed(seed % (1 << 32))  # noqa: NPY002
            torch.manual_seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def rank_classes(scores: Tensor) -> Tensor:
    """Classes from the highest to the lowest score, ties to the lower index: uint8 or int16 ``[..., C]``.

    NaN counts as the lowest score, so that a diverged model has a vote like any other.
    """
    scores = scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    ranking = scores.sort(dim=-1, descending=True, stable=True).indices
    return ranking.to(torch.uint8 if scores.shape[-1] <= 256 else torch.int16)
