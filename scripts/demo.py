"""Certify real classifiers from nothing: trains on the embedded digits, certifies held-out images, shows the result.

python -m scripts.demo demo
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from scripts import certify, cli, report, train

METHODS = (
    ("ablation", "RandomizedAblation(keep=12)"),
    ("dssn", "DeterministicSplittingNoise.from_sigma(0.5)"),
)


@dataclass
class Args:
    """Train two small base classifiers on the embedded 8x8 digits and certify held-out images with both methods."""

    out: Path = cli.arg(
        "folder for models, rows and plots; an earlier demo there is replaced", Path("demo"), positional=True
    )
    images: int = cli.arg("held-out images to certify", 300)
    epochs: int = cli.arg("training epochs of each base classifier", 60)
    n: int = cli.arg("estimation samples of the randomized method", 10_000)


def main(args: Args) -> None:
    started = time.perf_counter()
    marker = args.out / ".demo"
    if args.out.exists() and any(args.out.iterdir()) and not marker.exists():
        raise ValueError(f"{args.out}: is not an earlier demo; choose another folder")
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    marker.touch()
    runs = []
    for name, scheme in METHODS:
        folder = args.out / name
        print(f"\n{name}: {scheme}")
        train.main(train.Args(out=folder, scheme=scheme, data="digits", epochs=args.epochs, batch_size=64, lr=0.05))
        runs.append(folder / "test")
        certify.main(certify.Args(out=runs[-1], checkpoint=folder, max=args.images, n=args.n))
    print()
    report.main(report.Args(runs=runs, out=args.out))
    print(f"models, rows and votes are in {args.out}/; {time.perf_counter() - started:.0f} seconds in total")


if __name__ == "__main__":
    cli.run(main, Args, "scripts.demo")
