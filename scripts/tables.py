"""Numbers and tables as text: shares of images that are guaranteed are rounded down, upper bounds of them up."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from certify.results import floor_text


def percent(share: float) -> str:
    """Rounded down to two digits; the tiny excess lets 0.35 be 35.00 %."""
    return f"{math.floor(share * 10_000 + 1e-6) / 100:.2f}%"


def percent_above(share: float) -> str:
    """Rounded up to two digits."""
    return f"{math.ceil(share * 10_000 - 1e-6) / 100:.2f}%"


def radius_text(value: float) -> str:
    """Rounded down to four decimals, or to three significant digits where those are more."""
    digits = 4 if value <= 0 else max(4, 2 - math.floor(math.log10(value)))
    return floor_text(value, min(digits, 12))


def spread(values: Sequence[np.ndarray]) -> list[float]:
    """About eight round radii from 0 to the largest of these."""
    top = max(float(each.max(initial=0)) for each in values)
    if top <= 0:
        return [0.0]
    raw = top / 7
    unit = 10.0 ** np.floor(np.log10(raw))
    step = next(s for s in (1, 2, 2.5, 5, 10) if s * unit >= raw) * unit
    if all(np.array_equal(each, np.rint(each)) for each in values):
        step = max(1.0, np.ceil(step))
    return [round(float(i * step), 10) for i in range(int(top / step) + 1)]


def aligned(head: list[str], lines: Sequence[tuple[str, list[str]]]) -> list[str]:
    """Columns under their heads; each line has its name above it."""
    widths = [max(len(head[i]), *(len(cells[i]) for _, cells in lines)) for i in range(len(head))]
    text = ["  " + "  ".join(h.rjust(w) for h, w in zip(head, widths, strict=True))]
    for name, cells in lines:
        text += [name, "  " + "  ".join(c.rjust(w) for c, w in zip(cells, widths, strict=True))]
    return text
