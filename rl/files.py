"""Files of a run that hold the complete old or new content whatever happens, in a folder for one process at a time."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a POSIX system: there folders are not locked
    fcntl = None

# what killed processes leave: files of replacing(), and those that safetensors writes first (large ones, with a buffer)
_UNFINISHED = (f".*.{'[0-9a-f]' * 32}.tmp*", ".tmp" + "[0-9A-Za-z]" * 6)


@contextmanager
def replacing(path: Path, ending: str = "") -> Iterator[Path]:
    """A new file to write, which takes the place of ``path`` once it is on disk; ``ending`` is that of its name.

    A link stays a link to the new content.

    Raises:
        ValueError: if ``path`` is a folder, a device or a pipe.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: is not a file; choose another path")
    if path.is_symlink():
        path = path.resolve()
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp{ending}")
    try:
        temporary.touch()  # gets the usual permissions, which some writers would not set
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep other processes from training in ``folder``, and remove what killed ones left half written.

    Where the system or the file system has no locks for folders, this does nothing.

    Raises:
        ValueError: if another process trains there.
    """
    if fcntl is None:
        yield
        return
    place = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{folder}: another process trains here; wait, or choose another folder") from error
        except OSError:  # a file system without locks
            pass
        else:
            for pattern in _UNFINISHED:
                for left in folder.glob(pattern):
                    with contextlib.suppress(OSError):
                        left.unlink()
        yield
    finally:
        os.close(place)
