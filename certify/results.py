"""Results on disk: one flushed line per image, readable at any time, resumable after any kind of stop.

A run is a folder. ``config.json`` says what was run, and again for each shard of its own; ``votes*.tsv`` holds the
integer votes, from which every certificate can be computed again; ``rows*.tsv`` holds one line per image, the columns
of Cohen et al. (2019) first. Lines are only ever appended. A line that was cut short by a crash or a full disk is
dropped and computed again.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from certify.files import check_writable, create_atomically, differences, lock_file, read_json
from certify.packed import pack_votes
from certify.scheme import Certified
from certify.stored import (
    BY_COPY,
    StoredVotes,
    read_config,
    read_rows,
    read_samples,
    read_table,
    read_votes,
    table_paths,
)
from certify.votes import Votes

__all__ = [
    "ROW_COLUMNS",
    "UNPROVEN_RADIUS",
    "ResultFolder",
    "Row",
    "StoredVotes",
    "TableFile",
    "claim_config",
    "floor_text",
    "read_config",
    "read_rows",
    "read_samples",
    "read_table",
    "read_votes",
    "row_columns",
    "votes_line",
]


def floor_text(value: float, digits: int = 6) -> str:
    """A radius as text, rounded towards minus infinity to ``digits`` decimals: 0.4996 never becomes 0.500."""
    if not math.isfinite(value):
        return str(value)
    value += 0.0  # no negative zero
    text = f"{value:.{digits}f}"
    if float(text) > value:
        step = 10**digits
        text = f"{(math.ceil(value * step) - 1) / step:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


@dataclass(frozen=True)
class Row:
    """One image's result.

    Attributes:
        idx: index in the data set.
        label: true class.
        predict: certified class, -1 if the certificate abstained.
        radius: certified radius, -1 if it abstained; written with all digits, so that the same double is read back.
        correct: 1 if ``predict == label``.
        time: seconds of computation per image.
        clean: class returned by ``predict`` (with its own abstention, -1).
        p_lower: lower bound of the selected class's probability; nan for exact schemes.
        label_share: share of votes for the true class: the base classifier's accuracy on this image's copies.
    """

    idx: int
    label: int
    predict: int
    radius: float
    correct: int
    time: float
    clean: int
    p_lower: float
    label_share: float

    def line(self) -> str:
        """The cells, in the order of :func:`row_columns`."""
        return "\t".join(
            (
                str(self.idx),
                str(self.label),
                str(self.predict),
                repr(self.radius),
                str(self.correct),
                f"{self.time:.4f}",
                str(self.clean),
                repr(self.p_lower),
                repr(self.label_share),
            )
        )


ROW_COLUMNS = tuple(field.name for field in fields(Row))
UNPROVEN_RADIUS = "radius_not_certified"  # the name of the column if radii are not certificates
_VOTE_COLUMNS = ("idx", "label", "n0", "n", "selection", "counts")


def row_columns(*, guaranteed: bool = True) -> tuple[str, ...]:
    """The columns of rows; the radius has another name if it is not a certificate."""
    return tuple(UNPROVEN_RADIUS if name == "radius" and not guaranteed else name for name in ROW_COLUMNS)


class TableFile:
    """An append-only TSV file with a header, for one process at a time. Opening it drops an unfinished last line."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, tuple(columns)
        header = "\t".join(columns) + "\n"
        create_atomically(path, header.encode())
        self._handle = path.open("a", encoding="utf-8")
        try:
            self._lock()
            self._drop_unfinished(header)
        except BaseException:
            self._handle.close()
            raise

    def _lock(self) -> None:
        try:
            lock_file(self._handle.fileno())
        except OSError as error:
            message = f"{self.path}: another process writes to it; give each process its own --shard"
            raise ValueError(message) from error

    def _drop_unfinished(self, header: str) -> None:
        data = self.path.read_bytes()
        if not data.startswith(header.encode()):
            raise ValueError(f"{self.path}: got another header, expected {header.strip()!r}; choose another folder")
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(self.path, whole)

    def keep(self, indices: set[str]) -> None:
        """Remove the lines of images that are not among these."""
        lines = self.path.read_bytes().splitlines(keepends=True)
        fine = [number == 0 or line.split(b"\t", 1)[0].decode() in indices for number, line in enumerate(lines)]
        if all(fine):
            return
        first = fine.index(False)
        # truncated, then appended to: wherever this stops, lines are whole, and missing ones are computed again
        os.truncate(self.path, sum(map(len, lines[:first])))
        for line, keep in zip(lines[first:], fine[first:], strict=True):
            if keep:
                self.append(line.decode().rstrip("\n"))

    def append(self, line: str) -> None:
        """Write one line and hand it to the operating system, so that it survives if this process is killed."""
        self._handle.write(line + "\n")
        self._handle.flush()

    def close(self) -> None:
        """Close the file."""
        self._handle.close()


