"""Reads the catalogue from TOML files, strictly: every message says where it is, what was got and what was expected."""

from __future__ import annotations

import math
import re
import shlex
import string
import tomllib
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from reproduction.catalogue import (
    BUDGETS,
    KINDS,
    NEEDS,
    RUN_FOLDER,
    Budget,
    Catalogue,
    Column,
    Entry,
    Printed,
    Row,
    Run,
    chapter_of,
    order_of,
)
from reproduction.quantities import OPTIONS, QUANTITIES, check_options

ENTRIES = Path(__file__).parent / "entries"
_OPTION_KINDS = dict.fromkeys(OPTIONS, "any")
_ENTRY_TEXTS = dict.fromkeys(("name", "title", "source", "kind", "setting"), "text")


def _of_kind(value: Any, kind: str) -> bool:
    if kind == "text":
        return isinstance(value, str)
    if kind == "texts":
        return isinstance(value, list) and all(isinstance(v, str) for v in value)
    if kind == "tables":
        return isinstance(value, list) and all(isinstance(v, dict) for v in value)
    return isinstance(value, list)


def _take(table: Mapping[str, Any], where: str, required: Mapping[str, str], optional: Mapping[str, str]) -> None:
    """Raise unless the table has all required keys, no keys beyond these and the optional ones, and the right kinds."""
    known = {**required, **optional}
    unknown = [key for key in table if key not in known]
    if unknown:
        raise ValueError(f"{where}: got the unknown key {unknown[0]!r}, expected {', '.join(known)}")
    missing = [key for key in required if key not in table]
    if missing:
        raise ValueError(f"{where}: {missing[0]!r} is missing, expected all of {', '.join(required)}")
    for key, value in table.items():
        if known[key] != "any" and not _of_kind(value, known[key]):
            raise ValueError(f"{where}: got {key} = {value!r}, expected {known[key]}")


def _placeholders(commands: Iterable[str], where: str) -> set[str]:
    names = set()
    for command in commands:
        try:
            found = [name for _, name, _, _ in string.Formatter().parse(command) if name is not None]
        except ValueError as error:
            raise ValueError(f"{where}: got {command!r} ({error}); braces are for placeholders") from error
        if not all(name.isidentifier() for name in found):
            raise ValueError(f"{where}: got {command!r}, expected names in its braces, such as {{run}}")
        names.update(found)
    return names


def _read_budget(name: str, table: Any, needed: set[str], where: str) -> Budget:
    where = f"{where}, {name}"
    if not isinstance(table, dict):
        raise ValueError(f"{where}: got {table!r}, expected a table such as {{ epochs = 1 }}")
    values = {key: value for key, value in table.items() if key != "minutes" or "minutes" in needed}
    for key in sorted(needed - values.keys()):
        raise ValueError(f"{where}: {key!r} is missing, which a command uses as {{{key}}}")
    for key in sorted(values.keys() - needed):
        raise ValueError(f"{where}: got {key!r}, which no command uses; commands use {', '.join(sorted(needed))}")
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise ValueError(f"{where}: got {key} = {value!r}, expected text or a number")
    minutes = table.get("minutes")
    if minutes is not None and not (isinstance(minutes, (int, float)) and 0 < minutes < math.inf):
        raise ValueError(f"{where}: got minutes = {minutes!r}, expected a number above 0")
    return Budget(name, {key: str(value) for key, value in values.items()}, minutes)


def _check_command(words: list[str], where: str) -> None:
    if not words or re.fullmatch(r"scripts\.\w+", words[0]) is None or find_spec(words[0]) is None:
        got = words[0] if words else "nothing"
        raise ValueError(f"{where}: got the command {got}, expected a module such as scripts.train")
    if not any(RUN_FOLDER in word for word in words):
        raise ValueError(f"{where}: got {shlex.join(words)}, which does not use {RUN_FOLDER}, the folder of the run")


def read_run(name: str, table: Mapping[str, Any], where: str) -> Run:
    """Read and check a run."""
    _take(table, where, {"commands": "texts"}, {"result": "text", **dict.fromkeys(BUDGETS, "any")})
    commands = tuple(table["commands"])
    if not commands:
        raise ValueError(f"{where}: got no commands")
    needed = _placeholders(commands, where) - {"run"}
    budgets = {b: _read_budget(b, table[b], needed, where) for b in BUDGETS if b in table}
    if not budgets:
        raise ValueError(f"{where}: got no budget, expected at least one of {', '.join(BUDGETS)}")
    run = Run(name, commands, budgets, table.get("result", ""))
    for budget in budgets:
        try:
            lines = run.words(budget)
        except ValueError as error:
            raise ValueError(f"{where}, {budget}: commands cannot be split into words ({error})") from error
        for words in lines:
            _check_command(words, f"{where}, {budget}")
    return run


def _read_column(table: Mapping[str, Any], where: str) -> Column:
    _take(table, where, {"name": "text", "quantity": "text"}, {"unit": "text", "result": "text", **_OPTION_KINDS})
    quantity, unit = table["quantity"], table.get("unit", "")
    if quantity not in QUANTITIES:
        raise ValueError(f"{where}: got the quantity {quantity!r}, expected one of {', '.join(QUANTITIES)}")
    if unit == "%" and not QUANTITIES[quantity].share:
        raise ValueError(f"{where}: got the unit % for {quantity}, which is no share")
    options = {name: table[name] for name in OPTIONS if name in table}
    return Column(table["name"], quantity, options, unit, table.get("result"))


