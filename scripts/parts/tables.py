"""Tables of certified accuracy, for scripts.report and scripts.compare. Plots are in scripts.parts.curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from certify import Certified, metrics
from certify.results import StoredVotes, floor_text
from certify.threats import NOT_CERTIFIED


@dataclass(frozen=True)
class Run:
    """A run's rows and metadata."""

    name: str
    threat: str
    alpha: float | None  # None: exact certificates
    rows: dict[str, np.ndarray]
    top_k: int | None = None  # None: certificates of the prediction
    until: str | None = None  # the question that sequential sampling answered
    config: dict[str, Any] | None = None  # of a result folder
    folder: str | None = None  # result folder, or file with the table of rows

    @property
    def guaranteed(self) -> bool:
        """Whether radii are certificates."""
        return NOT_CERTIFIED not in self.threat

    def summary(self, radii: list[float], rho: float) -> dict[str, Any]:
        rows = self.rows
        correct, radius = rows["correct"] > 0, rows["radius"]
        clean = rows.get("clean", rows["predict"])
        summary: dict[str, Any] = {
            "kind": "certificates",
            "name": self.name,
            "folder": self.folder,
            "threat": self.threat,
            "alpha": self.alpha,
            "guaranteed": self.guaranteed,
            "top_k": self.top_k,
            "images": len(correct),
            "clean_accuracy": metrics.clean_accuracy(clean, rows["label"]),
            "abstained": metrics.abstention_rate(clean),
            "certificates_abstained": metrics.abstention_rate(rows["predict"]),
            "median_certified_robustness": metrics.median_certified_robustness(correct, radius),
            "average_certified_radius": metrics.average_certified_radius(correct, radius),
            "radii": radii,
            "certified_accuracy": metrics.certified_accuracy(correct, radius, radii).tolist(),
        }
        if summary["median_certified_robustness"] == -math.inf:
            summary["median_certified_robustness"] = None
        if self.until is not None:  # sampling stopped when its question was answered, and determined nothing else
            for key in ("clean_accuracy", "median_certified_robustness", "average_certified_radius"):
                summary[key] = None
            summary["abstained"] = summary["certificates_abstained"] = None
        elif "label_share" in rows:
            summary["base_accuracy"] = float(rows["label_share"].mean())
        if self.alpha is not None and self.guaranteed:
            bound = metrics.certified_accuracy_lower_bound(correct, radius, radii, alpha=self.alpha, rho=rho)
            summary["certified_accuracy_high_probability"] = bound.tolist()
        return summary


def rows_of(stored: StoredVotes, result: Certified) -> dict[str, np.ndarray]:
    """The rows of a run whose stored votes were recertified."""
    votes = stored.votes
    return {
        "idx": stored.idx.numpy(),
        "label": stored.label.numpy(),
        "predict": result.prediction.numpy(),
        "radius": result.radius.numpy(),
        "correct": result.correct(stored.label).numpy(),
        "label_share": (votes.counts.gather(1, stored.label[:, None])[:, 0] / votes.n).numpy(),
    }


def spread(values: Sequence[np.ndarray]) -> list[float]:
    """About eight round radii from 0 up to the largest of ``values``."""
    top = max(float(each.max(initial=0)) for each in values)
    if top <= 0:
        return [0.0]
    raw = top / 7
    unit = 10.0 ** np.floor(np.log10(raw))
    step = next(s for s in (1, 2, 2.5, 5, 10) if s * unit >= raw) * unit
    if all(np.array_equal(each, np.rint(each)) for each in values):
        step = max(1.0, np.ceil(step))
    return [round(float(i * step), 10) for i in range(int(top / step) + 1)]


def percent(share: float) -> str:
    """A percentage rounded down to two decimals; the tiny offset lets 0.35 print as 35.00%."""
    return f"{math.floor(share * 10_000 + 1e-6) / 100:.2f}%"


def percent_above(share: float) -> str:
    """A percentage rounded up to two decimals, for upper bounds and for quantities that should be low."""
    return f"{math.ceil(share * 10_000 - 1e-6) / 100:.2f}%"


def radius_text(value: float) -> str:
    """A radius rounded down to four decimals, or to three significant digits if that is more precise."""
    digits = 4 if value <= 0 else max(4, 2 - math.floor(math.log10(value)))
    return floor_text(value, min(digits, 12))


def aligned(head: Sequence[str], lines: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Plain text: a header, then each line's name, and below it the cells, aligned with the header.

    A line with an empty name continues the previous one.
    """
    widths = [max(len(head[i]), *(len(cells[i]) for _, cells in lines)) for i in range(len(head))]
    text = ["  " + "  ".join(h.rjust(w) for h, w in zip(head, widths, strict=True))]
    for name, cells in lines:
        text += [name] if name else []
        text.append("  " + "  ".join(c.rjust(w) for c, w in zip(cells, widths, strict=True)))
    return "\n".join(text)


def what(*, guaranteed: bool) -> str:
    """The adjective for accuracy at a radius, depending on whether the radii are certificates."""
    return "certified" if guaranteed else "CLAIMED"


def table(summaries: list[dict[str, Any]], rho: float) -> str:
    """Plain text, one line per run; everything is rounded conservatively, abstentions up and all else down."""
    radii = summaries[0]["radii"]
    head = ["images", "clean", "abstain", "median", "ACR", *(f"r={radius_text(r)}" for r in radii)]
    lines = []
    for s in summaries:
        median = s["median_certified_robustness"]
        cells = [
            str(s["images"]),
            "-" if s["clean_accuracy"] is None else percent(s["clean_accuracy"]),
            "-" if s["abstained"] is None else percent_above(s["abstained"]),
            "-" if s["clean_accuracy"] is None else "N/A" if median is None else radius_text(median),
            "-" if s["average_certified_radius"] is None else radius_text(s["average_certified_radius"]),
            *map(percent, s["certified_accuracy"]),
        ]
        lines.append((s["name"], cells))
        if "certified_accuracy_high_probability" in s:
            bound = [percent(value) for value in s["certified_accuracy_high_probability"]]
            lines.append((f"  for all images at once, with probability {1 - rho:g}", [""] * 5 + bound))
    kind = what(guaranteed=summaries[0]["guaranteed"])
    title = f"{kind} accuracy at radius r, {summaries[0]['threat']} (clean, abstain: of the prediction)"
    return f"{title}\n{aligned(head, lines)}"
