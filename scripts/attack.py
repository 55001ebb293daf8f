"""Attack a smoothed classifier on a data set to bound its robustness from above: one row per image, resumable.

    python -m scripts.attack runs/mnist-k45/attack --checkpoint runs/mnist-k45 --attack pointwise --skip 40 --n 1000
    python -m scripts.attack runs/s4/attack --checkpoint runs/s4 --vote "ThresholdVote(theta=0.3)" --attack patch
    python -m scripts.attack runs/clean/attack --checkpoint runs/clean --scheme "Undefended()" --attack linf --eps 2/255
    python -m scripts.attack runs/w/attack --checkpoint runs/w --attack wasserstein --skip 100 --n 10000

For sampled schemes, the prediction is that of ``Smoothed.predict`` with ``--n`` samples; a wrong class and an
abstention both count as success. ``magnitude`` is 0 if the classifier already fails on the clean image, and inf if the
attack never succeeds; otherwise it is the number of changed pixels (pointwise), 1 (patch), the smallest successful
``--eps`` (linf), or the cost of moving the mass (wasserstein). ``verified`` is the magnitude that independent samples
confirm. ``changes`` encodes the adversarial image as feature:value pairs of the features that differ; features are
numbered in channel, row, column order, and values are those of the data or, for gradient attacks (all but pointwise),
in [0, 1].
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from certify import SampledScheme, Smoothed
from certify.data import Dataset
from certify.draws import GENERATOR
from certify.images import to_float
from certify.results import ResultFolder, read_rows
from certify.training import Checkpoint
from certify.transport import GroundMetric
from scripts.parts import attacks, classifier_runs, cli


@dataclass
class Args(classifier_runs.Args):
    """Attack images of a data set; rows and configuration go to OUT."""

    n: int = cli.arg("samples per query (sampled schemes); the published attack takes 10,000", 1_000)
    attack: str = cli.arg("pointwise (l0), patch, linf or wasserstein", "pointwise")
    restarts: int | None = cli.arg("attempts per image; by default 10 (pointwise) or 80 (patch)", None)
    max_queries: int | None = cli.arg("pointwise: maximum number of queries per image, by default no limit", None)
    implementation: Literal["own", "foolbox"] | None = cli.arg("pointwise: implementation, by default own", None)
    patch: str | None = cli.arg("patch: side, or height x width, in pixels, such as 3x7; by default 5", None)
    eps: list[str] | None = cli.arg("linf: radii, ascending; by default 1/255 2/255 4/255 8/255", None)
    steps: int | None = cli.arg(
        "number of gradient steps; by default 150 (patch), 50 (linf, for each radius) or 200 (wasserstein)", None
    )
    step_size: str | None = cli.arg(
        "size of a gradient step; by default 0.05 (patch), 0.5/255 (linf) or 0.1 (wasserstein)", None
    )
    start: float | None = cli.arg("wasserstein: initial radius of the ball, by default 0.01", None)
    factor: float | None = cli.arg("wasserstein: growth factor of the ball's radius, by default 1.3", None)
    every: int | None = cli.arg("wasserstein: steps between two growths of the ball, by default 10", None)
    samples: int | None = cli.arg("wasserstein: copies for the gradient of a sampled scheme, by default 128", None)
    metric: GroundMetric | None = cli.arg(
        "wasserstein: ground metric between pixels, by default that of the certificate", None
    )


def options_of(args: Args) -> attacks.Options:
    """The options of the chosen attack."""
    given = {name: getattr(args, name) for name in attacks.OPTIONS}
    return attacks.options_of(args.attack, {name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class AttackRow:
    """One image's result; see :class:`~certify.attacks.attacked.Attacked`."""

    idx: int
    label: int
    clean: int
    predict: int
    magnitude: float
    verified: float
    queries: int
    time: float
    changes: str

    def line(self) -> str:
        numbers = (self.idx, self.label, self.clean, self.predict, repr(self.magnitude), repr(self.verified))
        return "\t".join((*map(str, numbers), str(self.queries), f"{self.time:.4f}", self.changes))


COLUMNS = tuple(field.name for field in fields(AttackRow))


