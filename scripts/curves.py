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


def _classifier(run: Run | AttackRun) -> tuple[str, ...]:
    """What tells classifiers apart; certificates of the same one that differ in name count as several."""
    if run.config is None:
        return (run.name,)
    name = run.name if isinstance(run, Run) and run.name != f"{run.config['data']}, {run.config['scheme']}" else ""
    return (*(str(run.config.get(key)) for key in ("checkpoint_sha256", "scheme", "vote")), name)


def draw(axis: Any, runs: list[Run], found: list[AttackRun]) -> None:
    """Certified accuracy of runs, and accuracy under attacks (dashed), against the radius; of one threat model."""
    ends = [run.rows["radius"][run.rows["correct"] > 0] for run in runs] + [a.rows["verified"] for a in found]
    right = 1.05 * max(float(each[np.isfinite(each)].max(initial=0)) for each in ends) or 1.0
    threat = (runs or found)[0].threat
    whole = threat.startswith(("l0", "patch (side", "poisoning"))
    # one color per classifier, for its certificates and for the attacks on it
    color = {key: f"C{i % 10}" for i, key in enumerate(dict.fromkeys(_classifier(each) for each in (*runs, *found)))}
    for run in runs:
        correct, radius = run.rows["correct"] > 0, run.rows["radius"]
        grid = np.unique(np.concatenate(([0.0], radius[correct & (radius >= 0)])))
        values = metrics.certified_accuracy(correct, radius, grid)
        # Certified accuracy falls just after each radius that some image reaches; where radii are whole numbers, half
        # way to the next one, so that each can be read off.
        last = grid + 0.5 if whole else grid
        label = textwrap.fill(run.name, 64)
        axis.step(
            [0, *last, last[-1]], [values[0], *values, 0], where="pre", color=color[_classifier(run)], label=label
        )
    for attack in found:
        label = textwrap.fill(attack.name, 64)
        axis.step(*attack.steps(right), where="post", linestyle="--", color=color[_classifier(attack)], label=label)
    guaranteed = all(run.guaranteed for run in runs)
    kind = what(guaranteed=guaranteed).lower()
    axis.set(xlabel=f"radius, {threat}", ylim=(0, 1.02), title="" if guaranteed else NOT_CERTIFIED)
    axis.set(ylabel=f"accuracy, {kind} (solid) and under attack" if found else f"{kind} accuracy")
    axis.set_xlim(0, right if found else None)
    if whole:
        axis.locator_params(axis="x", integer=True)
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
