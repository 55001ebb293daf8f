"""Shared by all command lines: arguments from a dataclass, progress bars, and error reporting."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import importlib
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

ArgsT = TypeVar("ArgsT")
imported: list[str] = []  # the user's modules that --import named in this process


def arg(help_text: str, default: Any = dataclasses.MISSING, *, positional: bool = False) -> Any:
    """A dataclass field that becomes a command-line argument."""
    metadata = {"help": help_text, "positional": positional}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def parse_args(cls: type[ArgsT], argv: list[str] | None, prog: str) -> ArgsT:
    """Fill the dataclass ``cls`` from the command line; ``field_name`` becomes ``--field-name``."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {prog}",
        description=cls.__doc__,
        epilog=sys.modules[cls.__module__].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--import",
        dest="imports",
        metavar="MODULE",
        action="append",
        default=[],
        help="first import a module of yours, such as one that registers what another option names; may be repeated",
    )
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):  # pyright: ignore[reportArgumentType]
        _add_argument(parser, field, hints[field.name])
    values = {k: v for k, v in vars(parser.parse_args(argv)).items() if v is not None}
    imports = values.pop("imports")
    import_modules(imports)
    imported[:] = imports
    return cls(**values)


def _add_argument(parser: argparse.ArgumentParser, field: dataclasses.Field[Any], kind: Any) -> None:
    """The argument for one field, whose type is ``kind``."""
    options: dict[str, Any] = {"help": field.metadata["help"]}
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    default = field.default if field.default is not dataclasses.MISSING else None
    if default not in (None, False):
        options["help"] += f" (default: {default})"
    flag = "--" + field.name.replace("_", "-")
    if kind is bool:
        parser.add_argument(flag, action="store_true", **options)
        return
    if typing.get_origin(kind) is list:
        options["nargs"] = "*" if has_default else "+"
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is typing.Literal:
        options["choices"] = typing.get_args(kind)
        kind = str
    if field.metadata["positional"]:
        if has_default and "nargs" not in options:
            options["nargs"] = "?"
        parser.add_argument(field.name, type=kind, default=default, **options)
    else:
        parser.add_argument(flag, type=kind, default=default, required=not has_default, **options)


def import_modules(names: list[str]) -> None:
    """Import the modules named by ``--import``, from this folder or PYTHONPATH; raises ValueError if one is missing."""
    for name in names:
        if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"import: got {name!r}, expected the name of a module: my_schemes for my_schemes.py")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module exists, but one that it imports does not
            raise ValueError(f"import: found no module {name}; put it in this folder or on PYTHONPATH") from error
        except ImportError:
            raise
        except Exception as error:
            raise ValueError(f"import: {name} raised {type(error).__name__}: {error}") from error


def command_line(prog: str, args: Any) -> str:
    """The command line that yields these arguments, without defaults."""
    words = ["python", "-m", prog, *(word for name in imported for word in ("--import", name))]
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        if value == field.default:
            continue
        if not field.metadata["positional"]:
            words.append("--" + field.name.replace("_", "-"))
        if not isinstance(value, bool):
            words += [str(v) for v in value] if isinstance(value, list) else [str(value)]
    return shlex.join(words)


def check_used(args: Any, step: str) -> None:
    """Raise if an argument was given that has no effect on a step.

    Args:
        step: one of the script's steps. Help texts end with the steps that use the argument, such as "(vote)"; the step
            "all" uses every argument.
    """
    for field in dataclasses.fields(args):
        steps = re.search(r"\(([a-z, ]+)\)$", field.metadata["help"])
        if steps is None or step in ("all", *steps[1].split(", ")):
            continue
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if getattr(args, field.name) != default:
            name = field.name.replace("_", "-")
            raise ValueError(f"{name}: is used by {steps[1]}, not by {step}; leave it out")


def progress() -> Progress:
    """A progress bar with counts and the estimated time remaining, on standard error."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def commit() -> str:
    """The commit of this checkout, with ``-dirty`` if it has changes; "unknown" outside a git checkout."""
    folder = Path(__file__).resolve().parent
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def check_device(text: str) -> None:
    """Raise unless ``text`` names a device that is available and computes."""
    try:
        torch.zeros(1, device=text).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device: got {text!r}, which is not available here ({reason}); use cpu") from error


def _again(cls: type) -> tuple[str, str]:
    """How to continue a command after an interruption, and after its obstacle was removed."""
    if any(field.name == "resume" for field in dataclasses.fields(cls)):
        return (
            "finished work is on disk; run the same command with --resume to continue",
            "and use --resume; nothing is lost",
        )
    return "run the same command again", "and run the same command again"


def _open_standard_streams() -> None:
    """Open those of standard input, output and error that are closed, to discard what is written.

    Otherwise, a file of results could get the number of one of them, and what libraries print would end up in it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            lowest = os.open(os.devnull, os.O_RDWR)  # the system gives the lowest number that is free
            os.set_inheritable(lowest, True)  # for worker processes
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115  (until the process ends)


class Terminated(KeyboardInterrupt):
    """SIGTERM, as schedulers send it before they kill."""


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Let the first SIGTERM end a command as Ctrl-C does, its processes included, and a second one at once."""
    handled = threading.current_thread() is threading.main_thread()  # signals can only be handled there
    if not handled or signal.getsignal(signal.SIGTERM) in (signal.SIG_IGN, None):  # ignored, or not by Python
        yield
        return

    def end(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run(main: Callable[[ArgsT], None], cls: type[ArgsT], prog: str, argv: list[str] | None = None) -> None:
    """Run a script, without a traceback for what is expected.

    The status is 1 after an error, which prints one line, 130 after Ctrl-C and 143 after SIGTERM.
    """
    _open_standard_streams()
    try:
        args = parse_args(cls, argv, prog)
        with _terminated_like_interrupted():
            main(args)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output (head, for example) has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the rest is flushed at exit
        sys.exit(141)
    except KeyboardInterrupt as reason:
        print(f"\ninterrupted; {_again(cls)[0]}", file=sys.stderr)
        sys.exit(143 if isinstance(reason, Terminated) else 130)
    except OSError as error:
        message = str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            message = f"no space left on the device for {error.filename or 'the results'}; free some {_again(cls)[1]}"
        print(f"error: {message}", file=sys.stderr)
        sys.exit(1)
    except torch.OutOfMemoryError as error:
        print(f"error: {str(error).splitlines()[0]} Use a smaller --batch-size.", file=sys.stderr)
        sys.exit(1)
    except (ValueError, TypeError, FloatingPointError, OverflowError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
