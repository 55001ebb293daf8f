"""Attack training data for real, with growing budgets, against one model and against an ensemble on partitions.

    python -m scripts.poisoning_attack runs/attack --attack insert --sizes 0 2 5 10 20 --max 20
    python -m scripts.poisoning_attack runs/flips --attack flip --partition "SortedIndex(50)" --sizes 0 5 10 20

Every test image is attacked separately, and all models are retrained on each poisoned training set. ``insert`` adds
copies of the image with a few changed pixels and a wrong label; ``flip`` gives that label to the nearest training
samples of the image's class. The wrong label is the runner-up of the votes. The attack first measures, for each
partition, how much poison changes its model's vote, and then spends its budget where it changes the most votes: a
little in many partitions, or much in a few. It knows everything; still, it must never change a certified prediction:
if it does, the script stops with an error. An image counts as broken from the smallest size that breaks it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from certify.attacks.poisoning import amounts_up_to, best_plan, near_copies, nearest_in_parts
from certify.data import load
from certify.files import check_writable, write_atomically
from certify.poisoning import ContentHash, Ensemble, TrainingLabels, TrainingSamples, count_votes
from certify.poisoning.job import read_ensemble
from certify.scheme import Certified
from certify.threats import TrainingSet
from scripts.parts import cli, figures, poisoning_inputs
from scripts.parts.tables import percent


@dataclass
class Args:
    """Attack an ensemble on partitions, and the same learner trained on all data; curves and numbers go to OUT."""

    out: Path = cli.arg("folder for attack.json and attack.png", positional=True)
    data: str = cli.arg("data set", "digits")
    partition: str = cli.arg("PixelSum(k), ContentHash(k) or, for --attack flip, SortedIndex(k)", "ContentHash(50)")
    learner: str = cli.arg("base learner, as in scripts.poisoning", "Network('linear', steps=60, batch_size=32)")
    attack: Literal["insert", "flip"] = cli.arg("insert samples, or flip labels", "insert")
    sizes: list[int] = cli.arg("numbers of inserted samples or flipped labels", [0, 2, 5, 10, 15, 20, 25])
    skip: int = cli.arg("take every N-th test image", 7)
    max: int = cli.arg("stop after this many images", 20)
    data_root: Path | None = cli.arg("folder of the data sets, by default $CERTIFY_DATA or ./data", None)


Poison = Callable[[Sequence[int]], TrainingSet]  # amount of poison in each partition -> poisoned training set


def insertions(data: TrainingSet, x: Tensor, wrong: int, ensemble: Ensemble, largest: int) -> Poison:
    """Insert near copies of ``x`` with the label ``wrong``, at most ``largest`` in a partition."""
    copies = near_copies(x, ensemble.partitioner, largest)

    def poison(amounts: Sequence[int]) -> TrainingSet:
        chosen = torch.cat([own[:amount] for own, amount in zip(copies, amounts, strict=True)])
        return torch.cat((data[0], chosen)), torch.cat((data[1], torch.full((len(chosen),), wrong)))

    return poison


def flips(data: TrainingSet, x: Tensor, wrong: int, ensemble: Ensemble, label: int) -> Poison:
    """Relabel the samples of class ``label`` nearest to ``x`` as ``wrong``."""
    buckets = ensemble.partitioner.assign(data[0])
    nearest = nearest_in_parts(data[0], data[1] == label, x, buckets, ensemble.size)

    def poison(amounts: Sequence[int]) -> TrainingSet:
        labels = data[1].clone()
        labels[torch.cat([own[:amount] for own, amount in zip(nearest, amounts, strict=True)])] = wrong
        return data[0], labels

    return poison


def predict(ensemble: Ensemble, data: TrainingSet, x: Tensor, **options: Any) -> tuple[Certified, Tensor]:
    """Train on ``data``; returns the certified prediction for ``x`` and the models' rankings ``[models, B, C]``."""
    states = ensemble.fit(ensemble.parts(data), at_once=ensemble.size)
    rankings = ensemble.rankings(states, x).long()
    return ensemble.certify(rankings, **options), rankings


