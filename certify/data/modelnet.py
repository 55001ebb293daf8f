"""ModelNet40 (Wu et al., 2015) in its three published formats, as point clouds.

* ``modelnet40_ply_hdf5_2048/``: ``ply_data_{train,test}*.h5`` with ``data [M, 2048, 3]`` and ``label [M, 1]``
* ``modelnet40_normal_resampled/``: one text file per object, ``x,y,z,nx,ny,nz`` per line, and ``modelnet40_train.txt``,
  ``modelnet40_test.txt``, ``modelnet40_shape_names.txt``
* ``ModelNet40/``: the original meshes, ``class/train/*.off`` and ``class/test/*.off``

From the first two, the first points of an object are taken, as is usual. On meshes, points are sampled uniformly by
area, always the same ones. Each cloud is scaled before the threat model applies, see :mod:`~certify.data.points`. The
second axis is vertical in all three: meshes, whose third axis is vertical, are rotated.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import zipfile
import zlib
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from certify.data.meshes import parse_off, sample_surface
from certify.data.points import as_images, normalized_levels, uniforms
from certify.files import write_atomically

CLASSES = 40


def modelnet40_reader(root: Path, split: str) -> Callable[[int, int], tuple[Tensor, Tensor, int]]:
    """A reader of whichever format is present; takes the number of points and the seed."""
    bases = [root / "modelnet40", root]
    for folder in [base / name for base in bases for name in ("modelnet40_ply_hdf5_2048", "")]:
        parts = sorted(folder.glob(f"ply_data_{split}*.h5"))
        if parts:
            return lambda points, seed: _read_hdf5(folder, parts, points)
    for folder in [base / name for base in bases for name in ("modelnet40_normal_resampled", "")]:
        if (folder / f"modelnet40_{split}.txt").exists():
            listed = _listed_files(folder, split)
            return lambda points, seed: _read_files(folder, *listed, _read_text, split, points, seed)
    for folder in [base / name for base in bases for name in ("ModelNet40", "")]:
        meshes = _mesh_files(folder, split)
        if meshes[0]:
            return lambda points, seed: _read_files(folder, *meshes, _read_mesh, split, points, seed)
    raise FileNotFoundError(
        f"modelnet40: no ply_data_{split}*.h5, modelnet40_{split}.txt or <class>/{split}/*.off in {bases[0]} or "
        f"{bases[1]} or their usual subfolders; point --data-root or $CERTIFY_DATA to the parent"
    )


def read_modelnet40(root: Path, split: str, *, points: int = 1024, seed: int = 0) -> tuple[Tensor, Tensor, int]:
    """Images ``[M, 3, points, 1]``, labels ``[M]`` and the number of classes.

    Reading all meshes or text files takes minutes; the result is cached next to them (``clouds-train-1024.npz``) and
    reused as long as the files' names and sizes are unchanged.

    Args:
        root: folder that holds one of the three formats, directly, in ``modelnet40/``, or in its usual folder.
        split: ``"train"`` or ``"test"``.
        points: number of points of each cloud.
        seed: of the points on meshes.
    """
    return modelnet40_reader(root, split)(points, seed)


def _check_points(got: int, points: int, source: str) -> None:
    if got < points:
        raise ValueError(f"{source}: got {got} points, expected at least {points}; the file is damaged, fetch it again")


def _read_hdf5(folder: Path, parts: Sequence[Path], points: int) -> tuple[Tensor, Tensor, int]:
    try:
        h5py: Any = importlib.import_module("h5py")
    except ImportError as error:
        raise ImportError(
            f"{folder}: reading HDF5 needs h5py: pip install 'scalable-robust-ml[hdf5]'; or use the text or OFF files"
        ) from error
    clouds, labels = [], []
    for path in parts:
        try:
            with h5py.File(path, "r") as file:
                data, label = np.asarray(file["data"], np.float64), np.asarray(file["label"], np.int64).reshape(-1)
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{path}: cannot be read as HDF5 with data and label ({error}); fetch it again") from error
        if data.ndim != 3 or data.shape[2] != 3 or len(data) != len(label):
            raise ValueError(f"{path}: got data {data.shape} and {len(label)} labels, expected [M, N, 3] and M")
        _check_points(data.shape[1], points, str(path))
        clouds += [normalized_levels(cloud, f"{path}, object {i}") for i, cloud in enumerate(data[:, :points])]
        labels.append(label)
    names = folder / "shape_names.txt"
    classes = len(names.read_text().split()) if names.exists() else CLASSES
    return as_images(np.stack(clouds)), torch.from_numpy(np.concatenate(labels)), classes


def _listed_files(folder: Path, split: str) -> tuple[list[Path], list[int], int]:
    """Files and labels of the text version: object ``night_stand_0001`` is ``night_stand/night_stand_0001.txt``."""
    names = folder / "modelnet40_shape_names.txt"
    if not names.exists():
        raise FileNotFoundError(f"{names}: not found, but it numbers the classes; fetch the data set again")
    number = {name: i for i, name in enumerate(names.read_text().split())}
    files, labels = [], []
    for entry in (folder / f"modelnet40_{split}.txt").read_text().split():
        name = entry.rpartition("_")[0]
        if name not in number:
            raise ValueError(
                f"{folder / f'modelnet40_{split}.txt'}: got {entry!r}, expected objects of the classes in {names.name}"
            )
        files.append(folder / name / f"{entry}.txt")
        labels.append(number[name])
    return files, labels, len(number)


def _mesh_files(folder: Path, split: str) -> tuple[list[Path], list[int], int]:
    """Files and labels of the meshes; classes are numbered alphabetically, as in the other versions."""
    classes = sorted({path.parent.parent.name for path in folder.glob("*/*/*.off")})
    found = [sorted((folder / name / split).glob("*.off")) for name in classes]
    labels = [label for label, paths in enumerate(found) for _ in paths]
    return [path for paths in found for path in paths], labels, len(classes)


def _read_text(path: Path, points: int, seed: int) -> np.ndarray:
    with path.open("rb") as handle:
        lines = list(islice(handle, points))
    _check_points(len(lines), points, str(path))
    try:
        rows = np.array([line.split(b",") for line in lines], np.float64)
    except ValueError as error:
        raise ValueError(f"{path}: expected x,y,z,nx,ny,nz on each line ({error}); fetch it again") from error
    if rows.shape[1] < 3:
        raise ValueError(f"{path}: got {rows.shape[1]} numbers per line, expected x,y,z,nx,ny,nz")
    return rows[:, :3]


def _read_mesh(path: Path, points: int, seed: int) -> np.ndarray:
    mesh = parse_off(path.read_bytes(), str(path))
    item = zlib.crc32(path.name.encode())  # of the object, so that other files do not change its points
    x, y, z = sample_surface(mesh, uniforms([item], points, seed)[0], str(path)).T
    return np.stack((x, z, -y), 1)


def _read_files(
    folder: Path,
    files: Sequence[Path],
    labels: Sequence[int],
    classes: int,
    read: Callable[[Path, int, int], np.ndarray],
    split: str,
    points: int,
    seed: int,
) -> tuple[Tensor, Tensor, int]:
    """All clouds, from the cache if it was made from these files."""
    missing = next((path for path in files if not path.exists()), None)
    if missing is not None:
        raise FileNotFoundError(f"{missing}: listed, but missing; fetch the data set again")
    listing = "\n".join(f"{path.relative_to(folder)} {path.stat().st_size}" for path in files)
    digest = hashlib.sha256(f"{seed}\n{listing}".encode()).hexdigest()
    cache = folder / f"clouds-{split}-{points}.npz"
    levels = _cached(cache, digest, (len(files), points, 3))
    if levels is None:
        levels = np.stack([normalized_levels(read(path, points, seed), str(path)) for path in files])
        buffer = io.BytesIO()
        np.savez_compressed(buffer, levels=levels, digest=np.array(digest))
        with contextlib.suppress(OSError):  # in a read-only folder, the files are read again next time
            write_atomically(cache, buffer.getvalue())
    return as_images(levels), torch.tensor(labels), classes


def _cached(path: Path, digest: str, shape: tuple[int, ...]) -> np.ndarray | None:
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as stored:
            if str(stored["digest"]) == digest and stored["levels"].shape == shape:
                return stored["levels"]
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        pass  # no cache yet, or a damaged one
    return None
