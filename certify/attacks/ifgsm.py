"""Iterative fast gradient sign method (IFGSM) in a box, for smoothed classifiers; what gradient attacks share.

A step moves every feature by one step size against the gradient of the true class's mean soft-max
(:mod:`certify.attacks.gradient`), and clips it to the box. As in Appendix E.7 of the dissertation the *votes* are
looked at before every step and after the last one, and an attack counts only if the smoothed classifier itself, its
votes and its tie rule, is wrong.
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
from certify.images import to_float
from certify.inference import device_of
from certify.scheme import check_integer
from certify.smooth import Smoothed
from certify.threats import Threat
from certify.votes import Votes


def check_steps(steps: int, step_size: float) -> None:
    """Raise unless this is a legal number of steps and a legal step."""
    check_integer("steps", steps, 0)
    if not (math.isfinite(step_size) and step_size > 0):
        raise ValueError(f"step_size: got {step_size!r}, expected a positive number (features are in [0, 1])")


@dataclass(frozen=True)
class Starts:
    """Where the attack begins, and what it may change. Rows are ordered by image, then by restart.

    Attributes:
        which: int64 ``[J]``, the image of the batch that each start belongs to.
        x: float32 ``[J, C, H, W]``.
        low, high: like ``x``, the least and largest legal value of each feature.
        copies: int64 ``[J, K]``, different copies, among them all whose votes can change.
        outside: int64 ``[J, classes]``, the votes of all other copies.
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
    """The images of a batch that are broken so far.

    Attributes:
        adversarial: float32 ``[B, C, H, W]``, the image where it is not broken.
        prediction: int64 ``[B]``, what the smoothed classifier returns for ``adversarial``.
        broken: bool ``[B]``.
        clean: int64 ``[B]``, what it returns for the image.
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
    """The images as floats on the device of the classifier; raise unless a gradient attack can be made on them."""
    if not isinstance(smoothed, Smoothed):
        raise TypeError(
            f"smoothed: got {type(smoothed).__name__}, expected a Smoothed; for a classifier without a defense that is "
            "Smoothed(model, Undefended(), num_classes)"
        )
    smoothed.scheme.check(images)
    x = to_float(images.detach().to(device_of(smoothed.engine.base_classifier, images.device)))
    oracle = Oracle(smoothed, x, labels, index=index, on_queries=on_queries)
    check(smoothed, x)
    return oracle


def clean_votes(oracle: Oracle) -> tuple[Votes, Found]:
    """The votes of the images themselves, and what is known before an attack."""
    smoothed = oracle.classifier
    assert isinstance(smoothed, Smoothed)
    votes = smoothed.votes(oracle.images)
    clean = smoothed.prediction(votes)
    oracle.count(torch.arange(len(clean), device=clean.device))
    return votes, Found(oracle.images.clone(), clean.clone(), torch.zeros_like(clean, dtype=torch.bool), clean)


def ifgsm(oracle: Oracle, starts: Starts, found: Found, *, steps: int, step_size: float) -> None:
    """Attack all images of ``starts`` side by side, and enter into ``found`` what succeeds.

    All restarts of an image advance together; it is done at the first step at which one of them succeeds, of several
    the first. What happens to an image does not depend on the others of the batch.
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
    """What the smoothed classifier returns, from the votes of the copies that were looked at: int64 ``[J]``."""
    shape = tuple(starts.x.shape[1:])
    n = smoothed.copies_per_image(shape)
    # copy by copy only if all were looked at; schemes that allow to leave some out predict from the counts
    by_copy = votes if getattr(smoothed.scheme, "positional", False) and votes.shape[1] == n else None
    return smoothed.prediction(Votes(starts.outside + votes.sum(1), None, shape, n, by_copy=by_copy))


def _confirm(oracle: Oracle, starts: Starts, wrong: Tensor, found: Found) -> None:
    """Enter the first start of each image that is ``wrong`` (bool ``[J]``), if ``Smoothed.predict`` agrees.

    It only disagrees where rounding, in batches of another shape, decides a vote.
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
