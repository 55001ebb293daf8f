"""Both halves of the project from scratch, in minutes: certified classifiers, and agents that learn to reach goals.

python -m scripts.demo demo
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from certify import SampledScheme
from certify.spec import parse_scheme
from scripts import certify, evaluate, report, train, train_continuous_seek
from scripts.parts import cli

METHODS = (
    ("ablation", "RandomizedAblation(keep=12)"),
    ("dssn", "DeterministicSplittingNoise.from_sigma(0.5)"),
)
AGENTS = (("ddpg", 0.0), ("reengage", 0.2))  # and the coefficient of the goal gradient


@dataclass
class Args:
    """Train two small classifiers on the embedded 8x8 digits and certify held-out images; then train small agents."""

    out: Path = cli.arg(
        "folder for models, rows and plots; an earlier demo there is replaced", Path("demo"), positional=True
    )
    images: int = cli.arg("held-out images to certify", 300)
    epochs: int = cli.arg("training epochs of each base classifier", 60)
    n: int = cli.arg("estimation samples of the randomized method", 10_000)
    steps: int = cli.arg("environment steps of each agent", 6_000)
    jobs: int = cli.arg("number of agents trained in parallel", 2)


def certified_classifiers(args: Args) -> None:
    """Certified accuracy of two smoothed classifiers, as a table and certified_accuracy.png."""
    runs = []
    for name, scheme in METHODS:
        folder = args.out / name
        print(f"\n{name}: {scheme}")
        train.main(train.Args(out=folder, scheme=scheme, data="digits", epochs=args.epochs, batch_size=64, lr=0.05))
        runs.append(folder / "test")
        n = args.n if isinstance(parse_scheme(scheme), SampledScheme) else certify.Args.n
        certify.main(certify.Args(out=runs[-1], checkpoint=folder, max=args.images, n=n))
    print()
    report.main(report.Args(runs=runs, out=args.out))


def learning_curves(args: Args) -> None:
    """DDPG with and without ReenGAGE on a smaller and easier ContinuousSeek, as a table and curves.png.

    Both have hindsight and the same hyperparameters, which were chosen to be quick, not to be best for either; with
    others, ReenGAGE can be the slower one on such easy tasks.
    """
    runs = []
    for name, coef in AGENTS:
        runs.append(args.out / name)
        print(f"\n{name}: ContinuousSeek, goal-gradient coefficient {coef}")
        train_continuous_seek.main(
            train_continuous_seek.Args(
                out=runs[-1],
                seeds=[0, 1],
                jobs=args.jobs,
                steps=args.steps,
                goal_gradient_coef=coef,
                batch_size=128,
                lr=0.001,
                eval_every=max(1, args.steps // 12),
                d=10,
                eps=0.3,
                layers=[64, 64],
            )
        )
    print()
    curves, numbers = args.out / "curves.png", args.out / "curves.json"
    evaluate.main(evaluate.Args(runs=runs, baseline=runs[0], out=curves, json=numbers))


def main(args: Args) -> None:
    started = time.perf_counter()
    marker = args.out / ".demo"
    if args.out.exists() and any(args.out.iterdir()) and not marker.exists():
        raise ValueError(f"{args.out}: is not an earlier demo; choose another folder")
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    marker.touch()
    certified_classifiers(args)
    learning_curves(args)
    print(f"models, rows, votes and curves are in {args.out}/; {time.perf_counter() - started:.0f} seconds in total")


if __name__ == "__main__":
    cli.run(main, Args, "scripts.demo")
