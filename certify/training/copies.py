"""Training inputs: copies that a scheme makes (or one of the inputs that a copy consists of), or, without a scheme, the
images themselves.

"Without a scheme" is ``None`` in code, and ``none`` on command lines and in checkpoints.
"""

from __future__ import annotations

import torch
from torch import Tensor

from certify import spec
from certify.draws import TRAINING, Draws
from certify.images import Shape, to_float
from certify.scheme import Scheme

CLEAN = "none"


def scheme_text(scheme: Scheme | None) -> str:
    """The text that :func:`parse_training_scheme` turns into ``scheme``."""
    return CLEAN if scheme is None else spec.to_text(scheme)


def parse_training_scheme(text: str) -> Scheme | None:
    """The scheme that ``text`` describes; None for ``none``."""
    return None if text == CLEAN else spec.parse_scheme(text)


def input_shape(scheme: Scheme | None, shape: Shape) -> Shape:
    """Shape of the network's inputs, for images of ``shape`` (C, H, W)."""
    return shape if scheme is None else scheme.input_shape(shape)


def one_copy(scheme: Scheme | None, images: Tensor, draws: Draws) -> Tensor:
    """One network input for each image.

    Args:
        images: ``[B, C, H, W]``, uint8 or floats in [0, 1].
        draws: of one copy per image, of shape ``[B, 1]`` or ``[1, 1]``.

    Returns:
        float32 ``[B, C', H, W]``.
    """
    return to_float(images) if scheme is None else scheme.sample_inputs(images, draws)[:, 0]


def training_copies(scheme: Scheme, images: Tensor, index: Tensor, *, epoch: int, seed: int = 0) -> Tensor:
    """One copy of each image, a new one in each epoch, for a training loop of your own.

    Example::

        for images, labels, index in loader:
            loss = cross_entropy(model(training_copies(scheme, images, index, epoch=epoch)), labels)

    Args:
        images: ``[B, C, H, W]``, uint8 or floats in [0, 1].
        index: int64 ``[B]``, each image's index in the training set; its copies depend on it.
        epoch: at least 0.
        seed: of all copies.

    Returns:
        float32 ``[B, C', H, W]``, on the device of the images.
    """
    if index.shape != (len(images),):
        raise ValueError(f"index: got shape {tuple(index.shape)}, expected one number for each of {len(images)} images")
    draws = Draws.of(seed, TRAINING, index.to(images.device, torch.int64), range(epoch, epoch + 1))
    return one_copy(scheme, images, draws)


def check_additive(scheme: Scheme | None, images: Tensor, why: str) -> None:
    """Raise unless a copy is the image plus noise that does not depend on it: Gaussian or uniform noise.

    This is tested on an image, a black and a white one, so schemes need not declare it.

    Args:
        images: ``[B, C, H, W]``, legal for the scheme.
        why: what needs such a scheme, for the error message.
    """
    if scheme is None:
        raise ValueError(f"scheme: got none, expected one that adds noise, such as UniformNoise; {why} needs it")
    image = images[:1]
    white = torch.full_like(image, 255 if image.dtype == torch.uint8 else 1)
    draws = Draws.of(0, TRAINING, torch.zeros(1, dtype=torch.int64, device=image.device), range(2))
    noises = []
    for x in (image, torch.zeros_like(image), white):
        copies, clean = scheme.sample(x, draws), to_float(x)[:, None]
        if copies.shape[2:] != clean.shape[2:]:
            break
        noises.append(copies - clean)
    if len(noises) == 3:
        tolerance = 1e-5 * (1 + noises[0].abs().max().item())
        if all(torch.allclose(noise, noises[0], rtol=0, atol=tolerance) for noise in noises):
            return
    raise ValueError(
        f"scheme: got {scheme_text(scheme)}, whose copies are not the image plus noise independent of it; {why} needs "
        "a scheme such as GaussianNoise or UniformNoise"
    )


def gaussian_sigma(scheme: Scheme | None, images: Tensor, why: str) -> float:
    """The standard deviation of a scheme that adds Gaussian noise; raises for any other scheme."""
    check_additive(scheme, images, why)
    sigma = getattr(scheme, "sigma", None)
    if not isinstance(sigma, int | float):
        raise ValueError(
            f"scheme: got {scheme_text(scheme)}, expected Gaussian noise; {why} maximizes the radius of "
            "GaussianNoise(sigma)"
        )
    return float(sigma)
