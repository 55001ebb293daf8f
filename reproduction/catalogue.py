"""The catalogue, as read by :mod:`reproduction.reading`: published numbers, and the runs that produce ours.

An entry is a table or a curve of a paper, whose rows name runs. A run is a list of commands with placeholders, plus the
budgets that fill them in. Entries share runs, so a run that several of them need is done once.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reproduction.quantities import QUANTITIES

BUDGETS = ("smoke", "cpu", "full")
NEEDS = ("gpu", "imagenet", "cifar10", "gtsrb", "modelnet40", "ucf101", "robotics")
KINDS = ("table", "curve")
PAPERS = {
    "topk": "Jia et al., top-k predictions against l0 perturbations",
    "smooth-reduce": "Smooth-Reduce",
}
RUN_FOLDER = "{run}"


class Printed(float):
    """A number that remembers how it was written: 96.50 and 5e-4 stay as they are."""

    text: str

    def __new__(cls, text: str) -> Printed:
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __str__(self) -> str:
        return self.text

    @property
    def decimals(self) -> int:
        """Digits after the decimal point, as written."""
        return 0 if "e" in self.text.lower() else len(self.text.partition(".")[2].replace("_", ""))


@dataclass(frozen=True)
class Budget:
    """The scale at which a run is done.

    Attributes:
        values: values of the placeholders in the commands.
        minutes: approximate cost in core-minutes.
    """

    name: str
    values: Mapping[str, str]
    minutes: float | None = None


@dataclass(frozen=True)
class Run:
    """Commands that produce a result folder.

    Attributes:
        commands: with the placeholder ``{run}``, which is the folder of the run, and those of the budgets.
        budgets: budgets by name.
        result: folder below ``{run}`` from which quantities are read.
    """

    name: str
    commands: tuple[str, ...]
    budgets: Mapping[str, Budget]
    result: str = ""

    def words(self, budget: str) -> list[list[str]]:
        """The commands at a budget, split into words; ``{run}`` is left unfilled."""
        values = dict(self.budgets[budget].values) | {"run": RUN_FOLDER}
        return [shlex.split(command.format(**values)) for command in self.commands]


@dataclass(frozen=True)
class Column:
    """What a column holds; ``options`` specify the radius, the patch, and so on."""

    name: str
    quantity: str
    options: Mapping[str, Any]
    unit: str = ""
    result: str | None = None


@dataclass(frozen=True)
class Row:
    """A row: its published numbers (None where there is none; empty if the paper lacks the row), and our run for it."""

    label: str
    published: tuple[float | None, ...]
    options: Mapping[str, Any]
    run: str | None = None
    result: str | None = None


@dataclass(frozen=True)
class Cell:
    """How a cell is measured: which quantity, from which folder of its run."""

    quantity: str
    options: Mapping[str, Any]
    unit: str
    result: str


@dataclass(frozen=True)
class Entry:
    """A table or curve of a paper.

    Attributes:
        setting: the setting of the published numbers.
        needs: what the published setting requires.
        note: what else a reader needs to know.
    """

    name: str
    title: str
    source: str
    kind: str
    setting: str
    needs: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    note: str = ""

    @property
    def chapter(self) -> str:
        """The chapter or appendix, such as ``"6"`` or ``"E"``, or the paper, such as ``"topk"``."""
        return chapter_of(self.name)

    @property
    def runs(self) -> tuple[str, ...]:
        """The runs of its rows, without repetition."""
        return tuple(dict.fromkeys(row.run for row in self.rows if row.run is not None))

    def cell(self, row: Row, column: Column, run: Run) -> Cell:
        """How the cell of a row and a column is measured; the row must have a run."""
        known = QUANTITIES[column.quantity].options
        own = {name: value for name, value in row.options.items() if name in known}
        results = [r for r in (column.result, row.result, run.result) if r is not None]
        return Cell(column.quantity, dict(column.options) | own, column.unit, results[0])

    def results(self, run: Run) -> set[str]:
        """The result folders of a run that its cells read."""
        return {
            self.cell(row, column, run).result for row in self.rows if row.run == run.name for column in self.columns
        }


@dataclass(frozen=True)
class Catalogue:
    """All entries and runs, by name, in the order of the papers."""

    entries: Mapping[str, Entry]
    runs: Mapping[str, Run]

    def budgets(self, entry: Entry) -> tuple[str, ...]:
        """The budgets that at least one run of the entry has."""
        return tuple(b for b in BUDGETS if any(b in self.runs[run].budgets for run in entry.runs))


def chapter_of(name: str) -> str:
    """The chapter, appendix or paper that an entry's name begins with."""
    found = re.fullmatch(r"[a-z]+-(\d+|[a-zA-Z])\..+", name)
    if found:
        return found[1].upper()
    for paper in PAPERS:
        if name.startswith(f"{paper}-"):
            return paper
    raise ValueError(f"name: got {name!r}, expected one such as table-6.1, figure-E.2, {', '.join(PAPERS)}-...")


def chapter_title(chapter: str) -> str:
    if chapter in PAPERS:
        return PAPERS[chapter]
    return f"Dissertation, {'Chapter' if chapter.isdigit() else 'Appendix'} {chapter}"


def order_of(name: str) -> tuple[Any, ...]:
    """Sorts names as the papers do: chapters, appendices, papers; tables before figures; by number."""
    chapter = chapter_of(name)
    part = (0, int(chapter)) if chapter.isdigit() else (1, chapter) if chapter not in PAPERS else (2, chapter)
    rest = name.removeprefix(f"{chapter}-")
    kind = next((i for i, word in enumerate(("table", "figure")) if rest.startswith(word)), 2)
    numbers = [(int(digits), "") if digits else (0, text) for digits, text in re.findall(r"(\d+)|(\D+)", rest)]
    return (*map(str, part[:1]), part[1:], kind, numbers)
