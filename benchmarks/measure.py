"""What the benchmarks share: their arguments, measuring in turn, and the median of the ratios."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def median_ratio(ours: Sequence[float], reference: Sequence[float]) -> float:
    """The median of the pairwise ratios of two measurements that were taken in turn: other work on the machine slows
    both of a pair down."""
    return statistics.median(a / b for a, b in zip(ours, reference, strict=True))


def seconds_in_turn(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds that each of these takes, once per round, one after the other."""
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
            parser.add_argument(
                f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"{text} (default: {default})"
            )
    return parser.parse_args()
