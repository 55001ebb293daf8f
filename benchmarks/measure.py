"""Shared by the benchmarks: command-line arguments, alternating measurements, and median ratios."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def median_ratio(ours: Sequence[float], reference: Sequence[float]) -> float:
    """The median of the pairwise ratios of two alternating measurements: other load on the machine slows down both
    measurements of a pair."""
    return statistics.median(a / b for a, b in zip(ours, reference, strict=True))


def seconds_in_turn(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds that each of these takes in each round; within a round, they run one after the other."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - started)
    return times


def arguments(prog: str, description: str | None, **options: Any) -> argparse.Namespace:
    """The command line of ``python -m benchmarks.PROG``.

    Args:
        description: the module's docstring, whose first line is shown.
        options: default and help text of each option; a default of False makes it a flag.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{prog}", description=(description or "").partition("\n")[0]
    )
    for name, (default, text) in options.items():
        if default is False:
            parser.add_argument(f"--{name}", action="store_true", help=text)
        else:
            parser.add_argument(
                f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"{text} (default: {default})"
            )
    return parser.parse_args()
