"""Reading results on disk; see :mod:`certify.results`, which writes them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from certify.files import differences, read_json
from certify.images import Shape
from certify.packed import unpack_votes
from certify.votes import Votes, sum_votes

BY_COPY = "by_copy"  # the column with the votes copy by copy, for schemes that need them
LOG_COLUMNS = ("idx", "label", "predict", "radius", "correct", "time")  # those of Cohen et al. (2019)


def read_table(path: Path, *, columns: Sequence[str] | None = None) -> list[dict[str, str]]:
    """The finished lines of a TSV file as dictionaries.

    Args:
        columns: those of a file without a header, which is recognized by a number in its first cell.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not a text table ({error}); restore it, or choose another folder") from error
    lines = text[: text.rfind("\n") + 1].splitlines()
    if not lines:
        raise ValueError(f"{path}: got an empty file, expected a header and rows")
    if columns is not None and lines[0].split("\t")[0].isdecimal():
        lines.insert(0, "\t".join(columns))
    columns = lines[0].split("\t")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split("\t")
        if len(cells) != len(columns):
            raise ValueError(f"{path}, line {number}: got {len(cells)} cells, expected {len(columns)} ({lines[0]!r})")
        rows.append(dict(zip(columns, cells, strict=True)))
    return rows


def _parse_counts(texts: Sequence[str], num_classes: int) -> torch.Tensor:
    """Stored counts, class:count for each class with votes, as int64 ``[len(texts), num_classes]``."""
    dense = np.zeros((len(texts), num_classes), dtype=np.int64)
    for text, counts in zip(texts, dense, strict=True):
        for cell in text.split(",") if text != "-" else ():
            c, n = map(int, cell.split(":"))
            if not (0 <= c < num_classes and 0 < n < 1 << 63) or counts[c]:
                raise ValueError(
                    f"stored votes: got {cell!r} in {text!r}, expected class:count, each class below {num_classes} once"
                )
            counts[c] = n
    return torch.from_numpy(dense)


@dataclass(frozen=True, eq=False)
class StoredVotes:
    """The votes of a run, merged over its shards and ordered by index.

    Attributes:
        idx, label: int64 ``[N]``.
        votes: those of all N images.
    """

    idx: torch.Tensor
    label: torch.Tensor
    votes: Votes


def table_paths(folder: Path, kind: str) -> list[Path]:
    """The files of all shards of a run; raises if these do not belong together."""
    _check_shards(folder)
    return sorted(p for p in folder.glob(f"{kind}*.tsv") if re.fullmatch(rf"{kind}(-\d+-of-\d+)?\.tsv", p.name))


def read_config(folder: str | Path) -> dict[str, Any]:
    """The configuration of a run; raises if its shards do not belong together."""
    path = Path(folder) / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such run; certify one with 'python -m scripts.certify'")
    _check_shards(path.parent)
    return read_json(path)


def _check_shards(folder: Path) -> None:
    """Raise if shards that were made elsewhere, and copied into this folder, were made with different settings."""
    shards = sorted(
        path for path in folder.glob("config-*.json") if re.fullmatch(r"config-\d+-of-\d+\.json", path.name)
    )
    if (folder / "config.json").exists():
        _check_tables_have_configs(folder)
    first, *others = [path for path in (folder / "config.json", *shards) if path.exists()] or [folder]
    for other in others:
        there, here = (dict(read_json(path), provenance=None) for path in (other, first))
        if what := differences(there, here):
            raise ValueError(
                f"{other}: this shard was made with {what} as in {first.name}; results of different settings never go "
                "into one folder, put the files of this shard into another"
            )


def _check_tables_have_configs(folder: Path) -> None:
    """Raise if a table of a shard was copied here without its configuration: config.json may be that of another run.

    A shard that starts writes its configuration before its tables.
    """
    for path in sorted(folder.glob("*-of-*.tsv")):
        table = re.fullmatch(r"(?:rows|votes)-(\d+-of-\d+)", path.stem)
        if table is not None and not (folder / f"config-{table[1]}.json").exists():
            raise ValueError(
                f"{path}: got no config-{table[1]}.json, which says how this shard was made; copy it here from the "
                "folder where the shard was made, or remove the tables of this shard and certify it again"
            )


def read_rows(source: str | Path) -> dict[str, np.ndarray]:
    """Rows of a run (all shards merged) or of one TSV file, ordered by index: a float64 array per column.

    Files that only have the six columns of Cohen et al. are read as well, with a header or without one; see
    :func:`certify.logs.read_log`.
    """
    source = Path(source)
    paths = table_paths(source, "rows") if source.is_dir() else [source]
    if not paths or not all(path.exists() for path in paths):
        raise FileNotFoundError(f"{source}: no rows*.tsv; certify first with 'python -m scripts.certify'")
    by_index: dict[int, dict[str, str]] = {}
    for path in paths:
        for row in read_table(path, columns=LOG_COLUMNS):
            try:
                before = by_index.setdefault(idx := int(row["idx"]), row)
            except (KeyError, ValueError) as error:
                raise ValueError(f"{path}: got a row {row}, expected the index of an image as idx") from error
            if source.is_dir():
                _check_same_result(path, before, row)
            by_index[idx] = row
    if not by_index:
        raise ValueError(f"{source}: got no finished row; resume the run first")
    rows = [by_index[idx] for idx in sorted(by_index)]
    return {name: np.array([_cell_value(row[name], time=name == "time") for row in rows]) for name in rows[0]}


