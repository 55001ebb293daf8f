"""The quantities that table cells measure, read from a run's rows on disk; nothing that is stored is recomputed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.special import stdtrit

from certify import RandomizedAblation, metrics, spec
from certify.results import read_config
from reproduction.sources import Options, Source
from reproduction.values import LEVEL, Value, mean, median, share
from rl.evaluation import area_under_curve
from scripts.learning_efficiency import TASKS
from scripts.parts import patches
from scripts.parts.attacks import number
from scripts.parts.tables import Run

Rounding = Literal["down", "up", "nearest"]


def _whole(run: Run, path: Path) -> Run:
    """The run, unless its sampling stopped as soon as some other question was settled."""
    if run.until is not None:
        raise ValueError(f"{path}: was sampled until {run.until} was settled, and shows nothing else about the images")
    return run


def _answers(source: Source, options: Options) -> tuple[np.ndarray, np.ndarray]:
    """The returned classes, -1 where abstaining, and the true classes. The former are those of PREDICT or of CERTIFY,
    which abstains where it cannot bound the top probability above one half."""
    rows = _whole(source.certificates(options), source.path).rows
    certified = options.get("by", "prediction") == "certificate"
    return rows["predict"] if certified else rows.get("clean", rows["predict"]), rows["label"]


def clean(source: Source, options: Options) -> Value:
    answers, labels = _answers(source, options)
    return share(metrics.clean_accuracy(answers, labels), len(labels))


def abstained(source: Source, options: Options) -> Value:
    answers, labels = _answers(source, options)
    return share(metrics.abstention_rate(answers), len(labels))


def base(source: Source, options: Options) -> Value:
    """The mean over images of the true class's vote share: the accuracy of the base classifier, or of a single model of
    an ensemble."""
    rows = _whole(source.certificates(options), source.path).rows
    if "label_share" not in rows:
        raise ValueError(f"{source.path}: has no vote shares, from which the base classifier's accuracy is computed")
    return mean(rows["label_share"])


def certified(source: Source, options: Options) -> Value:
    if "patch" in options:
        found = source.patch(options["patch"], options.get("bound", "location"))
        return share(found.certified[0], found.images)
    run = source.certificates(options)
    correct, radius = run.rows["correct"] > 0, run.rows["radius"]
    accuracy = float(metrics.certified_accuracy(correct, radius, [options["radius"]])[0])
    return share(accuracy, len(correct), guaranteed=run.guaranteed)


def median_radius(source: Source, options: Options) -> Value:
    run = _whole(source.certificates(options), source.path)
    correct, radius = run.rows["correct"] > 0, run.rows["radius"]
    effective = np.where(correct & (radius >= 0), radius, -np.inf)
    return median(metrics.median_certified_robustness(correct, radius), effective, guaranteed=run.guaranteed)


def average_radius(source: Source, options: Options) -> Value:
    run = _whole(source.certificates(options), source.path)
    correct, radius = run.rows["correct"] > 0, run.rows["radius"]
    found = mean(np.where(correct & (radius >= 0), radius, 0))
    return replace(found, value=metrics.average_certified_radius(correct, radius), guaranteed=run.guaranteed)


def average_correct_radius(source: Source, options: Options) -> Value:
    """The mean radius over correctly classified images only, in contrast to the average certified radius."""
    run = _whole(source.certificates(options), source.path)
    right = (run.rows["correct"] > 0) & (run.rows["radius"] >= 0)
    if not right.any():
        return Value(-math.inf, None, None, len(right), run.guaranteed)
    return replace(mean(run.rows["radius"][right]), guaranteed=run.guaranteed)


def seconds(source: Source, options: Options) -> Value:
    """Seconds per image, on whatever machine and under whatever other load it ran."""
    rows = read_config(source.path) and source.certificates(options).rows
    if "time" not in rows:
        raise ValueError(f"{source.path}: has no times")
    return mean(rows["time"])


def touched(source: Source, options: Options) -> Value:
    """The exact share of an image's copies that a perturbation of ``radius`` units can change (Delta)."""
    config = read_config(source.path)
    scheme, shape = spec.parse_scheme(config["scheme"]), tuple(config["shape"])
    if not isinstance(scheme, RandomizedAblation):
        raise ValueError(f"{source.path}: got {config['scheme']}, expected randomized ablation")
    units, radius = scheme.units(shape), options["radius"]
    if radius != int(radius) or radius > units:
        raise ValueError(f"radius: got {radius}, expected a whole number of at most {units}")
    left = Fraction(math.comb(units - int(radius), scheme.keep), math.comb(units, scheme.keep))
    return Value(float(1 - left), None, None, units)


