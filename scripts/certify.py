"""Certify a trained base classifier on a data set: one row per image, resumable, shardable.

    python -m scripts.certify runs/mnist-k45/test --checkpoint runs/mnist-k45 --skip 20
    python -m scripts.report runs/mnist-k45/test

With ``--at RADIUS`` or ``--within FACTOR``, sampled schemes take only as many samples (at most ``--max-n``) as they
need to decide whether an image is certified at that radius, or to determine its radius to within that factor.
"""

from __future__ import annotations

import shlex
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

from rich.progress import Progress

from certify import SampledScheme, Smoothed, evaluation
from certify.checks import check_integer
from certify.data import Dataset
from certify.results import Row
from certify.sequential import CertifiedAt, RadiusWithin
from certify.training import Checkpoint
from scripts.parts import classifier_runs, cli


@dataclass
class Args(classifier_runs.Args):
    """Certify images of a data set with a smoothed classifier; rows, votes and configuration go to OUT."""

    n: int = cli.arg("fresh samples that bound the class probability (sampled schemes)", 10_000)
    n0: int = cli.arg("samples that select the class (sampled schemes)", 1_000)
    at: float | None = cli.arg("sample only until it is decided whether an image is certified at this radius", None)
    within: float | None = cli.arg("sample only until the radius is known to within this factor", None)
    max_n: int = cli.arg("maximum number of estimation samples per image with --at or --within", 100_000)
    bounds: Literal["one-sided", "simultaneous"] = cli.arg("which class probabilities to bound", "one-sided")
    interval: Literal["clopper-pearson", "randomized"] = cli.arg("confidence interval", "clopper-pearson")


def question(args: Args) -> CertifiedAt | RadiusWithin | None:
    """The question that sequential sampling answers; None for a fixed number of samples."""
    if args.at is not None and args.within is not None:
        raise ValueError("at, within: got both, expected at most one question")
    if args.at is not None:
        return CertifiedAt(args.at)
    return None if args.within is None else RadiusWithin(args.within)


def build(args: Args) -> tuple[Smoothed, Checkpoint, Dataset]:
    """The smoothed classifier and the data, checked against each other before any work starts."""
    check_integer("max-n", args.max_n, 1, 10**9)
    if question(args) is not None and (args.bounds, args.interval) != ("one-sided", "clopper-pearson"):
        raise ValueError("bounds, interval: apply to a fixed number of samples only; leave them out, or --at, --within")
    if question(args) is not None and args.n != Args.n:
        raise ValueError(f"n: got {args.n} with --at or --within, whose limit is --max-n; leave one of them out")
    if question(args) is None and args.max_n != Args.max_n:
        raise ValueError(f"max-n: got {args.max_n} without --at or --within; for a fixed number of samples, use --n")
    smoothed, checkpoint, data = classifier_runs.build(args, n0=args.n0, bounds=args.bounds, interval=args.interval)
    if question(args) is not None and not isinstance(smoothed.scheme, SampledScheme):
        raise ValueError(f"at, within: {type(smoothed.scheme).__name__} is exact and samples nothing; leave them out")
    return smoothed, checkpoint, data


class Shown:
    """What the progress bar says: images and parts of images, and the accuracy so far.

    Args:
        per_image: number of copies of each image; None if it is not known beforehand.
    """

    def __init__(self, bar: Progress, images: int, per_image: int | None) -> None:
        self.bar, self.per_image = bar, per_image
        self.task = bar.add_task("certifying", total=images)
        self.before = self.seen = self.correct = self.copies = 0

    def on_start(self, done: int) -> None:
        self.before = done
        self._update()

    def on_image(self, row: Row) -> None:
        self.seen, self.correct = self.seen + 1, self.correct + row.correct
        self.copies = max(0, self.copies - (self.per_image or self.copies))
        which = " of the new images" if self.before else ""
        self.bar.update(self.task, description=f"certifying, {self.correct / self.seen:.1%}{which} correct")
        self._update()

    def on_copies(self, count: int) -> None:
        self.copies += count
        self._update()

    def _update(self) -> None:
        part = 0 if self.per_image is None else self.copies / self.per_image
        self.bar.update(self.task, completed=self.before + self.seen + part)


def main(args: Args) -> None:
    smoothed, checkpoint, data = build(args)
    indices = classifier_runs.select(len(data), args)
    asked = question(args)
    how = evaluation.sampling(smoothed, asked, args.max_n)
    config = classifier_runs.configuration(args, "scripts.certify", smoothed, checkpoint, data, how)
    per_image = None if asked is not None else smoothed.copies_per_image(data.shape)
    bar = cli.progress()
    shown = Shown(bar, len(indices), per_image)
    with ExitStack() as stack:

        def on_start(done: int) -> None:  # only here, so that no bar precedes the message of a run that is refused
            stack.enter_context(bar)
            shown.on_start(done)

        path = evaluation.certify_dataset(
            smoothed,
            data,
            args.out,
            index=classifier_runs.chosen(len(data), args.skip, args.max),
            resume=args.resume,
            shard=classifier_runs.parse_shard(args.shard),
            question=asked,
            max_n=args.max_n,
            images_per_step=args.images_per_step,
            config=config,
            on_start=on_start,
            on_image=shown.on_image,
            on_copies=shown.on_copies,
        )
    images = "1 image" if len(indices) == 1 else f"{len(indices)} images"
    print(
        f"wrote {path}, {images}; for a table and a plot, run 'python -m scripts.report {shlex.quote(str(args.out))}'"
    )


if __name__ == "__main__":
    cli.run(main, Args, "scripts.certify")
