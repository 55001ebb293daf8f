"""Time of patch certificates at the papers' sizes, relative to a plain implementation.

    python -m benchmarks.patch

10,000 images of 32 x 32 pixels, 10 classes, threshold votes and one 5 x 5 patch, with 32 column bands and with 1,024
blocks. The reference is a literal NumPy implementation of the definition, run on a few of the images: for each location
of the patch, it removes the copies whose retained part meets the patch and counts the remaining votes. Ratios are of
times per image; both must give the same certificates.

Two more rows have 1,000 classes, where copies vote for 60 of them or for all; their reference computes the same sums
over locations for all classes.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.measure import arguments, median_ratio, seconds_in_turn
from certify import BandAblation, BlockAblation
from certify.patch import StructuredAblation, votes_needed

SHAPE, CLASSES, PATCH = (3, 32, 32), 10, 5


def random_votes(images: int, positions: int) -> Tensor:
    """Votes in which a favoured class leads by margins from small to large."""
    generator = torch.Generator().manual_seed(0)
    strength = torch.rand(images, 1, 1, generator=generator)
    votes = torch.rand(images, positions, CLASSES, generator=generator) < 0.1
    votes[..., 3:4] |= torch.rand(images, positions, 1, generator=generator) < strength
    return votes


def reference(votes: NDArray[np.bool_], kept: NDArray[np.bool_]) -> list[bool]:
    """Whether each image is certified, checked location by location.

    Args:
        votes: ``[images, positions, classes]``.
        kept: ``[positions, H, W]``, the pixels that each copy retains.
    """
    certified = []
    for image in votes:
        counts = image.sum(0)
        c = int(counts.argmax())
        held = True
        for top in range(SHAPE[1] - PATCH + 1):
            for left in range(SHAPE[2] - PATCH + 1):
                risk = kept[:, top : top + PATCH, left : left + PATCH].any((1, 2))
                safe = image[~risk].sum(0)
                worst = max(safe[other] + (other < c) for other in range(CLASSES) if other != c)
                held &= bool(safe[c] >= worst + risk.sum())
        certified.append(held)
    return certified


def compare(name: str, scheme: StructuredAblation, images: int, subset: int, rounds: int) -> None:
    positions = scheme.num_copies(SHAPE)
    votes = random_votes(images, positions)
    kept = scheme.masks(SHAPE, torch.arange(positions)).numpy()
    scheme.certify_votes(votes[:10], PATCH, shape=SHAPE)
    ours, plain, published, expected = [], [], [], []
    for _ in range(rounds):
        started = time.perf_counter()
        result = scheme.certify_votes(votes, PATCH, shape=SHAPE)
        ours.append(time.perf_counter() - started)
        started = time.perf_counter()
        scheme.certify_votes(votes, PATCH, shape=SHAPE, bound="published")
        published.append(time.perf_counter() - started)
        started = time.perf_counter()
        expected = reference(votes[:subset].numpy(), kept)
        plain.append((time.perf_counter() - started) / subset * images)
        if result.certified[:subset].tolist() != expected:
            raise AssertionError("certificates: got others than those of the reference")
    ratio = median_ratio(ours, plain)
    print(
        f"{name:<26} {ratio:.5f}   {images} images: location {statistics.median(ours):.3f} s, published "
        f"{statistics.median(published):.3f} s, reference {statistics.median(plain):.0f} s (from {subset} images, "
        f"{sum(expected)} certified)",
        flush=True,
    )


def compare_classes(voted: int, rounds: int, classes: int = 1_000) -> None:
    """Print the time of examining only the classes that matter, relative to examining all of them."""
    scheme, shape, patch = BlockAblation(16), (3, 48, 48), (7, 7)
    generator, positions = torch.Generator().manual_seed(0), scheme.num_copies((3, 48, 48))
    others = torch.randperm(classes, generator=generator)[:voted][
        torch.randint(voted, (2, positions), generator=generator)
    ]
    strong = torch.rand(2, positions, generator=generator) < torch.tensor([[0.4], [0.8]])
    votes = torch.nn.functional.one_hot(torch.where(strong, 7, others), classes).bool()

    def all_classes() -> Tensor:
        outside, touched = scheme.outside(votes, shape, patch)
        return (votes_needed(outside, votes.sum(1).argmax(1)).amin(1) > touched).all(1)

    works = {"ours": lambda: scheme.certify_votes(votes, patch, shape=shape).certified, "all": all_classes}
    if not torch.equal(works["ours"](), works["all"]()):
        raise AssertionError("certificates: got others than from all classes")
    times = seconds_in_turn(works, rounds)
    print(
        f"votes for {voted:>5} of {classes} {median_ratio(times['ours'], times['all']):.5f}   2,304 blocks, 2 images: "
        f"ours {statistics.median(times['ours']):.3f} s, all classes {statistics.median(times['all']):.3f} s",
        flush=True,
    )


def main() -> None:
    args = arguments("patch", __doc__, images=(10_000, "images to certify"), rounds=(3, "measurements of each"))
    print(f"{torch.get_num_threads()} threads; ratio of time to the definition in NumPy, location by location")
    compare("32 column bands, s = 4", BandAblation(4), args.images, 100, args.rounds)
    compare("1,024 blocks, s = 12", BlockAblation(12), args.images, 5, args.rounds)
    print("ratio of time to examining all classes")
    for voted in (60, 1_000):
        compare_classes(voted, args.rounds)


if __name__ == "__main__":
    main()