def attacked(source: Source, options: Options) -> Value:
    """Accuracy under attack up to a radius in units of the threat model, or by a patch of the attack's size."""
    attack = source.attack()
    verified = attack.rows["verified"]
    if "patch" in options:
        had = attack.config["attack"].get("patch")
        if had is None or patches.parse_size(had) != patches.parse_size(options["patch"]):
            raise ValueError(f"{source.path}: got an attack with patches {had}, expected {options['patch']}")
        return share(float(np.isinf(verified).mean()), len(verified))
    return share(float(metrics.attacked_accuracy(verified, [options["radius"]])[0]), len(verified))


def median_attack(source: Source, _options: Options) -> Value:
    verified = source.attack().rows["verified"]
    return median(metrics.median_attack_magnitude(verified), verified)


def at_the_end(source: Source, options: Options) -> Value:
    return mean(source.method(options.get("metric", "success")).scores[:, -1])


def final_return(source: Source, _options: Options) -> Value:
    return at_the_end(source, {"metric": "return"})


def height(source: Source, options: Options) -> Value:
    method = source.method(options.get("metric", "success"))
    return mean(area_under_curve(method.scores, method.timesteps))


def steps_to(source: Source, options: Options) -> Value:
    """The first evaluation of each seed with at least this score; infinite if a seed has none."""
    method = source.method(options.get("metric", "success"))
    reached = method.scores >= options["at"]
    if not reached.any(1).all():
        return Value(math.inf, None, None, len(reached))
    return mean(method.timesteps[reached.argmax(1)])


def setting(source: Source, options: Options) -> Value:
    """A number from the configuration of a run, which is exact."""
    value = source.setting(options["of"])
    if not _is_number(value):
        raise ValueError(f"{source.path}: got {options['of']} = {value!r}, expected a number")
    return Value(float(value), None, None, 1)


def exponent(source: Source, options: Options) -> Value:
    """The exponent with which the transitions needed grow in the dimension; the interval is that of the fitted line."""
    environment, loss = options["environment"], options["loss"]
    found = [c for c in source.efficiency() if (c["environment"], c["loss"]) == (environment, loss)]
    if len(found) != 1:
        raise ValueError(f"{source.path}: got {len(found)} fits for {environment}, {loss}; expected one")
    points = sum(map(len, found[0]["needed"].values()))
    half = float(stdtrit(points - 2, (1 + LEVEL) / 2)) * found[0]["exponent_standard_error"] if points > 2 else None
    value = found[0]["exponent"]
    return Value(value, *((None, None) if half is None else (value - half, value + half)), points)


@dataclass(frozen=True)
class Quantity:
    """A quantity that a column can show.

    Attributes:
        compute: computes it from a result folder and the options of the cell.
        options: names of the options it accepts.
        needs: groups of options; exactly one option of each group is required.
        share: whether its values are shares, which ``unit = "%"`` turns into percent.
        over: what ``n`` counts.
        rounding: rounding in tables, never towards more robustness than measured.
    """

    compute: Callable[[Source, Options], Value]
    options: frozenset[str] = frozenset()
    needs: tuple[frozenset[str], ...] = ()
    share: bool = False
    over: str = "images"
    rounding: Rounding = "nearest"


_READ = frozenset({"bound", "top_k", "alpha", "p", "pixels"})
_METRIC = frozenset({"metric"})

