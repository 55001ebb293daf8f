"""Time per image of top-k certificates, relative to a plain implementation.

    python -m benchmarks.topk

The size is that of ImageNet: d = 50,176 pixels of which e = 1,000 are kept, 1,000 classes, n = 100,000. The reference
implements Theorem 1 literally, for the true label alone, with exact fractions, trying every r from 0 upwards instead of
searching; it is given the confidence bounds, whose time does not count. Both must give the same radii.
"""

from __future__ import annotations

import math
import statistics
import time
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import arguments, median_ratio
from certify.confidence import lower_bound, upper_bound
from certify.topk import certify_counts

D, E, CLASSES, N, ALPHA = 50_176, 1_000, 1_000, 100_000, 0.001


def reference_radius(p_lower: Fraction, others: list[Fraction], k: int) -> int:
    """Theorem 1 of Jia et al. (2022), radius by radius."""
    total = math.comb(D, E)
    own = Fraction(math.ceil(p_lower * total), total)
    rivals = [Fraction(math.floor(p * total), total) for p in sorted(others)[-k:]]
    r = 0
    while True:
        delta = 1 - Fraction(math.comb(D - r, E), total)
        bounds = [(min(sum(rivals[:t], Fraction(0)), 1 - own) + delta) / t for t in range(1, k + 1)]
        if not own - delta > min(bounds):
            return r - 1
        r += 1


def votes(concentration: float, images: int) -> Tensor:
    """Votes of classifiers that spread them over few classes (small concentration) or over all."""
    generator = np.random.default_rng(0)
    shares = generator.dirichlet(np.full(CLASSES, concentration), images) * 0.4
    shares[:, 0] += 0.6
    return torch.from_numpy(np.stack([generator.multinomial(N, p) for p in shares]))


def compare(name: str, counts: Tensor, k: int, rounds: int) -> None:
    """Print the time for all labels, and its ratio to the time of the reference for label 0."""
    share = ALPHA / CLASSES
    lower, upper = lower_bound(counts, N, share), upper_bound(counts, N, share)
    bounds = [([Fraction(p) for p in upper[b, 1:].tolist()], Fraction(lower[b, 0].item())) for b in range(len(counts))]
    certify_counts(counts[:1], k, D, E, ALPHA, n=N)  # warm-up, which computes the binomial coefficients
    ours, plain, expected = [], [], []
    for _ in range(rounds):
        started = time.perf_counter()
        radius = certify_counts(counts, k, D, E, ALPHA, n=N).radius[:, 0].tolist()
        ours.append((time.perf_counter() - started) / len(counts))
        started = time.perf_counter()
        expected = [reference_radius(own, others, k) for others, own in bounds]
        plain.append((time.perf_counter() - started) / len(counts))
        if radius != expected:
            raise AssertionError(f"got radii {radius}, expected {expected}")
    ratio = median_ratio(ours, plain)
    labels = (counts > 0).sum(1).double().mean().item()
    print(
        f"{name:<22} k = {k}   {ratio:.3f}   all labels {statistics.median(ours) * 1e3:6.2f} ms per image, reference, "
        f"one label: {statistics.median(plain) * 1e3:6.1f} ms   ({labels:.0f} labels with votes, radius {expected[0]})",
        flush=True,
    )


def main() -> None:
    args = arguments("topk", __doc__, images=(4, "images to certify"), rounds=(3, "measurements of each"))
    print(f"d = {D}, e = {E}, {CLASSES} classes; ratio of time to linear search with fractions")
    for name, concentration in (("votes for few labels", 0.02), ("votes for all labels", 5.0)):
        for k in (1, 3, 5):
            compare(name, votes(concentration, args.images), k, args.rounds)


if __name__ == "__main__":
    main()
