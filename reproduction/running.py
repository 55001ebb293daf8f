"""Executes the catalogue's runs: each command once and in order, continuing after any interruption."""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from certify.data import check_files
from certify.data.fetch import SOURCES
from certify.files import lock_file, write_atomically
from reproduction.catalogue import RUN_FOLDER, Run
from scripts.parts import cli

RUNS = Path("runs/reproduce")
STATE, LOCK = "reproduce.json", ".lock"
Words = list[str]  # a command: a module of scripts, followed by its arguments


@dataclass(frozen=True)
class State:
    """The progress of a run.

    Attributes:
        commands: split into words, with ``{run}`` for the folder.
        begun, finished: how many of the commands have been.
        versions: package versions that the last command ran with.
    """

    commands: list[Words]
    begun: int
    finished: int
    versions: dict[str, str]

    @property
    def complete(self) -> bool:
        return self.finished == len(self.commands)


def folder_of(root: Path, run: Run, budget: str) -> Path:
    """The folder of a run at a budget."""
    return root / run.name / budget


def in_folder(words: Words, folder: Path) -> Words:
    """A command with ``{run}`` replaced by this folder."""
    return [word.replace(RUN_FOLDER, str(folder)) for word in words]


def command_line(words: Words) -> str:
    """A command as typed into a shell."""
    return shlex.join(["python", "-m", *words])


def script_lines(run: Run, budget: str, root: Path = RUNS) -> list[str]:
    """The commands of a run at a budget as typed into a shell, after a line that sets the folder."""
    lines = [f"RUN={shlex.quote(str(folder_of(root, run, budget)))}"]
    return lines + [" ".join(["python", "-m", *map(_typed, words)]) for words in run.words(budget)]


def _typed(word: str) -> str:
    """A word quoted for a shell, with ``$RUN`` for the folder; in double quotes if it has that or single quotes."""
    text = word.replace(RUN_FOLDER, "")
    quoted = shlex.quote(text)
    if text == "" or quoted == text:
        return word.replace(RUN_FOLDER, "$RUN") or "''"
    if (text != word or "'" in text) and not set('"$`\\!') & set(text):
        return f'"{word.replace(RUN_FOLDER, "$RUN")}"'
    return shlex.quote(word)


def versions() -> dict[str, str]:
    return {"certify": version("scalable-robust-ml"), "torch": torch.__version__}


def parsed(words: Words) -> tuple[Callable[[Any], None], Any]:
    """The main function of a command, and its parsed arguments.

    Raises:
        ValueError: if the script rejects the arguments.
    """
    module = import_module(words[0])
    try:
        return module.main, cli.parse_args(module.Args, words[1:], words[0])
    except SystemExit as error:
        raise ValueError(f"{command_line(words)}: is not understood by {words[0]}") from error


def seeds_of(words: Words) -> list[int]:
    """The seeds that a command uses; empty if it takes none."""
    args = parsed(words)[1]
    seeds = getattr(args, "seeds", None)
    if isinstance(seeds, list):
        return seeds
    if isinstance(seeds, int):
        return list(range(seeds))
    return [args.seed] if hasattr(args, "seed") else []


def read_state(folder: Path) -> State | None:
    """The progress of the run in a folder; None if nothing was done there."""
    path = folder / STATE
    if not path.exists():
        return None
    document = json.loads(path.read_text(encoding="utf-8"))
    return State(**{field.name: document[field.name] for field in fields(State)})


def _write_state(folder: Path, state: State) -> None:
    text = json.dumps(vars(state), indent=1, sort_keys=True) + "\n"
    write_atomically(folder / STATE, text.encode())


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, so that no other process works in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a") as handle:
        try:
            lock_file(handle.fileno())
        except OSError as error:
            raise ValueError(f"{folder}: another process is at work on this run; wait for it") from error
        yield


