"""Doing the runs of the catalogue: each command once, in order, going on after any stop."""

from __future__ import annotations

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
from scripts import cli

RUNS = Path("runs/reproduce")
STATE, LOCK = "reproduce.json", ".lock"
Words = list[str]  # of a command: a module of scripts, and its arguments


@dataclass(frozen=True)
class State:
    """What was done of a run.

    Attributes:
        commands: in words, with ``{run}`` for the folder.
        begun, finished: how many of them.
        versions: of the packages that did the last one.
    """

    commands: list[Words]
    begun: int
    finished: int
    versions: dict[str, str]

    @property
    def complete(self) -> bool:
        return self.finished == len(self.commands)


def folder_of(root: Path, run: Run, budget: str) -> Path:
    """Where a run at a budget is."""
    return root / run.name / budget


def in_folder(words: Words, folder: Path) -> Words:
    """A command for a run in this folder."""
    return [word.replace(RUN_FOLDER, str(folder)) for word in words]


def command_line(words: Words) -> str:
    """A command as one types it."""
    return shlex.join(["python", "-m", *words])


def script_lines(run: Run, budget: str, root: Path = RUNS) -> list[str]:
    """The commands of a run at a budget as one types them, the folder first."""
    lines = [f"RUN={shlex.quote(str(folder_of(root, run, budget)))}"]
    return lines + [" ".join(["python", "-m", *map(_typed, words)]) for words in run.words(budget)]


def _typed(word: str) -> str:
    """A word in a shell, with ``$RUN`` for the folder, in double quotes where it has single ones."""
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
    """The main function of a command and its arguments.

    Raises:
        ValueError: if the script does not understand them.
    """
    module = import_module(words[0])
    try:
        return module.main, cli.parse_args(module.Args, words[1:], words[0])
    except SystemExit as error:
        raise ValueError(f"{command_line(words)}: is not understood by {words[0]}") from error


def seeds_of(words: Words) -> list[int]:
    """The seeds that a command takes; empty if it has none."""
    args = parsed(words)[1]
    seeds = getattr(args, "seeds", None)
    if isinstance(seeds, list):
        return seeds
    if isinstance(seeds, int):
        return list(range(seeds))
    return [args.seed] if hasattr(args, "seed") else []


def read_state(folder: Path) -> State | None:
    """What was done in a folder; None if nothing."""
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
    """The folder for this process alone."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a") as handle:
        try:
            lock_file(handle.fileno())
        except OSError as error:
            raise ValueError(f"{folder}: another process is at work on this run; wait for it") from error
        yield


def check_commands(run: Run, budget: str, folder: Path) -> State | None:
    """The state of the folder; raises if it was made by other commands than the catalogue has now."""
    state = read_state(folder)
    if state is not None and state.commands != run.words(budget):
        lines = " and ".join(command_line(in_folder(words, folder)) for words in state.commands)
        raise ValueError(
            f"{folder}: was made by other commands than the catalogue has now, by {lines}; move it away to run it again"
        )
    return state


def _data_missing(name: str, root: Path | None) -> str | None:
    """What is not where a data set is looked for, and how it comes there; None if it is there."""
    try:
        check_files(name, root)
    except FileNotFoundError as error:
        what = str(error).partition("; ")[0]  # what follows is advice to the scripts, which have --data-root
        plain = name.partition("(")[0]
        bring = f"run 'python -m scripts.fetch {plain}' or " if plain in SOURCES else "bring it there or "
        return f"{what}; {bring}point $CERTIFY_DATA to the folder of the data sets"
    return None


def missing(run: Run, budget: str, root: Path = RUNS) -> list[str]:
    """What is not here that the rest of a run needs: data sets, a GPU. Empty if nothing is missing or left to do.

    Raises:
        ValueError: if its commands are not understood, or others were begun in its folder.
    """
    commands = run.words(budget)
    state = check_commands(run, budget, folder_of(root, run, budget))
    left = commands[0 if state is None else state.finished :]
    if not left:
        return []
    every = [parsed(words)[1] for words in commands]  # what is left may take its data set from the training before it
    data = {(args.data, args.data_root): None for args in every if getattr(args, "data", None) is not None}
    found = [text for name, folder in data if (text := _data_missing(name, folder)) is not None]
    # is_available makes no context on the GPU, which would stay beside those of the commands
    if any(getattr(parsed(words)[1], "device", "cpu") == "cuda" for words in left) and not torch.cuda.is_available():
        without = "; --budget cpu does without" if budget != "cpu" and "cpu" in run.budgets else ""
        found.append(f"cuda: torch {torch.__version__} finds no GPU that it can use{without}")
    return found


def _as_subprocess(words: Words) -> None:
    code = subprocess.run([sys.executable, "-m", *words], check=False).returncode
    if code == 130:
        raise KeyboardInterrupt
    if code != 0:
        raise ChildProcessError(
            f"{command_line(words)}: ended with status {code}; what was finished is on disk, running it again goes on"
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

    A command that was stopped is given ``--resume`` if it knows it, and done again from its beginning if not.

    Args:
        root: folder of all runs.
        in_process: call the scripts in place of starting a Python for each command.
        report: is told of each command before it starts.
    """
    folder = folder_of(root, run, budget)
    commands = run.words(budget)
    resumable = [hasattr(parsed(words)[1], "resume") for words in commands]
    with _claimed(folder):
        state = check_commands(run, budget, folder)
        if state is None:  # results made by hand are continued, too
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
