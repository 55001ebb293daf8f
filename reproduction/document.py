"""RESULTS.md, from the catalogue and the kept results: the same text for the same files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path

from reproduction.catalogue import Catalogue, Entry, chapter_title
from reproduction.results import KEPT, Result
from reproduction.settings import reductions
from reproduction.tables import (
    Line,
    difference,
    footnotes,
    heads,
    is_surprising,
    lines_of,
    minutes_of,
    number_text,
    sentence,
)

PATH = Path(__file__).parent.parent / "RESULTS.md"
ALL_ROWS = 20  # tables of up to so many rows are shown whole; of longer ones, the rows that were run
NEEDS = {
    "gpu": "a GPU",
    "imagenet": "ImageNet",
    "cifar10": "CIFAR-10",
    "gtsrb": "GTSRB",
    "modelnet40": "ModelNet40",
    "ucf101": "UCF-101",
    "robotics": "MuJoCo",
}
HEAD = """# Results: published numbers and ours

Made by `python -m scripts.reproduce document` from the files in `reproduction/`; nothing here is typed by hand.

Each table has the published numbers, ours below them, and the difference, ours minus published. In brackets are 95 %
intervals over test images (or seeds): where the published number is outside of it, the difference is **bold**, and is
more than the choice of test images explains. The published numbers have such an error, too, which is not in it.
`full` is the published setting; `cpu` is one for minutes to hours on two cores, and what it does less is said below
each table. Accuracies and certified radii are rounded down, accuracies and magnitudes under attack up, intervals
outwards, everything else to the nearest. Differences are taken before rounding.

