"""Variable-Lambda smoothing: exact certificates for lp, 0 < p <= 1, and for other elementwise-concave metrics.

Source: Levine and Feizi, "Provable Adversarial Robustness for Fractional lp Threat Models" (AISTATS 2022);
dissertation, Theorem 4.3 and the derandomization of Section 4.3; equation and appendix numbers are the dissertation's.
:mod:`certify.lambda_design` designs the distribution of the cells.
"""

from __future__ import annotations

import hashlib
import math
import sys
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
import torch
from torch import Tensor

from certify.checks import check_integer, is_finite
from certify.images import Shape, check_images, to_levels
from certify.lambda_design import Increments, Limits, concave_limits, exact_power, outcomes, power_limits, verify
from certify.lambda_design import design as find_design
from certify.offsets import fixed_offsets
from certify.scheme import NOT_IN_TEXT, EnumeratedScheme, leader_and_gap
from certify.threats import ElementwiseConcave, Lp, Part, part_of_each_feature

Encoding = Literal["lower-upper", "centre", "centre-centre", "centre-error"]
Coupling = Literal["cyclic", "permuted", "global"]

_PERMUTATION_LIMIT = 1 << 29  # entries of 4 bytes


def encoded_channels(encoding: Encoding) -> int:
    """Number of channels that encode one channel of an image."""
    return 1 if encoding == "centre" else 2


def encode_cells(lower: Tensor, upper: Tensor, encoding: Encoding) -> tuple[Tensor, ...]:
    """Encode cells, given by their ends, for the base classifier (Appendix C.5): one tensor per channel."""
    centre = (lower + upper) / 2
    if encoding == "centre":
        return (centre,)
    if encoding == "centre-centre":
        return (centre, centre)
    return (centre, (upper - lower) / 2) if encoding == "centre-error" else (lower, upper)


def _cells(increments: Increments, encoding: Encoding) -> Tensor:
    """The encoding of every level under each of the F finite outcomes and, last, under "no information".

    float32 ``[channels, q + 1, F + 1]``. Cell ends are half-steps clipped to [0, 1], computed as integers in units of
    ``1 / (2q)``.
    """
    q = len(increments)
    finite = torch.tensor(outcomes(increments), dtype=torch.int64).reshape(-1, 2)
    width, split = 2 * finite[None, :, 0], 2 * finite[None, :, 1] + 1
    level = 2 * torch.arange(q + 1)[:, None]
    lower = split + torch.div(level - split, width, rounding_mode="floor") * width
    ends = torch.stack((lower.clamp(min=0), (lower + width).clamp(max=2 * q)))
    whole = torch.tensor([0, 2 * q])[:, None, None].expand(2, q + 1, 1)
    lower, upper = (torch.cat((ends, whole), 2).to(torch.float64) / (2 * q)).unbind()
    return torch.stack(encode_cells(lower, upper, encoding)).float()


class _CellTable(NamedTuple):
    """The cells of one or several designs, one design after the other.

    Attributes:
        values: float32 ``[channels * cells]``, all cells of a channel before those of the next.
        cells: how many there are.
        start, columns: for each feature, where the cells of its design begin, and how many of them a level has. Both
            integers of one type, ``[C, H, W]``, or ``[]`` where all features have the same design.
    """

    values: Tensor
    cells: int
    start: Tensor
    columns: Tensor


@lru_cache(maxsize=8)
def _cell_table(
    designs: tuple[Increments, ...], encoding: Encoding, by: Part | None, shape: Shape, device: torch.device
) -> _CellTable:
    """The cells of images ``[C, H, W]`` whose parts, as ``by`` names them, have these designs; None: all the same."""
    distinct = list(dict.fromkeys(designs))
    tables = [_cells(increments, encoding) for increments in distinct]
    sizes = [table[0].numel() for table in tables]
    small = torch.int32 if sum(sizes) * len(tables[0]) < 1 << 31 else torch.int64
    values = torch.cat([table.flatten(1) for table in tables], 1)
    kind = torch.tensor([distinct.index(increments) for increments in designs])
    which = kind[0] if by is None else kind[part_of_each_feature(by, shape)]
    start = torch.tensor([sum(sizes[:i]) for i in range(len(sizes))])[which]
    columns = torch.tensor([table.shape[2] for table in tables])[which]
    return _CellTable(values.flatten().to(device), sum(sizes), start.to(device, small), columns.to(device, small))