def _sparse_text(counts: Iterable[int]) -> str:
    return ",".join(f"{c}:{n}" for c, n in enumerate(counts) if n) or "-"


def votes_line(idx: int, label: int, votes: Votes, i: int, n0: int) -> str:
    """The stored form of image ``i`` of ``votes``: ``class:count`` for each class with votes and, where a certificate
    needs them, the votes copy by copy (:func:`pack_votes`)."""
    selection = "-" if votes.selection is None else _sparse_text(votes.selection[i].tolist())
    n0 = n0 if votes.selection is not None else 0
    line = f"{idx}\t{label}\t{n0}\t{votes.n}\t{selection}\t{_sparse_text(votes.counts[i].tolist())}"
    return line if votes.by_copy is None else f"{line}\t{pack_votes(votes.by_copy[i])}"


def result_of(
    idx: int, label: int, result: Certified, i: int, clean: int, votes: Votes, n0: int, seconds: float
) -> tuple[Row, str]:
    """What is stored of one image: its row and its line of votes.

    Args:
        idx: its index in the data set.
        label: its true class.
        result: certificates of a batch, of which this image is number ``i``.
        clean: the class returned without a certificate.
        votes: those of this image only.
        n0: as in :func:`votes_line`.
        seconds: time that the image took.
    """
    predict = int(result.prediction[i])
    row = Row(
        idx=idx,
        label=label,
        predict=predict,
        radius=float(result.radius[i]),
        correct=int(predict == label),
        time=seconds,
        clean=clean,
        p_lower=float("nan") if result.p_lower is None else float(result.p_lower[i]),
        label_share=int(votes.counts[0, label]) / votes.n,
    )
    return row, votes_line(idx, label, votes, 0, n0)


class Line(Protocol):
    """One image's line of ``rows.tsv``."""

    def line(self) -> str: ...


def claim_config(path: Path, config: dict[str, Any]) -> None:
    """Create ``path`` with this configuration, or raise unless it holds an equal one ("provenance" aside)."""
    config = json.loads(json.dumps(config))
    # shards may start at the same time: one of them creates the file, the others compare
    if create_atomically(path, json.dumps(config, indent=2).encode() + b"\n"):
        return
    stored = read_json(path)
    stored.pop("provenance", None)
    config.pop("provenance", None)
    if what := differences(stored, config):
        code = " (a checksum of its source code, which has changed)" if "_code = " in what else ""
        raise ValueError(f"{path}: was made with {what}{code}; results of different settings never go into one folder")