def changes(image: Tensor, adversarial: Tensor) -> str:
    """The features that differ, as ``feature:value``; ``-`` if none does."""
    old = image if image.dtype == adversarial.dtype else to_float(image)
    values = adversarial.flatten().numpy()  # NumPy prints the shortest text that reads back as the same float32
    return " ".join(f"{i}:{values[i]}" for i in (old != adversarial).flatten().nonzero()[:, 0].tolist()) or "-"


def changed(image: Tensor, text: str, *, floats: bool) -> Tensor:
    """The adversarial image that the text of :func:`changes` describes.

    Args:
        floats: the values are floats in [0, 1], whatever the dtype of the image.
    """
    adversarial = (to_float(image) if floats else image).clone()
    for change in [] if text == "-" else text.split(" "):
        feature, value = change.split(":")
        adversarial.view(-1)[int(feature)] = float(value)
    return adversarial


def one_of_each_class(data: Dataset) -> Tensor:
    """The first image of each of the first ten classes: starting points where noise fails."""
    first = {label: i for i, label in reversed(list(enumerate(data.labels.tolist())))}
    return data.batch([first[label] for label in sorted(first)[:10]])[0]


def attack_step(
    smoothed: Smoothed, data: Dataset, index: list[int], fallback: Tensor, args: Args, on_queries: Callable[[int], None]
) -> list[AttackRow]:
    """Rows of a few images."""
    images, labels = data.batch(index)
    started = time.perf_counter()
    batch = attacks.Images(images, labels, torch.tensor(index), args.seed, fallback)
    result = attacks.ATTACKS[args.attack].run(smoothed, batch, options_of(args), on_queries)
    seconds = (time.perf_counter() - started) / len(index)
    return [
        AttackRow(
            idx=idx,
            label=int(labels[i]),
            clean=int(result.clean[i]),
            predict=int(result.prediction[i]),
            magnitude=float(result.magnitude[i]),
            verified=float(result.verified[i]),
            queries=int(result.queries[i]),
            time=seconds,
            changes=changes(images[i], result.adversarial[i]),
        )
        for i, idx in enumerate(index)
    ]


def configuration(args: Args, smoothed: Smoothed, checkpoint: Checkpoint, data: Dataset) -> dict[str, Any]:
    """The configuration of the run, and the attack."""
    sampled = isinstance(smoothed.scheme, SampledScheme)
    how = {"n": args.n, "alpha": args.alpha, "seed": args.seed, "generator": GENERATOR} if sampled else None
    config = classifier_runs.configuration(args, "scripts.attack", smoothed, checkpoint, data, how)
    return config | {"attack": {"name": args.attack, "seed": args.seed} | options_of(args)}


def main(args: Args) -> None:
    options = options_of(args)
    attack = attacks.ATTACKS[args.attack]
    attack.check(options, args.seed)
    smoothed, checkpoint, data = classifier_runs.build(args)
    if data.kind == "clip":
        raise ValueError(f"data: got {data.name}, a set of clips, expected images; there is no attack on clips yet")
    attack.check_classifier(smoothed, data.batch([0])[0].to(args.device))
    indices = classifier_runs.select(len(data), args)
    fallback = one_of_each_class(data)
    config = configuration(args, smoothed, checkpoint, data)
    with ResultFolder(args.out, classifier_runs.parse_shard(args.shard), columns=COLUMNS, votes=False) as folder:
        done = folder.start(config, resume=args.resume)
        left = [idx for idx in indices if idx not in done]
        # enough to fill several forward passes
        rows = max(4096, 4 * (smoothed.engine.batch_size or 0))
        step = args.images_per_step or max(1, rows // attack.copies(smoothed, data.shape, options))
        queries = 0
        with cli.progress() as bar:
            task = bar.add_task("attacking", total=len(indices), completed=len(indices) - len(left))

            def count(answered: int) -> None:
                nonlocal queries
                queries += answered
                bar.update(task, description=f"attacking, {queries} queries")

            for start in range(0, len(left), step):
                for row in attack_step(smoothed, data, left[start : start + step], fallback, args, count):
                    folder.append(row)
                    bar.advance(task)
    if indices:
        print(attack.summary(read_rows(args.out), options))
    print(f"wrote {folder.rows_path}, one line per image")


if __name__ == "__main__":
    cli.run(main, Args, "scripts.attack")