def _published(value: Any, where: str) -> float | None:
    if value == "N/A":
        return -math.inf
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{where}: got the published value {value!r}, expected a number, nan (none) or 'N/A'")
    return None if math.isnan(value) else value


def _read_row(table: Mapping[str, Any], columns: tuple[Column, ...], runs: Mapping[str, Run], where: str) -> Row:
    _take(table, where, {"label": "text", "published": "list"}, {"run": "text", "result": "text", **_OPTION_KINDS})
    where = f"{where} ({table['label']})"
    published = tuple(_published(value, where) for value in table["published"])
    if published and len(published) != len(columns):
        raise ValueError(f"{where}: got {len(published)} published values, expected {len(columns)}, one per column")
    if table.get("run") is not None and table["run"] not in runs:
        raise ValueError(
            f"{where}: got the run {table['run']!r}, which does not exist; expected a [run.{table['run']}]"
        )
    options = {name: table[name] for name in OPTIONS if name in table}
    for name in (*options, *(["result"] if "result" in table else [])):
        if "run" not in table:
            raise ValueError(f"{where}: got {name} without a run")
        if name != "result" and not any(name in QUANTITIES[column.quantity].options for column in columns):
            raise ValueError(f"{where}: got {name}, which no column accepts")
    return Row(table["label"], published, options, table.get("run"), table.get("result"))


def _unique(values: Iterable[str], what: str, where: str) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{where}: got the {what} {value!r} twice")
        seen.add(value)


def read_entry(table: Mapping[str, Any], runs: Mapping[str, Run], where: str) -> Entry:
    """Read and check an entry, whose rows may name any of ``runs``."""
    where = f"{where}, entry {table.get('name', '?')}"
    _take(table, where, _ENTRY_TEXTS | {"needs": "texts", "columns": "tables", "rows": "tables"}, {"note": "text"})
    chapter_of(table["name"])
    if table["kind"] not in KINDS:
        raise ValueError(f"{where}: got kind = {table['kind']!r}, expected {' or '.join(KINDS)}")
    for need in table["needs"]:
        if need not in NEEDS:
            raise ValueError(f"{where}: needs {need!r}, expected some of {', '.join(NEEDS)}")
    if not table["columns"] or not table["rows"]:
        raise ValueError(f"{where}: got no columns or no rows, expected at least one of each")
    columns = tuple(_read_column(t, f"{where}, column {i}") for i, t in enumerate(table["columns"], start=1))
    rows = tuple(_read_row(t, columns, runs, f"{where}, row {i}") for i, t in enumerate(table["rows"], start=1))
    _unique((column.name for column in columns), "column", where)
    _unique((row.label for row in rows), "row", where)
    texts = {key: table[key] for key in (*_ENTRY_TEXTS, "note") if key in table}
    entry = Entry(columns=columns, rows=rows, needs=tuple(table["needs"]), **texts)
    _check_cells(entry, runs, where)
    return entry


def _check_cells(entry: Entry, runs: Mapping[str, Run], where: str) -> None:
    for column in entry.columns:
        users = [row for row in entry.rows if row.run is not None]
        for row in users:
            at = f"{where}, {row.label}, {column.name}"
            if column.result is not None and row.result is not None:
                raise ValueError(f"{at}: got a result in both the row and the column, expected it in one of them")
            assert row.run is not None
            check_options(column.quantity, entry.cell(row, column, runs[row.run]).options, at)
        if not users:
            known = QUANTITIES[column.quantity].options
            for name in column.options:
                if name not in known:
                    raise ValueError(f"{where}, {column.name}: got {name}, which {column.quantity} does not accept")


def load(folder: Path = ENTRIES) -> Catalogue:
    """Read and check all entry files of a folder.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if anything is wrong, naming the file, the place, what was got and what was expected.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder, expected one with the catalogue's *.toml")
    documents: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.toml")):
        try:
            documents[path.name] = tomllib.loads(path.read_text(encoding="utf-8"), parse_float=Printed)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: is not TOML ({error})") from error
    runs: dict[str, Run] = {}
    for file, document in documents.items():
        _take(document, file, {}, {"run": "any", "entry": "tables"})
        for name, table in document.get("run", {}).items():
            where = f"{file}, run {name}"
            if name in runs:
                raise ValueError(f"{where}: there is another run with this name")
            if re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name) is None:
                raise ValueError(f"{where}: expected a name of lower-case letters, digits, '-' and '.'")
            runs[name] = read_run(name, table, where)
    entries: dict[str, Entry] = {}
    for file, document in documents.items():
        for table in document.get("entry", []):
            entry = read_entry(table, runs, file)
            if entry.name.lower() in map(str.lower, entries):
                raise ValueError(f"{file}, entry {entry.name}: there is another entry with this name")
            entries[entry.name] = entry
    used = {run for entry in entries.values() for run in entry.runs}
    for name in runs:
        if name not in used:
            raise ValueError(f"run {name}: no entry uses it; name it in a row or remove it")
    return Catalogue({name: entries[name] for name in sorted(entries, key=order_of)}, runs)
