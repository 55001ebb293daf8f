"""Train a denoiser in front of a classifier of clean images; together they form a base classifier for scripts.certify.

    python -m scripts.train runs/clean --data cifar10 --model wide_resnet40_2 --scheme none
    python -m scripts.train_denoiser runs/stability --classifier runs/clean --objective stability --augment \\
        --scheme "DeterministicSplittingNoise.from_sigma(0.5)"
    python -m scripts.certify runs/stability/test --checkpoint runs/stability

``--objective mse`` fits the pixels of the clean image, ``stability`` the class that the classifier predicts for it. To
train a new classifier behind a denoiser, jointly with it, pass the result to ``scripts.train --denoiser``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from certify import spec
from certify.data import load
from certify.models import DenoisedSpec, ModelSpec
from certify.training import Trainer, TrainingConfig, denoising_errors, load_checkpoint
from scripts import train
from scripts.parts import cli


@dataclass
class Args:
    """Train a denoiser in front of a frozen classifier; the result is OUT/model.safetensors."""

    out: Path = cli.arg("folder for the model and the training state", positional=True)
    classifier: str = cli.arg("checkpoint of a classifier of clean images ('scripts.train --scheme none')")
    scheme: str = cli.arg("scheme whose copies are denoised, e.g. 'DeterministicSplittingNoise.from_sigma(0.5)'")
    objective: Literal["mse", "stability"] = cli.arg(
        "target: the clean image's pixels, or the class that the classifier predicts for it", "mse"
    )
    model: str = cli.arg("denoiser: dncnn, or dncnn_small for small images and CPUs", "dncnn")
    data: str | None = cli.arg("data set, by default the one the classifier was trained on", None)
    epochs: int = cli.arg("passes over the training set", 90)
    batch_size: int = cli.arg("images per update", 256)
    lr: float = cli.arg("peak learning rate", 1e-3)
    schedule: str = cli.arg("constant, cosine, half_steps, third_steps, imagenet_steps or one_cycle", "third_steps")
    optimizer: Literal["adam", "sgd"] = cli.arg("optimizer of the denoiser", "adam")
    weight_decay: float = cli.arg("l2 penalty", 1e-4)
    noise: Literal["sample", "batch"] = cli.arg("one noise sample per image, or one shared by a minibatch", "sample")
    augment: bool = cli.arg("random crops and flips", False)
    amp: bool = cli.arg("bfloat16 autocast (CUDA only)", False)
    denoiser: str | None = cli.arg("checkpoint of an earlier run, to start from its denoiser", None)
    seed: int = cli.arg("seed of everything random", 0)
    device: str = cli.arg("cpu, cuda, ...", "cpu")
    data_root: Path | None = cli.arg("folder of the data sets, by default $CERTIFY_DATA or ./data", None)
    resume: bool = cli.arg("continue from OUT/state.safetensors", False)


def main(args: Args) -> None:
    cli.check_device(args.device)
    scheme = spec.parse_scheme(args.scheme)
    description = load_checkpoint(args.classifier)[1]
    if not isinstance(description.model, ModelSpec):
        raise ValueError(f"{args.classifier}: already has a denoiser, expected a classifier of clean images")
    name = args.data or description.dataset
    data = load(name, "train", args.data_root)
    model = DenoisedSpec(args.model, scheme.channels(data.shape[0]), description.model)
    config = TrainingConfig(
        epochs=args.epochs,
        batch_size=args.batch_size,
        lr=args.lr,
        weight_decay=args.weight_decay,
        optimizer=args.optimizer,
        schedule=args.schedule,
        noise=args.noise,
        augment=args.augment,
        amp=args.amp,
        seed=args.seed,
        loss="denoiser_mse" if args.objective == "mse" else "denoiser_stability",
        denoiser=args.denoiser,
        classifier=args.classifier,
    )
    trainer = Trainer(data, scheme, model, config, args.out, device=args.device)
    train.run(trainer, resume=args.resume)
    test = load(name, "test", args.data_root)
    before, after = denoising_errors(trainer.denoised, scheme, test, seed=args.seed)
    print(f"mean squared error on the test images: {before:.5f} before denoising, {after:.5f} after")
    train.print_accuracy(trainer, test)


if __name__ == "__main__":
    cli.run(main, Args, "scripts.train_denoiser")
