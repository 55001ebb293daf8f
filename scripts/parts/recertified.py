"""Stored runs: as they are, recertified from their votes, or restated for another threat model. No model is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from certify import L0, L2, Lp, StoredRun, spec, topk
from certify.lambda_design import exact_power
from certify.logs import read_log
from certify.variable_lambda import radius_through_norms
from scripts.parts.tables import Run, rows_of


@dataclass(frozen=True)
class Again:
    """How stored votes of a sampled scheme are recertified; None keeps the run's setting."""

    alpha: float | None = None
    bounds: Literal["one-sided", "simultaneous"] | None = None
    interval: Literal["clopper-pearson", "randomized"] | None = None


STORED = Again()  # use the rows as stored


def read_run(path: Path, again: Again = STORED, bound: str | None = None) -> Run:
    """Rows as stored, or recertified from the stored votes.

    Args:
        path: a result folder, or a published log.
        again: how to recertify; by default not at all.
        bound: recertify with this bound, one of :meth:`~certify.runs.StoredRun.bound_names`.
    """
    if not path.is_dir():
        if again != STORED:
            raise ValueError(
                f"{path}: got a table of rows without votes; --alpha, --bounds and --interval need a run's votes"
            )
        return Run(path.name, "radius", None, read_log(path), folder=str(path))
    run = StoredRun(path)
    config, sampling, name = run.config, run.sampling, f"{run.config['data']}, {run.config['scheme']}"
    if bound is None and again == STORED:
        run.check_rows()
        until = (sampling or {}).get("until")
        name = name if until is None else f"{name}, until {until}"
        return Run(name, run.threat, (sampling or {}).get("alpha"), run.rows, None, until, config, str(path))
    result = run.certify(alpha=again.alpha, bounds=again.bounds, interval=again.interval, bound=bound)
    rows = rows_of(run.stored, result) | {"clean": run.predict(alpha=again.alpha).numpy()}
    if sampling is None:
        return Run(f"{name}, {config['vote']}, {bound} bound", run.threat, None, rows, config=config, folder=str(path))
    alpha = sampling["alpha"] if again.alpha is None else again.alpha
    bounds = again.bounds or sampling["bounds"]
    interval = again.interval or sampling.get("interval", "clopper-pearson")
    scheme = run.scheme_of(bound)
    name = f"{config['data']}, {spec.to_text(scheme)}, alpha={alpha}, {bounds}, {interval}"
    return Run(name, str(scheme.threat), alpha, rows, config=config, folder=str(path))


def top_k_runs(path: Path, every_k: Sequence[int], alpha: float | None = None) -> list[Run]:
    """One run for each k: an image is correct at radius r if its true label is certified to stay in the top k.

    Args:
        alpha: failure probability; by default that of the run.
    """
    if not every_k:
        return []
    if not path.is_dir():
        raise ValueError(f"{path}: got a table of rows; top-k certificates need the stored votes of a run")
    run, runs = StoredRun(path), []
    for k in every_k:
        radius = run.certify_top_k(k, alpha=alpha).radius_of(run.label)
        # predictions follow the votes; ties go to the lower index
        order = run.votes.counts.argsort(dim=1, descending=True, stable=True)[:, :k]
        predicted = torch.where((order == run.label[:, None]).any(1), run.label, order[:, 0])
        rows = {
            "idx": run.idx.numpy(),
            "label": run.label.numpy(),
            "predict": predicted.numpy(),
            "radius": radius.to(torch.float64).numpy(),
            "correct": (radius >= 0).numpy(),
        }
        level = (run.sampling or {})["alpha"] if alpha is None else alpha
        name = f"{run.config['data']}, {run.config['scheme']}, top-{k}, alpha={level}"
        runs.append(Run(name, run.threat, level, rows, k, config=run.config))
    return runs


def known_bounds(path: Path) -> list[str]:
    """The names of the alternative certificates for the votes of a run; empty if there is only one certificate."""
    return StoredRun(path).bound_names() if path.is_dir() else []


def through_norms(run: Run, p: float) -> Run:
    """A run with l1 radii, restated in lp."""
    p = float(exact_power(p))  # exactly the p that is certified
    radius = radius_through_norms(torch.from_numpy(run.rows["radius"]), p).numpy()
    return replace(run, name=f"{run.name}, through norms", threat=str(Lp(p)), rows=run.rows | {"radius": radius})


def in_pixels(run: Run) -> Run:
    """A run with l2 radii, restated in numbers of pixels; any other run unchanged."""
    if run.config is None or not run.threat.startswith(str(L2())):
        return run
    channels = run.config["shape"][0]
    radius = np.array([topk.pixels_of_l2_radius(r, channels) if r >= 0 else -1.0 for r in run.rows["radius"]])
    threat = run.threat.replace(str(L2()), str(L0()), 1)
    return replace(run, name=f"{run.name}, from l2", threat=threat, rows=run.rows | {"radius": radius})
