"""Training inputs of scripts.poisoning: samples in memory, images at their original sizes, features."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from certify import spec
from certify.data import Dataset
from certify.data.folders import FolderImages
from certify.poisoning.executors import Executor, Processes, RayCluster, Sequential
from certify.poisoning.features import Features, images_checksum, load_features
from certify.poisoning.job import Job
from scripts.parts import cli

_LARGEST = 4 << 30  # maximum number of bytes of a data set in memory
_CHUNK = 512  # images that are read together


def in_memory(data: Dataset) -> Dataset:
    """The data set with its images in memory; those of GTSRB, for example, are read from their files."""
    if isinstance(data.images, Tensor):
        return data
    if data.kind == "clip":
        raise ValueError(f"data: got {data.name}, whose clips are read on demand; expected images")
    size = math.prod((len(data), *data.shape)) * getattr(data.images, "dtype", torch.uint8).itemsize
    if size > _LARGEST:
        raise ValueError(
            f"data: got {data.name}, whose images take {size / 2**30:.1f} GiB of memory, expected at most "
            f"{_LARGEST >> 30} GiB; use smaller or fewer images"
        )
    chunks = []
    with cli.progress() as bar:
        task = bar.add_task("reading", total=len(data))
        for index in torch.arange(len(data)).split(_CHUNK):
            chunks.append(data.images[index])
            bar.advance(task, len(index))
    return replace(data, images=torch.cat(chunks))


def classes_of(data: Dataset) -> int:
    """The number of classes; raises if it was inferred from samples, as each sample could then change every model."""
    if not data.classes_known:
        kind = data.name.partition("(")[0]
        example = {"npz": "classes=10", "folder": "classes=('cat', 'dog')"}.get(kind)
        raise ValueError(
            f"data: got {data.name}, whose classes are inferred from its samples: one poisoned sample could change all "
            "models, so nothing can be certified; "
            + (f"specify the classes: {kind}(..., {example})" if example else "use a data set with fixed classes")
        )
    return data.num_classes


def images_of(data: Dataset) -> Tensor:
    """The images of a data set in memory."""
    assert isinstance(data.images, Tensor)
    return data.images


def originals_of(data: Dataset) -> Iterable[Tensor] | None:
    """The images at their original sizes, if they are read from files."""
    return _originals(data.images) if isinstance(data.images, FolderImages) else None


def _originals(images: FolderImages) -> Iterator[Tensor]:
    with cli.progress() as bar:
        task = bar.add_task("partition", total=len(images))
        for original in images.originals():
            yield original
            bar.advance(task)


def learned_features(features: Features, images: Tensor, path: Path, device: str) -> Tensor:
    """Features of images, from the file ``path`` or written to it."""
    with cli.progress() as bar:
        task = bar.add_task("features", total=len(images))
        seen = features.stored(images, path, device=device, on_batch=lambda count: bar.advance(task, count))
        bar.update(task, completed=len(images))  # duplicates are computed once, stored features not at all
        return seen


def features_identity(features: Features, seen: Tensor) -> dict[str, Any]:
    """The identity of features, as JSON values."""
    return {"method": spec.to_text(features.method), "sha256": features.sha256, "inputs_sha256": images_checksum(seen)}


def seen_by(job: Job, images: Tensor, path: Path, device: str) -> Tensor:
    """The inputs of a job's models: the images, or their features."""
    if not job.ensemble.learned:
        return images
    features = load_features(job.folder)
    if features.sha256 != job.data["features"]["sha256"]:
        raise ValueError(f"{job.folder}: its features.safetensors is not what the models were trained on; restore it")
    return learned_features(features, images, path, device)


def executor_of(workers: int, ray: str | None, device: str) -> Executor:
    """Where tasks run.

    Args:
        workers: number of processes, or of processors of a local Ray cluster.
        ray: None to do without Ray; ``"local"``, or the address of a cluster.
    """
    if workers < 1:
        raise ValueError(f"workers: got {workers}, expected at least 1")
    if ray is not None:
        gpus = 1.0 if torch.device(device).type == "cuda" else 0.0
        return RayCluster(None, workers, gpus=gpus) if ray == "local" else RayCluster(ray, gpus=gpus)
    return Processes(workers) if workers > 1 else Sequential()
