"""Features that are learned once, from all training samples without labels (SS-DPA).

Source: dissertation, Section 7.2.3.1.

Training is given nothing but the images, sorted by content. The features are then bit-identical whatever the labels, so
a flipped label affects the models of one part only. This needs features of exactly the images that the models are
trained on, since others might have been selected by the labels of these (:meth:`Features.check_learned_from`). An
inserted or deleted sample may change the features that every model sees: :class:`~certify.poisoning.Ensemble` refuses
to certify against those.

A folder holds ``config.json``, ``state.safetensors`` to resume from, and ``features.safetensors``, the result.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from certify import spec
from certify.files import claimed
from certify.images import check_images
from certify.inference import deterministic, exact_inference
from certify.poisoning.clusters import KMeans
from certify.poisoning.feature_method import FeatureMethod
from certify.poisoning.job import environment_of, images_checksum
from certify.poisoning.neighbors import fixed_batches
from certify.poisoning.partition import sample_keys
from certify.poisoning.pretext import RotNet, SimCLR
from certify.results import claim_config
from certify.training.checkpoint import read_tensors, write_tensors

METHODS: dict[str, type] = {kind.__name__: kind for kind in (RotNet, SimCLR, KMeans)}
FILE = "features.safetensors"
_STATE = "state.safetensors"
_ROWS = 64  # images per forward pass, always this many
_FORMAT = 1


class Pretraining:
    """Learns features; resumable after every epoch.

    Args:
        images: uint8 ``[N, C, H, W]``, or floats in [0, 1], in any order.
        method: how features are learned, such as a pretext task and its training settings.
        folder: where the state and the result go.
        device: where to train.
    """

    def __init__(self, images: Tensor, method: FeatureMethod, folder: str | Path, *, device: str = "cpu") -> None:
        check_images(images)
        if len(images) < 2:
            raise ValueError(f"images: got {len(images)}, expected at least 2")
        ordered = images[torch.tensor(sorted_by_content(images)[0])]
        self.method, self.folder, self.device = method, Path(folder), torch.device(device)
        with deterministic(self.device):
            self.learning = method.begin(ordered, self.device)
        self.losses: list[float] = []  # of all epochs so far
        self.identity = {
            "format": _FORMAT,
            "method": spec.to_text(method),
            "images_sha256": images_checksum(ordered),
            "shape": list(images.shape[1:]),
            "environment": environment_of(device),
        }

    @property
    def steps_per_epoch(self) -> int:
        return self.learning.steps_per_epoch

    def start(self, *, resume: bool, provenance: dict[str, Any] | None = None) -> None:
        """Claim the folder, and resume from the state in it; raises if it holds other features, or the same without
        ``resume``."""
        path = self.folder / "config.json"
        if path.exists() and not resume:
            raise ValueError(f"{self.folder}: holds features; add --resume to continue, or choose another folder")
        claim_config(path, self.identity | {"provenance": provenance or {}})
        if (self.folder / _STATE).exists():
            self._load_state()

    def run(
        self,
        *,
        on_step: Callable[[], None] = lambda: None,
        on_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
    ) -> Path:
        """Train to the last epoch, saving the state after each; returns the file of the result.

        Raises:
            ValueError: if another process learns in the folder.
            FloatingPointError: if training diverges.
        """
        path = self.folder / FILE
        with claimed(self.folder, _STATE, FILE):
            while len(self.losses) < self.method.epochs and not self.learning.converged(self.losses):
                with deterministic(self.device):
                    loss = self.learning.epoch(len(self.losses), on_step)
                if not math.isfinite(loss):
                    raise FloatingPointError(
                        f"training diverged in epoch {len(self.losses)} (loss {loss}); use other settings"
                    )
                self.losses.append(loss)
                write_tensors(self.folder / _STATE, self.learning.tensors(), self._header)
                on_epoch(len(self.losses) - 1, loss)
            write_tensors(path, dict(self.learning.module.state_dict()), self._header)
        return path

    @property
    def _header(self) -> dict[str, Any]:
        return self.identity | {"losses": self.losses}

    def _load_state(self) -> None:
        tensors, header = read_tensors(self.folder / _STATE)
        if {name: header.get(name) for name in self.identity} != json.loads(json.dumps(self.identity)):
            raise ValueError(
                f"{self.folder}: its state.safetensors does not belong to its configuration; remove that file"
            )
        self.learning.load(tensors)
        self.losses = header["losses"]


@dataclass(frozen=True)
class Features:
    """Learned features.

    Attributes:
        method: how they were learned.
        shape: shape of an image.
        sha256: checksum of their file.
        images_sha256: checksum of the images that they were learned from, sorted by content.
        module: maps images to features, in evaluation mode.
    """

    method: FeatureMethod
    shape: tuple[int, ...]
    sha256: str
    images_sha256: str
    module: nn.Module

    def check_learned_from(self, images: Tensor) -> None:
        """Raise unless the features were learned from exactly these images, in any order."""
        if images_checksum(images[torch.tensor(sorted_by_content(images)[0])]) != self.images_sha256:
            raise ValueError(
                "features: were learned from other images than the models would be trained on, so that they may depend "
                "on labels; learn them from the same data set with 'python -m scripts.train_features'"
            )

    def of(self, images: Tensor, *, device: str = "cpu", on_batch: Callable[[int], None] | None = None) -> Tensor:
        """Features of images, float32 ``[N, ...]``; those of an image do not depend on the order of the images.

        Args:
            on_batch: called with the number of distinct images just processed.
        """
        check_images(images)
        if tuple(images.shape[1:]) != self.shape:
            raise ValueError(f"images: got {tuple(images.shape[1:])}, expected {self.shape}, as in training")
        first, place = sorted_by_content(images, distinct=True)
        module, parts = self.module.to(device), []
        with exact_inference(module), deterministic(torch.device(device)):
            for rows, of in fixed_batches(images[torch.tensor(first)], _ROWS):
                out = self.method.output(module(rows.to(device)))
                parts.append(out[: of.stop - of.start].float().cpu())
                if on_batch is not None:
                    on_batch(of.stop - of.start)
        return torch.cat(parts)[torch.tensor(place)]

    def stored(self, images: Tensor, path: Path, *, device: str = "cpu", **options: Any) -> Tensor:
        """Like :meth:`of`, but read from the file ``path`` if it holds these features, otherwise written to it."""
        header = {"features": self.sha256, "images_sha256": images_checksum(images), "count": len(images)}
        if path.exists():
            tensors, found = read_tensors(path)
            if found == header:
                return tensors["features"]
        features = self.of(images, device=device, **options)
        write_tensors(path, {"features": features}, header)
        return features


def load_features(path: str | Path) -> Features:
    """The features in a folder, or in a file."""
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such features; learn them with 'python -m scripts.train_features'")
    tensors, header = read_tensors(path)
    try:
        if header["format"] != _FORMAT:
            raise ValueError(f"format {header['format']}")
        method, shape, images_sha256 = read_method(header["method"]), tuple(header["shape"]), header["images_sha256"]
        module = method.module(shape)
        module.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path}: got no features of this version of the project; learn them again with "
            "'python -m scripts.train_features'"
        ) from error
    return Features(method, shape, hashlib.sha256(path.read_bytes()).hexdigest(), images_sha256, module.eval())


def read_method(text: str) -> FeatureMethod:
    """The :class:`~certify.poisoning.feature_method.FeatureMethod` that a text describes."""
    return spec.parse(text, METHODS, example="RotNet('small_cnn', epochs=5)")


def sorted_by_content(images: Tensor, *, distinct: bool = False) -> tuple[list[int], list[int]]:
    """The order of images sorted by content, and the position of each image in it.

    Args:
        distinct: merge equal images.
    """
    keys = sample_keys(images)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    first, place = [], [0] * len(keys)
    for i in order:
        if not (distinct and first and keys[first[-1]] == keys[i]):
            first.append(i)
        place[i] = len(first) - 1
    return first, place
