"""Votes copy by copy as one cell of a text file, and back, in a format that cannot run code."""

from __future__ import annotations

import base64
import binascii
import zlib

import numpy as np
import torch
from torch import Tensor


def pack_votes(by_copy: Tensor) -> str:
    """Votes copy by copy, bool ``[n, C]``, as text: one bit each (row by row, most significant first), compressed by
    zlib, in base64."""
    bits = np.packbits(by_copy.cpu().numpy().astype(bool), axis=None)
    return base64.b64encode(zlib.compress(bits.tobytes(), 9)).decode()


def unpack_votes(text: str, n: int, num_classes: int) -> Tensor:
    """Inverse of :func:`pack_votes`: bool ``[n, num_classes]``."""
    size = -(-n * num_classes // 8)
    stream = zlib.decompressobj()
    try:
        packed = stream.decompress(base64.b64decode(text, validate=True), size + 1)  # caps the size of bad data
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"stored votes: got {text[:40]!r}, expected packed votes of {n} copies ({error})") from error
    if len(packed) != size or not stream.eof or stream.unused_data:
        raise ValueError(f"stored votes: got {len(packed)} bytes or more, expected {size} ({n} copies)")
    bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=n * num_classes)
    return torch.from_numpy(bits.astype(bool)).view(n, num_classes)
