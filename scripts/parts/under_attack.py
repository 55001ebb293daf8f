"""Accuracy under attack next to certified accuracy, from the rows of both; part of ``scripts.report``.

An attack bounds robustness from above, a certificate from below: on the same images and for the same classifier, the
attack's curve lies above the certificate's. For a sampled classifier, an adversarial example counts only if fresh
samples confirm it (``verified``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from certify import metrics
from certify.results import read_config, read_rows
from scripts.parts import attacks
from scripts.parts.tables import aligned, percent_above, radius_text


@dataclass(frozen=True)
class AttackRun:
    """The rows of an attack; ``magnitude`` and ``verified`` in the unit of ``threat``."""

    name: str
    threat: str
    rows: dict[str, np.ndarray]
    config: dict[str, Any]
    folder: str

    def summary(self, radii: list[float]) -> dict[str, Any]:
        verified = self.rows["verified"]
        median = metrics.median_attack_magnitude(verified)
        return {
            "kind": "attack",
            "name": self.name,
            "folder": self.folder,
            "threat": self.threat,
            "attack": self.config["attack"],
            "images": len(verified),
            "median_attack_magnitude": median if np.isfinite(median) else None,
            "radii": radii,
            "attacked_accuracy": metrics.attacked_accuracy(verified, radii).tolist(),
        }

    def steps(self, right: float) -> tuple[list[float], list[float]]:
        """The radii at which accuracy drops, from 0 to ``right``, and its value from there on."""
        verified = self.rows["verified"]
        grid = np.unique(np.concatenate(([0.0], verified[verified <= right])))
        values = metrics.attacked_accuracy(verified, grid)
        return [*grid, right], [*values, values[-1]]

    def points(self) -> tuple[list[float], list[float]] | None:
        """Accuracy at 0 and at the only radii that were tried; None where the attack looked for the least radius."""
        tried = attacks.tried_by(self.config)
        if tried is None:
            return None
        at = [0.0, *tried]
        return at, metrics.attacked_accuracy(self.rows["verified"], at).tolist()


def read_attack(path: Path) -> AttackRun:
    """Read the results of ``python -m scripts.attack``."""
    config = read_config(path)
    if "attack" not in config:
        raise ValueError(f"{path}: got certificates, expected results of scripts.attack; name it before --attack")
    threat, unit = attacks.measured_in(config)
    rows = read_rows(path)
    scaled = {name: rows[name] * unit for name in ("magnitude", "verified")}
    name = f"{config['data']}, {config['scheme']}, {config['attack']['name']} attack"
    return AttackRun(name, str(threat), rows | scaled, config, str(path))


def check_same_images(configs: Sequence[dict[str, Any] | None]) -> None:
    """Raise unless all runs are on the same data set."""
    if None in configs:
        raise ValueError("attack: got a table of rows, which does not name its images, expected result folders only")
    parts = {(config["data"], config["split"], config["data_sha256"]) for config in configs if config is not None}
    if len(parts) > 1:
        named = " and ".join(sorted({f"{data} ({split})" for data, split, _ in parts}))
        raise ValueError(f"attack: got runs on different data, splits or versions ({named}), expected one data set")


def on_common_images(all_rows: Sequence[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """The rows of the images that all runs share; otherwise, their curves could not be compared."""
    common = reduce(np.intersect1d, [rows["idx"] for rows in all_rows])
    if len(common) == 0:
        raise ValueError("attack: the runs share no image; give scripts.certify and scripts.attack the same --skip")
    masks = [np.isin(rows["idx"], common) for rows in all_rows]
    return [{k: v[mask] for k, v in rows.items()} for rows, mask in zip(all_rows, masks, strict=True)]


def within_certificates(attack: AttackRun, config: dict[str, Any], rows: dict[str, np.ndarray]) -> str | None:
    """The attack's successes within the certified radii of the same classifier; None if it attacked another one.

    Exact certificates rule out any other class. Sampled ones do, except with probability alpha per image, for the
    classifier with infinitely many samples; ``predict`` with a few may return another class even on the clean image. An
    abstention of ``predict`` for lack of samples is no contradiction, but counts as broken: with fewer samples than the
    certificate used, accuracy under attack may even start below certified accuracy.
    """
    checkpoint = config.get("checkpoint_sha256")  # certify_dataset names models differently
    same = all(attack.config.get(key) == config.get(key) for key in ("checkpoint_sha256", "scheme", "vote"))
    if checkpoint is None or not same:
        return None
    inside = (rows["correct"] > 0) & (attack.rows["magnitude"] <= rows["radius"])
    found, before = attack.rows["predict"], attack.rows["clean"]
    broken = inside & (found != -1) & (found != rows["predict"])
    abstained = inside & (found == -1) & (before != -1)
    certified = int((rows["correct"] > 0).sum())
    sizes = [(each["sampling"] or {}).get("n") for each in (attack.config, config)]
    few = "" if sizes[0] == sizes[1] else f" (attacked with n = {sizes[0]}, certified with {sizes[1]})"
    return (
        f"{attack.name}{few}: of {certified} correct and certified images, {int(broken.sum())} changed class within "
        f"the certified radius, {int(abstained.sum())} led to an abstention\n"
    )


def table(found: Sequence[AttackRun], radii: list[float]) -> str:
    """Plain text, one line per attack; accuracies are upper bounds and rounded up."""
    head = ["images", "clean", "median", *(f"r={radius_text(r)}" for r in radii)]
    lines = []
    for attack in found:
        verified, clean = attack.rows["verified"], attack.rows["clean"] == attack.rows["label"]
        cells = [str(len(verified)), percent_above(float(clean.mean()))]
        cells.append(f"{metrics.median_attack_magnitude(verified):.4g}")
        cells += map(percent_above, metrics.attacked_accuracy(verified, radii))
        lines.append((attack.name, cells))
    return f"accuracy under attack up to radius r, {found[0].threat}\n{aligned(head, lines)}"
