"""What a network is trained on: copies that a scheme makes (or one of the inputs that a copy is), or, without a scheme,
the images themselves.

"Without a scheme" is ``None`` in code, and ``none`` on command lines and in checkpoints.
"""

from __future__ import annotations

from torch import Tensor

from certify import spec
from certify.draws import Draws
from certify.images import Shape, to_float
from certify.scheme import Scheme

CLEAN = "none"


def scheme_text(scheme: Scheme | None) -> str:
    """The text that :func:`parse_scheme` turns into ``scheme``."""
    return CLEAN if scheme is None else spec.to_text(scheme)


def parse_scheme(text: str) -> Scheme | None:
    """The scheme that ``text`` describes, None for ``none``."""
    return None if text == CLEAN else spec.parse_scheme(text)


def input_shape(scheme: Scheme | None, shape: Shape) -> Shape:
    """Shape of what a network sees of images of ``shape`` (C, H, W)."""
    return shape if scheme is None else scheme.input_shape(shape)


def one_copy(scheme: Scheme | None, images: Tensor, draws: Draws) -> Tensor:
    """What a network sees of each image.

    Args:
        images: ``[B, C, H, W]``, uint8 or floats in [0, 1].
        draws: of one copy per image, of shape ``[B, 1]`` or ``[1, 1]``.

    Returns:
        float32 ``[B, C', H, W]``.
    """
    return to_float(images) if scheme is None else scheme.sample_inputs(images, draws)[:, 0]
