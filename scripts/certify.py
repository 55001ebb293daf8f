"""Certify a trained base classifier on a data set: one row per image, resumable, shardable.

    python -m scripts.certify runs/mnist-k45/test --checkpoint runs/mnist-k45 --skip 20
    python -m scripts.report runs/mnist-k45/test

With ``--at RADIUS`` or ``--within FACTOR``, sampled schemes take only as many samples as it needs to say whether an
image is certified at that radius, or what its radius is to within that factor (at most ``--max-n``).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from certify import Certified, SampledScheme, Smoothed, Unproven, Votes
from certify.data import Dataset
from certify.results import ResultFolder, Row, row_columns, votes_line
from certify.scheme import check_integer
from certify.sequential import CertifiedAt, Question, RadiusWithin
from certify.training import Checkpoint
from scripts import classifier_runs, cli


@dataclass
class Args(classifier_runs.Args):
    """Certify images of a data set with a smoothed classifier; rows, votes and configuration go to OUT."""

    n: int = cli.arg("fresh samples that bound its probability (sampled schemes)", 10_000)
    n0: int = cli.arg("samples that select the class (sampled schemes)", 1_000)
    at: float | None = cli.arg("sample only until it is settled whether an image is certified at this radius", None)
    within: float | None = cli.arg("sample only until the radius is known to within this factor", None)
    max_n: int = cli.arg("most estimation samples per image with --at or --within", 100_000)
    bounds: Literal["one-sided", "simultaneous"] = cli.arg("which probabilities to bound", "one-sided")
    interval: Literal["clopper-pearson", "randomized"] = cli.arg("how to bound them", "clopper-pearson")


def question(args: Args) -> CertifiedAt | RadiusWithin | None:
    """What to sample for, if not a fixed number of samples."""
    if args.at is not None and args.within is not None:
        raise ValueError("at, within: got both, expected at most one question")
    if args.at is not None:
        return CertifiedAt(args.at)
    return None if args.within is None else RadiusWithin(args.within)


def sampling(args: Args) -> dict[str, Any]:
    """How the votes of a sampled scheme come about."""
    asked = question(args)
    shared = {"n0": args.n0, "alpha": args.alpha, "seed": args.seed}
    if asked is not None:
        return shared | {"until": repr(asked), "max_n": args.max_n}
    return shared | {"n": args.n, "bounds": args.bounds, "interval": args.interval}


def build(args: Args) -> tuple[Smoothed, Checkpoint, Dataset]:
    """The smoothed classifier and the data, checked against each other before any work starts."""
    check_integer("max-n", args.max_n, 1, 10**9)
    if question(args) is not None and (args.bounds, args.interval) != ("one-sided", "clopper-pearson"):
        raise ValueError("bounds, interval: are for a fixed number of samples, not for --at or --within")
    smoothed, checkpoint, data = classifier_runs.build(args, n0=args.n0, bounds=args.bounds, interval=args.interval)
    if question(args) is not None and not isinstance(smoothed.scheme, SampledScheme):
        raise ValueError(f"at, within: {type(smoothed.scheme).__name__} is exact, there is nothing to sample")
    return smoothed, checkpoint, data


def finished(
    index: list[int], labels: Tensor, result: Certified, clean: Tensor, votes: list[Votes], n0: int, seconds: float
) -> list[tuple[Row, str]]:
    """Rows and stored votes of a few images.

    Args:
        votes: those of each image alone.
        seconds: for all of them.
    """
    rows = []
    for i, (idx, label, own) in enumerate(zip(index, labels.tolist(), votes, strict=True)):
        predict = int(result.prediction[i])
        row = Row(
            idx=idx,
            label=label,
            predict=predict,
            radius=float(result.radius[i]),
            correct=int(predict == label),
            time=seconds / len(index),
            clean=int(clean[i]),
            p_lower=float("nan") if result.p_lower is None else float(result.p_lower[i]),
            label_share=int(own.counts[0, label]) / own.n,
        )
        rows.append((row, votes_line(idx, label, own, 0, n0)))
    return rows


def certify_step(smoothed: Smoothed, data: Dataset, index: list[int]) -> list[tuple[Row, str]]:
    """Certify a few images from a fixed number of copies."""
    images, labels = data.batch(index)
    started = time.perf_counter()
    votes = smoothed.votes(images, index=torch.tensor(index))
    result, clean = smoothed.certificate(votes), smoothed.prediction(votes)
    seconds = time.perf_counter() - started
    return finished(index, labels, result, clean, votes.each(), smoothed.n0, seconds)


def sequential_step(
    smoothed: Smoothed, data: Dataset, index: list[int], *, asked: Question, max_n: int
) -> list[tuple[Row, str]]:
    """Certify a few images, sampling until ``asked`` is settled for each."""
    images, labels = data.batch(index)
    items = torch.tensor(index)
    started = time.perf_counter()
    result = smoothed.certify_until(images, asked, max_n=max_n, index=items)
    seconds = time.perf_counter() - started
    votes = [result.votes_of(i, items, data.shape) for i in range(len(index))]
    return finished(index, labels, result, result.prediction, votes, smoothed.n0, seconds)


def main(args: Args) -> None:
    smoothed, checkpoint, data = build(args)
    indices = classifier_runs.select(len(data), args)
    config = classifier_runs.configuration(args, "scripts.certify", smoothed, checkpoint, data, sampling(args))
    by_copy = getattr(smoothed.scheme, "positional", False)
    columns = row_columns(guaranteed=not isinstance(smoothed.scheme.threat, Unproven))
    with ResultFolder(args.out, classifier_runs.parse_shard(args.shard), columns=columns, by_copy=by_copy) as folder:
        done = folder.start(config, resume=args.resume)
        left = [idx for idx in indices if idx not in done]
        asked = question(args)
        copies = smoothed.copies_per_image(data.shape) if asked is None else smoothed.n0
        work = certify_step if asked is None else partial(sequential_step, asked=asked, max_n=args.max_n)
        step = args.images_per_step or max(1, 4096 // copies)
        right = 0
        with cli.progress() as bar:
            task = bar.add_task("certifying", total=len(indices), completed=len(indices) - len(left))
            for start in range(0, len(left), step):
                for row, votes in work(smoothed, data, left[start : start + step]):
                    folder.append(row, votes)
                    right += row.correct
                    bar.advance(task)
                seen = min(start + step, len(left))
                bar.update(task, description=f"certifying, {right / seen:.1%} right")
    print(
        f"{len(indices)} images in {folder.rows_path}; 'python -m scripts.report {args.out}' makes the table and plot"
    )


if __name__ == "__main__":
    cli.run(main, Args, "scripts.certify")
