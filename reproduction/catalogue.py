"""The catalogue: entries with published numbers, and the runs that make ours; :mod:`reproduction.reading` reads them.

An entry is a table or a curve of a paper. Its rows name runs; a run is a list of commands with placeholders, and
budgets that fill them in. Runs are shared: what several entries need is run once.
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
    """A number that remembers how it was written: 96.50 stays that, and 5e-4."""

    text: str

    def __new__(cls, text: str) -> Printed:
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __str__(self) -> str:
        return self.text

    @property
    def decimals(self) -> int:
        """Digits behind the point, as written."""
        return 0 if "e" in self.text.lower() else len(self.text.partition(".")[2].replace("_", ""))


@dataclass(frozen=True)
class Budget:
    """How much of a run is done.

    Attributes:
        values: what the placeholders of the commands stand for.
        minutes: core-minutes that it takes, about.
    """

    name: str
    values: Mapping[str, str]
    minutes: float | None = None


@dataclass(frozen=True)
class Run:
    """Commands that leave a result folder.

    Attributes:
        commands: with the placeholder ``{run}``, the folder of the run, and those of the budgets.
        result: folder below ``{run}`` that quantities are read from.
        budgets: by name.
    """

    name: str
    commands: tuple[str, ...]
    budgets: Mapping[str, Budget]
    result: str = ""

    def words(self, budget: str) -> list[list[str]]:
        """The commands at a budget, in words; ``{run}`` stays."""
        values = dict(self.budgets[budget].values) | {"run": RUN_FOLDER}
        return [shlex.split(command.format(**values)) for command in self.commands]


@dataclass(frozen=True)
class Column:
    """What a column holds; ``options`` say of which radius, patch, ..."""

    name: str
    quantity: str
    options: Mapping[str, Any]
    unit: str = ""
    result: str | None = None


@dataclass(frozen=True)
class Row:
    """A line: published numbers (None where there is none, empty for a line the paper lacks), and the run of ours."""

    label: str
    published: tuple[float | None, ...]
    options: Mapping[str, Any]
    run: str | None = None
    result: str | None = None


@dataclass(frozen=True)
class Cell:
    """How a cell is measured: from which folder of its run, and what."""

    quantity: str
    options: Mapping[str, Any]
    unit: str
    result: str


@dataclass(frozen=True)
class Entry:
    """A table or curve of a paper.

    Attributes:
        setting: what the published numbers are of.
        needs: what the published setting takes.
        note: what a reader has to know beside it.
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
        """``"6"``, ``"E"``, or the paper: ``"topk"``."""
        return chapter_of(self.name)

    @property
    def runs(self) -> tuple[str, ...]:
        """The runs of its rows, each once."""
        return tuple(dict.fromkeys(row.run for row in self.rows if row.run is not None))

    def cell(self, row: Row, column: Column, run: Run) -> Cell:
        """How the cell of a row with a run is measured."""
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
        """Those at which some run of the entry can be done."""
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
