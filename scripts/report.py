"""Tabulate and plot certified accuracy from the rows on disk.

    python -m scripts.report runs/mnist-k45/test runs/mnist-k30/test --radii 0 2 4 6 8 --out runs/report

l1 certificates restated in lp, next to certificates made for lp:

    python -m scripts.report runs/lp/test runs/l1/test --p 0.5

Other bounds or confidence levels are computed from the stored votes, without the model:

    python -m scripts.report runs/mnist-k45/test --bounds simultaneous --alpha 0.001

So are certificates that the true label stays in the top k (randomized ablation, Gaussian noise), here in pixels to make
the two comparable:

    python -m scripts.report runs/mnist-k45/test runs/mnist-gaussian/test --top-k 1 3 --pixels

Certified accuracy against patches of several sizes, with both certificates:

    python -m scripts.report runs/mnist-s2/test --patch 5 3x7 --bound location published

A published log of per-image results (the six columns of Cohen et al., with or without their header), next to a run:

    python -m scripts.report runs/cifar/test noise_0.50/test/sigma_0.50

Accuracy under attack of this and another classifier, next to certified accuracy, on the images that all runs share:

    python -m scripts.report runs/w/test --attack runs/w/attack runs/clean/attack

The same table serves to choose settings against patches (s, theta) on validation images, here every second test image;
the other half is then certified with ``--shard 1/2``:

    python -m scripts.certify runs/val/s2-t03 --checkpoint runs/mnist-s2 --vote "ThresholdVote(theta=0.3)" --shard 0/2
    python -m scripts.report runs/val/* --patch 5
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from certify import L1
from certify.files import write_atomically
from scripts.parts import cli, curves, patches, recertified, under_attack
from scripts.parts.recertified import Again
from scripts.parts.tables import Run, spread, table


@dataclass
class Args:
    """Certified accuracy of one or more runs: prints a table, and writes report.json and certified_accuracy.png."""

    runs: list[Path] = cli.arg("result folders, or TSV files with the columns of Cohen et al.", [], positional=True)
    attack: list[Path] | None = cli.arg("result folders of scripts.attack, to report accuracy under attack, too", None)
    out: Path | None = cli.arg("folder for report.json and the plot, by default that of the first attack or run", None)
    radii: list[float] | None = cli.arg("radii of the table, by default spread over the certified range", None)
    alpha: float | None = cli.arg(
        "recertify the stored votes at this failure probability; choose one value before looking at results, as it "
        "does not cover the best of several",
        None,
    )
    bounds: Literal["one-sided", "simultaneous"] | None = cli.arg("recertify with these bounds; same caution", None)
    interval: Literal["clopper-pearson", "randomized"] | None = cli.arg(
        "recertify with this confidence interval; same caution", None
    )
    top_k: list[int] | None = cli.arg(
        "also report certified top-k accuracy for these k, from stored votes of randomized ablation or Gaussian noise",
        None,
    )
    p: float | None = cli.arg("restate l1 radii in lp for this p, by norm inequalities (Eqs. 4.25, 4.26)", None)
    pixels: bool = cli.arg("restate l2 radii as numbers of pixels, all channels of which may change", False)
    patch: list[str] | None = cli.arg(
        "also report certified accuracy against patches of these sizes, such as 5 3x7", None
    )
    bound: list[Literal["location", "published", "tight", "box", "proven", "printed"]] | None = cli.arg(
        "certificates to compute from the stored votes: location or published (patches; default: location), tight or "
        "published (Wasserstein, Laplace noise), box or published (uniform noise), both by default the scheme's, or "
        "proven or printed (Smooth-Reduce with noise on patches; printed ones are not certified)",
        None,
    )
    rho: float = cli.arg("failure probability of the bound for the whole data set", 0.001)


def patch_bounds(args: Args) -> list[Literal["location", "published"]]:
    """The requested bounds against patches; by default the one per location."""
    return [bound for bound in args.bound or () if bound in ("location", "published")] or ["location"]


def again_of(args: Args) -> Again:
    """How votes are recertified, if at all."""
    return Again(args.alpha, args.bounds, args.interval)


def read_groups(args: Args, runs: dict[Path, Run]) -> dict[str, list[Run]]:
    """All runs, by threat model."""
    groups: dict[str, list[Run]] = {}
    restated = {"p": False, "pixels": False, "bound": False}
    for path, run in runs.items():
        shown = [run]
        if args.bound and recertified.known_bounds(path):
            shown = [recertified.read_run(path, again_of(args), bound) for bound in args.bound]
            restated["bound"] = True
        elif args.p is not None and run.threat == str(L1()):
            shown, restated["p"] = [recertified.through_norms(run, args.p)], True
        for each in (*shown, *recertified.top_k_runs(path, args.top_k or (), args.alpha)):
            threat, each = each.threat, recertified.in_pixels(each) if args.pixels else each
            restated["pixels"] |= each.threat != threat
            groups.setdefault(each.threat, []).append(each)
    if args.bound and not restated["bound"]:
        raise ValueError(
            f"bound: got {' '.join(args.bound)}, but no run has alternative certificates: only runs against patches or "
            "Wasserstein perturbations, with uniform noise, or of Smooth-Reduce with noise on patches have them "
            "(--bounds is a different option); leave it out"
        )
    for name, used, text in (
        ("p", args.p is not None, "from l1, in lp"),
        ("pixels", args.pixels, "from l2, in pixels"),
    ):
        if used and not restated[name]:
            raise ValueError(f"{name}: no run has radii to restate {text}; leave the option out")
    return groups


def read_attacks(args: Args, groups: dict[str, list[Run]]) -> dict[str, list[under_attack.AttackRun]]:
    """All attacks, by threat model. These and the runs they are compared with are restricted to their common images."""
    found: dict[str, list[under_attack.AttackRun]] = {}
    for attack in map(under_attack.read_attack, args.attack or ()):
        found.setdefault(attack.threat, []).append(attack)
    for threat, own in found.items():
        runs = groups.get(threat, [])
        under_attack.check_same_images([each.config for each in (*runs, *own)])
        rows = under_attack.on_common_images([each.rows for each in (*runs, *own)])
        if runs:
            groups[threat] = [replace(run, rows=each) for run, each in zip(runs, rows, strict=False)]
        found[threat] = [replace(attack, rows=each) for attack, each in zip(own, rows[len(runs) :], strict=True)]
    return found


def patch_lines(args: Args, runs: dict[Path, Run]) -> list[patches.PatchAccuracy]:
    """The results that --patch requests."""
    sizes = [patches.parse_size(text) for text in args.patch or ()]
    if not sizes:
        return []
    bounds = patch_bounds(args)
    return [line for path, run in runs.items() for line in patches.patch_accuracy(path, sizes, bounds, run)]


def check_radii(radii: list[float] | None) -> None:
    """Raise unless radii can be columns of a table."""
    if radii and not all(math.isfinite(r) and r >= 0 for r in radii):
        raise ValueError(f"radii: got {radii}, expected finite numbers, at least 0")


def main(args: Args) -> None:
    check_radii(args.radii)
    folders = [*(args.attack or ()), *args.runs]
    if not folders:
        raise ValueError("runs: got none, expected one or more result folders")
    stored = {path: recertified.read_run(path, again_of(args)) for path in args.runs}
    groups = read_groups(args, stored)
    attacks = read_attacks(args, groups)
    lines = patch_lines(args, stored)
    summaries = []
    for threat in groups | attacks:
        runs, own = groups.get(threat, []), attacks.get(threat, [])
        magnitudes = [attack.rows["verified"] for attack in own]
        radii = args.radii or spread([run.rows["radius"] for run in runs] or [m[np.isfinite(m)] for m in magnitudes])
        group = [run.summary(radii, args.rho) for run in runs]
        if runs:
            print(table(group, args.rho), end="\n\n")
        if own:
            print(under_attack.table(own, radii))
            for run in runs:
                for attack in own:
                    if run.config is not None and run.top_k is None and run.guaranteed:
                        print(under_attack.within_certificates(attack, run.config, run.rows) or "", end="")
            print()
        summaries += group + [attack.summary(radii) for attack in own]
    if lines:
        print(patches.table(lines), end="\n\n")
        summaries += [line.summary() for line in lines]
    out = args.out or (folders[0] if folders[0].is_dir() else folders[0].parent)
    write_atomically(out / "report.json", json.dumps(summaries, indent=2).encode() + b"\n")
    curves.plot(groups, out / "certified_accuracy.png", attacks)
    print(f"wrote {out / 'report.json'} and {out / 'certified_accuracy.png'}")


if __name__ == "__main__":
    cli.run(main, Args, "scripts.report")
