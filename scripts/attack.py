"""Attack a smoothed classifier on a data set, for an upper bound on its robustness: one row per image, resumable.

    python -m scripts.attack runs/mnist-k45/attack --checkpoint runs/mnist-k45 --attack pointwise --skip 40 --n 1000
    python -m scripts.attack runs/s4/attack --checkpoint runs/s4 --vote "ThresholdVote(theta=0.3)" --attack patch
    python -m scripts.attack runs/clean/attack --checkpoint runs/clean --scheme "Undefended()" --attack linf --eps 2/255
    python -m scripts.attack runs/w/attack --checkpoint runs/w --attack wasserstein --skip 100 --n 10000

Of sampled schemes a prediction is what ``Smoothed.predict`` returns with ``--n`` samples; a wrong class and an
abstention both count as success. ``magnitude`` is 0 where that is so without an attack, and inf where the attack never
succeeded; else the number of changed pixels (pointwise), 1 for a patch, the least of ``--eps``, or the cost of moving
the mass (wasserstein). ``verified`` is the magnitude that independent samples confirm. ``changes`` holds the
adversarial image: the features that differ, as feature:value, features numbered through channels, rows and columns,
values as in the data or, of the gradient attacks (all but pointwise), in [0, 1].
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from certify import Smoothed, metrics
from certify.attacks import Attacked, linf_attack, patch_attack, pointwise_attack, wasserstein_attack
from certify.attacks.gradient import check_differentiable
from certify.attacks.linf import check_linf_options
from certify.attacks.patch import check_patch_options, copies_reached
from certify.attacks.pointwise import check_options
from certify.attacks.wasserstein import Growth, check_attackable
from certify.data import Dataset
from certify.images import Shape, to_float
from certify.results import ResultFolder, read_rows
from certify.training import Checkpoint
from certify.transport import GroundMetric
from scripts import classifier_runs, cli
from scripts.patches import parse_size


@dataclass
class Args(classifier_runs.Args):
    """Attack images of a data set; rows and configuration go to OUT."""

    n: int = cli.arg("samples per query (sampled schemes); the published attack takes 10,000", 1_000)
    attack: str = cli.arg("pointwise (l0), patch, linf or wasserstein", "pointwise")
    restarts: int | None = cli.arg("attempts per image; by default 10 (pointwise) or 80 (patch)", None)
    max_queries: int | None = cli.arg("pointwise: most queries per image, by default until it ends by itself", None)
    implementation: Literal["own", "foolbox"] | None = cli.arg("pointwise: whose, by default own", None)
    patch: str | None = cli.arg("patch: side, or height x width, in pixels, such as 3x7; by default 5", None)
    eps: list[str] | None = cli.arg("linf: radii, ascending; by default 1/255 2/255 4/255 8/255", None)
    steps: int | None = cli.arg("by default 150 (patch), 50 (linf, for each radius) or 200 (wasserstein)", None)
    step_size: str | None = cli.arg("by default 0.05 (patch), 0.5/255 (linf) or 0.1 (wasserstein)", None)
    start: float | None = cli.arg("wasserstein: first radius of the ball, by default 0.01", None)
    factor: float | None = cli.arg("wasserstein: the ball grows by it, by default 1.3", None)
    every: int | None = cli.arg("wasserstein: .. after so many steps, by default 10", None)
    samples: int | None = cli.arg("wasserstein: copies for the gradient of a sampled scheme, by default 128", None)
    metric: GroundMetric | None = cli.arg("wasserstein: between pixels, by default that of the certificate", None)


Options = dict[str, Any]  # of one attack, as on the command line
Rows = dict[str, np.ndarray]


@dataclass(frozen=True)
class Images:
    """What an attack of :data:`ATTACKS` works on."""

    images: Tensor
    labels: Tensor
    index: Tensor
    seed: int
    fallback: Tensor  # images of several classes


@dataclass(frozen=True)
class Attack:
    """One attack as the command line knows it.

    Attributes:
        defaults: its options, all that its results depend on beside the seed, with their published values.
        run: attacks a few images and tells how many queries were answered.
        check: raises unless options and seed are legal; called before any work.
        check_classifier: raises unless it can attack this classifier on these images.
        copies: how many copies of an image of this shape are classified side by side.
        summary: what the rows say of the classifier, in one paragraph.
    """

    defaults: Options
    run: Callable[[Smoothed, Images, Options, Callable[[int], None]], Attacked]
    check: Callable[[Options, int], Any]
    check_classifier: Callable[[Smoothed, Tensor], None]
    copies: Callable[[Smoothed, Shape, Options], int]
    summary: Callable[[Rows, Options], str]


def number(text: str) -> float:
    """``"0.05"`` or ``"0.5/255"``."""
    try:
        above, _, below = text.partition("/")
        return float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"got {text!r}, expected a number such as 0.05 or 0.5/255") from error


def pointwise(smoothed: Smoothed, batch: Images, options: Options, on_queries: Callable[[int], None]) -> Attacked:
    return pointwise_attack(
        smoothed,
        batch.images,
        batch.labels,
        seed=batch.seed,
        index=batch.index,
        fallback=batch.fallback,
        on_queries=on_queries,
        **options,
    )


def median_summary(rows: Rows, options: Options) -> str:
    magnitude, verified = rows["magnitude"], rows["verified"]
    wrong, kept = int((magnitude == 0).sum()), int(np.isinf(magnitude).sum())
    return (
        f"{len(magnitude)} images: median attack magnitude {metrics.median_attack_magnitude(magnitude):g}, "
        f"{metrics.median_attack_magnitude(verified):g} by fresh samples; {wrong} wrong or abstained from before the "
        f"attack, {kept} never broken; {rows['queries'].mean():.0f} queries per image"
    )


def patch_options(options: Options) -> Options:
    return {
        "patch_size": parse_size(options["patch"]),
        "restarts": options["restarts"],
        "steps": options["steps"],
        "step_size": number(options["step_size"]),
    }


def patch(smoothed: Smoothed, batch: Images, options: Options, on_queries: Callable[[int], None]) -> Attacked:
    return patch_attack(
        smoothed,
        batch.images,
        batch.labels,
        seed=batch.seed,
        index=batch.index,
        on_queries=on_queries,
        **patch_options(options),
    )


def linf_options(options: Options) -> Options:
    return {
        "eps": [number(text) for text in options["eps"]],
        "steps": options["steps"],
        "step_size": number(options["step_size"]),
    }


def linf(smoothed: Smoothed, batch: Images, options: Options, on_queries: Callable[[int], None]) -> Attacked:
    return linf_attack(
        smoothed, batch.images, batch.labels, index=batch.index, on_queries=on_queries, **linf_options(options)
    )


def growth_of(options: Options) -> Growth:
    chosen = {name: options[name] for name in ("steps", "start", "factor", "every", "samples")}
    return Growth(step_size=number(options["step_size"]), **chosen)


def wasserstein(smoothed: Smoothed, batch: Images, options: Options, on_queries: Callable[[int], None]) -> Attacked:
    return wasserstein_attack(
        smoothed,
        batch.images,
        batch.labels,
        growth=growth_of(options),
        metric=options["metric"],
        seed=batch.seed,
        index=batch.index,
        on_queries=on_queries,
    )


def accuracy_summary(rows: Rows, under: dict[str, float]) -> str:
    """Empirical accuracy: the share of images that no attack up to a magnitude broke."""
    magnitude = rows["magnitude"]
    shares = {"without": 0.0} | under
    text = ", ".join(f"{name} {(magnitude > limit).mean():.2%}" for name, limit in shares.items())
    return f"{len(magnitude)} images, accuracy under attack: {text}; {rows['queries'].mean():.0f} queries per image"


ATTACKS: dict[str, Attack] = {
    "pointwise": Attack(
        defaults={"restarts": 10, "max_queries": None, "implementation": "own"},
        run=pointwise,
        check=lambda options, seed: check_options(seed=seed, **options),
        check_classifier=lambda smoothed, images: None,
        copies=lambda smoothed, shape, options: options["restarts"] * smoothed.copies_per_image(shape),
        summary=median_summary,
    ),
    "patch": Attack(
        defaults={"patch": "5", "restarts": 80, "steps": 150, "step_size": "0.05"},
        run=patch,
        check=lambda options, seed: check_patch_options(seed=seed, **patch_options(options)),
        check_classifier=lambda smoothed, images: check_differentiable(smoothed, to_float(images)),
        copies=lambda smoothed, shape, options: (
            options["restarts"] * copies_reached(smoothed, shape, parse_size(options["patch"]))
        ),
        summary=lambda rows, options: accuracy_summary(rows, {f"patch {options['patch']}": 1.0}),
    ),
    "linf": Attack(
        defaults={"eps": ["1/255", "2/255", "4/255", "8/255"], "steps": 50, "step_size": "0.5/255"},
        run=linf,
        check=lambda options, seed: check_linf_options(**linf_options(options)),
        check_classifier=lambda smoothed, images: check_differentiable(smoothed, to_float(images)),
        copies=lambda smoothed, shape, options: smoothed.copies_per_image(shape),
        summary=lambda rows, options: accuracy_summary(rows, {text: number(text) for text in options["eps"]}),
    ),
    "wasserstein": Attack(
        defaults={
            "steps": 200,
            "step_size": "0.1",
            "start": 0.01,
            "factor": 1.3,
            "every": 10,
            "samples": 128,
            "metric": None,
        },
        run=wasserstein,
        check=lambda options, seed: growth_of(options),
        check_classifier=lambda smoothed, images: check_attackable(smoothed, to_float(images)),
        copies=lambda smoothed, shape, options: smoothed.copies_per_image(shape),
        summary=median_summary,
    ),
}
OPTIONS = sorted({name for attack in ATTACKS.values() for name in attack.defaults})


def options_of(args: Args) -> Options:
    """The options of the attack that was asked for, published values for those that were not given."""
    if args.attack not in ATTACKS:
        raise ValueError(f"attack: got {args.attack!r}, expected one of {', '.join(ATTACKS)}")
    defaults = ATTACKS[args.attack].defaults
    given = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
    for name in given.keys() - defaults.keys():
        raise ValueError(
            f"{name.replace('_', '-')}: is no option of the {args.attack} attack, which has {', '.join(defaults)}"
        )
    return defaults | given


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
    values = adversarial.flatten().numpy()  # as text, a float32 is as short as it can be read back
    return " ".join(f"{i}:{values[i]}" for i in (old != adversarial).flatten().nonzero()[:, 0].tolist()) or "-"


def one_of_each_class(data: Dataset) -> Tensor:
    """The first image of each of the first ten classes: starting points where noise does not do."""
    first = {label: i for i, label in reversed(list(enumerate(data.labels.tolist())))}
    return data.batch([first[label] for label in sorted(first)[:10]])[0]


def attack_step(
    smoothed: Smoothed, data: Dataset, index: list[int], fallback: Tensor, args: Args, on_queries: Callable[[int], None]
) -> list[AttackRow]:
    """Rows of a few images."""
    images, labels = data.batch(index)
    started = time.perf_counter()
    batch = Images(images, labels, torch.tensor(index), args.seed, fallback)
    result = ATTACKS[args.attack].run(smoothed, batch, options_of(args), on_queries)
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
    sampling = {"n": args.n, "alpha": args.alpha, "seed": args.seed}
    config = classifier_runs.configuration(args, "scripts.attack", smoothed, checkpoint, data, sampling)
    return config | {"attack": {"name": args.attack, "seed": args.seed} | options_of(args)}


def main(args: Args) -> None:
    options = options_of(args)
    attack = ATTACKS[args.attack]
    attack.check(options, args.seed)
    smoothed, checkpoint, data = classifier_runs.build(args)
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
    print(f"one line per image in {folder.rows_path}")


if __name__ == "__main__":
    cli.run(main, Args, "scripts.attack")
