"""Votes per second of the engine, relative to the best bare forward rate of the same model.

    python -m benchmarks.votes [--quick] [--only TEXT] [--copies 40000]

The reference is the model alone on ready-made float inputs, at its best batch size from 32 to 1,024. Once that size is
found, measurements of engine and reference alternate, and the median of the pairwise ratios is reported; absolute rates
depend on the machine. Sampled schemes run as in practice, with a fifth of their votes for the selection; schemes with
few copies run on several images. Every scheme of the project has a row. If a copy consists of several model inputs,
inputs are counted instead of votes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.measure import arguments, median_ratio
from certify import (
    BandAblation,
    BernoulliAblation,
    BlockAblation,
    DeterministicAblation,
    DeterministicSplittingNoise,
    DiscreteNoise,
    DoubleMasking,
    GaussianNoise,
    MultiBandAblation,
    MultiBlockAblation,
    RandomizedAblation,
    RandomizedBandAblation,
    RandomizedBlockAblation,
    RandomizedVariableLambda,
    Scheme,
    Smoothed,
    SmoothReduce,
    SplittingNoise,
    UniformNoise,
    VariableLambda,
    WassersteinNoise,
)
from certify.models import build

SCHEMES: tuple[tuple[str, Scheme], ...] = (
    ("DSSN, sigma = 1", DeterministicSplittingNoise.from_sigma(1.0)),
    ("deterministic ablation", DeterministicAblation(alpha=20)),
    ("Variable-Lambda, p = 1/2", VariableLambda(p=0.5, alpha=15)),
    ("random cells, p = 1/2", RandomizedVariableLambda(p=0.5, alpha=15, q=255)),
    ("column bands", BandAblation(width=2)),
    ("blocks", BlockAblation(size=6)),
    ("column bands at random", RandomizedBandAblation(width=2)),
    ("blocks at random", RandomizedBlockAblation(size=6)),
    ("double masking", DoubleMasking(5)),
    ("2 of 14 bands", MultiBandAblation(width=2, count=2)),
    ("2 of 49 blocks", MultiBlockAblation(size=4, count=2)),
    ("randomized ablation", RandomizedAblation(keep=45)),
    ("Bernoulli ablation", BernoulliAblation(keep=45)),
    ("discrete noise, kappa = 0.3", DiscreteNoise(kappa=0.3)),
    ("SSN (independent), sigma = 1", SplittingNoise.from_sigma(1.0, q=255)),
    ("uniform noise, sigma = 1", UniformNoise.from_sigma(1.0)),
    ("Gaussian noise, sigma = 1/4", GaussianNoise(0.25)),
    ("Gaussian noise, sigma = 1", GaussianNoise(1.0)),
    ("Gaussian noise, floating point", GaussianNoise(0.25, sound=False)),
    ("Smooth-Reduce, image", SmoothReduce(0.25, 28, resize=32, stride=4)),
    ("Smooth-Reduce, patches", SmoothReduce(0.25, 24, stride=4, noise="patch")),
    ("Smooth-Reduce, resized patches", SmoothReduce(0.25, 28, resize=32, stride=4, noise="patch")),
    ("Smooth-Reduce, at random", SmoothReduce(0.25, 28, resize=32, count=4, noise="patch", reduce="max")),
    ("Wasserstein, Laplace flows", WassersteinNoise(sigma=0.01)),
    ("Wasserstein, uniform flows", WassersteinNoise(sigma=0.01, noise="uniform")),
)
LARGE = ("DSSN, sigma = 1", "randomized ablation", "Gaussian noise, sigma = 1/4")  # also run on the large model
BATCH_SIZES = (32, 64, 128, 256, 512, 1024)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def bare_rate(model: nn.Module, shape: tuple[int, ...], batch_size: int, copies: int, device: str) -> float:
    x = torch.rand(batch_size, *shape, device=device)
    passes = max(1, copies // batch_size)
    with torch.inference_mode():
        return passes * batch_size / seconds(lambda: [model(x) for _ in range(passes)])


def compare(name: str, model: nn.Module, scheme: Scheme, image: tuple[int, int, int], copies: int, args) -> None:
    """Print the ratio for a model and a scheme."""
    model = model.eval().to(args.device)
    shape, inputs = scheme.input_shape(image), scheme.inputs_per_copy(image)
    copies //= inputs
    smoothed = Smoothed(model, scheme, 10, n0=copies // 5, n=copies - copies // 5)
    images = max(1, copies // smoothed.copies_per_image(image))
    x = torch.randint(0, 256, (images, *image), dtype=torch.uint8)
    classified = images * smoothed.copies_per_image(image) * inputs
    smoothed.votes(x)  # warm up, and fill the caches of tables
    rates = {}
    for batch_size in BATCH_SIZES:
        bare_rate(model, shape, batch_size, batch_size, args.device)
        rates[batch_size] = max(bare_rate(model, shape, batch_size, classified // 4, args.device) for _ in range(2))
    best = max(rates, key=lambda batch_size: rates[batch_size])
    bare, ours = [], []
    for _ in range(args.rounds):
        ours.append(classified / seconds(lambda: smoothed.votes(x)))
        bare.append(bare_rate(model, shape, best, classified, args.device))
    ratio = median_ratio(ours, bare)
    print(
        f"{name:<42} {ratio:.3f}   engine {statistics.median(ours):>9,.0f}/s (batches of "
        f"{smoothed.engine.batch_size}), bare {statistics.median(bare):>9,.0f}/s (batches of {best})",
        flush=True,
    )


def main() -> None:
    args = arguments(
        "votes",
        __doc__,
        rounds=(9, "measurements of each"),
        copies=(5_000, "inputs of the MNIST network per measurement; with few, a partly filled last batch matters"),
        device=("cpu", "device of models and copies"),
        quick=(False, "the MNIST network only"),
        only=("", "only the schemes with this text in their names"),
    )
    torch.manual_seed(0)
    print(
        f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads; ratio engine / best bare forward"
    )
    schemes = [(label, scheme) for label, scheme in SCHEMES if args.only.lower() in label.lower()]
    for label, scheme in schemes:
        channels, size, _ = scheme.input_shape((1, 28, 28))
        model = build("mnist_cnn", channels, 10, size)
        compare(f"MNIST CNN, {label}", model, scheme, (1, 28, 28), args.copies, args)
    if not args.quick:
        for label, scheme in schemes:
            if label not in LARGE:
                continue
            model = build("resnet18", scheme.channels(3), 10, 32)
            args.rounds = min(args.rounds, 3)
            compare(f"CIFAR ResNet-18, {label}", model, scheme, (3, 32, 32), 1024, args)


if __name__ == "__main__":
    main()
