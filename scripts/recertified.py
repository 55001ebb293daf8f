"""Runs as they are stored, certified again from their votes, or restated for another threat model: without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from certify import L0, L2, Lp, Patch, RandomizedAblation, SampledScheme, spec, topk, topk_l2
from certify.confidence import predict_or_abstain
from certify.gaussian import GaussianScheme
from certify.lambda_design import exact_power
from certify.logs import consistent, read_log
from certify.results import UNPROVEN_RADIUS, read_config, read_rows, read_votes
from certify.smooth import vote_uniforms
from certify.threats import NOT_CERTIFIED
from certify.variable_lambda import radius_through_norms
from scripts import patches
from scripts.tables import Run, rows_of


@dataclass(frozen=True)
class Again:
    """How stored votes of a sampled scheme are certified again; what is None stays as the run had it."""

    alpha: float | None = None
    bounds: Literal["one-sided", "simultaneous"] | None = None
    interval: Literal["clopper-pearson", "randomized"] | None = None


STORED = Again()  # the rows as they are


def _check_fixed_size(path: Path, sampling: dict[str, Any]) -> None:
    if "until" in sampling:
        raise ValueError(
            f"{path}: was sampled until {sampling['until']} was settled; bounds for a fixed number of samples do not "
            "hold for such votes, certify again for other ones"
        )


def read_run(path: Path, again: Again = STORED, bound: str | None = None) -> Run:
    """Rows as stored, or certified again from the stored votes.

    Args:
        path: a result folder, or a published log.
        bound: certify again with this bound, of :meth:`~certify.scheme.SampledScheme.certificates`.
    """
    if not path.is_dir():
        if again != STORED:
            raise ValueError(
                f"{path}: is a table of rows without votes; --alpha, --bounds, --interval need a run's votes"
            )
        return Run(path.name, "radius", None, read_log(path))
    config = read_config(path)
    if "attack" in config:
        raise ValueError(f"{path}: holds an attack, not certificates; name it after --attack")
    sampling, name = config["sampling"], f"{config['data']}, {config['scheme']}"
    if bound is None and again == STORED:
        until = (sampling or {}).get("until")
        name = name if until is None else f"{name}, until {until}"
        rows = read_rows(path)
        if (UNPROVEN_RADIUS in rows) != (NOT_CERTIFIED in config["threat"]):
            raise ValueError(
                f"{path}: got the threat model {config['threat']!r} and the column "
                f"{UNPROVEN_RADIUS if UNPROVEN_RADIUS in rows else 'radius'}; one of both was changed, certify again"
            )
        if UNPROVEN_RADIUS in rows:
            rows["radius"] = rows.pop(UNPROVEN_RADIUS)
        rows = consistent(rows, path)
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
    alpha = sampling["alpha"] if again.alpha is None else again.alpha
    bounds = again.bounds or sampling["bounds"]
    interval = again.interval or sampling.get("interval", "clopper-pearson")
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
    rows = rows_of(stored, result) | {"clean": predict_or_abstain(votes.counts, alpha).numpy()}
    return Run(f"{name}, alpha={alpha}, {bounds}, {interval}", str(scheme.threat), alpha, rows, config=config)


def top_k_runs(path: Path, every_k: Sequence[int], alpha: float | None = None) -> list[Run]:
    """One run for each k: an image is right at radius r if its true label is certified to stay in the top k.

    Args:
        alpha: failure probability; by default that of the run.
    """
    if not every_k:
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
    level = sampling["alpha"] if alpha is None else alpha
    runs = []
    for k in every_k:
        if isinstance(scheme, GaussianScheme):
            result = topk_l2.certify_counts(votes.counts, k, scheme, level, shape=votes.shape, n=votes.n)
        else:
            result = topk.certify_counts(votes.counts, k, scheme.units(votes.shape), scheme.keep, level, n=votes.n)
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
        name = f"{config['data']}, {config['scheme']}, top-{k}, alpha={level}"
        runs.append(Run(name, config["threat"], level, rows, k, config=config))
    return runs


def known_bounds(run: Run, path: Path) -> list[str]:
    """The names of the certificates that there are for the votes of a run; none if there is but one."""
    if run.config is None:
        return []
    if run.threat == str(Patch()):
        return ["location", "published"] if patches.is_structured(path) else []
    scheme = spec.parse_scheme(run.config["scheme"])
    return list(scheme.certificates()) if isinstance(scheme, SampledScheme) else []


def bound_runs(run: Run, path: Path, bounds: Sequence[Any], again: Again = STORED) -> list[Run]:
    """The run with each bound; against patches, with the side of the largest certified square as radius."""
    config, known = read_config(path), known_bounds(run, path)
    for bound in bounds:
        if bound not in known:
            raise ValueError(f"bound: got {bound}, expected one that {config['scheme']} has: {', '.join(known)}")
    if not patches.is_structured(path):
        return [read_run(path, again, bound) for bound in bounds]
    name = f"{config['data']}, {config['scheme']}, {config['vote']}"
    return [
        Run(f"{name}, {bound} bound", config["threat"], None, patches.rows_of_bound(path, bound), config=config)
        for bound in bounds
    ]


def through_norms(run: Run, p: float) -> Run:
    """A run with l1 radii, restated in lp."""
    p = float(exact_power(p))  # the one that is certified, to the last bit
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
