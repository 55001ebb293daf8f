"""Time of simultaneous confidence bounds for many classes, relative to bounding every class.

    python -m benchmarks.bounds

1,000 classes, with n = 1,000 and n = 100,000. Only the largest of the randomized upper bounds matters; the reference
computes those of all classes and takes the maximum. Both must give the same bounds.
"""

from __future__ import annotations

import statistics

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import arguments, median_ratio, seconds_in_turn
from certify.confidence import lower_bound, simultaneous_bounds, upper_bound

CLASSES, ALPHA = 1_000, 0.001


def votes(n: int, concentration: float, images: int) -> Tensor:
    """Votes of classifiers that spread them over few classes (small concentration) or over all."""
    generator = np.random.default_rng(0)
    shares = generator.dirichlet(np.full(CLASSES, concentration), images)
    return torch.from_numpy(np.stack([generator.multinomial(n, p) for p in shares]))


def compare(name: str, n: int, concentration: float, images: int, rounds: int) -> None:
    counts = votes(n, concentration, images)
    selected = counts.argmax(1)
    uniforms = 1 - torch.rand(counts.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def every() -> tuple[Tensor, Tensor]:
        low = lower_bound(counts.amax(1), n, ALPHA / CLASSES, uniforms=uniforms.gather(1, selected[:, None])[:, 0])
        high = upper_bound(counts, n, ALPHA / CLASSES, uniforms=uniforms)
        return low, high.scatter(1, selected[:, None], 0).amax(1)

    def ours() -> tuple[Tensor, Tensor]:
        return simultaneous_bounds(counts, selected, n, ALPHA, uniforms=uniforms)

    if not all(torch.equal(a, b) for a, b in zip(ours(), every(), strict=True)):
        raise AssertionError("bounds: got other bounds than by bounding every class")
    times = seconds_in_turn({"ours": ours, "every": every}, rounds)
    print(
        f"{name:<22} n = {n:>7,}   {median_ratio(times['ours'], times['every']):.4f}   {images} images: ours "
        f"{statistics.median(times['ours']):.3f} s, every class {statistics.median(times['every']):.3f} s",
        flush=True,
    )


def main() -> None:
    args = arguments("bounds", __doc__, images=(50, "images to certify"), rounds=(3, "measurements of each"))
    print(f"{CLASSES} classes; ratio of time to randomized bounds of every class")
    for n in (1_000, 100_000):
        for name, concentration in (("votes for few classes", 0.02), ("votes for all classes", 5.0)):
            compare(name, n, concentration, args.images, args.rounds)


if __name__ == "__main__":
    main()
