"""Accuracy against radius, as a picture; a part of ``scripts.report``."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from certify import metrics
from certify.threats import NOT_CERTIFIED
from scripts.attacked import AttackRun
from scripts.tables import Run, what


def draw(axis: Any, runs: list[Run], found: list[AttackRun]) -> None:
    """Certified accuracy of runs, and accuracy under attacks (dashed), against the radius; of one threat model."""
    ends = [run.rows["radius"][run.rows["correct"] > 0] for run in runs] + [a.rows["verified"] for a in found]
    right = 1.05 * max(float(each[np.isfinite(each)].max(initial=0)) for each in ends)
    threat = (runs or found)[0].threat
    for run in runs:
        correct, radius = run.rows["correct"] > 0, run.rows["radius"]
        grid = np.unique(np.concatenate(([0.0], radius[correct & (radius >= 0)])))
        values = metrics.certified_accuracy(correct, radius, grid)
        # Certified accuracy falls just after each radius that some image reaches; a number of pixels or training
        # samples can only be exceeded by a whole one.
        last = grid + 1 if threat.startswith(("l0", "patch", "poisoning")) else grid
        axis.step([0, *last, last[-1]], [values[0], *values, 0], where="pre", label=textwrap.fill(run.name, 64))
    for attack in found:
        axis.step(*attack.steps(right), where="post", linestyle="--", label=textwrap.fill(attack.name, 64))
    guaranteed = all(run.guaranteed for run in runs)
    kind = what(guaranteed=guaranteed).lower()
    axis.set(xlabel=f"radius, {threat}", ylim=(0, 1.02), title="" if guaranteed else NOT_CERTIFIED)
    axis.set(ylabel=f"accuracy, {kind} (solid) and under attack" if found else f"{kind} accuracy")
    axis.set_xlim(left=0)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)


def plot(groups: dict[str, list[Run]], path: Path, attacks: dict[str, list[AttackRun]] | None = None) -> None:
    """Accuracy against radius, a panel per threat model."""
    attacks = attacks or {}
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    threats = list(groups | attacks)
    figure, axes = plt.subplots(1, len(threats), figsize=(5.2 * len(threats), 3.9), squeeze=False, layout="constrained")
    for axis, threat in zip(axes[0], threats, strict=True):
        draw(axis, groups.get(threat, []), attacks.get(threat, []))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
