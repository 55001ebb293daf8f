"""Speedup per model of training many partitions at once, over training them one after the other.

    python -m benchmarks.poisoning
    python -m benchmarks.poisoning --data mnist --models 1200 --measured 8 --learners network_in_network --steps 4

Setup time (order of samples, initial parameters) is removed by subtracting the times of two runs of different lengths.
On a CPU, processor time is measured, so that other load on the machine matters less; on a GPU, wall-clock time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from certify.data import load
from certify.poisoning import ContentHash, Ensemble, Network, Part


def seconds(ensemble: Ensemble, parts: list[Part], at_once: int, device: str) -> float:
    clock: Callable[[], float] = time.process_time if device == "cpu" else time.perf_counter
    started = clock()
    states = ensemble.fit(parts, at_once=at_once, device=device)
    sum(tensor.sum().item() for tensor in states[-1].values())  # synchronizes with a GPU
    return clock() - started


def per_step(ensemble: Ensemble, learner: Network, parts: list[Part], at_once: int, device: str) -> float:
    """Seconds per model and step."""
    short, long = (
        seconds(replace(ensemble, learner=replace(learner, steps=steps)), parts, at_once, device)
        for steps in (1, 1 + learner.steps)
    )
    return (long - short) / (learner.steps * len(parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--models", type=int, default=100, help="partitions of the training set")
    parser.add_argument("--measured", type=int, default=50, help="models to train, all of them at once")
    parser.add_argument("--learners", nargs="+", default=["linear", "small_cnn"])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    data = load(args.data, "train")
    assert isinstance(data.images, torch.Tensor)
    print(f"{args.data}, {args.models} partitions, {args.measured} models at once, batches of {args.batch_size}")
    for name in args.learners:
        learner = Network(name, steps=args.steps, batch_size=args.batch_size)
        ensemble = Ensemble(ContentHash(args.models), learner, data.num_classes)
        parts = ensemble.parts((data.images, data.labels))[: args.measured]
        for at_once in (1, args.measured):  # warm-up
            seconds(ensemble, parts, at_once, args.device)
        ratios, times = [], []
        for _ in range(args.rounds):
            one = per_step(ensemble, learner, parts, 1, args.device)
            many = per_step(ensemble, learner, parts, args.measured, args.device)
            ratios.append(one / many)
            times.append((one, many))
        one, many = (1e3 * statistics.median(values) for values in zip(*times, strict=True))
        print(
            f"{name}: {one:.3f} ms per model and step one by one, {many:.3f} ms stacked; ratio "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
