"""Files that hold the complete old or new content, on a full disk and without hard links, too."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from certify.files import create_atomically, write_atomically
from rl.files import replacing


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch, *, from_link: bool = False) -> Iterator[None]:
    """Let every write to a file fail, if desired only from the first link on: a limit on sizes stands in for it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(*_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        if from_link:
            raise OSError("full")

    try:
        if from_link:
            monkeypatch.setattr(os, "link", fill)
        else:
            fill()
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def no_links(*_: object) -> None:
    raise PermissionError("no hard links here")


@pytest.mark.parametrize("links", [True, False])
def test_the_first_creation_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "folder" / "file"
    assert create_atomically(path, b"first")
    assert not create_atomically(path, b"second")
    monkeypatch.setattr(Path, "exists", lambda _: False)  # as for a process that is a moment too late
    assert not create_atomically(path, b"third")
    assert [each.read_bytes() for each in path.parent.iterdir()] == [b"first"]


def test_a_disk_that_fills_up_during_a_creation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty configuration would keep a run from ever being continued."""
    with full_disk(monkeypatch, from_link=True), pytest.raises(OSError, match="too large"):
        create_atomically(tmp_path / "file", b"content")
    assert not list(tmp_path.iterdir())


def test_devices_are_written_to_and_not_replaced(tmp_path: Path) -> None:
    """A user who may replace /dev/null, as in many containers, would have no working system afterwards."""
    path = tmp_path / "null"
    path.symlink_to(os.devnull)
    write_atomically(path, b"content")
    assert path.is_symlink()
    assert path.read_bytes() == b""
    assert [each.name for each in tmp_path.iterdir()] == ["null"]
    with pytest.raises(ValueError, match="is not a file"), replacing(path):
        pass
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path, b"content")


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    target, path = tmp_path / "target", tmp_path / "link"
    path.symlink_to(target)
    for content in (b"first", b"second", b"third"):
        if content == b"third":
            with replacing(path) as new:
                new.write_bytes(content)
        else:
            write_atomically(path, content)
        assert path.is_symlink()
        assert target.read_bytes() == content
    assert len(list(tmp_path.iterdir())) == 2


def test_a_write_that_fails_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with full_disk(monkeypatch), pytest.raises(OSError, match="too large"):
        write_atomically(path, b"new")
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"old"]
