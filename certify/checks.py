"""Checks of arguments: is it a number, is it an integer within limits?"""

from __future__ import annotations

import math
from numbers import Real


def is_finite(value: object) -> bool:
    """Whether ``value`` is a finite real number: no text, no bool, no tensor."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


def check_integer(name: str, value: int, low: int, high: int | None = None) -> None:
    """Raise unless ``value`` is an integer (no float, no bool) with ``low <= value <= high``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        limits = f"at least {low}" if high is None else f"in [{low}, {high}]"
        python = "" if not hasattr(value, "__index__") or isinstance(value, int) else "; convert it with int(...)"
        raise ValueError(f"{name}: got {value!r}, expected an integer {limits}{python}")
