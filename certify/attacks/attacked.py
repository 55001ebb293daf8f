"""The result of an attack on a batch of images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from certify.attacks.jobs import Jobs
from certify.threats import Threat


@dataclass(frozen=True, eq=False)
class Attacked:
    """The smallest adversarial examples an attack found.

    "Adversarial" means that the classifier returns a class other than the label, or abstains. It may abstain within a
    certified radius: the class is the same there, but ``n`` samples may not be enough to show it.

    Attributes:
        adversarial: ``[B, C, H, W]``, of the images' dtype, or float32 in [0, 1] (gradient attacks); the image itself
            where ``magnitude`` is 0 or infinite.
        magnitude: float64 ``[B]``, the distance to the image in the unit of ``threat``; 0 where the classifier is
            already wrong or abstains on the image, infinity where the attack never succeeded.
        success: bool ``[B]``, whether ``magnitude`` is finite.
        clean: int64 ``[B]``, the classifier's prediction for the image (-1: it abstains).
        prediction: int64 ``[B]``, its prediction for ``adversarial``.
        verified: float64 ``[B]``, the smallest magnitude at which *fresh* samples agree that an example is adversarial;
            infinity if they never do. At least ``magnitude``, and equal to it for classifiers without sampling.
        queries: int64 ``[B]``, the number of queries; each costs as many copies as one prediction.
        threat: the threat model that measures ``magnitude``.
    """

    adversarial: Tensor
    magnitude: Tensor
    success: Tensor
    clean: Tensor
    prediction: Tensor
    verified: Tensor
    queries: Tensor
    threat: Threat


def attacked_of(jobs: Jobs, ends: Tensor, found: Tensor, clean: Tensor, threat: Threat) -> Attacked:
    """The smallest example over each image's restarts, and the smallest that fresh samples confirm.

    Args:
        ends: ``[J, C, H, W]``, of the images' dtype, each restart's adversarial example.
        found: bool ``[J]``, whether the restart has one.
        clean: int64 ``[B]``, the classifier's predictions for the images.
        threat: the threat model that measures the examples.
    """
    oracle = jobs.oracle
    adversarial, prediction = oracle.images.clone(), clean.clone()
    magnitude = torch.where(clean == oracle.labels, torch.inf, 0.0).to(torch.float64)
    order = _by_size(jobs, ends, found, threat)
    for i, row, size in reversed(order):  # an image's smallest example comes last
        adversarial[i], magnitude[i] = ends[row], size
    broken = (torch.isfinite(magnitude) & (magnitude > 0)).nonzero()[:, 0]
    if len(broken):
        prediction[broken] = oracle.classes(adversarial[broken], broken)
    verified = _verified(jobs, ends, clean, order) if oracle.sampled else magnitude.clone()
    success = torch.isfinite(magnitude)
    return Attacked(adversarial, magnitude, success, clean, prediction, verified, oracle.queries, threat)


def _by_size(jobs: Jobs, ends: Tensor, found: Tensor, threat: Threat) -> list[tuple[int, int, float]]:
    """(image, job, magnitude) of every example, smallest first; ties are ordered by restart."""
    rows = found.nonzero()[:, 0]
    if len(rows) == 0:
        return []
    sizes = threat.distance(jobs.original[rows], ends[rows]).tolist()
    return sorted(zip(jobs.which[rows].tolist(), rows.tolist(), sizes, strict=True), key=lambda job: job[2])


def _verified(jobs: Jobs, ends: Tensor, clean: Tensor, order: list[tuple[int, int, float]]) -> Tensor:
    """The smallest magnitude that fresh samples confirm: float64 ``[B]``."""
    oracle = jobs.oracle
    verified = torch.full_like(oracle.labels, torch.inf, dtype=torch.float64)
    wrong = (clean != oracle.labels).nonzero()[:, 0]
    if len(wrong):
        agree = oracle.fresh(oracle.images[wrong], wrong) != oracle.labels[wrong]
        verified[wrong[agree]] = 0
    waiting = {i: [(row, size) for j, row, size in order if j == i] for i, _, _ in order}
    while waiting:
        images = torch.tensor(sorted(waiting), device=clean.device)
        tests = [waiting[i].pop(0) for i in images.tolist()]
        rows = torch.tensor([row for row, _ in tests], device=clean.device)
        agree = oracle.fresh(ends[rows], images) != oracle.labels[images]
        for i, yes, (_, size) in zip(images.tolist(), agree.tolist(), tests, strict=True):
            if yes:
                verified[i] = size
            if yes or not waiting[i]:
                del waiting[i]
    return verified
