"""The objective of one update, for every loss of :class:`~certify.training.config.TrainingConfig`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from certify.images import to_float
from certify.models import Denoised
from certify.training import losses
from certify.training.config import TrainingConfig


def objective(
    module: nn.Module,
    config: TrainingConfig,
    images: Tensor,
    labels: Tensor,
    copies: Sequence[Tensor],
    *,
    sigma: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss, and the scores of the first copy of each image.

    Args:
        module: the model; a :class:`~certify.models.Denoised` for the ``denoiser_...`` losses.
        images: the minibatch, ``[B, C, H, W]`` or clips ``[B, C, T, H, W]``.
        labels: int64 ``[B]``.
        copies: ``config.num_copies`` noised copies of it, each float32 ``[B, C', H, W]``; for ``"smoothadv"`` of the
            adversarial images.
        sigma: standard deviation of their noise, for ``"macer"``.
    """
    if config.loss in ("smoothadv", "macer"):
        scores = module(torch.cat(list(copies))).unflatten(0, (len(copies), len(labels)))
        if config.loss == "smoothadv":
            return functional.cross_entropy(scores.flatten(0, 1), labels.repeat(len(copies))), scores[0]
        assert sigma is not None
        loss = losses.macer_loss(
            scores,
            labels,
            sigma=sigma,
            weight=config.macer_weight,
            beta=config.macer_beta,
            gamma=config.macer_gamma,
        )
        return loss, scores[0]
    if config.loss == "cross_entropy":
        logits = module(copies[0])
        return functional.cross_entropy(logits, labels), logits
    if config.loss == "stability":
        logits, others = module(copies[0]), module(copies[1])
        return losses.stability_loss(logits, others, labels, weight=config.stability_weight), logits
    assert isinstance(module, Denoised)
    return _of_denoiser(module, config, images, copies[0])


def _of_denoiser(module: Denoised, config: TrainingConfig, images: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
    denoised = module.denoiser(copies)
    if config.loss == "denoiser_mse":
        with torch.no_grad():
            logits = module.classifier(denoised)
        return losses.denoiser_mse_loss(denoised, to_float(images)), logits
    with torch.no_grad():
        clean = module.classifier(to_float(images))
    logits = module.classifier(denoised)
    return losses.denoiser_stability_loss(logits, clean), logits
