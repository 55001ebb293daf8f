"""Training losses, as pure functions of the networks' outputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

_LEAST = 1e-300  # smaller probabilities are raised to this one, whose quantile is -37


def stability_loss(logits: Tensor, other_logits: Tensor, labels: Tensor, *, weight: float) -> Tensor:
    """Stability training: ``mean( -log p[y] + weight * KL(p || p') )``, p and p' the classifier on two noised copies.

    Gradients flow through both copies. Source: Li, Chen, Wang and Carin, "Certified adversarial robustness with
    additive noise" (NeurIPS 2019), in the form of the l1 experiments: those of Yang et al., "Randomized smoothing of
    all shapes and sizes" (ICML 2020), which draw two independent copies and use weight 6.

    Args:
        logits: ``[B, classes]``, scores of one copy of each image.
        other_logits: ``[B, classes]``, scores of another copy of it.
        labels: int64 ``[B]``.
        weight: at least 0; 0 is the cross entropy of the first copy.
    """
    first, second = functional.log_softmax(logits, 1), functional.log_softmax(other_logits, 1)
    divergence = functional.kl_div(second, first, reduction="batchmean", log_target=True)
    return functional.nll_loss(first, labels) + weight * divergence


def denoiser_mse_loss(denoised: Tensor, images: Tensor) -> Tensor:
    """Mean squared error of denoised copies, over all pixels: "MSE denoising" of Salman et al. (NeurIPS 2020).

    Args:
        denoised: ``[B, C, H, W]``.
        images: float ``[B, C, H, W]`` in [0, 1].
    """
    return functional.mse_loss(denoised.float(), images)


def denoiser_stability_loss(logits: Tensor, clean_logits: Tensor) -> Tensor:
    """Cross entropy of denoised copies with the class that the same classifier predicts for the clean image.

    "Stability denoising" of Salman et al. (NeurIPS 2020). Labels are not used.

    Args:
        logits: ``[B, classes]``, the classifier's scores of denoised copies.
        clean_logits: ``[B, classes]``, its scores of the clean images; treated as constants.
    """
    return functional.cross_entropy(logits, clean_logits.argmax(1))


def log_mean_softmax(logits: Tensor) -> Tensor:
    """``log (1/k) sum_i softmax(logits_i)``, the soft smoothed classifier: ``[B, classes]``, finite for finite scores.

    Args:
        logits: ``[k, B, classes]``, scores of k copies of each image.
    """
    return functional.log_softmax(logits, 2).logsumexp(0) - math.log(len(logits))


def macer_loss(
    logits: Tensor, labels: Tensor, *, sigma: float, weight: float, beta: float = 16.0, gamma: float = 8.0
) -> Tensor:
    """MACER: cross entropy of the soft smoothed classifier, plus a hinge loss on its certified l2 radius.

    ``mean( -log z_y + weight * sigma / 2 * [right] * max(0, gamma - xi) )`` with ``xi = Phi^-1(p_y) - Phi^-1(p_r)``:
    z is the mean soft-max of k copies, p that of ``beta`` times their scores, and r the strongest rival of the true
    class y under p. ``[right]`` is 1 where p predicts y (ties to the lower index): a misclassified image has no radius.

    1 - p_y is computed as a sum over the rivals, in float64, to avoid cancellation: quantiles and gradients of very
    confident images are accurate up to ``xi`` = 74, where they are clipped, far beyond any useful ``gamma``. An image
    beyond ``gamma`` contributes nothing, and its gradient is exactly zero.

    Source: Zhai et al., "MACER: attack-free and scalable robust training via maximizing certified radius" (ICLR 2020),
    Algorithm 1.

    Args:
        logits: ``[k, B, classes]``, scores of k noised copies of each image.
        labels: int64 ``[B]``.
        sigma: standard deviation of the noise.
        weight: of the hinge loss (lambda in the paper), at least 0.
        beta: inverse temperature.
        gamma: hinge; radii above ``sigma gamma / 2`` are not rewarded further.
    """
    loss = functional.nll_loss(log_mean_softmax(logits), labels)
    share = log_mean_softmax(beta * logits.double())
    right = share.argmax(1) == labels
    rivals = share[right].scatter(1, labels[right][:, None], -math.inf)
    rest, strongest = rivals.logsumexp(1).exp(), rivals.amax(1).exp()  # 1 - p_y and p_r, both at most (C - 1) / C
    xi = -torch.special.ndtri(rest.clamp(min=_LEAST)) - torch.special.ndtri(strongest.clamp(min=_LEAST))
    hinge = (gamma - xi).clamp(min=0).sum() / len(labels)
    return loss + (weight * sigma / 2 * hinge).to(loss.dtype)
