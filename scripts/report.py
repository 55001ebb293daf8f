"""Make the certified-accuracy table and plot from rows on disk.

    python -m scripts.report runs/mnist-k45/test runs/mnist-k30/test --radii 0 2 4 6 8 --out runs/report

What l1 certificates are worth in lp, next to certificates made for lp:

    python -m scripts.report runs/lp/test runs/l1/test --p 0.5

Other bounds or confidence levels are computed from the stored votes, without the model:

    python -m scripts.report runs/mnist-k45/test --bounds simultaneous --alpha 0.001

and so are certificates that the true label stays among the k most probable ones (randomized ablation, Gaussian noise),
in pixels, to compare the two:

    python -m scripts.report runs/mnist-k45/test runs/mnist-gaussian/test --top-k 1 3 --pixels

Certified accuracy against patches of several sizes, with both certificates:

    python -m scripts.report runs/mnist-s2/test --patch 5 3x7 --bound location published

A published log of per-image results (the six columns of Cohen et al., with or without their header), next to a run:

    python -m scripts.report runs/cifar/test noise_0.50/test/sigma_0.50

Accuracy under attack, of this and of other classifiers, above the certified curve; all of the images that all have:

    python -m scripts.report runs/w/test --attack runs/w/attack runs/clean/attack

Settings against patches (s, theta) are chosen on validation images, here every second test image, by the same table;
the other half is then certified with ``--shard 1/2``:

    python -m scripts.certify runs/val/s2-t03 --checkpoint runs/mnist-s2 --vote "ThresholdVote(theta=0.3)" --shard 0/2
    python -m scripts.report runs/val/* --patch 5
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from certify import L0, L1, L2, Lp, Patch, RandomizedAblation, SampledScheme, spec, topk, topk_l2
from certify.confidence import predict_or_abstain
from certify.files import write_atomically
from certify.gaussian import GaussianScheme
from certify.logs import read_log
from certify.results import UNPROVEN_RADIUS, read_config, read_rows, read_votes
from certify.smooth import vote_uniforms
from certify.variable_lambda import radius_through_norms
from scripts import attacked, cli, curves, patches
from scripts.tables import Run, spread, table


@dataclass
class Args:
    """Certified accuracy of one or several runs: a table on the screen, report.json and certified_accuracy.png."""

    runs: list[Path] = cli.arg("result folders, or TSV files with the columns of Cohen et al.", [], positional=True)
    attack: list[Path] | None = cli.arg("result folders of scripts.attack: accuracy under attack, too", None)
    out: Path | None = cli.arg("folder for report.json and the plot, by default that of the first attack or run", None)
    radii: list[float] | None = cli.arg("radii of the table, by default spread over the certified ones", None)
    alpha: float | None = cli.arg(
        "certify the stored votes again at this failure probability; settle on one value before looking, the best of "
        "several is not covered by it",
        None,
    )
    bounds: Literal["one-sided", "simultaneous"] | None = cli.arg("certify again with these, likewise", None)
    interval: Literal["clopper-pearson", "randomized"] | None = cli.arg("certify again with these, likewise", None)
    top_k: list[int] | None = cli.arg(
        "also certified top-k accuracy for these k, from the stored votes of randomized ablation or Gaussian noise",
        None,
    )
    p: float | None = cli.arg("restate l1 radii in lp for this p, through norm inequalities (Eqs. 4.25, 4.26)", None)
    pixels: bool = cli.arg("restate l2 radii as numbers of pixels, all channels of which may change", False)
    patch: list[str] | None = cli.arg("also certified accuracy against patches of these sizes, such as 5 3x7", None)
    bound: list[Literal["location", "published", "tight", "proven", "printed"]] | None = cli.arg(
        "certificates from the stored votes: location or published against patches (default: location), tight or "
        "published of Laplace noise against Wasserstein perturbations (default: the scheme's), proven or printed of "
        "Smooth-Reduce with noise on patches (printed ones are not certified)",
        None,
    )
    rho: float = cli.arg("failure probability of the bound for the whole data set", 0.001)


def _check_fixed_size(path: Path, sampling: dict[str, Any]) -> None:
    if "until" in sampling:
        raise ValueError(
            f"{path}: was sampled until {sampling['until']} was settled; bounds for a fixed number of samples do not "
            "hold for such votes, certify again for other ones"
        )


def read_run(path: Path, args: Args, bound: str | None = None) -> Run:
    """Rows as stored, or certified again from the stored votes.

    Args:
        bound: certify again with this bound, of :meth:`~certify.scheme.SampledScheme.certificates`.
    """
    if not path.is_dir():
        if args.alpha is not None or args.bounds is not None or args.interval is not None:
            raise ValueError(
                f"{path}: is a table of rows without votes; --alpha, --bounds, --interval need a run's votes"
            )
        return Run(path.name, "radius", None, read_log(path))
    config = read_config(path)
    if "attack" in config:
        raise ValueError(f"{path}: holds an attack, not certificates; name it after --attack")
    sampling, name = config["sampling"], f"{config['data']}, {config['scheme']}"
    if bound is None and args.alpha is None and args.bounds is None and args.interval is None:
        until = (sampling or {}).get("until")
        name = name if until is None else f"{name}, until {until}"
        rows = read_rows(path)
        if UNPROVEN_RADIUS in rows:
            rows["radius"] = rows.pop(UNPROVEN_RADIUS)
        return Run(name, config["threat"], sampling and sampling["alpha"], rows, None, until, config)
    exact = f"{path}: {config['scheme']} is exact; --alpha, --bounds, --interval are for sampled schemes"
    if sampling is None:
        raise ValueError(exact)
    scheme = spec.parse_scheme(config["scheme"])
    if not isinstance(scheme, SampledScheme):
        raise ValueError(exact)
    if bound is not None:
        scheme = scheme.certificates()[bound]
        name = f"{config['data']}, {spec.to_text(scheme)}"
    _check_fixed_size(path, sampling)
    stored = read_votes(path)
    alpha = sampling["alpha"] if args.alpha is None else args.alpha
    bounds = args.bounds or sampling["bounds"]
    interval = args.interval or sampling.get("interval", "clopper-pearson")
    votes = stored.votes
    if votes.selection is None:
        raise ValueError(f"{path}: got stored votes without a selection, expected those of a sampled scheme")
    result = scheme.certify_counts(
        votes.selection,
        votes.counts,
        alpha,
        shape=votes.shape,
        n=votes.n,
        bounds=bounds,
        uniforms=vote_uniforms(votes, sampling["seed"]) if interval == "randomized" else None,
    )
    rows = {
        "idx": stored.idx.numpy(),
        "label": stored.label.numpy(),
        "predict": result.prediction.numpy(),
        "radius": result.radius.numpy(),
        "correct": result.correct(stored.label).numpy(),
        "clean": predict_or_abstain(votes.counts, alpha).numpy(),
        "label_share": (votes.counts.gather(1, stored.label[:, None])[:, 0] / votes.n).numpy(),
    }
    return Run(f"{name}, alpha={alpha}, {bounds}, {interval}", str(scheme.threat), alpha, rows, config=config)


def top_k_runs(path: Path, args: Args) -> list[Run]:
    """One run for each k: an image is right at radius r if its true label is certified to stay in the top k."""
    if not args.top_k:
        return []
    if not path.is_dir():
        raise ValueError(f"{path}: top-k certificates need the stored votes of a run, got a table of rows")
    config = read_config(path)
    scheme, sampling = spec.parse_scheme(config["scheme"]), config["sampling"]
    if not isinstance(scheme, (RandomizedAblation, GaussianScheme)):
        raise ValueError(
            f"{path}: got {config['scheme']}, top-k certificates are for RandomizedAblation and Gaussian noise"
        )
    _check_fixed_size(path, sampling)
    stored = read_votes(path)
    votes, label = stored.votes, stored.label
    alpha = sampling["alpha"] if args.alpha is None else args.alpha
    runs = []
    for k in args.top_k:
        if isinstance(scheme, GaussianScheme):
            result = topk_l2.certify_counts(votes.counts, k, scheme, alpha, shape=votes.shape, n=votes.n)
        else:
            result = topk.certify_counts(votes.counts, k, scheme.units(votes.shape), scheme.keep, alpha, n=votes.n)
        radius = result.radius_of(label)
        # votes settle which labels are predicted; ties go to the lower index
        order = votes.counts.argsort(dim=1, descending=True, stable=True)[:, :k]
        predicted = torch.where((order == label[:, None]).any(1), label, order[:, 0])
        rows = {
            "idx": stored.idx.numpy(),
            "label": label.numpy(),
            "predict": predicted.numpy(),
            "radius": radius.to(torch.float64).numpy(),
            "correct": (radius >= 0).numpy(),
        }
        name = f"{config['data']}, {config['scheme']}, top-{k}, alpha={alpha}"
        runs.append(Run(name, config["threat"], alpha, rows, k, config=config))
    return runs


def known_bounds(run: Run, path: Path) -> list[str]:
    """The names of the certificates that there are for the votes of a run; none if there is but one."""
    if run.config is None:
        return []
    if run.threat == str(Patch()):
        return ["location", "published"] if patches.is_structured(path) else []
    scheme = spec.parse_scheme(run.config["scheme"])
    return list(scheme.certificates()) if isinstance(scheme, SampledScheme) else []


def bound_runs(run: Run, path: Path, args: Args) -> list[Run]:
    """The run with each bound; against patches, with the side of the largest certified square as radius."""
    config, known = read_config(path), known_bounds(run, path)
    for bound in args.bound or ():
        if bound not in known:
            raise ValueError(f"bound: got {bound}, expected one that {config['scheme']} has: {', '.join(known)}")
    if not patches.is_structured(path):
        return [read_run(path, args, bound) for bound in args.bound or ()]
    name = f"{config['data']}, {config['scheme']}, {config['vote']}"
    return [
        Run(f"{name}, {bound} bound", config["threat"], None, patches.rows_of_bound(path, bound), config=config)
        for bound in patch_bounds(args)
    ]


def patch_bounds(args: Args) -> list[Literal["location", "published"]]:
    """The bounds that are asked for, of those against patches; by default the one per location."""
    return [bound for bound in args.bound or () if bound in ("location", "published")] or ["location"]


def through_norms(run: Run, p: float) -> Run:
    """A run with l1 radii, restated in lp."""
    radius = radius_through_norms(torch.from_numpy(run.rows["radius"]), p).numpy()
    return replace(run, name=f"{run.name}, through norms", threat=str(Lp(p)), rows=run.rows | {"radius": radius})


def in_pixels(run: Run, path: Path) -> Run:
    """A run with l2 radii, restated in numbers of pixels; any other run as it is."""
    if not path.is_dir() or not run.threat.startswith(str(L2())):
        return run
    channels = read_config(path)["shape"][0]
    radius = np.array([topk.pixels_of_l2_radius(r, channels) if r >= 0 else -1.0 for r in run.rows["radius"]])
    threat = run.threat.replace(str(L2()), str(L0()), 1)
    return replace(run, name=f"{run.name}, from l2", threat=threat, rows=run.rows | {"radius": radius})


def read_groups(args: Args) -> dict[str, list[Run]]:
    """All runs, by threat model."""
    groups: dict[str, list[Run]] = {}
    restated = {"p": False, "pixels": False, "bound": False}
    for path in args.runs:
        run = read_run(path, args)
        if args.bound and known_bounds(run, path):
            restated["bound"] = True
            for each in bound_runs(run, path, args):
                groups.setdefault(each.threat, []).append(each)
            continue
        if args.p is not None and run.threat == str(L1()):
            run, restated["p"] = through_norms(run, args.p), True
        for each in (run, *top_k_runs(path, args)):
            threat, each = each.threat, in_pixels(each, path) if args.pixels else each
            restated["pixels"] |= each.threat != threat
            groups.setdefault(each.threat, []).append(each)
    if args.bound and not restated["bound"]:
        raise ValueError(
            f"bound: got {' '.join(args.bound)}, but no run has several: those against patches or Wasserstein "
            "perturbations have, and Smooth-Reduce with noise on patches; --bounds is another option"
        )
    for name, used, text in (
        ("p", args.p is not None, "from l1, in lp"),
        ("pixels", args.pixels, "from l2, in pixels"),
    ):
        if used and not restated[name]:
            raise ValueError(f"{name}: no run has radii to restate {text}; leave the option out")
    return groups


def read_attacks(args: Args, groups: dict[str, list[Run]]) -> dict[str, list[attacked.AttackRun]]:
    """All attacks, by threat model. The runs that they are compared with are cut down to the images that all have."""
    found: dict[str, list[attacked.AttackRun]] = {}
    for attack in map(attacked.read_attack, args.attack or ()):
        found.setdefault(attack.threat, []).append(attack)
    for threat, own in found.items():
        runs = groups.get(threat, [])
        attacked.check_same_images([each.config for each in (*runs, *own)])
        rows = attacked.on_common_images([each.rows for each in (*runs, *own)])
        if runs:
            groups[threat] = [replace(run, rows=each) for run, each in zip(runs, rows, strict=False)]
        found[threat] = [replace(attack, rows=each) for attack, each in zip(own, rows[len(runs) :], strict=True)]
    return found


def main(args: Args) -> None:
    if args.radii and not all(math.isfinite(r) and r >= 0 for r in args.radii):
        raise ValueError(f"radii: got {args.radii}, expected finite numbers, at least 0")
    folders = [*(args.attack or ()), *args.runs]
    if not folders:
        raise ValueError("runs: got none, expected result folders")
    sizes = [patches.parse_size(text) for text in args.patch or ()]
    groups = read_groups(args)
    attacks = read_attacks(args, groups)
    summaries = []
    for threat in groups | attacks:
        runs, own = groups.get(threat, []), attacks.get(threat, [])
        magnitudes = [attack.rows["verified"] for attack in own]
        radii = args.radii or spread([run.rows["radius"] for run in runs] or [m[np.isfinite(m)] for m in magnitudes])
        group = [run.summary(radii, args.rho) for run in runs]
        if runs:
            print(table(group, args.rho), end="\n\n")
        if own:
            print(attacked.table(own, radii))
            for run in runs:
                for attack in own:
                    if run.config is not None and run.top_k is None and run.guaranteed:
                        print(attacked.within_certificates(attack, run.config, run.rows) or "", end="")
            print()
        summaries += group + [attack.summary(radii) for attack in own]
    if sizes:
        lines = [line for path in args.runs for line in patches.patch_accuracy(path, sizes, patch_bounds(args))]
        print(patches.table(lines), end="\n\n")
        summaries += [line.summary() for line in lines]
    out = args.out or (folders[0] if folders[0].is_dir() else folders[0].parent)
    write_atomically(out / "report.json", json.dumps(summaries, indent=2).encode() + b"\n")
    curves.plot(groups, out / "certified_accuracy.png", attacks)
    print(f"wrote {out / 'report.json'} and {out / 'certified_accuracy.png'}")


if __name__ == "__main__":
    cli.run(main, Args, "scripts.report")
