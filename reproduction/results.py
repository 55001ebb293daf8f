"""Compact results: the values of an entry's cells at one budget, as JSON that is stored with the code."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from certify.files import write_atomically
from reproduction import running
from reproduction.catalogue import BUDGETS, Catalogue, Column, Entry, Row, Run
from reproduction.quantities import measure
from reproduction.sources import Source
from reproduction.values import Value

RESULTS = Path(__file__).parent / "results"
KEPT = ("cpu", "full")  # smoke results are meaningless


@dataclass(frozen=True)
class Result:
    """The results of an entry at a budget.

    Attributes:
        values: by row label and column name.
        runs: the commands of each run as typed into a shell, by name.
        seeds: the seeds of each run, by name.
        remark: why the numbers differ from the published ones.
        measures: the definition of each value, see :func:`measure_of`.
    """

    entry: str
    budget: str
    values: Mapping[tuple[str, str], Value]
    runs: Mapping[str, list[str]]
    seeds: Mapping[str, list[int]]
    versions: Mapping[str, str]
    remark: str = ""
    measures: Mapping[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)


def measure_of(entry: Entry, row: Row, column: Column, run: Run) -> dict[str, Any]:
    """The definition of a cell as JSON values, stored with its number to detect that the definition has changed."""
    cell = entry.cell(row, column, run)
    measure = {"quantity": cell.quantity, "unit": cell.unit, "result": cell.result, **cell.options}
    return json.loads(json.dumps(measure))


def runs_of(catalogue: Catalogue, entry: Entry, budget: str) -> list[Run]:
    """The runs of an entry that have this budget; raises ``ValueError`` if there are none."""
    found = [catalogue.runs[name] for name in entry.runs if budget in catalogue.runs[name].budgets]
    if not found:
        others = ", ".join(catalogue.budgets(entry)) or "none, as it only has published numbers"
        raise ValueError(f"{entry.name}: has no run with the budget {budget}; it has {others}")
    return found


def measured(entry: Entry, row: Row, column: Column, run: Run, sources: dict[Path, Source], folder: Path) -> Value:
    """The value of one cell, from the folder of its run."""
    cell = entry.cell(row, column, run)
    path = folder / cell.result if cell.result else folder
    source = sources.setdefault(path, Source(path))
    try:
        return measure(source, cell.quantity, cell.options, cell.unit)
    except (ValueError, OSError) as error:
        raise ValueError(f"{entry.name}, {row.label}, {column.name}: {error}") from error


def finished(runs: list[Run], budget: str, root: Path) -> list[Run]:
    """The runs that are finished on disk, by the catalogue's current commands."""
    states = [running.read_state(running.folder_of(root, run, budget)) for run in runs]
    return [
        run
        for run, state in zip(runs, states, strict=True)
        if state is not None and state.complete and state.commands == run.words(budget)
    ]


def collect(catalogue: Catalogue, entry: Entry, budget: str, root: Path = running.RUNS, *, remark: str = "") -> Result:
    """The cells of an entry, from the rows on disk of those of its runs that are finished.

    Raises:
        ValueError: if none of its runs is finished.
    """
    runs = {run.name: run for run in finished(runs_of(catalogue, entry, budget), budget, root)}
    if not runs:
        raise ValueError(
            f"{entry.name}: no run is finished; do python -m scripts.reproduce run {entry.name} --budget {budget}"
        )
    folders = {name: running.folder_of(root, run, budget) for name, run in runs.items()}
    sources: dict[Path, Source] = {}
    values = {
        (row.label, column.name): measured(entry, row, column, runs[row.run], sources, folders[row.run])
        for row in entry.rows
        if row.run is not None and row.run in runs
        for column in entry.columns
    }
    return Result(
        entry.name,
        budget,
        values,
        {name: running.script_lines(run, budget) for name, run in runs.items()},
        {name: _seeds(run, budget) for name, run in runs.items()},
        _versions(folders.values()),
        remark,
        measures_of(entry, runs),
    )


def measures_of(entry: Entry, runs: Mapping[str, Run]) -> dict[tuple[str, str], dict[str, Any]]:
    """The definitions of the cells of these runs."""
    rows = [(row, runs[row.run]) for row in entry.rows if row.run is not None and row.run in runs]
    return {(row.label, c.name): measure_of(entry, row, c, run) for row, run in rows for c in entry.columns}


def _seeds(run: Run, budget: str) -> list[int]:
    return sorted({seed for words in run.words(budget) for seed in running.seeds_of(words)})


def _versions(folders: Iterable[Path]) -> dict[str, str]:
    """Package versions of all runs; several per package if runs were made with different ones."""
    found: dict[str, set[str]] = {}
    for folder in folders:
        state = running.read_state(folder)
        for package, text in (state.versions if state is not None else {}).items():
            found.setdefault(package, set()).add(text)
    return {package: ", ".join(sorted(texts)) for package, texts in sorted(found.items())}


def joined(entry: Entry, found: Result, kept: Result | None) -> Result:
    """A new result, completed by the runs of a stored one that are not on this disk, such as those of another machine.

    Args:
        found: the new result.
        kept: the stored result of the same entry and budget, as checked against the catalogue by :func:`read` or
            :func:`usable`.
    """
    if kept is None or not kept.runs.keys() - found.runs.keys():
        return found
    versions = {
        package: ", ".join(sorted({*kept.versions.get(package, "").split(", "), *text.split(", ")} - {""}))
        for package, text in found.versions.items()
    }
    values = {**kept.values, **found.values}
    cells = ((row.label, column.name) for row in entry.rows for column in entry.columns)
    return replace(
        found,
        values={cell: values[cell] for cell in cells if cell in values},
        measures={**kept.measures, **found.measures},
        runs={**kept.runs, **found.runs},
        seeds={**kept.seeds, **found.seeds},
        versions=versions,
    )


