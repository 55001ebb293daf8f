"""The IDX format of MNIST and Fashion-MNIST."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np


def parse_idx(data: bytes, source: str) -> np.ndarray:
    """The uint8 array in an IDX file (gzip-compressed or not)."""
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{source}: damaged gzip file ({error}); fetch it again") from error
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise ValueError(f"{source}: got no IDX header, expected an IDX file of 8-bit values; fetch it again")
    header = 4 + 4 * data[3]
    if len(data) < header:
        raise ValueError(
            f"{source}: got {len(data)} bytes, fewer than the header has; the file is truncated, fetch it again"
        )
    shape = struct.unpack(f">{data[3]}I", data[4:header])
    if len(data) - header != math.prod(shape):
        raise ValueError(
            f"{source}: got {len(data) - header} bytes of data, but the header announces {math.prod(shape)} "
            f"({' x '.join(map(str, shape))}); the file is truncated, fetch it again"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape).copy()


def write_idx(array: np.ndarray) -> bytes:
    """The IDX file of a uint8 array."""
    return b"\x00\x00\x08" + struct.pack(f">B{array.ndim}I", array.ndim, *array.shape) + array.tobytes()


def idx_files(root: Path, name: str, part: str) -> list[Path]:
    """The image and label files of ``part`` ("train" or "t10k"), in any of the usual layouts."""
    capitalized = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}[name]
    folders = [root / name, root / capitalized / "raw", root]
    found = []
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        names = [f"{part}-{kind}", f"{part}-{kind}.gz", f"{part}-{kind.replace('-idx', '.idx')}"]
        path = next((folder / file for folder in folders for file in names if (folder / file).exists()), None)
        if path is None:
            raise FileNotFoundError(
                f"{name}: no {names[0]}[.gz] in {', '.join(map(str, folders))}; "
                f"run 'python -m scripts.fetch {name}', or point --data-root or $CERTIFY_DATA to the files"
            )
        found.append(path)
    return found


def read_idx_pair(root: Path, name: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images ``[N, 28, 28]`` and labels ``[N]`` of ``part`` ("train" or "t10k")."""
    images, labels = (parse_idx(path.read_bytes(), str(path)) for path in idx_files(root, name, part))
    return images, labels
