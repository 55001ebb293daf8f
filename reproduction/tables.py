"""Tables with published numbers above ours, as printed by ``show`` and written to RESULTS.md."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from certify.threats import NOT_CERTIFIED
from reproduction.catalogue import Catalogue, Column, Entry, Printed, Row
from reproduction.quantities import QUANTITIES, Rounding
from reproduction.results import Result
from reproduction.values import Value

MARK = "†"
FOOTNOTE = f"{MARK} radii that no theorem supports: {NOT_CERTIFIED}"
_ROUND = {"down": math.floor, "up": math.ceil, "nearest": round}
_DIGITS = 4  # significant digits where the paper prints no number to follow
_LABEL = 56  # longer labels stand above their numbers instead of beside them


@dataclass(frozen=True)
class Line:
    """One line of a table.

    Attributes:
        label: label of the row; empty on further lines of the same row.
        what: "published", "difference", or such as "here, cpu, 5,000 images".
        surprising: which cells are differences that chance does not explain.
    """

    label: str
    what: str
    cells: tuple[str, ...]
    surprising: tuple[bool, ...]


def decimals_of(entry: Entry, index: int) -> int | None:
    """The number of decimals that the paper prints in a column; None if it prints no number there."""
    found = [row.published[index] for row in entry.rows if row.published]
    numbers = [number for number in found if number is not None and math.isfinite(number)]
    return max((number.decimals if isinstance(number, Printed) else 0 for number in numbers), default=None)


def rounded(number: float, decimals: int, rounding: Rounding) -> float:
    """A number rounded to some decimals; a tolerance keeps 35 percent, stored as 34.99999999999999, at 35.00."""
    excess = {"down": 1e-6, "up": -1e-6, "nearest": 0.0}[rounding]
    return _ROUND[rounding](number * 10**decimals + excess) / 10**decimals


def number_text(number: float, decimals: int | None, rounding: Rounding = "nearest", *, exact: bool = False) -> str:
    """The text of a number in a table.

    Args:
        decimals: None for four significant digits.
        exact: keep trailing zeros.
    """
    if math.isinf(number):
        return "N/A" if number < 0 else "never"
    if decimals is None:
        size = math.floor(math.log10(abs(number))) if number else 0
        decimals = max(0, _DIGITS - 1 - size)
    text = f"{rounded(number, decimals, rounding) + 0.0:,.{decimals}f}"
    return text if exact or "." not in text else text.rstrip("0").rstrip(".")


def _style(entry: Entry, index: int, value: float) -> tuple[int | None, bool]:
    """The decimals of our numbers in a column, and whether to keep trailing zeros."""
    column, printed = entry.columns[index], decimals_of(entry, index)
    if column.unit == "%":
        return max(2, printed or 0), True
    if printed is None:
        return None, False
    size = math.floor(math.log10(abs(value))) if value and math.isfinite(value) else 0
    return max(printed + 1, _DIGITS - 2 - size), False


def value_text(entry: Entry, index: int, value: Value) -> str:
    """A value as in ``96.68 [96.14, 97.17]``, with the interval rounded outwards."""
    decimals, exact = _style(entry, index, value.value)
    text = number_text(value.value, decimals, QUANTITIES[entry.columns[index].quantity].rounding, exact=exact)
    text += "" if value.guaranteed else MARK
    if value.low is None or value.high is None:
        return text
    low = number_text(value.low, decimals, "down", exact=exact)
    high = number_text(value.high, decimals, "up", exact=exact)
    return f"{text} [{low}, {high}]"


def difference(published: float | None, value: Value) -> float | None:
    """Ours minus published; None if either is not a finite number."""
    if published is None or not (math.isfinite(published) and math.isfinite(value.value)):
        return None
    return value.value - published


def is_surprising(published: float | None, value: Value) -> bool:
    """Whether the published number lies outside our interval."""
    if difference(published, value) is None or value.low is None or value.high is None:
        return False
    assert published is not None
    return not value.low <= published <= value.high


def _counted(column: Column, value: Value) -> tuple[int, str]:
    return value.n, QUANTITIES[column.quantity].over


def sizes_text(columns: Sequence[Column], values: Sequence[Value]) -> str:
    """The sample sizes behind the numbers of a line, such as ``5,000 images``."""
    kinds: dict[str, set[int]] = {}
    for n, over in map(_counted, columns, values):
        kinds.setdefault(over, set()).add(n)
    return ", ".join(
        f"{' and '.join(f'{n:,}' for n in sorted(sizes))} {over if sizes != {1} else over.removesuffix('s')}"
        for over, sizes in kinds.items()
    )


def _published_line(entry: Entry, row: Row) -> Line:
    cells = []
    for i, number in enumerate(row.published):
        printed = decimals_of(entry, i)
        cells.append("" if number is None else number_text(number, printed or 0, exact=True))
    return Line(row.label, "published", tuple(cells), (False,) * len(cells))


def _difference_text(entry: Entry, index: int, published: float | None, value: Value) -> str:
    gap = difference(published, value)
    if gap is None:
        return ""
    decimals, exact = _style(entry, index, value.value)
    text = number_text(abs(gap), decimals, exact=exact)
    return text if not text.strip("0.") else f"{'-' if gap < 0 else '+'}{text}"


def _difference_line(entry: Entry, row: Row, values: Sequence[Value]) -> Line:
    pairs = list(zip(row.published, values, strict=True))
    cells = tuple(_difference_text(entry, i, *pair) for i, pair in enumerate(pairs))
    return Line("", "difference", cells, tuple(is_surprising(*pair) for pair in pairs))


def lines_of(entry: Entry, row: Row, results: Mapping[str, Result]) -> list[Line]:
    """The lines of a row: the published numbers, then for each budget our numbers and the difference.

    Args:
        results: results by budget.
    """
    lines = [_published_line(entry, row)] if row.published else []
    for budget, result in results.items():
        if (row.label, entry.columns[0].name) not in result.values:
            continue
        values = [result.values[row.label, column.name] for column in entry.columns]
        cells = tuple(value_text(entry, i, value) for i, value in enumerate(values))
        what = f"here, {budget}, {sizes_text(entry.columns, values)}"
        lines.append(Line("" if lines else row.label, what, cells, (False,) * len(cells)))
        if row.published:
            lines.append(_difference_line(entry, row, values))
    return lines or [Line(row.label, "", ("",) * len(entry.columns), (False,) * len(entry.columns))]


def heads(entry: Entry) -> list[str]:
    """The column names with their units."""
    return [f"{column.name}, {column.unit}" if column.unit else column.name for column in entry.columns]


def minutes_of(catalogue: Catalogue, names: Iterable[str], budget: str) -> float | None:
    """Total core-minutes of the runs that have the budget; None if that of any of them is unknown, or none has it."""
    runs = [catalogue.runs[name] for name in names if budget in catalogue.runs[name].budgets]
    minutes = [run.budgets[budget].minutes for run in runs]
    return sum(m for m in minutes if m is not None) if minutes and None not in minutes else None


def _wrapped(head: list[str], widths: list[int]) -> list[list[str]]:
    """Column heads wrapped to the width of the cells below where words allow it, and aligned at the bottom."""
    parts = [
        textwrap.wrap(h, max(w, *map(len, h.split())), break_long_words=False)
        for h, w in zip(head, widths, strict=True)
    ]
    height = max(map(len, parts))
    return [[part[i - height] if i >= height - len(part) else "" for part in parts] for i in range(height)]


def _with_intervals_below(line: Line) -> list[tuple[str, str, list[str]]]:
    """A line as (label, what, cells), with intervals moved to a line of their own to keep the columns narrow."""
    cells = [f"{cell}*" if odd else cell for cell, odd in zip(line.cells, line.surprising, strict=True)]
    split = [cell.partition(" [") for cell in cells]
    lines = [(line.label, line.what, [value for value, _, _ in split])]
    if any(bracket for _, bracket, _ in split):
        lines.append(("", "95 %", [f"[{ends}" if bracket else "" for _, bracket, ends in split]))
    return lines


def text_table(entry: Entry, results: Mapping[str, Result]) -> str:
    """All rows as plain text; differences that chance does not explain have a star.

    A row with published numbers only takes a single line.
    """
    groups = [[p for line in lines_of(entry, row, results) for p in _with_intervals_below(line)] for row in entry.rows]
    every = [part for group in groups for part in group]
    cells = [max(map(len, column)) for column in zip(*(own for _, _, own in every), strict=True)]
    head = _wrapped(heads(entry), cells)
    widths = [max(map(len, column)) for column in zip(*head, *(own for _, _, own in every), strict=True)]
    short = [len(group[0][0]) for group in groups if len(group) == 1 and len(group[0][0]) <= _LABEL]
    left = max([len(what) + 2 for _, what, _ in every] + short) + 2

    def aligned(name: str, texts: Sequence[str]) -> str:
        numbers = "  ".join(text.rjust(w) for text, w in zip(texts, widths, strict=True))
        return f"{name.ljust(left)}{numbers}".rstrip()

    text = [aligned("", part) for part in head]
    for group in groups:
        label, _, own = group[0]
        if not any(own):
            text.append(f"{label} (not run)")
        elif len(group) == 1 and len(label) < left:
            text.append(aligned(label, own))
        else:
            text += [label, *(aligned(f"  {what}", own) for _, what, own in group)]
    return "\n".join(text)


def sentence(text: str) -> str:
    """The text on one line, ending in punctuation."""
    text = " ".join(text.split())
    return text if not text or text.endswith((".", "!", "?", ":")) else f"{text}."


def footnotes(results: Mapping[str, Result]) -> list[str]:
    """Explanations of the marks that occur in a table."""
    claimed = any(not value.guaranteed for result in results.values() for value in result.values.values())
    return [FOOTNOTE] if claimed else []
