"""Design of the distribution of cell widths for Variable-Lambda smoothing.

Under splitting noise with cells of different widths, two values k grid steps apart are separated in a share ``P(k)`` of
the copies. For an elementwise-concave metric ``sum g(|x_i - y_i|)``, the distribution of the widths has to satisfy
``P(k) <= g(k / q)`` everywhere, for the guarantee, and come close to equality, for quality (Levine and Feizi, "Provable
Adversarial Robustness for Fractional lp Threat Models", AISTATS 2022; dissertation, Theorem 4.3 and Appendix C.3).

With ``w_j`` of ``budget`` outcomes for each of the j splits of cells of width ``j / q``, the increments of
``budget P`` are ``m_k = sum of w_j over j >= k``. A design is thus a choice of integers
``m_1 >= m_2 >= ... >= m_q >= 0`` whose partial sums do not exceed ``budget g(k / q)``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from certify.checks import is_finite
from certify.files import write_atomically

_SOLVED_BUDGET, _SOLVED_STEPS = 2_000, 512  # beyond these, designs are greedy

Limits = tuple[int, ...]  # number of votes that may differ between values k grid steps apart, for k = 0..q
Increments = tuple[int, ...]  # a design: m_1, ..., m_q


def exact_power(p: float) -> Fraction:
    """``p`` as the simple fraction that it stands for, such as 1/3 for 0.333..."""
    if not (is_finite(p) and 0 < p <= 1):
        raise ValueError(f"p: got {p!r}, expected 0 < p <= 1")
    fraction = Fraction(p).limit_denominator(100)
    if abs(fraction - Fraction(p)) > Fraction(1, 10**12):
        raise ValueError(f"p: got {p}, expected a fraction with a denominator up to 100, such as 0.5 or 1 / 3")
    return fraction


@lru_cache(maxsize=64)
def power_limits(p: Fraction, alpha: Fraction, q: int, budget: int) -> Limits:
    """``floor(budget min((k / q)^p / alpha, 1))`` for k = 0..q, exactly.

    The largest M with ``(M A)^b q^a <= (budget B)^b k^a``, for p = a / b and alpha = A / B.
    """
    a, b = p.numerator, p.denominator
    limits = []
    for k in range(q + 1):
        ceiling = (budget * alpha.denominator) ** b * k**a
        limit = min(budget, math.floor(budget * (k / q) ** float(p) / alpha) + 1)
        while (limit * alpha.numerator) ** b * q**a > ceiling:
            limit -= 1
        limits.append(limit)
    return tuple(limits)


def concave_limits(g: Sequence[float], budget: int, name: str = "g") -> Limits:
    """``floor(budget g(k / q))`` for k = 0..q, exactly, from the doubles ``g(1 / q), ..., g(1)``.

    Raises unless g is nondecreasing and concave with ``g(0) = 0`` and ``g(1) <= 1``, up to rounding errors; ``name`` is
    what the error calls it.
    """
    values = np.array([0.0, *g], dtype=np.float64)
    if len(values) < 2 or not np.isfinite(values).all() or (values < 0).any() or (values > 1).any():
        raise ValueError(f"{name}: got {len(values) - 1} values, expected finite numbers in [0, 1] at 1/q, 2/q, ..., 1")
    steps = np.diff(values)
    bad = np.flatnonzero((steps < -1e-12) | (np.append(steps[1:], -np.inf) > steps + 1e-9))
    if bad.size:
        raise ValueError(
            f"{name}: got values that are not nondecreasing and concave at {bad[0] + 1}/{len(steps)} of the range, "
            "expected steps g((k+1)/q) - g(k/q) that are never negative and never grow"
        )
    return tuple(math.floor(budget * Fraction(float(value))) for value in values)


def cache_folder() -> Path | None:
    """``$CERTIFY_CACHE``, or ``certify`` in the user's cache folder: results that take long but can be recomputed.

    None if the user has no home directory.
    """
    if "CERTIFY_CACHE" in os.environ:
        return Path(os.environ["CERTIFY_CACHE"])
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "certify"
    except RuntimeError:
        return None


@lru_cache(maxsize=16)
def design(limits: Limits, target: tuple[float, ...], budget: int, eps: float | None = None) -> Increments:
    """Increments ``m_1 >= ... >= m_q`` whose partial sums never exceed ``limits``, as close to ``target`` as possible.

    Solves an integer program that minimizes the largest gap and, secondarily, the total gap (with ``eps``: the total
    gap, subject to a largest gap of at most ``eps``). For large budgets, where this would take too long, the design is
    greedy (:func:`greedy_design`). The result is verified in exact arithmetic, whether it comes from the solver or from
    a file, and cached in :func:`cache_folder`.

    Args:
        limits: number of votes that may differ at k = 0..q steps.
        target: ``g(1 / q), ..., g(1)``, which ``limits / budget`` rounds down.
        budget: number of outcomes.
        eps: largest gap between target and result, as a share of the budget; raises if there is no such design.
    """
    key = json.dumps({"limits": limits, "target": target, "budget": budget, "eps": eps})
    digest = hashlib.sha256(key.encode()).hexdigest()
    folder = cache_folder()
    path = None if folder is None else folder / f"lambda-{digest[:24]}.json"
    if path is not None:
        with contextlib.suppress(OSError, ValueError, TypeError, ArithmeticError, LookupError, RecursionError):
            stored = json.loads(path.read_text())
            increments = tuple(stored["increments"])
            verify(increments, limits)
            if stored["digest"] == _digest(digest, increments):
                return increments
    increments = _found(limits, target, budget, eps)
    verify(increments, limits)
    if path is not None:
        content = json.loads(key) | {"increments": increments, "digest": _digest(digest, increments)}
        with contextlib.suppress(OSError):  # failing to write the cache only costs time
            write_atomically(path, json.dumps(content).encode())
    return increments


def _digest(key: str, increments: Increments) -> str:
    """A digest by which a stored design is recognized as unmodified."""
    return hashlib.sha256(f"{key} {increments}".encode()).hexdigest()


def _found(limits: Limits, target: tuple[float, ...], budget: int, eps: float | None) -> Increments:
    if eps is None and (budget > _SOLVED_BUDGET or len(target) > _SOLVED_STEPS):
        return greedy_design(limits)
    return _solve(limits, target, budget, eps)


def greedy_design(limits: Limits) -> Increments:
    """Each increment as large as the limits and the previous one allow.

    The largest gap is 0.2 % of a budget of 4,000 for p = 1/2 and 1/3.
    """
    increments, total = [], 0
    for limit in limits[1:]:
        increments.append(min(limit - total, increments[-1]) if increments else limit)
        total += increments[-1]
    return tuple(increments)


def _solve(limits: Limits, target: tuple[float, ...], budget: int, eps: float | None) -> Increments:
    from scipy.optimize import Bounds, LinearConstraint, milp  # takes as long to import as half of this package

    q = len(target)
    wanted = budget * np.array(target)
    sums = np.tril(np.ones((q, q)))
    falling = np.eye(q - 1, q) - np.eye(q - 1, q, 1) if q > 1 else np.zeros((0, q))
    column = np.ones((q, 1))
    # variables: m_1..m_q (integers) and the largest gap
    unbounded = np.full(q, np.inf)
    constraints: list[tuple[Any, Any, Any]] = [
        (np.hstack((sums, 0 * column)), -unbounded, np.array(limits[1:], dtype=np.float64)),
        (np.hstack((sums, column)), wanted, unbounded),
        (np.hstack((falling, 0 * column[1:])), np.zeros(q - 1), unbounded[1:]),
    ]
    cost = np.append(-np.arange(q, 0, -1) / (10 * q * budget), 1.0 if eps is None else 0.0)
    upper: Any = np.append(np.full(q, budget), np.inf if eps is None else eps * budget)
    result = milp(
        cost,
        constraints=[LinearConstraint(*each) for each in constraints[: 3 if q > 1 else 2]],
        integrality=np.append(np.ones(q), 0),
        bounds=Bounds(0, upper),
        options={"time_limit": 120, "mip_rel_gap": 0.002},
    )
    # where a search hits the time limit depends on the machine, so its result would not be reproducible
    if result.x is None or (result.status != 0 and eps is None):
        if eps is None:
            return greedy_design(limits)
        raise ValueError(
            f"budget: got {budget}, for which no distribution within eps = {eps} was found ({result.message}); use a "
            "larger one"
        )
    return tuple(int(m) for m in np.rint(result.x[:q]))


def verify(increments: Sequence[int], limits: Limits) -> None:
    """Raise ``ArithmeticError`` unless the increments are a design within ``limits``, in exact arithmetic."""
    total = 0
    if len(increments) != len(limits) - 1 or not all(isinstance(m, int) and m >= 0 for m in increments):
        raise ArithmeticError(f"design: got {len(increments)} increments, expected {len(limits) - 1} integers >= 0")
    for k, m in enumerate(increments, start=1):
        total += m
        if total > limits[k] or (k < len(increments) and increments[k] > m):
            raise ArithmeticError(f"design: got one that violates its constraints at k = {k}; choose another budget")


def outcomes(increments: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """The finite outcomes ``(width, split)`` in grid steps, with multiplicity: for each width, all splits in turn."""
    falling = (*increments, 0)
    return tuple(
        (j, split) for j in range(1, len(falling)) for _ in range(falling[j - 1] - falling[j]) for split in range(j)
    )
