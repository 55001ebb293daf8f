"""The Pointwise attack, the l0 attack used to evaluate randomized ablation.

It starts from a distant adversarial image and resets changed pixels to their original values, one at a time and in
random order, wherever the image stays adversarial, until no single pixel can be reset.

Source: Schott, Rauber, Bethge and Brendel, "Towards the first adversarially robust neural network model on MNIST"
(ICLR 2019); used by Levine and Feizi (AAAI 2020) with 10 restarts, 10,000 samples per query and abstention counted as
success. The published attack then moves the remaining changed pixels towards their original values, which shrinks the
perturbation in l2 but not in l0; that part is omitted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from certify.attacks.attacked import Attacked, attacked_of
from certify.attacks.jobs import Jobs
from certify.attacks.noise import find_starts
from certify.attacks.oracle import Oracle
from certify.attacks.reference import import_foolbox, reset_with_foolbox
from certify.checks import check_integer
from certify.inference import BaseClassifier
from certify.smooth import Smoothed
from certify.threats import L0, Unit

Implementation = Literal["own", "foolbox"]
ORDER = 1  # substream of the random numbers
MAX_RESTARTS = 1 << 16


def pointwise_attack(
    classifier: Smoothed | BaseClassifier,
    images: Tensor,
    labels: Tensor,
    *,
    restarts: int = 10,
    seed: int = 0,
    index: Tensor | None = None,
    unit: Unit | None = None,
    max_queries: int | None = None,
    fallback: Tensor | None = None,
    implementation: Implementation = "own",
    on_queries: Callable[[int], None] | None = None,
) -> Attacked:
    """Attack each image and keep the best of ``restarts``.

    The target is ``Smoothed.predict`` with fixed samples, see :class:`~certify.attacks.oracle.Oracle`. A wrong class or
    an abstention counts as success. The result depends on an image, its label, its ``index`` and the seeds, not on the
    other images of the batch.

    Cost: a restart takes up to about 15 queries to find a start, and then one or two for each pixel it changed. Each
    query of a smoothed classifier runs the base classifier on ``n`` copies (on all copies of an enumerated scheme).

    Args:
        classifier: a smoothed classifier, or any callable from floats in [0, 1] ``[N, C, H, W]`` to scores.
        images: ``[B, C, H, W]``, uint8 or floats in [0, 1]; the attack sets pixels to 0 or to the largest value (or to
            those of ``fallback``), or leaves them unchanged.
        labels: int64 ``[B]``, the true classes.
        restarts: independent attempts per image; the one with the fewest changes counts.
        seed: of the attack's own choices; the noise samples use the seed of the smoothed classifier.
        index: int64 ``[B]``, each image's index in its data set, on which noise and choices depend; by default 0..B-1.
        unit: what counts as one change, ``"pixel"`` or ``"feature"``; by default that of the scheme's l0 threat, else
            pixels.
        max_queries: maximum number of queries per image, shared equally by all restarts; a restart that runs out keeps
            its result so far. One query of the clean image and those that verify the results are not included.
        fallback: ``[S, C, H, W]``, dtype of the images: starting points for images that no noise makes adversarial,
            such as one of each class.
        implementation: ``"own"``; ``"foolbox"`` resets features with ``foolbox.attacks.PointwiseAttack`` instead, from
            the same starting points (needs the extra "attacks"; resets features, not pixels; no ``max_queries``).
        on_queries: called with the number of queries just answered, to show progress.
    """
    check_options(restarts, seed, max_queries, implementation)
    oracle = Oracle(classifier, images, labels, index=index, on_queries=on_queries)
    threat = L0(_unit_of(classifier) if unit is None else unit)
    share = None if max_queries is None else max_queries // restarts
    if fallback is not None:
        _check_fallback(fallback, images, oracle)
        fallback = fallback.to(images.device)

    clean = oracle.classes(images, torch.arange(len(images), device=images.device))
    attacked = (clean == oracle.labels).nonzero()[:, 0]
    jobs = Jobs(oracle, attacked, restarts=restarts, unit=threat.unit, seed=seed, share=share)
    starts, found = find_starts(jobs, fallback)
    own = implementation == "own"
    ends = reset(jobs, starts, found) if own else reset_with_foolbox(jobs, starts, found, seed)
    return attacked_of(jobs, ends, found, clean, threat)


def reset(jobs: Jobs, starts: Tensor, found: Tensor) -> Tensor:
    """Reset changed units one at a time while the image stays adversarial: the end points ``[J, C, H, W]``.

    A pass tries every changed unit once, in random order; passes repeat until one changes nothing. Queries whose answer
    is known are skipped: units that failed since the last success, and the last changed unit of an image.
    """
    changed = jobs.changed(starts) & found[:, None]
    everyone = torch.arange(len(jobs), device=starts.device)
    passes = torch.zeros_like(everyone)
    priority = jobs.uniforms(everyone, 0, ORDER)
    tried = torch.zeros_like(changed)  # in this pass
    failed = torch.zeros_like(changed)  # since the last success
    while True:
        open_units = changed & ~failed
        rows = (open_units.any(1) & (changed.sum(1) > 1) & jobs.may_ask()).nonzero()[:, 0]
        if len(rows) == 0:
            return torch.where(jobs.per_feature(changed), starts, jobs.original)
        new = rows[~(open_units & ~tried)[rows].any(1)]
        tried[new] = False
        passes[new] += 1
        priority[new] = jobs.uniforms(new, passes[new], ORDER)

        eligible = (open_units & ~tried)[rows]
        unit = torch.where(eligible, priority[rows], 2.0).argmin(1)
        tried[rows, unit] = True
        trial = changed[rows]
        trial[torch.arange(len(rows), device=rows.device), unit] = False
        candidates = torch.where(jobs.per_feature(trial), starts[rows], jobs.original[rows])
        good = jobs.adversarial(rows, candidates)
        changed[rows[good], unit[good]] = False
        failed[rows[good]] = False
        failed[rows[~good], unit[~good]] = True


def check_options(restarts: int, seed: int, max_queries: int | None, implementation: str) -> None:
    """Raise unless these are legal arguments of :func:`pointwise_attack`, and foolbox is installed if requested."""
    check_integer("restarts", restarts, 1, MAX_RESTARTS - 1)
    check_integer("seed", seed, 0, (1 << 64) - 1)
    if max_queries is not None:
        check_integer("max_queries", max_queries, restarts)
    if implementation not in get_args(Implementation):
        raise ValueError(f"implementation: got {implementation!r}, expected 'own' or 'foolbox'")
    if implementation == "foolbox":
        if max_queries is not None:
            raise ValueError("max_queries: got a limit, but foolbox cannot enforce one; use implementation='own'")
        import_foolbox()


def _unit_of(classifier: Smoothed | BaseClassifier) -> Unit:
    threat = classifier.scheme.threat if isinstance(classifier, Smoothed) else None
    return threat.unit if isinstance(threat, L0) else "pixel"


def _check_fallback(fallback: Tensor, images: Tensor, oracle: Oracle) -> None:
    if fallback.shape[1:] != images.shape[1:] or fallback.dtype != images.dtype:
        raise ValueError(
            f"fallback: got {fallback.dtype} {tuple(fallback.shape)}, expected {images.dtype} "
            f"(S, {', '.join(map(str, images.shape[1:]))}), like the images"
        )
    oracle.check(fallback)
