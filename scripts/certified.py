"""The rows of a run of certificates, and what they say; a part of ``scripts.report``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from certify import metrics


@dataclass(frozen=True)
class Run:
    """A run's rows and what is known about it."""

    name: str
    threat: str
    alpha: float | None  # None: exact certificates
    rows: dict[str, np.ndarray]
    top_k: int | None = None  # None: certificates of the prediction
    until: str | None = None  # the question that sequential sampling settled
    config: dict[str, Any] | None = None  # of a result folder

    def summary(self, radii: list[float], rho: float) -> dict[str, Any]:
        rows = self.rows
        correct, radius = rows["correct"] > 0, rows["radius"]
        clean = rows.get("clean", rows["predict"])
        summary: dict[str, Any] = {
            "name": self.name,
            "threat": self.threat,
            "alpha": self.alpha,
            "top_k": self.top_k,
            "images": len(correct),
            "clean_accuracy": metrics.clean_accuracy(clean, rows["label"]),
            "abstained": metrics.abstention_rate(clean),
            "median_certified_robustness": metrics.median_certified_robustness(correct, radius),
            "average_certified_radius": metrics.average_certified_radius(correct, radius),
            "radii": radii,
            "certified_accuracy": metrics.certified_accuracy(correct, radius, radii).tolist(),
        }
        if summary["median_certified_robustness"] == -math.inf:
            summary["median_certified_robustness"] = None
        if self.until is not None:  # sampling stopped when its question was settled: nothing else was found out
            for key in ("clean_accuracy", "abstained", "median_certified_robustness", "average_certified_radius"):
                summary[key] = None
        elif "label_share" in rows:
            summary["base_accuracy"] = float(rows["label_share"].mean())
        if self.alpha is not None:
            bound = metrics.certified_accuracy_lower_bound(correct, radius, radii, alpha=self.alpha, rho=rho)
            summary["certified_accuracy_high_probability"] = bound.tolist()
        return summary