@lru_cache(maxsize=4)
def _permutations(seed: int, count: int, shape: Shape, device: torch.device) -> Tensor:
    """A fixed pseudorandom permutation of 0..count - 1 for every feature: int32 ``[count, *shape]``."""
    features = math.prod(shape)
    if count * features > _PERMUTATION_LIMIT:
        raise ValueError(
            f"coupling: got 'permuted', which would store {count} x {features} numbers, expected at most "
            f"{_PERMUTATION_LIMIT}; use 'cyclic', which the paper found to be as good (Appendix C.7)"
        )
    state = np.random.RandomState(seed)
    table = np.empty((features, count), dtype=np.int32)
    for row in table:
        row[:] = state.permutation(count)
    return torch.from_numpy(table.T.copy()).view(count, *shape).to(device)


@lru_cache(maxsize=8)
def _blocks(increments: Increments, copies: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Start and length of the block of equal-width outcomes that contains each copy, both int32 ``[copies]``."""
    listed = outcomes(increments)
    start = [t - split for t, (_, split) in enumerate(listed)] + list(range(len(listed), copies))
    length = [width for width, _ in listed] + [1] * (copies - len(listed))
    return (
        torch.tensor(start, dtype=torch.int32, device=device),
        torch.tensor(length, dtype=torch.int32, device=device),
    )


@dataclass(frozen=True, kw_only=True)
class CellSmoothing(EnumeratedScheme):
    """Base of the deterministic Variable-Lambda schemes: every feature steps through the same list of outcomes.

    An outcome is a cell width and a split, or no information at all. Every feature takes every outcome exactly once, so
    two values k steps apart are separated in a fixed number of copies, whatever the coupling of the features.

    Attributes:
        q: quantization steps of the input, 255 for 8-bit images.
        budget: number of outcomes that the distribution is designed with.
        seed: determines the coupling. It is part of the model: train and certify with the same one.
        encoding: how a copy encodes a cell: ``"lower-upper"`` ends (the paper's choice), ``"centre"``,
            ``"centre-centre"`` (the centre, twice) or ``"centre-error"`` (centre and half the width).
        coupling: ``"cyclic"``: every feature steps through the list from a fixed pseudorandom start (the paper's
            choice); ``"permuted"``: each in its own fixed pseudorandom order (Appendix C.7, needs memory);
            ``"global"``: all features of a copy have the same width (Eq. 4.24), which certifies less; for comparison
            only.
        design: increments of the distribution, for each part of an image that has its own; by default those that the
            solver of this machine finds. Checkpoints carry them (:meth:`with_design`), since another machine may find
            others. Any design within the limits gives the same certificates, but the base classifier is accurate only
            on the one it was trained with.
    """

    q: int = 255
    budget: int = 1000
    seed: int = 0
    encoding: Encoding = "lower-upper"
    coupling: Coupling = "cyclic"
    design: tuple[Increments, ...] | None = field(default=None, repr=False, metadata=NOT_IN_TEXT)

    def __post_init__(self) -> None:
        check_integer("q (quantization steps, 255 for 8-bit images)", self.q, 1, 1 << 12)
        check_integer("budget", self.budget, 1, 1 << 20)
        check_integer("seed", self.seed, 0, (1 << 32) - 1)
        for name, value, choices in (("encoding", self.encoding, Encoding), ("coupling", self.coupling, Coupling)):
            if value not in get_args(choices):
                raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(get_args(choices))}")
        if self.design is not None and not (
            isinstance(self.design, tuple)
            and all(isinstance(each, tuple) and all(type(m) is int for m in each) for each in self.design)
        ):
            raise ValueError(f"design: got {str(self.design)[:60]}, expected tuples of increments, which are integers")

    @property
    def parts(self) -> Part | None:
        """The parts of an image that have distributions of their own, one after the other; None: all have the same."""
        return None

    @property
    @abstractmethod
    def limits(self) -> tuple[Limits, ...]:
        """For each part: the number of votes that may differ between values k grid steps apart, for k = 0..q."""

    @abstractmethod
    def found_here(self) -> tuple[Increments, ...]:
        """For each part: the increments that the solver of this machine finds."""

    def designs(self) -> tuple[Increments, ...]:
        """For each part: its distribution (:mod:`certify.lambda_design`), always verified to be within the limits."""
        return self.found_here() if self.design is None else _verified(self.design, self.limits)

    def fingerprint(self) -> str:
        """A digest of the design, which comes from a solver and is not determined by the parameters of the scheme."""
        designs = self.designs()
        return hashlib.sha256(repr(designs[0] if self.parts is None else designs).encode()).hexdigest()[:16]

    def stored_design(self) -> list[int] | list[list[int]]:
        designs = [list(each) for each in self.designs()]
        return designs[0] if self.parts is None else designs

    def with_design(self, stored: Any) -> Self:
        listed = [stored] if self.parts is None else stored
        if not isinstance(listed, list) or not all(isinstance(each, list) for each in listed):
            what = "a list" if self.parts is None else "lists"
            raise ValueError(f"design: got {str(stored)[:60]}, expected {what} of increments")
        scheme = replace(self, design=tuple(tuple(each) for each in listed))
        scheme.designs()  # verifies them
        return scheme

    def check(self, x: Tensor) -> None:
        check_images(x)
        to_levels(x, self.q)

    def channels(self, channels: int) -> int:
        return encoded_channels(self.encoding) * channels

    def copies(self, x: Tensor, index: Tensor) -> Tensor:
        shape = tuple(x.shape[1:])
        table = _cell_table(self.designs(), self.encoding, self.parts, shape, x.device)
        outcome = torch.minimum(self._outcome(shape, index, x.device), table.columns - 1)
        where = to_levels(x, self.q)[:, None].to(table.start.dtype) * table.columns + outcome
        if self.parts is not None:
            where += table.start
        if table.cells < len(table.values):  # both channels in one pass
            where = torch.cat((where, where + table.cells), dim=2)
        return table.values.index_select(0, where.flatten()).view(where.shape)

    def _outcome(self, shape: Shape, index: Tensor, device: torch.device) -> Tensor:
        """Index of the outcome of every feature in copies ``index [B, n]``: int32 ``[B, n, C, H, W]``."""
        copies = self.num_copies(shape)
        if self.coupling == "permuted":
            return _permutations(self.seed, copies, shape, device)[index]
        number = index.int()[..., None, None, None]
        if self.coupling == "cyclic":
            outcome = fixed_offsets(self.seed, copies, shape, device) + number
            return torch.where(outcome >= copies, outcome - copies, outcome)
        start, length = (part[index][..., None, None, None] for part in _blocks(self.designs()[0], copies, device))
        return start + (number - start + fixed_offsets(self.seed, 1 << 20, shape, device)) % length


@lru_cache(maxsize=16)
def _verified(designs: tuple[Increments, ...], limits: tuple[Limits, ...]) -> tuple[Increments, ...]:
    """The designs; raises unless each is within its limits."""
    if len(designs) != len(limits):
        raise ValueError(f"design: got {len(designs)} lists of increments, expected {len(limits)}")
    try:
        for increments, own in zip(designs, limits, strict=True):
            verify(increments, own)
    except ArithmeticError as error:
        raise ValueError(f"{error}") from error
    return designs


def check_scale(alpha: float) -> None:
    """Raise unless ``alpha`` is a valid scale of an lp certificate."""
    if not (is_finite(alpha) and 1e-3 <= alpha <= 1e6):
        raise ValueError(f"alpha: got {alpha}, expected a number between 0.001 and 1,000,000")


@dataclass(frozen=True)
class VariableLambda(CellSmoothing):
    """Deterministic Variable-Lambda smoothing for lp: the exact lp certificate from ``max(alpha, 1) * budget`` copies.

    Guarantee: the prediction is the same for every input on the grid ``i / q`` within lp distance ``radius``
    (``(sum |x_i - y_i|^p)^(1/p)``). A perturbation of size rho touches at most ``floor(B rho^p / alpha)`` of the B
    votes, so every rho with ``B rho^p / alpha < flips + 1`` is certified; the radius is the supremum of these rho,
    rounded down.

    Attributes:
        p: in (0, 1], a simple fraction such as 0.5 or 1/3.
        alpha: votes are ``1 / alpha``-Lipschitz in ``sum |x_i - y_i|^p``; the papers' radii grow with it. Above 1, a
            share ``1 - 1 / alpha`` of the outcomes carries no information, and ``alpha * budget`` must be an integer.
        q, budget, seed, encoding, coupling, design: see :class:`CellSmoothing`.
    """

    p: float
    alpha: float = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scale(self.alpha)
        object.__setattr__(self, "p", float(exact_power(self.p)))  # bit for bit the p that is certified
        object.__setattr__(self, "alpha", float(self.alpha))
        copies = self.alpha * self.budget
        if self.alpha > 1 and copies != round(copies):
            raise ValueError(f"alpha: got {self.alpha}, expected alpha * budget = {copies} to be an integer")

    @property
    def threat(self) -> Lp:
        return Lp(self.p, q=self.q)

    @property
    def limits(self) -> tuple[Limits, ...]:
        return (power_limits(exact_power(self.p), self._scale, self.q, self.budget),)

    @property
    def _scale(self) -> Fraction:
        """``min(alpha, 1)``; the part of ``alpha`` above 1 becomes outcomes without information."""
        return min(Fraction(self.alpha), Fraction(1))

    def found_here(self) -> tuple[Increments, ...]:
        return (_power_increments(exact_power(self.p), self._scale, self.q, self.budget),)

    def num_copies(self, shape: Shape) -> int:
        return max(self.budget, round(self.alpha * self.budget))

    def published_radius(self, counts: Tensor) -> Tensor:
        """The radius as published (Eq. C.77), ``(alpha gap / (2 B))^(1/p)``: float64 ``[B]``, rounded down, and never
        larger than that of ``certify_counts``."""
        _, gap = leader_and_gap(counts)
        radii = {each: root_at_most(each * self._scale / (2 * self.budget), self.p) for each in gap.unique().tolist()}
        return torch.tensor([radii[each] for each in gap.tolist()], dtype=torch.float64, device=gap.device)

    def radius_of_flips(self, flips: Tensor, *, shape: Shape | None = None) -> Tensor:
        # below the supremum of ((flips + 1) alpha / B)^(1/p)
        return root_below((flips.to(torch.float64) + 1) * float(self._scale) / self.budget, self.p)


@lru_cache(maxsize=16)
def _power_increments(p: Fraction, alpha: Fraction, q: int, budget: int) -> Increments:
    target = tuple(min(1.0, (k / q) ** float(p) / float(alpha)) for k in range(1, q + 1))
    return find_design(power_limits(p, alpha, q, budget), target, budget)


@dataclass(frozen=True)
class ConcaveSmoothing(CellSmoothing):
    """Deterministic Variable-Lambda smoothing for any elementwise-concave metric ``d(x, y) = sum g_i(|x_i - y_i|)``.

    Guarantee: the prediction is the same for every input on the grid ``i / q`` with ``d(x, y) <= radius``. Values of
    feature i that are k steps apart differ in at most ``floor(budget g_i(k / q))`` of the ``budget`` votes.

    One g for each part of an image gives features different weights, or combines threat models: if g is
    ``(1, ..., 1)`` for some features and ``(1 / q, 2 / q, ..., 1)`` for the others, d is the number of the former that
    change, by whatever amount, plus the l1 norm of the changes of the latter.

    Attributes:
        g: ``g(1 / q), ..., g(1)``, nondecreasing and concave with values in [0, 1]; ``g(0) = 0``. A share
            ``1 - g(1)`` of the outcomes carries no information. With ``by``, a tuple of several such, all for one q.
        by: ``"channel"``, ``"row"``, ``"column"`` or ``"feature"``: what each of several g is for, in this order
            (features are counted channel by channel, row by row); None if g is the same for all features.
        budget, seed, encoding, coupling, design: see :class:`CellSmoothing`; ``q`` follows from ``g``.
    """

    g: tuple[float, ...] | tuple[tuple[float, ...], ...]
    by: Part | None = None

    def __post_init__(self) -> None:
        if self.by not in (None, *get_args(Part)):
            raise ValueError(f"by: got {self.by!r}, expected one of {', '.join(get_args(Part))}; or omit it")
        object.__setattr__(self, "g", _functions(self.g, several=self.by is not None))
        q = len(self.threat.functions[0])
        if self.q not in (255, q):
            raise ValueError(f"q: got {self.q}, expected {q}, the number of values of g; or omit it")
        object.__setattr__(self, "q", q)
        super().__post_init__()
        if self.by is not None and self.coupling == "global":
            raise ValueError("coupling: got 'global', which gives all features one width; with several g, use 'cyclic'")
        _ = self.limits  # checks g

    @property
    def threat(self) -> ElementwiseConcave:
        return ElementwiseConcave(self.g, self.by)

    @property
    def parts(self) -> Part | None:
        return self.by

    def check(self, x: Tensor) -> None:
        super().check(x)
        self.threat.check_parts(tuple(x.shape[1:]))

    @property
    def limits(self) -> tuple[Limits, ...]:
        return self._concave_limits

    @cached_property
    def _concave_limits(self) -> tuple[Limits, ...]:
        of: dict[tuple[float, ...], Limits] = {}
        for i, g in enumerate(self.threat.functions):
            if g not in of:
                of[g] = concave_limits(g, self.budget, "g" if self.by is None else f"g[{i}]")
        return tuple(of[g] for g in self.threat.functions)

    def found_here(self) -> tuple[Increments, ...]:
        return self._concave_increments

    @cached_property
    def _concave_increments(self) -> tuple[Increments, ...]:
        own = dict(zip(self.threat.functions, self.limits, strict=True))
        found = {g: find_design(limits, g, self.budget) for g, limits in own.items()}
        return tuple(found[g] for g in self.threat.functions)

    def num_copies(self, shape: Shape) -> int:
        return self.budget

    def radius_of_flips(self, flips: Tensor, *, shape: Shape | None = None) -> Tensor:
        return (flips.to(torch.float64) + 1) / self.budget * (1 - 2.0**-40)


def _functions(g: Any, *, several: bool) -> tuple[float, ...] | tuple[tuple[float, ...], ...]:
    """``g`` in its canonical form: tuples of floats."""
    nested = [isinstance(each, Iterable) for each in g]
    if not several and any(nested):
        raise ValueError(
            "g: got several functions, expected numbers; or say what each is for: by='channel', 'row', 'column' or "
            "'feature'"
        )
    if not several:
        return tuple(float(value) for value in g)
    if not nested or not all(nested):
        raise ValueError("g: got numbers, expected one tuple of numbers for each part of an image; or omit by")
    functions = tuple(tuple(float(value) for value in each) for each in g)
    if len({len(each) for each in functions}) > 1:
        lengths = ", ".join(map(str, sorted({len(each) for each in functions})))
        raise ValueError(f"g: got functions of {lengths} values, expected the same number, q, for each")
    return functions


def root_below(power: Tensor, p: float) -> Tensor:
    """``power^(1/p)``, rounded down and finite; the computed pth root is accurate to far better than 2^-40."""
    root = power ** (1 / float(exact_power(p)))
    return root.clamp(max=torch.finfo(torch.float64).max) * (1 - 2.0**-40)


def root_at_most(power: Fraction, p: float) -> float:
    """The largest double that is at most ``power^(1/p)``; exact comparisons decide."""
    exponent = exact_power(p)
    largest = sys.float_info.max * (1 - 2.0**-40)  # as root_below
    try:
        root = float(power) ** (1 / float(exponent))
    except OverflowError:
        root = largest

    def too_large(value: float) -> bool:
        return Fraction(value) ** exponent.numerator > power**exponent.denominator

    while too_large(root):
        root = math.nextafter(root, 0)
    while root < largest and not too_large(math.nextafter(root, math.inf)):
        root = math.nextafter(root, math.inf)
    return root


def radius_through_norms(l1_radius: Tensor, p: float) -> Tensor:
    """The lp radius implied by an l1 radius R, 0 < p <= 1: ``max(R, R^(1/p))`` (Eq. 4.27), the paper's baseline.

    ``R`` holds since the lp quasi-norm is never below the l1 norm, ``R^(1/p)`` since ``|d| <= |d|^p`` for changes of at
    most 1. Entries of -1 (nothing certified) are kept.
    """
    power = root_below(l1_radius.clamp(min=0), p)
    return torch.where(l1_radius >= 0, torch.maximum(l1_radius, power), l1_radius)
