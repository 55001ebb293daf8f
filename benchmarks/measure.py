"""What the benchmarks share: their arguments, and the median of ratios that were measured in turn."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import Any


def median_ratio(ours: Sequence[float], reference: Sequence[float]) -> float:
    """The median of the pairwise ratios of two measurements that were taken in turn: other work on the machine slows
    both of a pair down."""
    return statistics.median(a / b for a, b in zip(ours, reference, strict=True))


def arguments(prog: str, description: str | None, **options: Any) -> argparse.Namespace:
    """The command line of ``python -m benchmarks.PROG``.

    Args:
        description: the docstring of the module; its first line is shown.
        options: default and help text of each option; with False as default it is a switch.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{prog}", description=(description or "").partition("\n")[0]
    )
    for name, (default, text) in options.items():
        if default is False:
            parser.add_argument(f"--{name}", action="store_true", help=text)
        else:
            parser.add_argument(f"--{name}", type=type(default), default=default, help=f"{text} (default: {default})")
    return parser.parse_args()
