"""A real attack on the training data, growing in size, against one model and against partitions.

    python -m scripts.poisoning_attack runs/attack --attack insert --sizes 0 2 5 10 20 --max 20
    python -m scripts.poisoning_attack runs/flips --attack flip --partition "SortedIndex(50)" --sizes 0 5 10 20

Every test image has an attack of its own, and all models are trained again on each poisoned training set. ``insert``
adds copies of the image with one pixel changed and a wrong label, each into another partition, those first whose models
predict what is to be changed. ``flip`` gives the nearest training samples of the image's class the wrong label. The
wrong label is the runner-up of the votes. The attack knows everything; still, no certified prediction ever changes: the
script stops with an error if one does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from certify.data import load
from certify.files import write_atomically
from certify.poisoning import ContentHash, Ensemble, TrainingLabels, TrainingSamples, count_votes
from certify.poisoning.job import read_ensemble
from certify.scheme import Certified
from certify.threats import TrainingSet
from scripts import cli
from scripts.poisoning import in_memory
from scripts.tables import percent


@dataclass
class Args:
    """Attack an ensemble on partitions, and the same learner on all data; curves and numbers go to OUT."""

    out: Path = cli.arg("folder for attack.json and attack.png", positional=True)
    data: str = cli.arg("data set", "digits")
    partition: str = cli.arg("PixelSum(k), ContentHash(k) or, for --attack flip, SortedIndex(k)", "ContentHash(50)")
    learner: str = cli.arg("see scripts.poisoning", "Network('linear', steps=60, batch_size=32)")
    attack: Literal["insert", "flip"] = cli.arg("samples inserted, or labels flipped", "insert")
    sizes: list[int] = cli.arg("numbers of samples or labels", [0, 2, 5, 10, 15, 20, 25])
    skip: int = cli.arg("take every so-manieth test image", 7)
    max: int = cli.arg("stop after this many images", 20)
    data_root: Path | None = cli.arg("folder of the data sets, by default $CERTIFY_DATA or ./data", None)


def inserted(data: TrainingSet, x: Tensor, wrong: int, count: int, ensemble: Ensemble, votes: Tensor) -> TrainingSet:
    """The training set with ``count`` near copies of ``x`` labelled ``wrong``, in as many partitions as possible.

    Args:
        x: uint8 ``[C, H, W]``.
        votes: int ``[models]``, what the models say of ``x``; those that do not say ``wrong`` already come first.
    """
    flat = x.flatten()
    steps = torch.arange(1, 9)
    places = torch.arange(flat.numel()).repeat_interleave(len(steps))
    copies = flat.repeat(len(places), 1)
    moved = (flat[places].long() + steps.repeat(flat.numel())) % 256
    copies[torch.arange(len(places)), places] = moved.to(torch.uint8)
    copies = copies.view(-1, *x.shape)
    first: dict[int, int] = {}
    for i, bucket in enumerate(ensemble.partitioner.assign(copies).tolist()):
        first.setdefault(bucket, i)
    order = sorted(first, key=lambda bucket: (bool(votes[bucket] == wrong), bucket))
    chosen = [first[bucket] for bucket in order][:count]
    labels = torch.full((len(chosen),), wrong)
    return torch.cat((data[0], copies[chosen])), torch.cat((data[1], labels))


def flipped(data: TrainingSet, x: Tensor, wrong: int, count: int, label: int) -> TrainingSet:
    """The training set with the ``count`` samples of class ``label`` nearest to ``x`` labelled ``wrong``."""
    distances = ((data[0].long() - x.long()) ** 2).flatten(1).sum(1)
    distances = distances.masked_fill(data[1] != label, torch.iinfo(torch.int64).max)
    nearest = distances.sort(stable=True).indices[: min(count, int((data[1] == label).sum()))]
    labels = data[1].clone()
    labels[nearest] = wrong
    return data[0], labels


def predict(ensemble: Ensemble, data: TrainingSet, x: Tensor, **options: Any) -> tuple[Certified, Tensor]:
    """Trained again: what is predicted for ``x``, and the models' votes ``[models, B]``."""
    states = ensemble.fit(ensemble.parts(data), at_once=ensemble.size)
    rankings = ensemble.rankings(states, x)
    return ensemble.certify(rankings, **options), rankings[..., 0].long()


def attack(args: Args) -> list[dict[str, Any]]:
    """One entry per size: accuracies under attack and certified accuracy."""
    train, test = load(args.data, "train", args.data_root), load(args.data, "test", args.data_root)
    config = {"partition": args.partition, "learner": args.learner, "num_classes": train.num_classes}
    ensemble = read_ensemble(config | {"spread": 1, "seeds": "distinct"})
    alone = replace(ensemble, partitioner=ContentHash(1))
    threat = TrainingSamples() if args.attack == "insert" else TrainingLabels()
    data = in_memory(train)
    images, labels = test.batch(list(range(0, len(test), args.skip)[: args.max]))
    clean, votes = predict(ensemble, data, images, threat=threat)
    counts = count_votes(votes.T, train.num_classes)
    wrong = counts.scatter(1, labels[:, None], -1).argmax(1).tolist()
    lines = []
    with cli.progress() as bar:
        task = bar.add_task("attacking", total=len(args.sizes) * len(images))
        for size in args.sizes:
            right = {"undefended": 0, "partitions": 0}
            for i, (x, label) in enumerate(zip(images, labels.tolist(), strict=True)):
                if args.attack == "insert":
                    poisoned = inserted(data, x, wrong[i], size, ensemble, votes[:, i])
                else:
                    poisoned = flipped(data, x, wrong[i], size, label)
                after = int(predict(ensemble, poisoned, x[None], threat=threat)[0].prediction[0])
                if clean.radius[i] >= size and after != clean.prediction[i]:
                    raise ValueError(f"image {i}: certified to {clean.radius[i]}, broken by {size}; please report this")
                right["partitions"] += after == label
                right["undefended"] += int(predict(alone, poisoned, x[None])[0].prediction[0]) == label
                bar.advance(task)
            certified = int((clean.correct(labels) & clean.certified_at(size)).sum())
            accuracy = {name: count / len(images) for name, count in right.items()}
            lines.append({"size": size} | accuracy | {"certified": certified / len(images)})
    return lines


def plot(lines: list[dict[str, Any]], args: Args, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5.2, 3.9), layout="constrained")
    sizes = [line["size"] for line in lines]
    labels = {
        "undefended": "one model, attacked",
        "partitions": f"{args.partition}, attacked",
        "certified": "certified",
    }
    for name, label in labels.items():
        axis.plot(sizes, [line[name] for line in lines], "--" if name == "certified" else "o-", label=label)
    what = "inserted samples" if args.attack == "insert" else "flipped labels"
    axis.set(xlabel=what, ylabel="accuracy", ylim=(0, 1.02))
    axis.set_xlim(left=0)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(args: Args) -> None:
    if not args.sizes or min(args.sizes) < 0 or args.skip < 1 or args.max < 1:
        raise ValueError(f"sizes, skip, max: got {args.sizes}, {args.skip}, {args.max}, expected numbers of at least 1")
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
