"""The settings of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from certify.checks import check_integer
from certify.training.schedules import check_sgd

Loss = Literal["cross_entropy", "stability", "smoothadv", "macer", "denoiser_mse", "denoiser_stability"]

_NOISE_SAMPLES = {"smoothadv": 2, "macer": 16}


@dataclass(frozen=True)
class TrainingConfig:
    """How to train.

    Attributes:
        epochs, batch_size, lr, weight_decay: of the optimization; ``lr`` is the peak rate.
        optimizer: ``"sgd"``, with ``momentum`` and ``nesterov``; or ``"adam"``, with PyTorch's defaults.
        schedule: one of ``SCHEDULES``.
        noise: ``"sample"`` draws noise for every image; ``"batch"`` shares one draw within a minibatch, as in
            randomized ablation.
        augment: random crops and horizontal flips, see :mod:`~certify.training.augment`.
        amp: bfloat16 autocast, on CUDA only.
        seed: of initialization, order, augmentation and noise.
        loss: the training loss, see :mod:`~certify.training.losses` and :mod:`~certify.training.smoothadv`. The
            ``"denoiser_..."`` losses train the model's denoiser and freeze its classifier; all others train the whole
            model.
        stability_weight: weight of the divergence between two copies in ``"stability"``.
        noise_samples: copies of each image in an update of ``"smoothadv"`` and ``"macer"``; None: 2 and 16.
        epsilon, attack_steps: l2 norm, for values in [0, 1], and number of steps of the attack in ``"smoothadv"``.
        attack_warmup: epochs over which ``epsilon`` increases linearly to its value.
        macer_weight, macer_beta, macer_gamma: see :func:`~certify.training.losses.macer_loss`.
        noise_ramp, noise_stage: the noise increases from 0 to that of the scheme over the first ``noise_ramp`` epochs,
            every ``noise_stage`` epochs; see :func:`~certify.training.schedules.noise_level`.
        init: checkpoint to start from instead of a random initialization (a second stage of training).
        denoiser, classifier: checkpoints from which a model with a denoiser takes its parts: the denoiser of a denoised
            classifier, and a classifier of images.
    """

    epochs: int
    batch_size: int = 128
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = True
    optimizer: Literal["sgd", "adam"] = "sgd"
    schedule: str = "one_cycle"
    noise: Literal["sample", "batch"] = "sample"
    augment: bool = False
    amp: bool = False
    seed: int = 0
    loss: Loss = "cross_entropy"
    stability_weight: float = 6.0
    noise_samples: int | None = None
    epsilon: float = 0.5
    attack_steps: int = 4
    attack_warmup: int = 10
    macer_weight: float = 12.0
    macer_beta: float = 16.0
    macer_gamma: float = 8.0
    noise_ramp: int = 0
    noise_stage: int = 1
    init: str | None = None
    denoiser: str | None = None
    classifier: str | None = None

    def __post_init__(self) -> None:
        check_integer("epochs", self.epochs, 1)
        check_integer("batch_size", self.batch_size, 1)
        check_integer("seed", self.seed, 0, (1 << 64) - 1)
        check_sgd(self.schedule, self.lr, self.momentum, self.weight_decay)
        if self.noise not in ("sample", "batch"):
            raise ValueError(f"noise: got {self.noise!r}, expected 'sample' or 'batch'")
        if self.optimizer not in ("sgd", "adam"):
            raise ValueError(f"optimizer: got {self.optimizer!r}, expected 'sgd' or 'adam'")
        if self.loss not in get_args(Loss):
            raise ValueError(f"loss: got {self.loss!r}, expected one of {', '.join(get_args(Loss))}")
        self._check_numbers()
        if self.init is not None and (self.denoiser is not None or self.classifier is not None):
            raise ValueError("init: got checkpoints of the whole model and of a part; give either init or the parts")
        if self.trains_denoiser and self.classifier is None and self.init is None:
            raise ValueError(
                f"classifier: got none, expected a checkpoint; {self.loss} trains a denoiser in front of a classifier"
            )

    def _check_numbers(self) -> None:
        for name in ("stability_weight", "epsilon", "macer_weight", "macer_gamma"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}: got {value}, expected a finite number, at least 0")
        if not (math.isfinite(self.macer_beta) and self.macer_beta > 0):
            raise ValueError(f"macer_beta: got {self.macer_beta}, expected a finite number above 0")
        if self.noise_samples is not None:
            check_integer("noise_samples", self.noise_samples, 1)
        for name, low in (("attack_steps", 1), ("attack_warmup", 0), ("noise_ramp", 0), ("noise_stage", 1)):
            check_integer(name, getattr(self, name), low)
        if self.noise_ramp >= self.epochs:
            raise ValueError(
                f"noise_ramp: got {self.noise_ramp} of {self.epochs} epochs, expected fewer; the last epochs must see "
                "the noise that certificates are for"
            )

    @property
    def num_copies(self) -> int:
        """Number of copies of each image in an update."""
        if self.loss in ("smoothadv", "macer"):
            return self.noise_samples or _NOISE_SAMPLES[self.loss]
        return 2 if self.loss == "stability" else 1

    def epsilon_in(self, epoch: int) -> float:
        """The norm of the attack in an epoch (counted from 0)."""
        return self.epsilon * min(1.0, (epoch + 1) / max(1, self.attack_warmup))

    @property
    def trains_denoiser(self) -> bool:
        """Whether only the denoiser is trained."""
        return self.loss in ("denoiser_mse", "denoiser_stability")