def smallest_break(args: Args, ensemble: Ensemble, data: TrainingSet, x: Tensor, label: int) -> tuple[float, float]:
    """The smallest of the sizes at which the attack on ``x`` succeeds (infinity if none does), and the radius.

    Args:
        x: uint8 ``[C, H, W]``.
    """
    sizes = sorted(set(args.sizes) | {0})
    threat = TrainingSamples() if args.attack == "insert" else TrainingLabels()
    clean, rankings = predict(ensemble, data, x[None], threat=threat)
    prediction, radius = int(clean.prediction[0]), float(clean.radius[0])
    if prediction != label:
        return 0, -math.inf
    if sizes[-1] == 0:
        return math.inf, radius
    order = rankings[:, 0]  # of the classes, by model
    counts = count_votes(order[:, :1].T, ensemble.num_classes)[0]
    counts[label] = -1
    # if no model votes for another class, take the one most often ranked second
    wrong = int(counts.argmax()) if counts.max() > 0 else int(order[:, 1].mode().values)
    if args.attack == "insert":
        poison = insertions(data, x, wrong, ensemble, sizes[-1])
    else:
        poison = flips(data, x, wrong, ensemble, label)
    poisoned = {}
    if ensemble.size > 1:
        for amount in amounts_up_to(sizes[-1]):
            poisoned[amount] = predict(ensemble, poison([amount] * ensemble.size), x[None], threat=threat)[1][:, 0, 0]
    for size in sizes[1:]:
        plan = best_plan(order[:, 0], poisoned, label, wrong, size) if ensemble.size > 1 else [size]
        after = int(predict(ensemble, poison(plan), x[None], threat=threat)[0].prediction[0])
        if after != prediction and radius >= size:
            raise ValueError(f"an image is certified up to {radius}, but was broken at {size}; please report this bug")
        if after != prediction:
            return size, radius
    return math.inf, radius


def attack(args: Args) -> list[dict[str, Any]]:
    """One entry per size: accuracies under attack and certified accuracy."""
    train = poisoning_inputs.in_memory(load(args.data, "train", args.data_root))
    test = load(args.data, "test", args.data_root)
    config = {"partition": args.partition, "learner": args.learner, "num_classes": poisoning_inputs.classes_of(train)}
    ensemble = read_ensemble(config | {"spread": 1, "seeds": "distinct"})
    ensemble.check_certificate("plurality", TrainingSamples() if args.attack == "insert" else TrainingLabels())
    data = poisoning_inputs.images_of(train), train.labels
    images, labels = test.batch(list(range(0, len(test), args.skip)[: args.max]))
    partitioned, alone = [], []
    with cli.progress() as bar:
        task = bar.add_task("attacking", total=len(images))
        for x, label in zip(images, labels.tolist(), strict=True):
            partitioned.append(smallest_break(args, ensemble, data, x, label))
            alone.append(smallest_break(args, replace(ensemble, partitioner=ContentHash(1)), data, x, label)[0])
            bar.advance(task)
    lines = []
    for size in sorted(set(args.sizes)):
        right = {
            "undefended": sum(at > size for at in alone),
            "partitions": sum(at > size for at, _ in partitioned),
            "certified": sum(radius >= size for _, radius in partitioned),
        }
        shares = {name: count / len(images) for name, count in right.items()}
        lines.append({"size": size, "images": len(images)} | shares)
    return lines


def plot(lines: list[dict[str, Any]], args: Args, path: Path) -> None:
    """Accuracy against the amount of poison: certified, and under an attack, which bounds robustness from above."""
    figure = figures.new_figure(5.6, 3.9)
    axis = figure.subplots()
    sizes = [line["size"] for line in lines]
    broad = {"linewidth": 6, "alpha": 0.35}  # to be seen where the attack breaks all that is not certified
    looks: dict[str, dict[str, Any]] = {
        "certified": broad | {"label": f"{args.partition}, certified", "color": figures.color(0)},
        "partitions": {"label": f"{args.partition}, under attack", "color": figures.color(0), "marker": "o"},
        "undefended": {"label": "one model, under attack", "color": figures.color(1), "marker": "s"},
    }
    for name, look in looks.items():
        axis.plot(sizes, [line[name] for line in lines], "-" if name == "certified" else "--", **look)
    what = "inserted samples" if args.attack == "insert" else "flipped labels"
    axis.set(xlabel=f"{what}, for each image anew", ylabel="accuracy", ylim=(0, 1.02))
    axis.set_title(f"{args.data}, {lines[0]['images']} test images", fontsize=10)
    axis.set_xlim(-0.02 * sizes[-1], None)
    axis.set_xticks(sizes)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figures.save(figure, path)


def main(args: Args) -> None:
    if not args.sizes or min(args.sizes) < 0 or args.skip < 1 or args.max < 1:
        raise ValueError(
            f"sizes, skip, max: got {args.sizes}, {args.skip}, {args.max}, expected at least one size, none negative, "
            "and --skip and --max of at least 1"
        )
    check_writable(args.out)
    lines = attack(args)
    print(f"{args.attack}: accuracy under attack, {args.data}, {args.partition}, {args.learner}")
    print(f"{'size':>6}{'one model':>12}{'partitions':>12}{'certified':>12}")
    for line in lines:
        cells = (percent(line[name]) for name in ("undefended", "partitions", "certified"))
        print(f"{line['size']:>6}" + "".join(f"{cell:>12}" for cell in cells))
    write_atomically(args.out / "attack.json", json.dumps(lines, indent=2).encode() + b"\n")
    plot(lines, args, args.out / "attack.png")
    print(f"wrote {args.out / 'attack.json'} and {args.out / 'attack.png'}")


if __name__ == "__main__":
    cli.run(main, Args, "scripts.poisoning_attack")