def on_disk(catalogue: Catalogue, entry: Entry, budget: str, root: Path = running.RUNS) -> Result | None:
    """The cells of an entry from the rows on disk; None if no run at this budget is finished there."""
    if not finished(runs_of(catalogue, entry, budget), budget, root):
        return None
    return collect(catalogue, entry, budget, root)


# JSON


def _plain(number: float | None) -> float | str | None:
    """A number for JSON, which has no infinities, with eight significant digits, more than any interval resolves."""
    if number is None:
        return None
    return float(f"{number:.8g}") if math.isfinite(number) else str(number)


def path_of(entry: str, budget: str, folder: Path = RESULTS) -> Path:
    return folder / f"{entry}.{budget}.json"


def to_json(result: Result) -> str:
    """The text of a result's file, which is the same for equal results."""
    cells = []
    for (row, column), value in result.values.items():
        cell: dict[str, Any] = {"row": row, "column": column, "n": value.n}
        cell |= {name: _plain(getattr(value, name)) for name in ("value", "low", "high")}
        cell |= {"measure": dict(result.measures[row, column])} if (row, column) in result.measures else {}
        cells.append(cell if value.guaranteed else cell | {"guaranteed": False})
    document: dict[str, Any] = {
        "entry": result.entry,
        "budget": result.budget,
        "cells": cells,
        "runs": {name: {"commands": lines, "seeds": result.seeds[name]} for name, lines in result.runs.items()},
        "versions": dict(result.versions),
    }
    if result.remark:
        document["remark"] = result.remark
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def write(result: Result, folder: Path = RESULTS) -> Path:
    """Store a result, and return its file."""
    if result.budget not in KEPT:
        raise ValueError(
            f"{result.entry}: got a result of the budget {result.budget}, which is not kept; expected {KEPT}"
        )
    path = path_of(result.entry, result.budget, folder)
    write_atomically(path, to_json(result).encode())
    return path


def _value(cell: Mapping[str, Any]) -> Value:
    numbers = [None if cell[name] is None else float(cell[name]) for name in ("value", "low", "high")]
    if numbers[0] is None:
        raise ValueError(f"got {cell}, expected a value")
    return Value(numbers[0], numbers[1], numbers[2], cell["n"], cell.get("guaranteed", True))


def _same_commands(lines: list[str], others: list[str]) -> bool:
    """Whether these are the same commands, however they are quoted."""
    return [shlex.split(line) for line in lines] == [shlex.split(line) for line in others]


def usable(path: Path, catalogue: Catalogue) -> tuple[Result, list[str]]:
    """The part of a stored result that is still valid: the runs whose commands and cells match the current catalogue.

    Returns:
        The result with these runs alone, and for each other run the reason why it was left out.

    Raises:
        ValueError: if the file is no result of an entry of the catalogue, or is named after another one.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        entry = catalogue.entries[document["entry"]]
        budget, remark, versions = document["budget"], document.get("remark", ""), document["versions"]
        values = {(cell["row"], cell["column"]): _value(cell) for cell in document["cells"]}
        measures = {(cell["row"], cell["column"]): cell["measure"] for cell in document["cells"] if "measure" in cell}
        lines = {name: run["commands"] for name, run in document["runs"].items()}
        seeds = {name: run["seeds"] for name, run in document["runs"].items()}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: is not the result of an entry of the catalogue ({error!r}); collect it again"
        ) from error
    if budget not in BUDGETS or path.name != path_of(entry.name, budget).name:
        raise ValueError(f"{path}: holds {entry.name} at {budget}, expected the file to be named after them")
    kept: dict[str, list[str]] = {}
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    reasons: list[str] = []
    for name, own in lines.items():
        run = catalogue.runs.get(name) if name in entry.runs else None
        if run is None or budget not in run.budgets or not _same_commands(running.script_lines(run, budget), own):
            reasons.append(f"{path}: was made by other commands for {name} than the catalogue has now; run it again")
            continue
        now = measures_of(entry, {name: run})
        other = [cell for cell in now if cell not in values or measures.get(cell, now[cell]) != now[cell]]
        if other:
            reasons.append(f"{path}: does not have the entry's current cells, see {other[0]}; collect it again")
            continue
        kept[name], cells = own, cells | now
    strangers = [cell for cell in values if cell not in cells]
    if strangers and not reasons:
        reasons.append(f"{path}: does not have the entry's current cells, see {strangers[0]}; collect it again")
    result = Result(
        entry.name,
        budget,
        {cell: value for cell, value in values.items() if cell in cells},
        kept,
        {name: seeds[name] for name in kept},
        versions,
        remark,
        {cell: measure for cell, measure in measures.items() if cell in cells},
    )
    return result, reasons


def read(path: Path, catalogue: Catalogue) -> Result:
    """A stored result whose entry, cells and commands all match the current catalogue.

    Raises:
        ValueError: if anything in it does not.
    """
    result, reasons = usable(path, catalogue)
    if reasons:
        raise ValueError(reasons[0])
    return result


def read_all(catalogue: Catalogue, folder: Path = RESULTS) -> dict[str, dict[str, Result]]:
    """The stored results of all entries, by name and budget."""
    found: dict[str, dict[str, Result]] = {}
    for path in sorted(folder.glob("*.json")):
        result = read(path, catalogue)
        found.setdefault(result.entry, {})[result.budget] = result
    return {
        name: {b: found[name][b] for b in BUDGETS if b in found[name]} for name in catalogue.entries if name in found
    }