`python -m scripts.reproduce list` names every table and curve of the papers, `show NAME` has all its numbers, and
`run NAME --budget cpu` makes ours.
"""
FURTHER = """[docs/results.md](docs/results.md) has further measurements, also for some of these settings, by commands
that were run by hand with other budgets; they are not in this file."""


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ").strip()


def _table(head: Iterable[str], rows: Iterable[Iterable[str]], right: int) -> list[str]:
    """Markdown; columns from number ``right`` on are aligned to the right."""
    names = list(head)
    lines = ["| " + " | ".join(names) + " |"]
    lines.append("|" + "|".join("---:" if i >= right else "---" for i in range(len(names))) + "|")
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _cells(line: Line) -> list[str]:
    numbers = [f"**{cell}**" if odd else cell for cell, odd in zip(line.cells, line.surprising, strict=True)]
    return [_escaped(line.label), line.what, *numbers]


def _number_table(entry: Entry, results: Mapping[str, Result]) -> list[str]:
    measured = {label for result in results.values() for label, _ in result.values}
    rows = [row for row in entry.rows if len(entry.rows) <= ALL_ROWS or row.label in measured]
    lines = [line for row in rows for line in lines_of(entry, row, results) if line.what]
    text = _table(["", "", *map(_escaped, heads(entry))], map(_cells, lines), right=2)
    left = len(entry.rows) - len(rows)
    if left:
        text += ["", f"{left} more rows of published numbers: `python -m scripts.reproduce show {entry.name}`."]
    return text + [part for note in footnotes(results) for part in ("", note)]


def _how(catalogue: Catalogue, entry: Entry, result: Result) -> list[str]:
    """Budget, seeds, versions, what was done less, and the commands."""
    minutes = minutes_of(catalogue, result.runs, result.budget)
    cost = "" if minutes is None else f", about {minutes:g} core-minutes"
    made = ", ".join(f"{package} {text}" for package, text in result.versions.items())
    seeds = sorted({seed for own in result.seeds.values() for seed in own})
    named = f"; seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}" if seeds else ""
    text = [f"Budget `{result.budget}`{cost}{named}; {made}."]
    less: dict[str, list[str]] = {}
    for name in result.runs:
        run = catalogue.runs[name]
        for item in reductions(run, result.budget, entry.results(run)):
            less.setdefault(item, []).append(name)
    if less:
        everywhere = len(result.runs)
        items = [i if len(names) == everywhere else f"{i}, for {', '.join(names)}" for i, names in less.items()]
        text += ["", "Other than in the published setting:", "", *(f"- {_escaped(item)}" for item in items)]
    commands = [line for lines in result.runs.values() for line in lines]
    return [*text, "", "```", *commands, "```"]


def _runs_left(catalogue: Catalogue, entry: Entry, results: Mapping[str, Result]) -> list[str]:
    """The runs of an entry that no result has, and the budgets that there are for each."""
    done = {name for result in results.values() for name in result.runs}
    left = [
        f"`{name}` ({', '.join(f'`{b}`' for b in KEPT if b in catalogue.runs[name].budgets) or '`smoke` only'})"
        for name in entry.runs
        if name not in done
    ]
    return [f"Not run, with the budgets there are: {', '.join(left)}.", ""] if left else []


def _section(catalogue: Catalogue, entry: Entry, results: Mapping[str, Result]) -> list[str]:
    text = [f'<a id="{entry.name}"></a>', "", f"### {entry.name}: {entry.title}", ""]
    text += [f"{entry.source}. {sentence(entry.setting)}", ""]
    text += [sentence(entry.note), ""] if entry.note else []
    text += [*_number_table(entry, results), ""]
    for result in results.values():
        text += [f"Why they differ: {sentence(result.remark)}", ""] if result.remark else []
        text += [*_how(catalogue, entry, result), ""]
    return text + _runs_left(catalogue, entry, results)


def _overview(entry: Entry, result: Result) -> list[str]:
    """One line of the table at the top."""
    pairs = [
        (row.published[i], result.values[row.label, column.name], column.unit)
        for row in entry.rows
        for i, column in enumerate(entry.columns)
        if row.published and (row.label, column.name) in result.values
    ]
    compared = [(p, v, unit) for p, v, unit in pairs if difference(p, v) is not None]
    inside = sum(not is_surprising(p, v) for p, v, _ in compared if v.low is not None)
    bounded = sum(v.low is not None for _, v, _ in compared)
    percent = [abs(difference(p, v) or 0.0) for p, v, unit in compared if unit == "%"]
    return [
        f"[{entry.name}](#{entry.name})",
        _escaped(entry.title),
        result.budget,
        str(len(compared)) if compared else "none",
        f"{inside} of {bounded}" if bounded else "",
        f"{number_text(max(percent), 2, exact=True)} points" if percent else "",
    ]


def _not_run(catalogue: Catalogue, entry: Entry) -> list[str]:
    """One line of the tables at the end: what is missing, and what could be run."""
    budgets, reasons = catalogue.budgets(entry), []
    if "cpu" in budgets:
        minutes = minutes_of(catalogue, entry.runs, "cpu")
        reasons.append("`cpu` not run yet" if minutes is None else f"`cpu` not run yet, {minutes:g} core-minutes")
    needs = ", ".join(NEEDS[need] for need in entry.needs)
    if "full" in budgets:
        reasons.append(f"`full` needs {needs}" if needs else "`full` not run yet")
    if not budgets:
        reasons.append("published numbers only" + (f"; needs {needs}" if needs else ""))
    return [f"`{entry.name}`", _escaped(entry.title), "; ".join(reasons) or "`smoke` only"]


def render(catalogue: Catalogue, results: Mapping[str, Mapping[str, Result]]) -> str:
    """The text of RESULTS.md."""
    text = [HEAD]
    chapters = [(c, list(group)) for c, group in groupby(catalogue.entries.values(), key=lambda entry: entry.chapter)]
    if results:
        head = ["", "", "budget", "numbers compared", "published one in our interval", "largest difference"]
        rows = [_overview(catalogue.entries[name], r) for name, own in results.items() for r in own.values()]
        text += [*_table(head, rows, right=3), ""]
    for chapter, entries in chapters:
        done = [entry for entry in entries if entry.name in results]
        if done:
            text += [f"## {chapter_title(chapter)}", ""]
            for entry in done:
                text += _section(catalogue, entry, results[entry.name])
    left = [(c, own) for c, group in chapters if (own := [e for e in group if e.name not in results])]
    if left:
        text += ["## Not run", ""]
        text += [
            f"{sum(len(own) for _, own in left)} of {len(catalogue.entries)} entries have no results yet. What the"
        ]
        text[-1] += " published setting needs beside a computer, and which budgets there are commands for:"
        text += ["", FURTHER, ""]
    for chapter, entries in left:
        text += [f"**{chapter_title(chapter)}**", ""]
        text += [*_table(["", "", "why"], (_not_run(catalogue, e) for e in entries), right=3), ""]
    return "\n".join(text).rstrip() + "\n"