class ResultFolder:
    """One evaluation run on disk.

    Args:
        folder: where it is.
        shard: ``(i, n)``, this process's part of the images; each shard appends to its own files.
        columns: columns of the rows; the first is ``idx``.
        votes: whether votes are stored beside the rows.
        by_copy: whether votes are stored copy by copy, too.
    """

    def __init__(
        self,
        folder: str | Path,
        shard: tuple[int, int] = (0, 1),
        *,
        columns: Sequence[str] = ROW_COLUMNS,
        votes: bool = True,
        by_copy: bool = False,
    ) -> None:
        self.folder, self._columns, self._has_votes = Path(folder), columns, votes
        self._vote_columns = (*_VOTE_COLUMNS, BY_COPY) if by_copy else _VOTE_COLUMNS
        suffix = "" if shard[1] == 1 else f"-{shard[0]}-of-{shard[1]}"
        self.rows_path = self.folder / f"rows{suffix}.tsv"
        self.votes_path = self.folder / f"votes{suffix}.tsv"
        self.config_path = self.folder / "config.json"
        # shards that are made elsewhere may be copied into one folder, where only one config.json remains
        self._own_config_path = self.folder / f"config{suffix}.json"
        self._open: list[TableFile] = []

    def start(self, config: dict[str, Any], *, resume: bool) -> set[int]:
        """Write or check the configuration, open the files, and return the indices that are already done.

        Raises if the folder holds results and ``resume`` is not set, or if they were made with other settings.
        """
        if self.config_path.exists() and (self.rows_path.exists() or self.votes_path.exists()) and not resume:
            raise ValueError(
                f"{self.folder}: holds results; add --resume to continue them (resume=True), or choose another folder"
            )
        check_writable(self.folder)
        self._check_config_exists()
        claim_config(self.config_path, config)
        read_config(self.folder)  # raises if shards that are here already do not belong together
        if self._own_config_path != self.config_path:
            claim_config(self._own_config_path, config)
        self._rows = TableFile(self.rows_path, self._columns)
        self._open.append(self._rows)
        if self._has_votes:
            self._votes = TableFile(self.votes_path, self._vote_columns)
            self._open.append(self._votes)
            mine, voted = ({row["idx"] for row in read_table(path)} for path in (self.rows_path, self.votes_path))
            self._check_both_tables({self.rows_path: len(mine), self.votes_path: len(voted)})
            # An image's votes are written just before its row: after a kill, the last votes may have no row yet.
            self._votes.keep(mine)
            # After a crash of the machine, rows may be on disk without their votes: these images are certified again.
            self._rows.keep(voted)
        return {int(row["idx"]) for path in table_paths(self.folder, "rows") for row in read_table(path)}

    def _check_both_tables(self, sizes: dict[Path, int]) -> None:
        """Raise if either file has lost all of its lines: going on would discard the other one and all work in it."""
        # a run that was killed at its first image has votes of it alone
        if min(sizes.values()) == 0 and max(sizes.values()) > 1:
            empty, other = sorted(sizes, key=lambda path: sizes[path])
            raise ValueError(f"{empty}: got no images, but {other.name} has some; restore it, or choose another folder")

    def _check_config_exists(self) -> None:
        """Raise if there are results without the configuration that says how they were made."""
        if self.config_path.exists():
            return
        tables = [path for kind in ("rows", "votes") for path in table_paths(self.folder, kind)]
        # tables first, then the configuration: other shards may start right now, and they write the configuration first
        if any(path.read_bytes().count(b"\n") > 1 for path in tables) and not self.config_path.exists():
            raise ValueError(
                f"{self.folder}: holds results without their config.json; restore it, or choose another folder"
            )

    def append(self, row: Line, votes_line: str | None = None) -> None:
        """Store one image: its votes (in a folder with votes), then its row."""
        if (votes_line is None) == self._has_votes:
            raise ValueError(
                f"votes_line: got {votes_line!r} for a folder {'with' if self._has_votes else 'without'} votes"
            )
        if votes_line is not None:
            self._votes.append(votes_line)
        self._rows.append(row.line())

    def close(self) -> None:
        """Close all files."""
        while self._open:
            self._open.pop().close()

    def __enter__(self) -> ResultFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
