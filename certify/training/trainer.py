"""Noise-augmented training: the base classifier is trained on the copies that a scheme makes.

All randomness is a function of the seed and the position in training (epoch and step), so an interrupted run continues
to the identical result.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from certify.data import Dataset
from certify.draws import TRAINING, Draws
from certify.files import claimed, differences
from certify.images import to_float
from certify.models import Denoised, DenoisedSpec, ModelSpec
from certify.scheme import Scheme
from certify.training.augment import augmented
from certify.training.checkpoint import (
    Checkpoint,
    as_trained,
    check_determined,
    design_entries,
    model_code,
    read_tensors,
    save_checkpoint,
    write_tensors,
)
from certify.training.config import TrainingConfig
from certify.training.copies import (
    check_additive,
    gaussian_sigma,
    input_shape,
    one_copy,
    parse_training_scheme,
    scheme_text,
)
from certify.training.initialize import initial_module
from certify.training.objective import objective
from certify.training.schedules import SCHEDULES, noise_level
from certify.training.smoothadv import smoothadv_attack


@dataclass(frozen=True)
class EpochResult:
    """Averages over one epoch, measured while training (on noised, augmented images)."""

    epoch: int
    loss: float
    accuracy: float


def generator_for(seed: int, epoch: int, part: int = 0) -> torch.Generator:
    """A CPU generator for one epoch and one purpose (``part``), independent of all others and of the noise."""
    words = Draws.of(seed, TRAINING, torch.tensor([epoch]), range(1)).substream(1 + part).words(2)
    return torch.Generator().manual_seed(int(words[0, 0, 0]) << 31 ^ int(words[0, 0, 1]))


class Trainer:
    """Trains one base classifier; resumable after every epoch.

    Args:
        data: training set.
        scheme: makes the noised copies; None to train on the images themselves.
        model: architecture, with ``in_channels = scheme.channels(C)``; the ``denoiser_...`` losses need a
            :class:`~certify.models.DenoisedSpec`, and train its denoiser only.
        config: how to train.
        folder: where ``state.safetensors`` (to resume) and ``model.safetensors`` (the result) go.
        device: where to train.
    """

    def __init__(
        self,
        data: Dataset,
        scheme: Scheme | None,
        model: ModelSpec | DenoisedSpec,
        config: TrainingConfig,
        folder: str | Path,
        *,
        device: str | torch.device = "cpu",
    ) -> None:
        _check_model(data, scheme, model, config)
        self.data, self.scheme, self.spec, self.config = data, scheme, model, config
        self.sigma = gaussian_sigma(scheme, data.batch([0])[0], "macer") if config.loss == "macer" else None
        self.folder, self.device = Path(folder), torch.device(device)
        initial = initial_module(model, config)
        check_determined(model, initial)
        self.module = initial.to(self.device)
        self.trained: nn.Module = self.module
        if config.trains_denoiser:
            self.trained = self.denoised.denoiser
            self.denoised.classifier.requires_grad_(False)
        self.optimizer = _optimizer(self.trained, config)
        self.epoch = 0
        self.history: list[EpochResult] = []

    @property
    def state_path(self) -> Path:
        """The file from which a run resumes."""
        return self.folder / "state.safetensors"

    @property
    def model_path(self) -> Path:
        """The file of the finished base classifier."""
        return self.folder / "model.safetensors"

    @property
    def denoised(self) -> Denoised:
        """The model, if it has a denoiser."""
        assert isinstance(self.module, Denoised)
        return self.module

    @property
    def steps_per_epoch(self) -> int:
        """Number of updates in one pass over the training set."""
        return -(-len(self.data) // self.config.batch_size)

    def run(
        self,
        *,
        on_step: Callable[[int, int], None] | None = None,
        on_epoch: Callable[[EpochResult], None] | None = None,
    ) -> nn.Module:
        """Train to the last epoch, saving after each; returns the model in evaluation mode.

        Args:
            on_step: called with (epoch, step) after every update.
            on_epoch: called after every epoch, once its state is on disk.

        Raises:
            ValueError: if another process trains in the folder, or if it holds a run that was not loaded
                (:meth:`load_state`).
            FloatingPointError: if training diverges.
        """
        with claimed(self.folder, self.state_path.name, self.model_path.name):
            if self.epoch == 0 and (self.state_path.exists() or self.model_path.exists()):
                raise ValueError(
                    f"{self.folder}: holds a training run, expected another folder; to continue the run, call "
                    "load_state() first"
                )
            while self.epoch < self.config.epochs:
                with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
                    torch.manual_seed(generator_for(self.config.seed, self.epoch, 1).initial_seed())  # e.g. of dropout
                    self.history.append(self._train_epoch(on_step))
                self.epoch += 1
                self.save_state()
                if on_epoch is not None:
                    on_epoch(self.history[-1])
            save_checkpoint(self.model_path, self.module, self.checkpoint())
        return self.module.eval()

    def _train_epoch(self, on_step: Callable[[int, int], None] | None) -> EpochResult:
        config, device = self.config, self.device
        self.module.eval()  # frozen parts keep their batch statistics
        self.trained.train()
        generator = generator_for(config.seed, self.epoch)
        order = torch.randperm(len(self.data), generator=generator)
        loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        right = torch.zeros((), dtype=torch.int64, device=device)
        for step, index in enumerate(order.split(config.batch_size)):
            position = self.epoch * self.steps_per_epoch + step
            t = position / (config.epochs * self.steps_per_epoch)
            for group in self.optimizer.param_groups:
                group["lr"] = config.lr * SCHEDULES[config.schedule](t)
            images, labels = augmented(self.data, index, generator) if config.augment else self.data.batch(index)
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            loss, logits = self._update(images, labels, position)
            loss_sum += loss.detach() * len(index)
            right += (logits.argmax(1) == labels).sum()
            if on_step is not None:
                on_step(self.epoch, step)
        loss_mean = loss_sum.item() / len(self.data)
        if not math.isfinite(loss_mean):
            safe = f"; the state after the previous epoch is in {self.state_path}" if self.epoch else ""
            raise FloatingPointError(
                f"training diverged in epoch {self.epoch + 1} (loss {loss_mean}); lower lr (now {config.lr}){safe}"
            )
        return EpochResult(self.epoch, loss_mean, right.item() / len(self.data))

    def _update(self, images: Tensor, labels: Tensor, position: int) -> tuple[Tensor, Tensor]:
        copies = [self.copies(images, position, number) for number in range(self.config.num_copies)]
        self.optimizer.zero_grad(set_to_none=True)
        amp = (
            torch.autocast("cuda", torch.bfloat16) if self.config.amp and self.device.type == "cuda" else nullcontext()
        )
        with amp:
            if self.config.loss == "smoothadv":
                copies = self._attacked(images, labels, copies, position)
            sigma = None if self.sigma is None else self.sigma * self._noise_level(position)
            loss, logits = objective(self.module, self.config, images, labels, copies, sigma=sigma)
        loss.backward()
        self.optimizer.step()
        return loss, logits

    def _attacked(self, images: Tensor, labels: Tensor, copies: list[Tensor], position: int) -> list[Tensor]:
        """Copies, with the same noise, of images that are adversarial for the current model."""
        clean, config = to_float(images), self.config
        noise = torch.stack(copies) - clean
        self.module.eval()  # batch statistics and dropout apply to the update only
        epsilon = config.epsilon_in(position // self.steps_per_epoch)
        attacked = smoothadv_attack(self.module, clean, labels, noise, epsilon=epsilon, steps=config.attack_steps)
        self.trained.train()
        return list(attacked + noise)

    def _noise_level(self, position: int) -> float:
        epoch = position // self.steps_per_epoch
        return noise_level(epoch, ramp=self.config.noise_ramp, stage=self.config.noise_stage)

    def copies(self, images: Tensor, position: int, number: int = 0) -> Tensor:
        """Copy ``number`` of each image of the minibatch at ``position``."""
        copies = one_copy(self.scheme, images, self.noise(position, len(images), number))
        level = self._noise_level(position)
        return copies if level == 1 else torch.lerp(to_float(images), copies, level)

    def noise(self, position: int, count: int, number: int = 0) -> Draws:
        """The random numbers of copy ``number`` of the images of the minibatch at ``position``."""
        rows = count if self.config.noise == "sample" else 1
        item = torch.full((rows, 1), position, device=self.device)
        copy = torch.arange(rows, device=self.device) + number * self.config.batch_size
        return Draws(self.config.seed, TRAINING, item, copy[:, None])

    def checkpoint(self) -> Checkpoint:
        """The description that is saved with the parameters."""
        training: dict[str, Any] = asdict(self.config) | {"history": [asdict(result) for result in self.history]}
        return Checkpoint(self.spec, self.scheme, self.data.name, training)

    def save_state(self) -> None:
        """Write everything needed to continue; all randomness follows from the seed and the epoch."""
        tensors = {f"model.{name}": tensor for name, tensor in self.module.state_dict().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            for name, value in state.items():
                if value is not None:
                    tensors[f"optimizer.{i}.{name}"] = value
        header = self._identity() | design_entries(self.scheme)
        header |= {"epoch": self.epoch, "history": [asdict(result) for result in self.history]}
        write_tensors(self.state_path, tensors, header)

    def load_state(self) -> None:
        """Continue from ``state.safetensors``; raises if it belongs to another run."""
        tensors, header = read_tensors(self.state_path)
        defaults = {field.name: field.default for field in fields(TrainingConfig) if field.default is not MISSING}
        header["config"] = defaults | header.get("config", {})  # states of earlier versions lack some settings
        if self.scheme is not None and header.get("scheme") == scheme_text(self.scheme):
            self.scheme = as_trained(self.scheme, header, self.state_path)
        own = self._identity()
        there = {name: header.get(name) for name in own}
        if "data_sha256" not in header:  # those of earlier versions do
            there["data_sha256"] = own["data_sha256"]
        if what := differences(there, own):
            raise ValueError(
                f"{self.state_path}: was made with {what}; resume with the same settings and data, or train in "
                "another folder"
            )
        self.module.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            if key.startswith("optimizer."):
                _, i, name = key.split(".")
                state.setdefault(int(i), {})[name] = tensor
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.epoch = header["epoch"]
        self.history = [EpochResult(**result) for result in header["history"]]

    @cached_property
    def _checksum(self) -> str:
        return self.data.checksum()

    def _identity(self) -> dict[str, Any]:
        """What a state must match for this run to resume from it, as JSON values."""
        code = model_code(self.spec.name, self.module)
        return ({} if code is None else {"model_code": code}) | {
            "model": json.loads(json.dumps(asdict(self.spec))),
            "scheme": scheme_text(self.scheme),
            "dataset": self.data.name,
            "data_sha256": self._checksum,
            "config": asdict(self.config),
        }


def _optimizer(module: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    if config.optimizer == "adam":
        return torch.optim.Adam(module.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        module.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov and config.momentum > 0,
    )


def _check_model(data: Dataset, scheme: Scheme | None, model: ModelSpec | DenoisedSpec, config: TrainingConfig) -> None:
    """Raise unless the model accepts the scheme's copies of the data, and the loss suits both."""
    expected, *sides = input_shape(scheme, data.shape)
    if model.in_channels != expected:
        maker = data.name if scheme is None else type(scheme).__name__
        raise ValueError(f"model: got {model.in_channels} input channels, expected the {expected} of {maker}")
    if scheme is not None:
        scheme.check(data.batch([0])[0])
        read, given = parse_training_scheme(text := scheme_text(scheme)), scheme
        if read is not None and (stored := scheme.stored_design()) is not None:  # checkpoints carry it beside the text
            read, given = read.with_design(stored), scheme.with_design(stored)
        if read != given:
            raise ValueError(
                f"scheme: got {scheme!r}, whose text {text} does not give the same scheme back, as checkpoints require"
            )
    elif config.loss != "cross_entropy":
        raise ValueError(f"scheme: got none, expected one; the loss {config.loss} needs noised copies")
    for what, used in (("smoothadv", config.loss == "smoothadv"), ("noise_ramp", config.noise_ramp > 0)):
        if used:
            check_additive(scheme, data.batch([0])[0], what)
    if (model.num_classes, model.size) != (data.num_classes, tuple(sides)):
        got, expected = ("x".join(map(str, size)) for size in (model.size, sides))
        raise ValueError(
            f"model: got {model.num_classes} classes and {got} pixels, expected the {data.num_classes} "
            f"and {expected} of {data.name}"
        )
    if isinstance(model, DenoisedSpec):
        if model.classifier.in_channels != data.shape[0]:
            raise ValueError(
                f"model: got a denoiser with {model.classifier.in_channels} output channels, expected the "
                f"{data.shape[0]} of {data.name}"
            )
    elif config.trains_denoiser:
        raise ValueError(f"model: got {model.name}, which has no denoiser; the loss {config.loss} needs a DenoisedSpec")
