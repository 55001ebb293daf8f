"""Train a base classifier on the noised copies of a scheme.

The published setting of randomized ablation on MNIST, for example:

    python -m scripts.train runs/mnist-k45 --data mnist --model mnist_cnn --scheme "RandomizedAblation(keep=45)" \\
        --epochs 400 --lr 0.01 --schedule half_steps --weight-decay 0 --noise batch --plain-momentum

Stability training, as in the l1 experiments on CIFAR-10:

    python -m scripts.train runs/cifar-stability --data cifar10 --model wide_resnet40_2 --loss stability \\
        --scheme "DeterministicSplittingNoise.from_sigma(0.75)" --epochs 120 --batch-size 64 --schedule cosine \\
        --augment --normalize images

Base models for l2 certificates: SmoothAdv with 8 copies of each image, and MACER close to its published setting:

    python -m scripts.train runs/cifar-smoothadv --data cifar10 --model resnet110 --loss smoothadv \\
        --scheme "GaussianNoise(sigma=0.5)" --noise-samples 8 --epsilon 0.5 --attack-steps 10 --epochs 150 \\
        --batch-size 32 --schedule third_steps --augment --normalize images
    python -m scripts.train runs/cifar-macer --data cifar10 --model resnet110 --loss macer --epochs 440 \\
        --scheme "GaussianNoise(sigma=0.25)" --batch-size 64 --lr 0.01 --weight-decay 5e-4 --schedule half_steps \\
        --augment
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from certify.data import Dataset, both_parts
from certify.files import check_writable
from certify.models import PARTITION_MLP, DenoisedSpec, ModelSpec
from certify.scheme import Scheme
from certify.training import EpochResult, Trainer, TrainingConfig, base_accuracy, copy_statistics, load_checkpoint
from certify.training.copies import input_shape, parse_training_scheme
from certify.training.schedules import SCHEDULES
from scripts.parts import cli

Statistics = tuple[float, ...] | None  # of each channel
FEW_UPDATES = 250  # the 8x8 digits need about as many to be learned at all


@dataclass
class Args:
    """Train a base classifier on the noised copies of a scheme; the result is OUT/model.safetensors."""

    out: Path = cli.arg("folder for the model and the training state", positional=True)
    scheme: str = cli.arg(
        "e.g. 'RandomizedAblation(keep=45)' or 'DeterministicSplittingNoise.from_sigma(0.75)'; none: clean images"
    )
    data: str = cli.arg(
        "digits, mnist, fashion-mnist, cifar10, imagenet, gtsrb; point clouds shapes or modelnet40; clips "
        "'moving-shapes' or 'ucf101(frames=16, stride=2, size=112)'",
        "digits",
    )
    model: str = cli.arg(
        "mnist_cnn, resnet18, resnet50, resnet110, wide_resnet40_2, network_in_network; for point clouds pointnet, "
        "pointnet_basic or pointnet_small; for clips cnn3d; partition_mlp, which has one network for each copy of a "
        "DeterministicAblation; or one of your own, see --import",
        "mnist_cnn",
    )
    epochs: int = cli.arg("passes over the training set", 30)
    batch_size: int = cli.arg("images per update", 128)
    lr: float = cli.arg("peak learning rate", 0.1)
    schedule: str = cli.arg(f"one of {', '.join(SCHEDULES)}", "one_cycle")
    momentum: float = cli.arg("momentum of SGD", 0.9)
    plain_momentum: bool = cli.arg("plain momentum instead of Nesterov's", False)
    weight_decay: float = cli.arg("l2 penalty", 1e-4)
    noise: Literal["sample", "batch"] = cli.arg("one noise sample per image, or one shared by a minibatch", "sample")
    augment: bool = cli.arg("random crops and flips; for point clouds, rotations and jitter", False)
    normalize: Literal["none", "images", "copies"] = cli.arg(
        "normalize inside the model, by the channel statistics of the training images or of the scheme's copies", "none"
    )
    mean: list[float] = cli.arg("normalize images by these channel means, instead of --normalize", [])
    std: list[float] = cli.arg("the channel standard deviations to go with --mean", [])
    amp: bool = cli.arg("bfloat16 autocast (CUDA only)", False)
    loss: Literal["cross_entropy", "stability", "smoothadv", "macer"] = cli.arg(
        "stability: also penalize the divergence between two copies of each image; smoothadv: train on copies of "
        "adversarial images; macer: also maximize certified radii",
        "cross_entropy",
    )
    stability_weight: float = cli.arg("stability: weight of the divergence between the copies", 6.0)
    noise_samples: int | None = cli.arg("copies of each image; by default 2 (smoothadv) or 16 (macer)", None)
    epsilon: float = cli.arg("smoothadv: l2 norm of the attack, for values in [0, 1]", 0.5)
    attack_steps: int = cli.arg("smoothadv: steps of the attack", 4)
    attack_warmup: int = cli.arg("smoothadv: epochs over which epsilon increases to its value", 10)
    macer_weight: float = cli.arg("macer: weight of the robustness loss (lambda)", 12.0)
    macer_beta: float = cli.arg("macer: inverse temperature of its soft-max", 16.0)
    macer_gamma: float = cli.arg("macer: radii above sigma * gamma / 2 are not rewarded further", 8.0)
    noise_ramp: int = cli.arg("epochs over which the noise increases from 0 to that of the scheme", 0)
    noise_stage: int = cli.arg("epochs between two increases of the noise", 1)
    init: str | None = cli.arg("checkpoint to start from, for a second stage of training", None)
    denoiser: str | None = cli.arg(
        "checkpoint of scripts.train_denoiser, to train a new classifier behind its denoiser, jointly with it", None
    )
    seed: int = cli.arg("seed of everything random", 0)
    device: str = cli.arg("cpu, cuda, ...", "cpu")
    data_root: Path | None = cli.arg("folder of the data sets, by default $CERTIFY_DATA or ./data", None)
    resume: bool = cli.arg("continue from OUT/state.safetensors", False)


# The losses that use these options; all other options apply to every loss.
_OPTIONS_OF: dict[str, tuple[str, ...]] = {
    "stability_weight": ("stability",),
    "noise_samples": ("smoothadv", "macer"),
    "epsilon": ("smoothadv",),
    "attack_steps": ("smoothadv",),
    "attack_warmup": ("smoothadv",),
    "macer_weight": ("macer",),
    "macer_beta": ("macer",),
    "macer_gamma": ("macer",),
}


def check_options(args: Args) -> None:
    """Raise for options that the chosen loss would ignore."""
    defaults = {field.name: field.default for field in fields(args)}
    for name, losses in _OPTIONS_OF.items():
        if args.loss not in losses and getattr(args, name) != defaults[name]:
            flag, which = "--" + name.replace("_", "-"), " or ".join(losses)
            raise ValueError(
                f"{flag}: got {getattr(args, name)} with --loss {args.loss}, which ignores it; "
                f"expected --loss {which}, or no {flag}"
            )


def given_statistics(mean: list[float], std: list[float], channels: int) -> tuple[Statistics, Statistics]:
    """Checked --mean and --std for images of ``channels`` channels; None if they were not given."""
    if not mean and not std:
        return None, None
    if not len(mean) == len(std) == channels or min(std) <= 0 or not all(map(math.isfinite, (*mean, *std))):
        raise ValueError(f"mean, std: got {mean} and {std}, expected {channels} numbers each, std > 0")
    return tuple(mean), tuple(std)


def model_of(args: Args, scheme: Scheme | None, data: Dataset) -> ModelSpec | DenoisedSpec:
    """The architecture; behind the denoiser of another run if there is one."""
    channels, *sides = input_shape(scheme, data.shape)
    size = tuple(sides)
    mean, std = given_statistics(args.mean, args.std, data.shape[0])
    if mean is not None and args.normalize != "none":
        raise ValueError(f"mean, std: got them and --normalize {args.normalize}, expected one or the other")
    if args.normalize == "images":
        mean, std = data.channel_statistics()
    elif args.normalize == "copies":
        if args.denoiser is not None:
            raise ValueError("normalize: got copies, but the classifier sees denoised images; use images")
        mean, std = copy_statistics(scheme, data, seed=args.seed)
    if args.denoiser is None:
        follows = args.scheme if args.model == PARTITION_MLP else None
        return ModelSpec(args.model, channels, data.num_classes, size, mean, std, follows)
    denoised = load_checkpoint(args.denoiser)[1].model
    if not isinstance(denoised, DenoisedSpec):
        raise ValueError(f"{args.denoiser}: holds no denoiser; train one with 'python -m scripts.train_denoiser'")
    classifier = ModelSpec(args.model, data.shape[0], data.num_classes, size, mean, std)
    return DenoisedSpec(denoised.denoiser, channels, classifier)


def run(trainer: Trainer, *, resume: bool) -> None:
    """Train to the end with a progress bar."""
    if trainer.state_path.exists() and not resume:
        raise ValueError(
            f"{trainer.folder}: already holds a training run; add --resume to continue it, or choose another folder"
        )
    if trainer.model_path.exists() and not trainer.state_path.exists():
        raise ValueError(f"{trainer.folder}: holds a model, but no training state to resume; choose another folder")
    if resume and trainer.state_path.exists():
        trainer.load_state()
    check_writable(trainer.folder)
    steps = trainer.steps_per_epoch
    with cli.progress() as bar:
        total, done = trainer.config.epochs * steps, trainer.epoch * steps
        task = bar.add_task(f"training {trainer.spec.name}", total=total, completed=done)

        def on_step(epoch: int, step: int) -> None:
            bar.advance(task)

        def on_epoch(last: EpochResult) -> None:
            text = f"epoch {last.epoch + 1}: accuracy {last.accuracy:.4f}, loss {last.loss:.4f}"
            bar.update(task, description=text)
            if not bar.console.is_terminal:
                print(text, flush=True)

        trainer.run(on_step=on_step, on_epoch=on_epoch)


def print_accuracy(trainer: Trainer, test: Dataset) -> None:
    """Print accuracy on the test set, and where the model is."""
    seed, scheme = trainer.config.seed, trainer.scheme
    accuracy = base_accuracy(trainer.module, scheme, test, seed=seed)
    seen = "the" if scheme is None else "one noised copy of each of"
    print(f"base accuracy on {seen} {len(test)} test images: {accuracy:.4f}")
    print(f"wrote {trainer.model_path}")


def main(args: Args) -> None:
    cli.check_device(args.device)
    check_options(args)
    scheme = parse_training_scheme(args.scheme)
    train, test = both_parts(args.data, args.data_root)
    config = TrainingConfig(
        epochs=args.epochs,
        batch_size=args.batch_size,
        lr=args.lr,
        momentum=args.momentum,
        weight_decay=args.weight_decay,
        nesterov=not args.plain_momentum,
        schedule=args.schedule,
        noise=args.noise,
        augment=args.augment,
        amp=args.amp,
        seed=args.seed,
        loss=args.loss,
        stability_weight=args.stability_weight,
        noise_samples=args.noise_samples,
        epsilon=args.epsilon,
        attack_steps=args.attack_steps,
        attack_warmup=args.attack_warmup,
        macer_weight=args.macer_weight,
        macer_beta=args.macer_beta,
        macer_gamma=args.macer_gamma,
        noise_ramp=args.noise_ramp,
        noise_stage=args.noise_stage,
        init=args.init,
        denoiser=args.denoiser,
    )
    trainer = Trainer(train, scheme, model_of(args, scheme, train), config, args.out, device=args.device)
    if args.model == "mnist_cnn" and train.shape[0] == 3 and min(train.shape[1:]) >= 32:
        size = sum(parameter.numel() for parameter in trainer.module.parameters())
        print(
            f"note: mnist_cnn is meant for small grayscale images and has {size:,} parameters for {train.shape}; for "
            "photographs, use --model resnet18 or wide_resnet40_2"
        )
    updates = args.epochs * trainer.steps_per_epoch
    if updates < FEW_UPDATES and args.init is None:
        print(
            f"note: {updates:,} updates are few for a network that is trained from scratch, which may remain near "
            "chance; use more --epochs, or a smaller --batch-size"
        )
    run(trainer, resume=args.resume)
    print_accuracy(trainer, test)


if __name__ == "__main__":
    cli.run(main, Args, "scripts.train")
