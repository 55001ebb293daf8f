"""Kills a command at each of its file operations, continues it, and compares the result with that of a whole run.

Operations create, open, move, cut or remove a file; a line of a table is written by half.

    python -m tests.killing FOLDER MODULE ARGUMENTS    # {run} in the arguments is the folder of the results

All attempts are forks of one process, which has everything imported. Prints one line for each that went wrong.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from certify.results import TableFile
from scripts.parts import cli

OPERATIONS = {
    "os.rename": 1,
    "os.link": 1,
    "os.remove": 0,
    "os.mkdir": 0,
    "os.truncate": 0,
}  # which argument is the path
INFORMATIVE = ("provenance", "command", "commit")  # entries of configurations


def forked(work: Callable[[], None]) -> int:
    """The exit status of ``work`` in a fork; negative for a signal."""
    child = os.fork()
    if child == 0:
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        try:
            work()
        except SystemExit as end:
            os._exit(end.code if isinstance(end.code, int) else 1)
        except BaseException:
            os._exit(70)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def watch(folder: Path, at: int, counter: Path | None = None) -> None:
    """Kill this process at its ``at``-th operation on a file in ``folder``; or count all operations in a file."""
    seen = 0

    def now() -> bool:
        nonlocal seen
        seen += 1
        if counter is not None:
            counter.write_text(str(seen))
        return seen == at + 1

    def append(table: TableFile, line: str) -> None:
        if now():
            table._handle.write(line[: len(line) // 2])
            table._handle.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        whole_line(table, line)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            flags = arguments[2] if isinstance(arguments[2], int) else 0
            path = arguments[0] if flags & (os.O_WRONLY | os.O_RDWR) else None
        else:
            path = arguments[OPERATIONS[event]] if event in OPERATIONS else None
        if isinstance(path, (str, Path)) and str(path).startswith(str(folder)) and now():
            os.kill(os.getpid(), signal.SIGKILL)

    whole_line = TableFile.append
    setattr(TableFile, "append", append)  # noqa: B010
    sys.addaudithook(hook)


def content(path: Path) -> Any:
    """What a file has to say, without the time that it took and how it was made."""
    if path.suffix == ".json":
        return {name: value for name, value in json.loads(path.read_text()).items() if name not in INFORMATIVE}
    if path.name.startswith("rows"):
        header, *rows = (line.split("\t") for line in path.read_text().splitlines())
        kept = [i for i, name in enumerate(header) if name != "time"]
        return [[row[i] for i in kept] for row in (header, *rows)]
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: arrays[name].tolist() for name in arrays.files}
    return path.read_bytes()


def contents(folder: Path) -> dict[str, Any]:
    """The contents of all files of a run, but hidden ones, which a kill may leave."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): content(path) for path in files}


def main(folder: Path, module: str, words: list[str]) -> int:
    """The number of file operations; problems are printed."""
    script, run, counter = importlib.import_module(module), folder / "run", folder / "counter"

    def command(*more: str) -> None:
        arguments = [word.replace("{run}", str(run)) for word in words]
        cli.run(script.main, script.Args, module, [*arguments, *more])

    def attempt(at: int) -> None:
        watch(run, at, counter if at < 0 else None)
        command()

    folder.mkdir(parents=True, exist_ok=True)
    if status := forked(lambda: attempt(-1)):
        print(f"the whole run ended with status {status}")
        return 0
    whole, count = contents(run), int(counter.read_text())
    for at in range(count):
        shutil.rmtree(run, ignore_errors=True)
        if (status := forked(lambda at=at: attempt(at))) != -signal.SIGKILL:
            print(f"operation {at}: ended with status {status} instead of being killed")
        # without results there is nothing to resume
        if forked(lambda: command("--resume")) and forked(command):
            print(f"operation {at}: cannot be continued")
        elif (found := contents(run)) != whole:
            wrong = sorted(name for name in whole.keys() | found.keys() if found.get(name) != whole.get(name))
            print(f"operation {at}: another result in {', '.join(wrong)}")
    return count


if __name__ == "__main__":
    operations = main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
    print(f"{operations} operations")
