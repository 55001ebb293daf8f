"""CIFAR-10 in its binary and its Python layout.

The Python layout is a pickle. The unpickler used here knows only the NumPy array constructors, so a file cannot run
code.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy._core import multiarray  # where NumPy's own pickles point to

_RECORD = 1 + 3 * 32 * 32


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name in ("_reconstruct", "scalar"):
            return getattr(multiarray, name)
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if module == "_codecs" and name == "encode":  # how protocol 2 stores bytes
            import codecs

            return codecs.encode
        raise pickle.UnpicklingError(f"{module}.{name} is not part of a NumPy array; the file was refused")


def parse_binary(data: bytes, source: str) -> tuple[np.ndarray, np.ndarray]:
    """Images ``[N, 3, 32, 32]`` and labels ``[N]`` of a ``data_batch_i.bin``."""
    if not data or len(data) % _RECORD:
        raise ValueError(f"{source}: got {len(data)} bytes, expected a multiple of {_RECORD}; the file is truncated")
    records = np.frombuffer(data, np.uint8).reshape(-1, _RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32).copy(), records[:, 0].copy()


def write_binary(images: np.ndarray, labels: np.ndarray) -> bytes:
    """The ``.bin`` file of uint8 images ``[N, 3, 32, 32]`` and labels ``[N]``."""
    return np.concatenate((labels.astype(np.uint8)[:, None], images.reshape(len(images), -1)), axis=1).tobytes()


def parse_python(data: bytes, source: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a ``data_batch_i`` of the Python layout."""
    try:
        content = _ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()
        return content[b"data"].reshape(-1, 3, 32, 32), np.asarray(content[b"labels"], np.uint8)
    except Exception as error:  # a damaged pickle can fail in any way
        raise ValueError(f"{source}: not a CIFAR-10 batch ({error}); fetch it again") from error


def cifar10_files(root: Path, split: str) -> tuple[list[Path], Callable[[bytes, str], tuple[np.ndarray, np.ndarray]]]:
    """The files of whichever layout is present, in ``cifar10/`` or directly in ``root``, and their parser."""
    names = ["test_batch"] if split == "test" else [f"data_batch_{i}" for i in range(1, 6)]
    layouts = [("cifar-10-batches-bin", ".bin", parse_binary), ("cifar-10-batches-py", "", parse_python)]
    for base in (root / "cifar10", root):
        for folder, suffix, parse in layouts:
            paths = [base / folder / (name + suffix) for name in names]
            if all(path.exists() for path in paths):
                return paths, parse
    raise FileNotFoundError(
        f"cifar10: no cifar-10-batches-bin or cifar-10-batches-py with {names[0]} in {root / 'cifar10'} or {root}; "
        "run 'python -m scripts.fetch cifar10', or point --data-root or $CERTIFY_DATA to the files"
    )


def read_cifar10(root: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images ``[N, 3, 32, 32]`` (uint8) and labels ``[N]``."""
    paths, parse = cifar10_files(root, split)
    parts = [parse(path.read_bytes(), str(path)) for path in paths]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
