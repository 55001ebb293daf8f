"""Base classifiers of the papers, for any number of input channels.

``build(name, in_channels, num_classes, image_size)`` builds one by name; ``register_model`` names one of your own.
Normalization, if any, is the first layer of the model, so noise is always added before it. ``Denoised`` puts a denoiser
in front of a classifier.
"""

from certify.models.build import (
    CLIPS,
    MODELS,
    PARTITION_MLP,
    POINT_CLOUDS,
    ModelSpec,
    Normalize,
    build,
    is_typed,
    own_models,
    register_model,
)
from certify.models.denoise import DENOISERS, Denoised, DenoisedSpec, DnCNN, read_spec

__all__ = [
    "CLIPS",
    "DENOISERS",
    "MODELS",
    "PARTITION_MLP",
    "POINT_CLOUDS",
    "Denoised",
    "DenoisedSpec",
    "DnCNN",
    "ModelSpec",
    "Normalize",
    "build",
    "is_typed",
    "own_models",
    "read_spec",
    "register_model",
]
