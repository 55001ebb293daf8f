"""Iterative fast gradient sign method (IFGSM) in a box, for smoothed classifiers; shared code of the gradient attacks.

A step moves every feature by one step size against the gradient of the true class's mean soft-max
(:mod:`certify.attacks.gradient`), and clips it to the box. As in Appendix E.7 of the dissertation, the *votes* are
checked before every step and after the last one, and an attack succeeds only if the smoothed classifier itself (its
votes and its tie rule) is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from certify.attacks.attacked import Attacked
from certify.attacks.gradient import check_differentiable, votes_and_gradient
from certify.attacks.oracle import Oracle
from certify.checks import check_integer
from certify.images import to_float
from certify.inference import device_of
from certify.smooth import Smoothed
from certify.threats import Threat
from certify.votes import Votes


def check_steps(steps: int, step_size: float) -> None:
    """Raise unless the number of steps and the step size are legal."""
    check_integer("steps", steps, 0)
    if not (math.isfinite(step_size) and step_size > 0):
        raise ValueError(f"step_size: got {step_size!r}, expected a positive number (features are in [0, 1])")


@dataclass(frozen=True)
class Starts:
    """Where the attack starts, and what it may change. Rows are ordered by image, then by restart.

    Attributes:
        which: int64 ``[J]``, each start's image in the batch.
        x: float32 ``[J, C, H, W]``, the starting points.
        low, high: like ``x``, the smallest and largest legal value of each feature.
        copies: int64 ``[J, K]``, distinct copies, including all whose votes can change.
        outside: int64 ``[J, classes]``, vote counts of all other copies.
    """

    which: Tensor
    x: Tensor
    low: Tensor
    high: Tensor
    copies: Tensor
    outside: Tensor

    def rows(self, chosen: Tensor) -> Starts:
        """Some of the starts."""
        return Starts(*(getattr(self, field.name)[chosen] for field in fields(self)))


@dataclass
class Found:
    """The adversarial examples found so far.

    Attributes:
        adversarial: float32 ``[B, C, H, W]``; the image itself where there is none yet.
        prediction: int64 ``[B]``, the smoothed classifier's prediction for ``adversarial``.
        broken: bool ``[B]``, whether the attack has succeeded.
        clean: int64 ``[B]``, the prediction for the image.
    """

    adversarial: Tensor
    prediction: Tensor
    broken: Tensor
    clean: Tensor

    def attacked(self, oracle: Oracle, magnitude: Tensor, threat: Threat, home: torch.device) -> Attacked:
        """The result of the attack, given the magnitude (float64 ``[B]``) at which an image was broken."""
        magnitude = torch.where(self.broken, magnitude, torch.inf)
        magnitude = torch.where(self.clean == oracle.labels, magnitude, 0.0).to(home)
        tensors = (self.adversarial, torch.isfinite(magnitude), self.clean, self.prediction, oracle.queries)
        adversarial, success, clean, prediction, queries = (tensor.to(home) for tensor in tensors)
        return Attacked(adversarial, magnitude, success, clean, prediction, magnitude.clone(), queries, threat)


def prepare(
    smoothed: Smoothed,
    images: Tensor,
    labels: Tensor,
    index: Tensor | None,
    on_queries: Callable[[int], None] | None,
    *,
    check: Callable[[Smoothed, Tensor], None] = check_differentiable,
) -> Oracle:
    """An oracle for the images, as floats on the classifier's device; raises unless a gradient attack can run."""
    if not isinstance(smoothed, Smoothed):
        raise TypeError(
            f"smoothed: got {type(smoothed).__name__}, expected a Smoothed; for an undefended classifier, use "
            "Smoothed(model, Undefended(), num_classes)"
        )
    smoothed.scheme.check(images)
    x = to_float(images.detach().to(device_of(smoothed.engine.base_classifier, images.device)))
    oracle = Oracle(smoothed, x, labels, index=index, on_queries=on_queries)
    check(smoothed, x)
    return oracle


def clean_votes(oracle: Oracle) -> tuple[Votes, Found]:
    """The votes of the clean images, and the state before an attack."""
    smoothed = oracle.classifier
    assert isinstance(smoothed, Smoothed)
    votes = smoothed.votes(oracle.images)
    clean = smoothed.prediction(votes)
    oracle.count(torch.arange(len(clean), device=clean.device))
    return votes, Found(oracle.images.clone(), clean.clone(), torch.zeros_like(clean, dtype=torch.bool), clean)


def ifgsm(oracle: Oracle, starts: Starts, found: Found, *, steps: int, step_size: float) -> None:
    """Attack all images of ``starts`` in parallel, and enter successes into ``found``.

    All restarts of an image advance together; the image is done at the first step at which one of them succeeds (if
    several do, the first counts). The result for an image does not depend on the rest of the batch.
    """
    smoothed = oracle.classifier
    assert isinstance(smoothed, Smoothed)
    for step in range(steps + 1):
        if len(starts.which) == 0:
            return
        last = step == steps
        labels = oracle.labels[starts.which]
        votes, gradient = votes_and_gradient(smoothed, starts.x, labels, starts.copies, gradient=not last)
        oracle.count(starts.which)
        _confirm(oracle, starts, _predictions(smoothed, starts, votes) != labels, found)
        if last:
            return
        alive = ~found.broken[starts.which]
        x = (starts.x - step_size * gradient.sign()).clamp(starts.low, starts.high)
        starts = Starts(starts.which, x, starts.low, starts.high, starts.copies, starts.outside).rows(alive)


def _predictions(smoothed: Smoothed, starts: Starts, votes: Tensor) -> Tensor:
    """The smoothed classifier's predictions, from the votes of the copies that were evaluated: int64 ``[J]``."""
    shape = tuple(starts.x.shape[1:])
    n = smoothed.copies_per_image(shape)
    # copy by copy only if all were evaluated; schemes that allow some to be skipped predict from the counts
    by_copy = votes if smoothed.scheme.positional and votes.shape[1] == n else None
    return smoothed.prediction(Votes(starts.outside + votes.sum(1), None, shape, n, by_copy=by_copy))


def _confirm(oracle: Oracle, starts: Starts, wrong: Tensor, found: Found) -> None:
    """Enter each image's first start that is ``wrong`` (bool ``[J]``), if ``Smoothed.predict`` agrees.

    They only disagree where a vote is decided by rounding, which may differ between batch shapes.
    """
    pending = wrong.nonzero()[:, 0]
    while len(pending):
        which = starts.which[pending]
        first = torch.ones_like(which, dtype=torch.bool)
        first[1:] = which[1:] != which[:-1]
        rows, images = pending[first], which[first]
        answer = oracle.classes(starts.x[rows], images)
        sure = answer != oracle.labels[images]
        found.adversarial[images[sure]] = starts.x[rows[sure]]
        found.prediction[images[sure]] = answer[sure]
        found.broken[images[sure]] = True
        pending = pending[~first & ~found.broken[which]]
