"""Atomic file writing, folders for one process at a time, and a description of how two configurations differ."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not a POSIX system, where files are not locked
    fcntl = None


def lock_file(descriptor: int) -> None:
    """Claim an open file for this process until it is closed; ``OSError`` if another process has it."""
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def claimed(folder: Path, *names: str) -> Iterator[None]:
    """Keep other processes from training in ``folder``, and remove what killed ones left of its files ``names``.

    Where the system or the file system has no locks for folders, this does nothing.

    Raises:
        ValueError: if another process trains there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    place = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            try:
                lock_file(place)
            except BlockingIOError as error:
                raise ValueError(f"{folder}: another process trains here; wait, or choose another folder") from error
            for name in names:
                for left in folder.glob(f".{name}.{'[0-9a-f]' * 32}.tmp"):
                    left.unlink()
        yield
    finally:
        os.close(place)


def create_atomically(path: Path, data: bytes) -> bool:
    """Create ``path`` with ``data`` unless it exists; if several processes try, exactly one succeeds."""
    if path.exists():
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_of(path, ".new")
    write_atomically(temporary, data)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links, or one that is full
        return _create(path, data)
    finally:
        temporary.unlink()
    return True


def _create(path: Path, data: bytes) -> bool:
    """The same without hard links: a write that fails leaves nothing, a process killed meanwhile a part of the file."""
    try:
        handle = path.open("xb")
    except FileExistsError:
        return False
    try:
        with handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
    except BaseException:
        path.unlink()
        raise
    return True


def temporary_of(path: Path, ending: str = ".tmp") -> Path:
    """A unique name beside ``path``, used by no other thread or process, on this machine or another."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{ending}")


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """How stored settings differ from current ones: ``epochs = 30, not 31, model.depth = 3, not 4``."""
    return ", ".join(f"{name} = {old!r}, not {new!r}" for name, old, new in _different(there, here))


def _different(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in dict.fromkeys((*there, *here)):
        old, new = there.get(name), here.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from ((f"{name}.{part}", *values) for part, *values in _different(old, new))
        elif old != new:
            yield name, old, new


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises ``ValueError`` if the file holds something else or is truncated."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: is not JSON ({error}); restore it, or choose another folder") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, expected names and values; restore it")
    return content


def check_writable(folder: Path) -> None:
    """Raise ``ValueError`` unless files can be created in ``folder``; for use before work that could be lost."""
    probe = temporary_of(folder / "probe")
    try:
        write_atomically(probe, b"")
        probe.unlink()
    except OSError as error:
        raise ValueError(f"out: cannot write to {folder} ({error.strerror or error}); choose another folder") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Replace the content of ``path`` by ``data`` atomically: it always holds the complete old or new content.

    A link stays a link to the new content; a device or a pipe is simply written to.
    """
    if path.exists() and not path.is_file():  # with enough rights, /dev/null would be replaced by a file
        path.write_bytes(data)
        return
    if path.is_symlink():  # /dev/stdout, for instance
        path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_of(path)
    try:
        with temporary.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