QUANTITIES: dict[str, Quantity] = {
    "clean": Quantity(clean, _READ | {"by"}, share=True, rounding="down"),
    "abstained": Quantity(abstained, _READ | {"by"}, share=True),
    "base": Quantity(base, share=True, rounding="down"),
    "one-model": Quantity(base, share=True, rounding="down"),
    "certified": Quantity(
        certified, _READ | {"radius", "patch"}, (frozenset({"radius", "patch"}),), share=True, rounding="down"
    ),
    "median": Quantity(median_radius, _READ, rounding="down"),
    "acr": Quantity(average_radius, _READ, rounding="down"),
    "acr-correct": Quantity(average_correct_radius, _READ, rounding="down"),
    "seconds": Quantity(seconds),
    "attacked": Quantity(
        attacked, frozenset({"radius", "patch"}), (frozenset({"radius", "patch"}),), share=True, rounding="up"
    ),
    "median-attack": Quantity(median_attack, rounding="up"),
    "touched": Quantity(touched, frozenset({"radius"}), (frozenset({"radius"}),), share=True, over="units"),
    "success": Quantity(at_the_end, share=True, over="seeds"),
    "return": Quantity(final_return, over="seeds"),
    "height": Quantity(height, _METRIC, share=True, over="seeds"),
    "steps-to": Quantity(steps_to, _METRIC | {"at"}, (frozenset({"at"}),), over="seeds"),
    "setting": Quantity(setting, frozenset({"of"}), (frozenset({"of"}),), over="configurations"),
    "exponent": Quantity(
        exponent,
        frozenset({"environment", "loss"}),
        (frozenset({"environment"}), frozenset({"loss"})),
        over="points",
    ),
}

BOUNDS = ("published", "location", "tight", "proven", "printed")

# The legal values of each option, in words and as a predicate.
OPTIONS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "radius": ("a number of at least 0", lambda v: _is_number(v) and v >= 0),
    "patch": ('a size such as "5" or "3x7"', lambda v: isinstance(v, str) and bool(patches.parse_size(v))),
    "bound": (" or ".join(BOUNDS), lambda v: v in BOUNDS),
    "top_k": ("a whole number of at least 1", lambda v: type(v) is int and v >= 1),
    "alpha": ("a probability between 0 and 1", lambda v: _is_number(v) and 0 < v < 1),
    "p": ('a number above 0, or text such as "1/3"', lambda v: number(str(v)) > 0),
    "pixels": ("true or false", lambda v: isinstance(v, bool)),
    "by": ("prediction or certificate", lambda v: v in ("prediction", "certificate")),
    "metric": ("success or return", lambda v: v in ("success", "return")),
    "at": ("a number", lambda v: _is_number(v)),
    "of": ("a name in the configuration, such as arguments.gamma", lambda v: isinstance(v, str) and v != ""),
    "environment": (" or ".join(TASKS), lambda v: v in TASKS),
    "loss": ("standard or ReenGAGE", lambda v: v in ("standard", "ReenGAGE")),
}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _holds(legal: Callable[[Any], bool], value: Any) -> bool:
    try:
        return legal(value)
    except ValueError:
        return False


def check_options(quantity: str, options: Options, where: str) -> None:
    """Raise unless ``options``, which are all the options of a cell, are legal for the quantity."""
    known = QUANTITIES[quantity]
    for name, value in options.items():
        if name not in known.options:
            expected = ", ".join(sorted(known.options)) or "none"
            raise ValueError(f"{where}: got {name} = {value!r}; the options of {quantity} are {expected}")
        text, legal = OPTIONS[name]
        if not _holds(legal, value):
            raise ValueError(f"{where}: got {name} = {value!r}, expected {text}")
    for group in known.needs:
        if len(group & options.keys()) != 1:
            raise ValueError(f"{where}: {quantity} needs {' or '.join(sorted(group))}, exactly one of them")
    if "bound" in options and "top_k" in options:
        raise ValueError(f"{where}: got bound and top_k, expected at most one of them")


def measure(source: Source, quantity: str, options: Options, unit: str) -> Value:
    """The value of a cell, in its unit."""
    known = QUANTITIES[quantity]
    value = known.compute(source, options)
    return value.scaled(100) if unit == "%" and known.share else value
