"""Accuracy against radius, as a picture; a part of ``scripts.report``."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from certify import metrics
from certify.threats import NOT_CERTIFIED
from scripts.parts import figures
from scripts.parts.tables import Run, what
from scripts.parts.under_attack import AttackRun


def _classifier(run: Run | AttackRun) -> tuple[str, ...]:
    """What tells classifiers apart; certificates of the same one that differ in name count as several."""
    if run.config is None:
        return (run.name,)
    name = run.name if isinstance(run, Run) and run.name != f"{run.config['data']}, {run.config['scheme']}" else ""
    return (*(str(run.config.get(key)) for key in ("checkpoint_sha256", "scheme", "vote")), name)


def _data(runs: Sequence[Run | AttackRun]) -> str | None:
    """The data set that all have in common, which then need not be named for each."""
    found = {None if run.config is None else str(run.config["data"]) for run in runs}
    return found.pop() if len(found) == 1 else None


def _title(runs: Sequence[Run | AttackRun]) -> str:
    """The data set and the number of images, as far as all have them in common."""
    sizes = {len(run.rows["idx"]) for run in runs}
    return ", ".join(filter(None, [_data(runs), *(f"{size:,} images" for size in sizes if len(sizes) == 1)]))


def draw(axis: Any, runs: list[Run], found: list[AttackRun]) -> None:
    """Certified accuracy of runs, and accuracy under attacks, against the radius; of one threat model.

    An attack that looks for the least radius is a dashed line, one that only tried some radii a point at each.
    """
    everything = [*runs, *found]
    threat, data = everything[0].threat, _data(everything)
    whole = threat.startswith(("l0", "patch (side", "poisoning"))
    # where radii are whole numbers, curves fall half way between two of them, so that each can be read off
    half = 0.5 if whole else 0.0
    ends = [run.rows["radius"][run.rows["correct"] > 0] for run in runs] + [a.rows["verified"] for a in found]
    ends += [np.array(points[0]) for attack in found if (points := attack.points()) is not None]
    largest = max(float(each[np.isfinite(each)].max(initial=0)) for each in ends)
    right = largest + half if whole and largest else 1.05 * largest or 1.0
    # one color per classifier, for its certificates and for the attacks on it
    number = {key: i for i, key in enumerate(dict.fromkeys(_classifier(each) for each in everything))}

    def look(each: Run | AttackRun) -> dict[str, Any]:
        name = each.name if data is None else each.name.removeprefix(f"{data}, ")
        return {"color": figures.color(number[_classifier(each)]), "label": textwrap.fill(name, 64)}

    for run in runs:
        correct, radius = run.rows["correct"] > 0, run.rows["radius"]
        grid = np.unique(np.concatenate(([0.0], radius[correct & (radius >= 0)])))
        values = metrics.certified_accuracy(correct, radius, grid)
        last = grid + half  # certified accuracy falls just after each radius that some image reaches
        style = "-" if number[_classifier(run)] < len(figures.COLORS) else "-."
        axis.step([0, *last, last[-1]], [values[0], *values, 0], where="pre", linestyle=style, **look(run))
    for attack in found:
        points = attack.points()
        if points is not None:
            axis.plot(*points, linestyle="none", marker="D", markersize=5, clip_on=False, **look(attack))
            continue
        at, values = attack.steps(right)
        at = [max(0.0, radius - half) for radius in at[:-1]] + [right]
        axis.step(at, values, where="post", linestyle="--", **look(attack))
    guaranteed = all(run.guaranteed for run in runs)
    kind = what(guaranteed=guaranteed).lower()
    axis.set(xlabel=f"radius, {threat}", ylim=(0, 1.02))
    title = [_title(everything)] if guaranteed else [_title(everything), NOT_CERTIFIED]
    axis.set_title(": ".join(filter(None, title)), fontsize=10)
    marks = " or ".join(sorted({"dashed" if attack.points() is None else "points" for attack in found}))
    axis.set(ylabel=f"accuracy: {kind} (solid),\nunder attack ({marks})" if found else f"{kind} accuracy")
    axis.set_xlim(0, right if found else None)
    if whole:
        axis.locator_params(axis="x", integer=True)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.16))  # below, so that it covers no curve


def plot(groups: dict[str, list[Run]], path: Path, attacks: dict[str, list[AttackRun]] | None = None) -> None:
    """Accuracy against radius, a panel per threat model."""
    attacks = attacks or {}
    threats = list(groups | attacks)
    entries = max(len(groups.get(threat, [])) + len(attacks.get(threat, [])) for threat in threats)
    figure = figures.new_figure(5.2 * len(threats), 3.9 + 0.2 * entries)
    axes = figure.subplots(1, len(threats), squeeze=False)
    for axis, threat in zip(axes[0], threats, strict=True):
        draw(axis, groups.get(threat, []), attacks.get(threat, []))
    figures.save(figure, path)
