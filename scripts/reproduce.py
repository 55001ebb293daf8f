"""Every experiment of the papers by name: published numbers, the commands that reproduce them, and our results.

    python -m scripts.reproduce list                        # all tables and curves
    python -m scripts.reproduce list patch --chapter 6      # those of a chapter or about a topic
    python -m scripts.reproduce show table-6.1              # published numbers, ours, and the commands
    python -m scripts.reproduce run table-6.1 --budget smoke
    python -m scripts.reproduce run table-6.1 --budget cpu --remark "A quarter of the epochs"
    python -m scripts.reproduce document                    # RESULTS.md from all results

Budgets: ``smoke`` is small, on embedded data, and shows that everything works, ``cpu`` takes minutes to hours on two
cores, ``full`` is the published setting. ``run`` keeps models and rows in runs/reproduce, does nothing twice, continues
where it was interrupted, and reports missing data or a missing GPU before it starts. Results are stored in
reproduction/results, except those of smoke runs; ``collect`` rebuilds them from the rows on disk after a change of the
entry.
"""

from __future__ import annotations

import difflib
import shlex
import textwrap
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from certify.files import write_atomically
from reproduction import document, results, running
from reproduction.catalogue import Catalogue, Entry, Run, chapter_title
from reproduction.reading import ENTRIES, load
from reproduction.results import Result
from reproduction.settings import reductions
from reproduction.tables import footnotes, minutes_of, sentence, text_table
from scripts.parts import cli

WIDTH = 118


@dataclass
class Args:
    """The experiments of the papers: list them, show one, run one, collect its numbers, write RESULTS.md."""

    step: Literal["list", "show", "run", "collect", "document"] = cli.arg("step to run", positional=True)
    names: list[str] = cli.arg(
        "entries such as table-6.1, or 6.2 if only one ends in it; for list, words to find in title, source, setting "
        "or runs (list, show, run, collect)",
        [],
        positional=True,
    )
    budget: Literal["smoke", "cpu", "full"] | None = cli.arg("how much to compute (run, collect)", None)
    chapter: str | None = cli.arg("only this chapter, such as 6, E, topk or smooth-reduce (list)", None)
    only: list[str] | None = cli.arg("only these runs of the entries, such as those whose data you have (run)", None)
    remark: str | None = cli.arg("why our numbers differ from the published; stored with them (run, collect)", None)
    runs: Path = cli.arg("folder of models and rows (show, run, collect)", running.RUNS)
    results: Path = cli.arg("folder of the stored results", results.RESULTS)
    entries: Path = cli.arg("folder of the catalogue", ENTRIES)
    out: Path = cli.arg("file to write (document)", document.PATH)


def find(catalogue: Catalogue, name: str) -> Entry:
    """The entry of this name, case-insensitively, or the only one that ends in it: 6.2 is table-6.2."""
    by_name = {known.lower(): entry for known, entry in catalogue.entries.items()}
    if name.lower() in by_name:
        return by_name[name.lower()]
    ending = [known for known in by_name if known.endswith(f"-{name.lower()}")]
    if len(ending) == 1:
        return by_name[ending[0]]
    if ending:
        raise ValueError(f"names: got {name!r}, expected one of {', '.join(by_name[known].name for known in ending)}")
    close = difflib.get_close_matches(name.lower(), by_name, n=3, cutoff=0.5)
    hint = f" such as {', '.join(close)}" if close else ""
    raise ValueError(f"names: got {name!r}, expected an entry{hint}; run 'python -m scripts.reproduce list'")


def chosen(catalogue: Catalogue, args: Args) -> list[Entry]:
    """The entries that were named, each once."""
    if not args.names:
        raise ValueError(f"names: got none, expected entries to {args.step}; run 'python -m scripts.reproduce list'")
    return list({entry.name: entry for entry in (find(catalogue, name) for name in args.names)}.values())


