"""What the plots of the scripts share: colors that the color-blind can tell apart, and files written atomically.

Figures are made without pyplot. It would switch a notebook that calls a script to another backend, and hide the plots
of the cells that follow.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from certify.files import write_atomically

# Okabe and Ito's palette; line styles when it is used up.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":", "-.")
# Tol's "muted" and black, for classes: ten that differ in lightness, too.
CLASS_COLORS = (
    "#332288",
    "#88CCEE",
    "#117733",
    "#DDCC77",
    "#CC6677",
    "#882255",
    "#44AA99",
    "#999933",
    "#AA4499",
    "#000000",
)


def color(i: int) -> str:
    """Color of the i-th of several curves."""
    return COLORS[i % len(COLORS)]


def style(i: int) -> str:
    """Line style of the i-th of several curves, another one where colors begin again."""
    return STYLES[i // len(COLORS) % len(STYLES)]


def new_figure(width: float, height: float) -> Any:
    """An empty figure of this size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    image = io.BytesIO()
    figure.savefig(image, dpi=150, format="png")
    write_atomically(path, image.getvalue())
