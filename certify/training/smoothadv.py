"""SmoothAdv: adversarial examples of the smoothed classifier, to train its base classifier on.

Source: Salman, Yang, Li, Zhang, Zhang, Razenshteyn and Bubeck, "Provably robust deep learning via adversarially
trained smoothed classifiers" (NeurIPS 2019), Pseudocode 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from certify.inference import BaseClassifier
from certify.training.losses import log_mean_softmax


def smoothadv_attack(
    base_classifier: BaseClassifier, images: Tensor, labels: Tensor, noise: Tensor, *, epsilon: float, steps: int
) -> Tensor:
    """Adversarial images for the soft smoothed classifier, within ``epsilon`` (l2), by projected gradient ascent.

    The objective is ``-log mean_i p_y(x' + noise_i)``, with p the soft-max of the base classifier and the *same* noise
    in every step. Steps have length ``2 epsilon / steps`` along the normalized gradient. The result lies within the
    ball and has legal values: clipping to [0, 1] only moves it towards the image. Parameters get no gradient.

    Args:
        base_classifier: copies ``[N, ...]`` to scores ``[N, classes]``, in the mode in which to attack it.
        images: float32 in [0, 1], ``[B, C, H, W]`` or ``[B, C, T, H, W]``.
        labels: int64 ``[B]``, the true classes.
        noise: float32 ``[m, B, ...]``, the noise of m copies of each image.
        epsilon: radius of the ball, for values in [0, 1]; 0 returns the images.
        steps: number of steps, at least 1.

    Returns:
        float32 like ``images``.
    """
    perturbed = images
    if epsilon == 0:
        return perturbed
    for _ in range(steps):
        leaf = perturbed.detach().requires_grad_()
        scores = base_classifier((leaf + noise).flatten(0, 1)).unflatten(0, noise.shape[:2])
        wrong = -log_mean_softmax(scores).gather(1, labels[:, None]).sum()
        slope = torch.autograd.grad(wrong, leaf)[0]
        moved = leaf.detach() + 2 * epsilon / steps * unit(slope)
        perturbed = within_ball(moved, images, epsilon)
    return perturbed


def unit(slopes: Tensor) -> Tensor:
    """Each of ``[B, ...]`` divided by its l2 norm; zero stays zero."""
    flat = slopes.flatten(1)
    # divided by the largest entry first, so that squares of small numbers do not underflow
    flat = flat / flat.abs().amax(1, keepdim=True).clamp(min=torch.finfo(flat.dtype).tiny)
    return (flat / flat.norm(dim=1, keepdim=True).clamp(min=torch.finfo(flat.dtype).tiny)).view_as(slopes)


def within_ball(moved: Tensor, images: Tensor, epsilon: float) -> Tensor:
    """The nearest points within ``epsilon`` (l2) of ``images``, with values clipped to [0, 1]."""
    change = (moved - images).flatten(1)
    factor = (epsilon / change.norm(dim=1, keepdim=True).clamp(min=torch.finfo(change.dtype).tiny)).clamp(max=1)
    return (images + (change * factor).view_as(images)).clamp(0, 1)