def matches(entry: Entry, args: Args) -> bool:
    """Whether ``list`` shows an entry."""
    text = " ".join((entry.name, entry.title, entry.source, entry.setting, *entry.needs, *entry.runs)).lower()
    in_chapter = args.chapter is None or entry.chapter.lower() == args.chapter.lower()
    return in_chapter and all(word.lower() in text for word in args.names)


def show_list(catalogue: Catalogue, args: Args) -> None:
    """One line per entry, by chapter."""
    kept = results.read_all(catalogue, args.results)
    found = [entry for entry in catalogue.entries.values() if matches(entry, args)]
    if not found:
        chapters = ", ".join(dict.fromkeys(entry.chapter for entry in catalogue.entries.values()))
        raise ValueError(f"list: no entry matches; use fewer words, or one of the chapters {chapters}")
    name, title = (max(len(getattr(entry, key)) for entry in found) for key in ("name", "title"))
    title = min(title, 64)
    chapter = None
    for entry in found:
        if entry.chapter != chapter:
            chapter = entry.chapter
            print(f"\n{chapter_title(chapter)}")
        text = textwrap.shorten(entry.title, title, placeholder=" ...").ljust(title)
        budgets = " ".join(catalogue.budgets(entry)) or "published numbers only"
        needs = f"  full needs {', '.join(entry.needs)}" if entry.needs and "full" in catalogue.budgets(entry) else ""
        have = f"  RESULTS: {', '.join(kept[entry.name])}" if entry.name in kept else ""
        print(f"  {entry.name.ljust(name)}  {text}  {budgets.ljust(14)}{have}{needs}".rstrip())
    print(f"\n{len(found)} entries, {sum(entry.name in kept for entry in found)} with results")


def known_results(catalogue: Catalogue, entry: Entry, args: Args) -> dict[str, Result]:
    """Results by budget: from rows on disk if these cover everything stored, otherwise as stored."""
    found: dict[str, Result] = {}
    kept = results.read_all(catalogue, args.results).get(entry.name, {})
    for budget in results.KEPT:
        own = None if budget not in catalogue.budgets(entry) else results.on_disk(catalogue, entry, budget, args.runs)
        if own is not None and (budget not in kept or own.runs.keys() >= kept[budget].runs.keys()):
            found[budget] = own
        elif budget in kept:
            found[budget] = kept[budget]
    return found


def print_entry(entry: Entry, found: dict[str, Result]) -> None:
    """Published numbers and ours."""
    print(f"{entry.name}: {entry.title}")
    for text in (f"{entry.source}. {sentence(entry.setting)}", sentence(entry.note)):
        if text:
            print(textwrap.fill(text, WIDTH))
    published = any(row.published for row in entry.rows)
    ours = "ours in the lines marked 'here'" if found else "no results of ours yet"
    print(f"\n{'Published numbers' if published else 'No number is published'}; {ours}:")
    print(f"{text_table(entry, found)}\n")
    if found:
        print("[low, high]: 95 % interval over images or seeds; *: the published number is outside")
    remarks = (f"Why {budget} differs: {sentence(r.remark)}" for budget, r in found.items() if r.remark)
    for note in (*footnotes(found), *remarks):
        print(textwrap.fill(note, WIDTH))


def print_commands(catalogue: Catalogue, entry: Entry, args: Args) -> None:
    """The commands of each budget."""
    elsewhere = "" if args.runs == running.RUNS else f" --runs {shlex.quote(str(args.runs))}"
    for budget in catalogue.budgets(entry):
        minutes = minutes_of(catalogue, entry.runs, budget)
        cost = "" if minutes is None else f", about {minutes:g} core-minutes"
        needs = f", needs {', '.join(entry.needs)}" if budget == "full" and entry.needs else ""
        command = f"python -m scripts.reproduce run {entry.name} --budget {budget}{elsewhere}"
        print(f"\n{budget}{cost}{needs}: {command}\n  # which runs")
        for run in results.runs_of(catalogue, entry, budget):
            for text in reductions(run, budget, entry.results(run)) if budget == "cpu" else ():
                print(textwrap.fill(text, WIDTH, initial_indent="  # ", subsequent_indent="  #     "))
            for line in running.script_lines(run, budget, args.runs):
                print(f"  {line}")


