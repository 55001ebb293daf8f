"""Initialization of a training run: random, or from checkpoints of the whole model or of its parts."""

from __future__ import annotations

import torch
from torch import nn

from certify.models import Denoised, DenoisedSpec, ModelSpec
from certify.training.checkpoint import load_checkpoint
from certify.training.config import TrainingConfig


def initial_module(model: ModelSpec | DenoisedSpec, config: TrainingConfig) -> nn.Module:
    """The model initialized with ``config.seed``, with all parts that ``config`` names loaded from checkpoints."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        module = model.build()
    if config.init is not None:
        initial, description = load_checkpoint(config.init)
        if description.model != model:
            raise ValueError(f"{config.init}: holds {description.model}, expected {model}")
        module.load_state_dict(initial.state_dict())
    if config.denoiser is None and config.classifier is None:
        return module
    if not isinstance(module, Denoised) or not isinstance(model, DenoisedSpec):
        raise ValueError(
            f"denoiser, classifier: got {config.denoiser}, {config.classifier}, but the model {model.name} has no "
            "denoiser; describe the model by a DenoisedSpec"
        )
    if config.denoiser is not None:
        _load_denoiser(module, model, config.denoiser)
    if config.classifier is not None:
        _load_classifier(module, model, config.classifier)
    return module


def _load_denoiser(module: Denoised, model: DenoisedSpec, path: str) -> None:
    initial, description = load_checkpoint(path)
    found = description.model
    if not isinstance(initial, Denoised) or not isinstance(found, DenoisedSpec):
        raise ValueError(f"{path}: holds no denoiser; train one with 'python -m scripts.train_denoiser'")
    expected = (model.denoiser, model.in_channels, model.classifier.in_channels)
    if (found.denoiser, found.in_channels, found.classifier.in_channels) != expected:
        raise ValueError(
            f"{path}: holds a {found.denoiser} from {found.in_channels} to {found.classifier.in_channels} channels, "
            f"expected a {model.denoiser} from {model.in_channels} to {model.classifier.in_channels}"
        )
    module.denoiser.load_state_dict(initial.denoiser.state_dict())


def _load_classifier(module: Denoised, model: DenoisedSpec, path: str) -> None:
    initial, description = load_checkpoint(path)
    if description.model != model.classifier:
        raise ValueError(
            f"{path}: holds {description.model}, expected a classifier of images, {model.classifier}; "
            "train one with 'python -m scripts.train --scheme none'"
        )
    module.classifier.load_state_dict(initial.state_dict())