def _check_same_result(path: Path, before: dict[str, str], row: dict[str, str]) -> None:
    """Raise unless an image that was certified twice, by two shards perhaps, has the same result in both lines."""
    for name in row:
        if name != "time" and row[name] != before.get(name):
            raise ValueError(
                f"{path}: got {name} {row[name]} for image {row['idx']}, which has {before.get(name)} in another line; "
                "they are not of the same run, certify again into a new folder"
            )


def read_texts(folder: str | Path, column: str) -> dict[int, str]:
    """One column of a run's rows as text, by index."""
    rows = [row for path in table_paths(Path(folder), "rows") for row in read_table(path)]
    return {int(row["idx"]): row[column] for row in rows}


def _cell_value(text: str, *, time: bool) -> float:
    """A cell as a number, nan if it is none; times may be in the format of published logs, in seconds."""
    try:
        return float(text)
    except ValueError:
        if not time:
            return math.nan
        parts = re.fullmatch(r"(?:(\d+) days?, )?(\d+):(\d\d):(\d\d(?:\.\d+)?)", text)
        if parts is None:
            return math.nan
        days, hours, minutes, seconds = (float(part or 0) for part in parts.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def read_votes(folder: str | Path) -> StoredVotes:
    """All stored votes of a run."""
    folder, config = Path(folder), read_config(folder)
    shape: Shape = tuple(config["shape"])
    classes = config["num_classes"]
    rows = _vote_rows(folder, classes)
    sizes = {(row["n0"], row["n"]) for row in rows}
    if "until" in (config.get("sampling") or {}) or len(sizes) > 1:
        raise ValueError(
            f"{folder}: got votes of different numbers of samples: sampling stopped depending on the votes, so bounds "
            "for a fixed number do not hold for them; certify again for new ones"
        )
    n0, n = int(rows[0]["n0"]), int(rows[0]["n"])
    idx, label = (torch.tensor([int(row[name]) for row in rows]) for name in ("idx", "label"))
    selection = _parse_counts([row["selection"] for row in rows], classes) if n0 > 0 else None
    counts = _parse_counts([row["counts"] for row in rows], classes)
    votes = Votes(counts, selection, shape, n, idx, by_copy=_read_by_copy(folder, rows, n, counts))
    return StoredVotes(idx, label, votes)


def _vote_rows(folder: Path, classes: int) -> list[dict[str, str]]:
    """The lines of all shards' votes, ordered by index: exactly one for each image that has a row, with its label."""
    labels = read_texts(folder, "label")  # first: a run that goes on writes votes before rows
    rows: dict[int, dict[str, str]] = {}
    for path in table_paths(folder, "votes"):
        for row in read_table(path):
            _check_same_result(path, rows.setdefault(int(row["idx"]), row), row)
    if missing := sorted(labels.keys() - rows.keys()):
        raise ValueError(
            f"{folder}: got {len(labels)} rows, but no votes of image {missing[0]}; a file was cut short, restore it "
            "or certify again into a new folder"
        )
    if not labels:
        raise ValueError(f"{folder}: got no stored votes; resume the run first")
    for idx in sorted(labels):
        row = rows[idx]
        if row["label"] != labels[idx] or not 0 <= int(row["label"]) < classes:
            raise ValueError(
                f"{folder}: got label {row['label']} with the votes of image {row['idx']}, expected that of its row, "
                f"{labels[idx]}, one of {classes} classes"
            )
    return [rows[idx] for idx in sorted(labels)]


def read_samples(folder: str | Path) -> dict[int, int]:
    """How many copies each image of a run took, selection and estimation together, by index."""
    rows = [row for path in table_paths(Path(folder), "votes") for row in read_table(path)]
    return {int(row["idx"]): int(row["n0"]) + int(row["n"]) for row in rows}


def _read_by_copy(folder: Path, rows: list[dict[str, str]], n: int, counts: torch.Tensor) -> torch.Tensor | None:
    if BY_COPY not in rows[0]:
        return None
    by_copy = torch.stack([unpack_votes(row[BY_COPY], n, counts.shape[1]) for row in rows])
    wrong = (sum_votes(by_copy) != counts).any(1).nonzero()[:, 0].tolist()
    if wrong:
        raise ValueError(
            f"{folder}: got votes of image {rows[wrong[0]]['idx']} that do not add up to its counts; restore the file, "
            "or certify again into a new folder"
        )
    return by_copy
