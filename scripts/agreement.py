"""Compare sequential sampling with a fixed number of samples: do the decisions agree, and how much is saved?

python -m scripts.certify runs/m/test --checkpoint runs/m --skip 10
python -m scripts.certify runs/m/at4 --checkpoint runs/m --skip 10 --n0 64 --at 4
python -m scripts.agreement runs/m/at4 --against runs/m/test
"""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from certify.results import UNPROVEN_RADIUS, read_config, read_rows, read_samples
from certify.threats import NOT_CERTIFIED
from scripts.parts import cli
from scripts.parts.tables import percent

_SAME = ("scheme", "checkpoint_sha256", "data_sha256", "split", "vote")


@dataclass
class Args:
    """Compare two runs image by image: is the image correct and certified at the radius of --at in both?"""

    run: Path = cli.arg("result folder of scripts.certify with --at", positional=True)
    against: Path = cli.arg("result folder with a fixed number of samples, on the same images or more")


@dataclass(frozen=True)
class Agreement:
    """The comparison on the images that both runs have.

    Attributes:
        radius: the radius of ``--at``.
        same: bool ``[N]``, whether the decisions on an image agree.
        certified: share of images that the fixed number of samples certifies at the radius.
        samples, fixed_samples: ``[N]``, the numbers of samples taken.
    """

    radius: float
    same: np.ndarray
    certified: float
    samples: list[int]
    fixed_samples: list[int]

    def text(self) -> str:
        same = percent(float(self.same.mean()))
        return (
            f"{len(self.same)} images, certified at {self.radius:g}: same decision on {same} "
            f"({int((~self.same).sum())} differ; certified by a fixed number: {percent(self.certified)})\n"
            f"samples: median {statistics.median(self.samples):g}, mean {statistics.fmean(self.samples):.0f}; "
            f"fixed: {statistics.median(self.fixed_samples):g}"
        )


def asked_radius(folder: Path) -> float:
    """The radius of ``--at``."""
    until = (read_config(folder).get("sampling") or {}).get("until", "")
    found = re.fullmatch(r"CertifiedAt\(radius=(.+)\)", until)
    if found is None:
        raise ValueError(f"{folder}: got a run without --at, expected one with it; certify with --at RADIUS")
    return float(found[1])


def compare(run: Path, against: Path) -> Agreement:
    radius, configs = asked_radius(run), (read_config(run), read_config(against))
    differing = [name for name in _SAME if configs[0].get(name) != configs[1].get(name)]
    if differing:
        raise ValueError(
            f"{against}: differs from {run} in {', '.join(differing)}; compare runs of one model and scheme"
        )
    decisions = []
    for folder in (run, against):
        rows = read_rows(folder)
        if UNPROVEN_RADIUS in rows:
            raise ValueError(f"{folder}: its radii are {NOT_CERTIFIED}; compare runs with certificates")
        held = (rows["correct"] > 0) & (rows["radius"] >= radius)
        decisions.append(dict(zip(rows["idx"].astype(int).tolist(), held.tolist(), strict=True)))
    common = sorted(set(decisions[0]) & set(decisions[1]))
    if not common:
        raise ValueError(f"{against}: has no image in common with {run}; choose the same --skip and --max")
    first, second = (np.array([own[idx] for idx in common]) for own in decisions)
    samples, fixed = (read_samples(folder) for folder in (run, against))
    return Agreement(
        radius, first == second, float(second.mean()), [samples[i] for i in common], [fixed[i] for i in common]
    )


def main(args: Args) -> None:
    print(compare(args.run, args.against).text())


if __name__ == "__main__":
    cli.run(main, Args, "scripts.agreement")