def show(catalogue: Catalogue, args: Args) -> None:
    for i, entry in enumerate(chosen(catalogue, args)):
        print("\n" if i else "", end="")
        print_entry(entry, known_results(catalogue, entry, args))
        if not entry.runs:
            print("This entry has published numbers only, and no runs.")
        print_commands(catalogue, entry, args)


def needed_budget(args: Args) -> str:
    if args.budget is None:
        raise ValueError("budget: got none, expected --budget smoke, cpu or full")
    return args.budget


def collect(catalogue: Catalogue, args: Args) -> None:
    """Compute results from the rows on disk, print and store them."""
    budget = needed_budget(args)
    for entry in chosen(catalogue, args):
        path = results.path_of(entry.name, budget, args.results)
        before, outdated = results.usable(path, catalogue) if path.exists() else (None, [])
        remark = args.remark if args.remark is not None else before.remark if before is not None else ""
        for reason in outdated:
            print(f"left out: {reason}")
        here = results.collect(catalogue, entry, budget, args.runs, remark=remark)
        found = results.joined(entry, here, before)
        print_entry(entry, {budget: found})
        others = [name for name in found.runs if name not in here.runs]
        if others:
            print(f"not on this disk, kept as stored before: {', '.join(others)}")
        missing = [run.name for run in results.runs_of(catalogue, entry, budget) if run.name not in found.runs]
        if missing:
            print(f"not finished, therefore not included: {', '.join(missing)}")
        if budget in results.KEPT:
            print(f"wrote {results.write(found, args.results)}; the step document adds it to RESULTS.md")
        else:
            print("a smoke run says nothing about the method; its numbers are not stored")


def check_nothing_is_missing(work: list[Run], budget: str, root: Path) -> None:
    """Raise, before hours of computing, if runs lack data or a GPU; everything missing is reported at once."""
    lacking: dict[str, list[str]] = {}
    for each in work:
        for text in running.missing(each, budget, root):
            lacking.setdefault(text, []).append(each.name)
    if not lacking:
        return
    waiting = {name for names in lacking.values() for name in names}
    done = {each.name for each in results.finished(work, budget, root)}
    able = [each.name for each in work if each.name not in waiting | done]
    lines = [f"  {text} (for {', '.join(names)})" for text, names in lacking.items()]
    rest = f"the other runs are possible: --only {' '.join(able)}" if able else "no other run is left to do"
    raise ValueError("\n".join(["run: nothing was started, because this is missing:", *lines, rest]))


def run(catalogue: Catalogue, args: Args) -> None:
    """Finish all runs of the entries, and collect their results."""
    budget = needed_budget(args)
    entries = chosen(catalogue, args)
    work = {r.name: r for entry in entries for r in results.runs_of(catalogue, entry, budget)}
    unknown = [name for name in args.only or () if name not in work]
    if unknown:
        raise ValueError(f"only: got {unknown[0]!r}, expected runs of the entries: {', '.join(work)}")
    asked = [each for each in work.values() if args.only is None or each.name in args.only]
    check_nothing_is_missing(asked, budget, args.runs)
    for each in asked:
        started = time.perf_counter()
        folder = running.run_commands(each, budget, args.runs)
        minutes = (time.perf_counter() - started) / 60
        print(f"[{each.name}, {budget}] {folder} finished after {minutes:.1f} minutes\n")
    used = [entry.name for entry in entries if any(each.name in entry.runs for each in asked)]  # less with --only
    collect(catalogue, replace(args, names=used))


def main(args: Args) -> None:
    cli.check_used(args, args.step)
    catalogue = load(args.entries)
    if args.step == "document":
        text = document.render(catalogue, results.read_all(catalogue, args.results))
        write_atomically(args.out, text.encode())
        print(f"wrote {args.out}")
    else:
        {"list": show_list, "show": show, "run": run, "collect": collect}[args.step](catalogue, args)


if __name__ == "__main__":
    cli.run(main, Args, "scripts.reproduce")
