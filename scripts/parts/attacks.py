"""The attacks of ``python -m scripts.attack``: their options, how they run, and how they are summarized."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from certify import L0, LInf, Patch, Smoothed, Wasserstein, metrics, spec
from certify.attacks import Attacked, linf_attack, patch_attack, pointwise_attack, wasserstein_attack
from certify.attacks.gradient import check_differentiable
from certify.attacks.linf import check_linf_options
from certify.attacks.patch import check_patch_options, copies_reached
from certify.attacks.pointwise import check_options
from certify.attacks.wasserstein import Growth, check_attackable
from certify.images import Shape, to_float
from certify.threats import Threat
from scripts.parts.patches import parse_size

Options = dict[str, Any]  # options of one attack, as on the command line
Rows = dict[str, np.ndarray]


@dataclass(frozen=True)
class Images:
    """The input of an attack in :data:`ATTACKS`."""

    images: Tensor
    labels: Tensor
    index: Tensor
    seed: int
    fallback: Tensor  # images of several classes


@dataclass(frozen=True)
class Attack:
    """One attack of the command line.

    Attributes:
        defaults: its options with their published values; results depend on nothing else but the seed.
        run: attacks a few images, and reports the number of queries as they are answered.
        check: raises unless options and seed are legal; called before any work starts.
        check_classifier: raises unless the attack can run on this classifier and these images.
        copies: number of copies of an image of this shape that are classified in parallel.
        summary: the result for a classifier, in one line.
        unit: given the threat model of the classifier's scheme, the threat model that measures magnitudes, and the
            radius that corresponds to a magnitude of 1.
        tried: the only magnitudes that are tried; None if the attack searches for the smallest.
    """

    defaults: Options
    run: Callable[[Smoothed, Images, Options, Callable[[int], None]], Attacked]
    check: Callable[[Options, int], Any]
    check_classifier: Callable[[Smoothed, Tensor], None]
    copies: Callable[[Smoothed, Shape, Options], int]
    summary: Callable[[Rows, Options], str]
    unit: Callable[[Options, Threat], tuple[Threat, float]]
    tried: Callable[[Options], list[float]] | None = None


def number(text: str) -> float:
    """``"0.05"`` or ``"0.5/255"``."""
    try:
        above, _, below = text.partition("/")
        return float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"got {text!r}, expected a number or a fraction, such as 0.05 or 0.5/255") from error


def pointwise(smoothed: Smoothed, batch: Images, options: Options, on_queries: Callable[[int], None]) -> Attacked:
    return pointwise_attack(
        smoothed,
        batch.images,
        batch.labels,
        seed=batch.seed,
        index=batch.index,
        fallback=batch.fallback,
        on_queries=on_queries,
        **options,
    )


def median_summary(rows: Rows, options: Options) -> str:
    magnitude, verified = rows["magnitude"], rows["verified"]
    wrong, kept = int((magnitude == 0).sum()), int(np.isinf(magnitude).sum())
    return (
        f"{len(magnitude)} images: median attack magnitude {metrics.median_attack_magnitude(magnitude):g}, "
        f"{metrics.median_attack_magnitude(verified):g} by fresh samples; {wrong} misclassified or abstained on before "
        f"the attack, {kept} never broken; {rows['queries'].mean():.0f} queries per image"
    )


def patch_options(options: Options) -> Options:
    return {
        "patch_size": parse_size(options["patch"]),
        "restarts": options["restarts"],
        "steps": options["steps"],
        "step_size": number(options["step_size"]),
    }


def patch(smoothed: Smoothed, batch: Images, options: Options, on_queries: Callable[[int], None]) -> Attacked:
    return patch_attack(
        smoothed,
        batch.images,
        batch.labels,
        seed=batch.seed,
        index=batch.index,
        on_queries=on_queries,
        **patch_options(options),
    )


def patch_unit(options: Options, _threat: Threat) -> tuple[Threat, float]:
    height, width = parse_size(options["patch"])
    return (Patch(), float(height)) if height == width else (Patch(height, width), 1.0)


def linf_options(options: Options) -> Options:
    return {
        "eps": [number(text) for text in options["eps"]],
        "steps": options["steps"],
        "step_size": number(options["step_size"]),
    }


def linf(smoothed: Smoothed, batch: Images, options: Options, on_queries: Callable[[int], None]) -> Attacked:
    return linf_attack(
        smoothed, batch.images, batch.labels, index=batch.index, on_queries=on_queries, **linf_options(options)
    )


def growth_of(options: Options) -> Growth:
    chosen = {name: options[name] for name in ("steps", "start", "factor", "every", "samples")}
    return Growth(step_size=number(options["step_size"]), **chosen)


def wasserstein(smoothed: Smoothed, batch: Images, options: Options, on_queries: Callable[[int], None]) -> Attacked:
    return wasserstein_attack(
        smoothed,
        batch.images,
        batch.labels,
        growth=growth_of(options),
        metric=options["metric"],
        seed=batch.seed,
        index=batch.index,
        on_queries=on_queries,
    )


def wasserstein_threat(options: Options, threat: Threat) -> Threat:
    if options["metric"] is None:
        return threat if isinstance(threat, Wasserstein) else Wasserstein()
    return Wasserstein(options["metric"])


def accuracy_summary(rows: Rows, under: dict[str, float]) -> str:
    """Empirical accuracy: the share of images that no attack up to a given magnitude broke."""
    magnitude = rows["magnitude"]
    shares = {"without": 0.0} | under
    text = ", ".join(f"{name} {(magnitude > limit).mean():.2%}" for name, limit in shares.items())
    return f"{len(magnitude)} images, accuracy under attack: {text}; {rows['queries'].mean():.0f} queries per image"


ATTACKS: dict[str, Attack] = {
    "pointwise": Attack(
        defaults={"restarts": 10, "max_queries": None, "implementation": "own"},
        run=pointwise,
        check=lambda options, seed: check_options(seed=seed, **options),
        check_classifier=lambda smoothed, images: None,
        copies=lambda smoothed, shape, options: options["restarts"] * smoothed.copies_per_image(shape),
        summary=median_summary,
        unit=lambda options, threat: (threat if isinstance(threat, L0) else L0(), 1.0),
    ),
    "patch": Attack(
        defaults={"patch": "5", "restarts": 80, "steps": 150, "step_size": "0.05"},
        run=patch,
        check=lambda options, seed: check_patch_options(seed=seed, **patch_options(options)),
        check_classifier=lambda smoothed, images: check_differentiable(smoothed, to_float(images)),
        copies=lambda smoothed, shape, options: (
            options["restarts"] * copies_reached(smoothed, shape, parse_size(options["patch"]))
        ),
        summary=lambda rows, options: accuracy_summary(rows, {f"patch {options['patch']}": 1.0}),
        unit=patch_unit,
        tried=lambda options: [1.0],
    ),
    "linf": Attack(
        defaults={"eps": ["1/255", "2/255", "4/255", "8/255"], "steps": 50, "step_size": "0.5/255"},
        run=linf,
        check=lambda options, seed: check_linf_options(**linf_options(options)),
        check_classifier=lambda smoothed, images: check_differentiable(smoothed, to_float(images)),
        copies=lambda smoothed, shape, options: smoothed.copies_per_image(shape),
        summary=lambda rows, options: accuracy_summary(rows, {text: number(text) for text in options["eps"]}),
        unit=lambda options, threat: (LInf(), 1.0),
        tried=lambda options: sorted(map(number, options["eps"])),
    ),
    "wasserstein": Attack(
        defaults={
            "steps": 200,
            "step_size": "0.1",
            "start": 0.01,
            "factor": 1.3,
            "every": 10,
            "samples": 128,
            "metric": None,
        },
        run=wasserstein,
        check=lambda options, seed: growth_of(options),
        check_classifier=lambda smoothed, images: check_attackable(smoothed, to_float(images)),
        copies=lambda smoothed, shape, options: smoothed.copies_per_image(shape),
        summary=median_summary,
        unit=lambda options, threat: (wasserstein_threat(options, threat), 1.0),
    ),
}
OPTIONS = sorted({name for attack in ATTACKS.values() for name in attack.defaults})


def options_of(attack: str, given: Options) -> Options:
    """The options of an attack: those given, and the published values for all others."""
    if attack not in ATTACKS:
        raise ValueError(f"attack: got {attack!r}, expected one of {', '.join(ATTACKS)}")
    defaults = ATTACKS[attack].defaults
    for name in given.keys() - defaults.keys():
        raise ValueError(
            f"{name.replace('_', '-')}: is not an option of the {attack} attack, which has {', '.join(defaults)}"
        )
    return defaults | given


def measured_in(config: dict[str, Any]) -> tuple[Threat, float]:
    """The threat model that measures an attack's magnitudes, and the radius that corresponds to a magnitude of 1."""
    options = config["attack"]
    return ATTACKS[options["name"]].unit(options, spec.parse_scheme(config["scheme"]).threat)


def tried_by(config: dict[str, Any]) -> list[float] | None:
    """The only radii that an attack tried, in the unit of its threat model; None if it looked for the least."""
    tried, (_, unit) = ATTACKS[config["attack"]["name"]].tried, measured_in(config)
    return None if tried is None else [unit * magnitude for magnitude in tried(config["attack"])]