def check_commands(run: Run, budget: str, folder: Path) -> State | None:
    """The progress of the run in a folder; raises ``ValueError`` if other commands than the catalogue's made it."""
    state = read_state(folder)
    if state is not None and state.commands != run.words(budget):
        lines = " and ".join(command_line(in_folder(words, folder)) for words in state.commands)
        raise ValueError(
            f"{folder}: was made by other commands than the catalogue has now, by {lines}; move it away to run it again"
        )
    return state


def _data_missing(name: str, root: Path | None) -> str | None:
    """What is missing of a data set and how to get it; None if it is complete."""
    try:
        check_files(name, root)
    except FileNotFoundError as error:
        what = str(error).partition("; ")[0]  # the rest is advice for the scripts, which have --data-root
        plain = name.partition("(")[0]
        bring = f"run 'python -m scripts.fetch {plain}' or " if plain in SOURCES else "put it there or "
        return f"{what}; {bring}point $CERTIFY_DATA to the folder with the data sets"
    return None


def missing(run: Run, budget: str, root: Path = RUNS) -> list[str]:
    """The data sets or GPU that the rest of a run lacks here. Empty if nothing is missing or left to do.

    Raises:
        ValueError: if a script rejects its arguments, or other commands were begun in the run's folder.
    """
    commands = run.words(budget)
    state = check_commands(run, budget, folder_of(root, run, budget))
    left = commands[0 if state is None else state.finished :]
    if not left:
        return []
    every = [parsed(words)[1] for words in commands]  # a later command may use the data set of the training before it
    data = {(args.data, args.data_root): None for args in every if getattr(args, "data", None) is not None}
    found = [text for name, folder in data if (text := _data_missing(name, folder)) is not None]
    # is_available creates no CUDA context, which would occupy GPU memory while the commands run
    if any(getattr(parsed(words)[1], "device", "cpu") == "cuda" for words in left) and not torch.cuda.is_available():
        without = "; --budget cpu does without" if budget != "cpu" and "cpu" in run.budgets else ""
        found.append(f"cuda: torch {torch.__version__} finds no GPU that it can use{without}")
    return found


def _as_subprocess(words: Words) -> None:
    process = subprocess.Popen([sys.executable, "-m", *words])
    try:
        code = process.wait()
    except BaseException as reason:
        # Ctrl-C in a terminal has reached it, too; it may need a moment to end its own processes
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0 if isinstance(reason, cli.Terminated) else 10)
        process.terminate()
        process.wait()
        raise
    if code in (130, 143):
        raise KeyboardInterrupt
    if code != 0:
        raise ChildProcessError(
            f"{command_line(words)}: ended with status {code}; what was finished is on disk, run it again to continue"
        )


def _in_process(words: Words) -> None:
    main, args = parsed(words)
    main(args)


def run_commands(
    run: Run,
    budget: str,
    root: Path = RUNS,
    *,
    in_process: bool = False,
    report: Callable[[str], None] = print,
) -> Path:
    """Do what is left of a run, and return its folder.

    An interrupted command is resumed with ``--resume`` if it has that option, and started over otherwise.

    Args:
        root: folder of all runs.
        in_process: call the scripts directly instead of starting a Python process for each command.
        report: called with a line of text about each command before it starts.
    """
    folder = folder_of(root, run, budget)
    commands = run.words(budget)
    resumable = [hasattr(parsed(words)[1], "resume") for words in commands]
    with _claimed(folder):
        state = check_commands(run, budget, folder)
        if state is None:  # a folder made by hand is continued, too
            made = any(path.name != LOCK for path in folder.iterdir())
            state = State(commands, len(commands) if made else 0, 0, versions())
        for i in range(state.finished, len(commands)):
            words = in_folder(commands[i], folder)
            words += ["--resume"] if i < state.begun and resumable[i] and "--resume" not in words else []
            report(f"[{run.name}, {budget}, {i + 1} of {len(commands)}] {command_line(words)}")
            _write_state(folder, replace(state, begun=max(state.begun, i + 1)))
            (_in_process if in_process else _as_subprocess)(words)
            state = replace(state, begun=max(state.begun, i + 1), finished=i + 1, versions=versions())
            _write_state(folder, state)
    return folder
