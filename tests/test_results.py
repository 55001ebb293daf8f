from __future__ import annotations

import json
import math
import os
import re
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from certify import stored as stored_module
from certify.logs import read_log
from certify.results import (
    ROW_COLUMNS,
    ResultFolder,
    Row,
    TableFile,
    floor_text,
    read_config,
    read_rows,
    read_table,
    read_votes,
    votes_line,
)
from certify.votes import Votes

# Rounding down


@given(st.floats(-1, 1e6), st.integers(0, 6))
def test_floor_text_never_exceeds_the_value(value, digits):
    text = floor_text(value, digits)
    assert float(text) <= value
    # and is the largest such number, up to the rounding of the number read back
    above = Fraction(text) + Fraction(1, 10**digits)
    assert float(above) > value


@given(st.integers(-1, 5000), st.integers(1, 255))
def test_floor_text_of_grid_radii(steps, q):
    text = floor_text(steps / q)
    assert Fraction(steps, q) - Fraction(1, 10**6) < Fraction(text) <= Fraction(steps, q)


@given(st.floats(-1, 1e6).map(lambda value: math.nextafter(round(value, 3), -2)))
def test_floor_text_just_below_a_short_decimal(value):
    text = floor_text(value, 3)
    assert float(text) <= value < float(Fraction(text) + Fraction(1, 1000))


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.4996, 3, "0.499"),
        (85 / 255, 6, "0.333333"),
        (170 / 255, 6, "0.666666"),
        (1 / 3, 2, "0.33"),
        (0.9999999, 6, "0.999999"),
        (1.0, 6, "1"),
        (2.5, 6, "2.5"),
        (0.0, 6, "0"),
        (-0.0, 6, "0"),
        (-1.0, 6, "-1"),
        (-0.25, 1, "-0.3"),
        (-1e-9, 6, "-0.000001"),
        (12.0, 0, "12"),
        (12.7, 0, "12"),
        (120.0, 0, "120"),
        (100.0, 3, "100"),
        (math.inf, 6, "inf"),
        (-math.inf, 6, "-inf"),
        (math.nan, 6, "nan"),
    ],
)
def test_floor_text(value, digits, text):
    assert floor_text(value, digits) == text


# Rows and tables


def row(idx: int = 0, **changes) -> Row:
    values = {"label": 0, "predict": 0, "radius": 8.0, "correct": 1, "time": 0.25, "clean": 0}
    return Row(idx=idx, **(values | {"p_lower": 0.5, "label_share": 0.75} | changes))


def test_row_columns_start_with_those_of_cohen():
    assert (
        *("idx", "label", "predict", "radius", "correct", "time"),
        *("clean", "p_lower", "label_share"),
    ) == ROW_COLUMNS


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (row(3), "3\t0\t0\t8.0\t1\t0.2500\t0\t0.5\t0.75"),
        (
            Row(10, 2, -1, -1.0, 0, 1.23456, -1, 0.49999999, 0.4996),
            "10\t2\t-1\t-1.0\t0\t1.2346\t-1\t0.49999999\t0.4996",
        ),
        (
            Row(0, 0, 0, 85 / 255, 1, 0.0, 0, math.nan, 2 / 3),
            "0\t0\t0\t0.3333333333333333\t1\t0.0000\t0\tnan\t0.6666666666666666",
        ),
    ],
)
def test_row_line(value, line):
    assert value.line() == line


@given(st.floats(-1, 1e6), st.floats(0, 1), st.floats(0, 1))
def test_radii_and_probabilities_read_back_as_the_same_doubles(radius, p_lower, label_share):
    cells = row(radius=radius, p_lower=p_lower, label_share=label_share).line().split("\t")
    assert len(cells) == len(ROW_COLUMNS)
    assert [float(cells[i]) for i in (3, 7, 8)] == [radius, p_lower, label_share]


def write(path: Path, columns: tuple[str, ...], *lines: str) -> None:
    table = TableFile(path, columns)
    for line in lines:
        table.append(line)
    table.close()


def test_table_is_written_line_by_line(tmp_path):
    path = tmp_path / "new" / "table.tsv"
    table = TableFile(path, ("a", "b"))
    assert path.read_text() == "a\tb\n"
    table.append("1\t2")
    assert path.read_text() == "a\tb\n1\t2\n"
    assert read_table(path) == [{"a": "1", "b": "2"}]
    table.close()
    write(path, ("a", "b"), "3\t4")
    assert read_table(path) == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]


@pytest.mark.parametrize("unfinished", ["5", "5\t", "5\t6", "5\t6\t7"])
def test_unfinished_last_line_is_dropped(tmp_path, unfinished):
    path = tmp_path / "table.tsv"
    write(path, ("a", "b"), "1\t2", "3\t4")
    whole = path.read_text()
    with path.open("a") as handle:
        handle.write(unfinished)
    assert [r["a"] for r in read_table(path)] == ["1", "3"]
    write(path, ("a", "b"), "7\t8")
    assert path.read_text() == whole + "7\t8\n"


def test_file_cut_off_anywhere_is_continued(tmp_path):
    path = tmp_path / "table.tsv"
    lines = ["1\t2", "33\t44", "5\t6"]
    write(path, ("a", "b"), *lines)
    data, header = path.read_bytes(), len("a\tb\n")
    for length in range(header, len(data) + 1):
        path.write_bytes(data[:length])
        left = lines[len(read_table(path)) :]
        write(path, ("a", "b"), *left)
        assert path.read_bytes() == data


@pytest.mark.parametrize("content", ["", "a\n", "a\tb", "b\ta\n1\t2\n", "a\tb\tc\n", "{}\n"])
def test_another_header_is_refused(tmp_path, content):
    path = tmp_path / "table.tsv"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"table\.tsv: got another header, expected 'a\\tb'"):
        TableFile(path, ("a", "b"))
    assert path.read_text() == content


def test_one_writer_at_a_time(tmp_path):
    pytest.importorskip("fcntl")
    path = tmp_path / "table.tsv"
    first = TableFile(path, ("a", "b"))
    first.append("1\t2")
    with pytest.raises(ValueError, match="another process writes to it; give each process its own --shard"):
        TableFile(path, ("a", "b"))
    first.append("3\t4")
    first.close()
    write(path, ("a", "b"), "5\t6")
    assert [r["a"] for r in read_table(path)] == ["1", "3", "5"]


def test_wrong_number_of_cells(tmp_path):
    path = tmp_path / "table.tsv"
    path.write_text("a\tb\n1\t2\n3\n")
    with pytest.raises(ValueError, match=r"table\.tsv, line 3: got 1 cells, expected 2"):
        read_table(path)


@pytest.mark.parametrize("content", ["", "a\tb"])
def test_table_without_a_line(tmp_path, content):
    path = tmp_path / "table.tsv"
    path.write_text(content)
    with pytest.raises(ValueError, match="got an empty file"):
        read_table(path)


# Result folders

CONFIG = {
    "scheme": "RandomizedAblation(keep=2)",
    "data": "mine",
    "threat": "l0 (pixels)",
    "shape": (1, 4, 4),
    "num_classes": 3,
    "sampling": {"n": 100},
}


def one_vote(idx: int) -> str:
    return f"{idx}\t0\t0\t10\t-\t0:10"


def start(folder: Path, *, resume: bool = False, shard: tuple[int, int] = (0, 1), config=None, rows=()) -> set[int]:
    with ResultFolder(folder, shard) as run:
        done = run.start(CONFIG if config is None else config, resume=resume)
        for idx in rows:
            run.append(row(idx), one_vote(idx))
    return done


def test_start_and_resume(tmp_path):
    folder = tmp_path / "runs" / "new"
    assert start(folder, rows=[4, 0]) == set()
    assert start(folder, resume=True, rows=[9]) == {0, 4}
    assert start(folder, resume=True) == {0, 4, 9}
    assert read_rows(folder)["idx"].tolist() == [0, 4, 9]
    assert read_config(folder) == json.loads(json.dumps(CONFIG))


def test_resume_may_come_first(tmp_path):
    assert start(tmp_path / "run", resume=True, rows=[1]) == set()


def test_existing_run_is_not_overwritten(tmp_path):
    start(tmp_path, rows=[1])
    before = (tmp_path / "rows.tsv").read_bytes(), (tmp_path / "votes.tsv").read_bytes()
    with pytest.raises(ValueError, match=r"holds results; add --resume to continue them .*, or choose another folder"):
        start(tmp_path)
    assert ((tmp_path / "rows.tsv").read_bytes(), (tmp_path / "votes.tsv").read_bytes()) == before


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"scheme": "RandomizedAblation(keep=3)"}, "scheme"),
        ({"sampling": {"n": 1000}}, "sampling"),
        ({"shape": (1, 4, 5)}, "shape"),
        ({"seed": 1}, "seed"),
    ],
)
def test_changed_configuration_is_refused(tmp_path, change, name):
    start(tmp_path, rows=[1])
    stored = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ValueError, match=f"was made with {name}.*, not .*different settings never go into one folder"):
        start(tmp_path, resume=True, config=CONFIG | change)
    assert (tmp_path / "config.json").read_bytes() == stored


def test_missing_setting_is_refused(tmp_path):
    start(tmp_path, rows=[1])
    with pytest.raises(ValueError, match="was made with sampling"):
        start(tmp_path, resume=True, config={k: v for k, v in CONFIG.items() if k != "sampling"})


def test_provenance_may_change(tmp_path):
    start(tmp_path, rows=[1], config=CONFIG | {"provenance": {"started": "yesterday"}})
    assert start(tmp_path, resume=True, config=CONFIG | {"provenance": {"started": "today"}}) == {1}
    assert read_config(tmp_path)["provenance"] == {"started": "yesterday"}


def test_shards_share_a_folder(tmp_path):
    assert start(tmp_path, shard=(0, 2), rows=[4, 0, 2]) == set()
    assert start(tmp_path, shard=(1, 2), rows=[3, 1]) == {0, 2, 4}
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("config-0-of-2.json", "config-1-of-2.json", "config.json"),
        *("rows-0-of-2.tsv", "rows-1-of-2.tsv"),
        *("votes-0-of-2.tsv", "votes-1-of-2.tsv"),
    ]
    with pytest.raises(ValueError, match="add --resume"):
        start(tmp_path, shard=(1, 2))
    with pytest.raises(ValueError, match="was made with num_classes = 3, not 4"):
        start(tmp_path, shard=(1, 2), resume=True, config=CONFIG | {"num_classes": 4})
    assert start(tmp_path, shard=(1, 2), resume=True) == {0, 1, 2, 3, 4}
    assert read_rows(tmp_path)["idx"].tolist() == [0, 1, 2, 3, 4]


def test_shards_of_different_settings_are_told_apart_when_they_are_copied_together(tmp_path):
    """Only one config.json remains, which would pass off the radii of one level as those of another."""
    start(tmp_path / "here", shard=(0, 2), rows=[0, 2])
    start(tmp_path / "there", shard=(1, 2), rows=[1, 3], config=CONFIG | {"seed": 1})
    start(tmp_path / "same", shard=(1, 2), rows=[1, 3], config=CONFIG | {"provenance": {"started": "later"}})
    for other in ("same", "there"):
        shutil.copytree(tmp_path / other, tmp_path / "here", dirs_exist_ok=True)
        if other == "same":
            assert read_votes(tmp_path / "here").idx.tolist() == [0, 1, 2, 3]
    for read in (read_config, read_votes, read_rows):
        with pytest.raises(
            ValueError, match=r"config-0-of-2.json: this shard was made with seed = .*, not 1 as in conf"
        ):
            read(tmp_path / "here")
    with pytest.raises(ValueError, match="this shard was made with seed"):
        start(tmp_path / "here", shard=(1, 2), resume=True, config=CONFIG | {"seed": 1})


@pytest.mark.parametrize("table", ["rows", "votes"])
def test_shards_that_are_copied_without_their_configuration_are_refused(tmp_path, table):
    """config.json is that of other results, and would decide what these votes certify."""
    start(tmp_path / "here", shard=(0, 2), rows=[0, 2])
    start(tmp_path / "there", shard=(1, 2), rows=[1, 3], config=CONFIG | {"seed": 1})
    shutil.copy(tmp_path / "there" / f"{table}-1-of-2.tsv", tmp_path / "here")
    for read in (read_config, read_votes, read_rows):
        with pytest.raises(ValueError, match=rf"{table}-1-of-2.tsv: got no config-1-of-2.json, which says how"):
            read(tmp_path / "here")
    with pytest.raises(ValueError, match=r"got no config-1-of-2.json"):
        start(tmp_path / "here", shard=(0, 2), resume=True)


def test_run_may_go_on_with_other_shards(tmp_path):
    start(tmp_path, shard=(0, 2), rows=[0, 2])
    assert start(tmp_path, resume=True, rows=[1, 3]) == {0, 2}
    assert start(tmp_path, resume=True, shard=(2, 3), rows=[5]) == {0, 1, 2, 3}
    assert read_rows(tmp_path)["idx"].tolist() == [0, 1, 2, 3, 5]
    assert read_votes(tmp_path).idx.tolist() == [0, 1, 2, 3, 5]


def test_two_processes_do_not_share_a_shard(tmp_path):
    pytest.importorskip("fcntl")
    with ResultFolder(tmp_path) as run:
        run.start(CONFIG, resume=False)
        with pytest.raises(ValueError, match="another process writes to it"):
            start(tmp_path, resume=True)
        run.append(row(0), one_vote(0))
    assert start(tmp_path, resume=True) == {0}


@pytest.mark.parametrize("cut", [1, 10])
def test_votes_without_a_row_are_not_stored_twice(tmp_path, cut):
    start(tmp_path, rows=[0, 1])
    rows = tmp_path / "rows.tsv"
    os.truncate(rows, rows.stat().st_size - cut)  # as if stopped while the last row was written
    assert start(tmp_path, resume=True, rows=[1, 2]) == {0}
    assert [r["idx"] for r in read_table(tmp_path / "votes.tsv")] == ["0", "1", "2"]
    assert [r["idx"] for r in read_table(rows)] == ["0", "1", "2"]


def test_rows_are_on_disk_at_once(tmp_path):
    with ResultFolder(tmp_path) as run:
        run.start(CONFIG, resume=False)
        run.append(row(5), one_vote(5))
        assert read_rows(tmp_path)["radius"].tolist() == [8]


def test_folder_that_was_never_started_can_be_left(tmp_path):
    with pytest.raises(KeyError), ResultFolder(tmp_path):
        raise KeyError


@pytest.mark.parametrize("name", ["rows", "votes"])
def test_damaged_files_are_reported(tmp_path, name):
    start(tmp_path, rows=[1])
    (tmp_path / f"{name}.tsv").write_text("something else\n")
    with pytest.raises(ValueError, match=rf"{name}\.tsv: got another header"):
        start(tmp_path, resume=True)


# Votes

counts = st.lists(st.lists(st.integers(0, 10**6), min_size=3, max_size=3), min_size=4, max_size=4)
some_counts = counts.map(lambda rows: [[n + (c == 1) for c, n in enumerate(r)] for r in rows])


def stored(folder: Path, votes: Votes, *, n0: int, shards: int = 1):
    """Write every image's votes, in reverse order and dealt to the shards, and read them back."""
    for shard in range(shards):
        with ResultFolder(folder, (shard, shards)) as run:
            run.start(CONFIG, resume=False)
            for i in reversed(range(shard, len(votes.counts), shards)):
                run.append(row(10 * i, label=i % 3), votes_line(10 * i, i % 3, votes, i, n0))
    return read_votes(folder)


def check_equal(read, votes: Votes) -> None:
    assert read.idx.tolist() == [10 * i for i in range(len(votes.counts))]
    assert read.label.tolist() == [i % 3 for i in range(len(votes.counts))]
    assert read.votes.counts.dtype == torch.int64
    assert torch.equal(read.votes.counts, votes.counts)
    if votes.selection is None:
        assert read.votes.selection is None
    else:
        assert read.votes.selection.dtype == torch.int64
        assert torch.equal(read.votes.selection, votes.selection)
    assert read.votes.shape == votes.shape
    assert read.votes.n == votes.n


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_votes_round_trip(tmp_path_factory, shards):
    @settings(max_examples=15)
    @given(counts, some_counts, st.booleans())
    def check(counts, selection, sampled):
        folder = tmp_path_factory.mktemp("votes")
        votes = Votes(torch.tensor(counts), torch.tensor(selection) if sampled else None, (1, 4, 4), 10**6)
        check_equal(stored(folder, votes, n0=100, shards=shards), votes)

    check()


@pytest.mark.parametrize("empty", [0, 2])
def test_selection_without_a_vote_is_not_no_selection(tmp_path, empty):
    """Copies may vote for no class: all of an image's selection samples, too."""
    selection = torch.ones(3, 3, dtype=torch.int64)
    selection[empty] = 0
    votes = Votes(torch.tensor([[5, 0, 1]] * 3), selection, (1, 4, 4), 6)
    check_equal(stored(tmp_path, votes, n0=3), votes)


@pytest.mark.parametrize(
    ("selection", "line"),
    [
        (None, "5\t2\t0\t10\t-\t0:4,2:6"),
        (torch.tensor([[0, 0, 3]]), "5\t2\t3\t10\t2:3\t0:4,2:6"),
    ],
)
def test_votes_line(selection, line):
    votes = Votes(torch.tensor([[4, 0, 6]]), selection, (1, 4, 4), 10)
    assert votes_line(5, 2, votes, 0, 3) == line


def test_unfinished_votes_are_not_read(tmp_path):
    start(tmp_path, rows=[0, 1])
    path = tmp_path / "votes.tsv"
    whole = path.read_bytes()
    (tmp_path / "rows.tsv").write_bytes((tmp_path / "rows.tsv").read_bytes()[:-1])  # a kill comes before the row
    assert read_votes(tmp_path).idx.tolist() == [0]
    path.write_bytes(whole[:-1])
    assert read_votes(tmp_path).idx.tolist() == [0]


def test_a_run_may_go_on_while_it_is_read(tmp_path, monkeypatch):
    """Votes come before their rows."""
    start(tmp_path, rows=[0])
    read = stored_module.read_table

    def read_slowly(path, **options):
        lines = read(path, **options)
        monkeypatch.setattr(stored_module, "read_table", read)
        start(tmp_path, resume=True, rows=[1])
        return lines

    monkeypatch.setattr(stored_module, "read_table", read_slowly)
    assert read_votes(tmp_path).idx.tolist() == [0]
    assert read_votes(tmp_path).idx.tolist() == [0, 1]


def test_votes_that_are_lost_are_missed(tmp_path):
    start(tmp_path, rows=[0, 1])
    path = tmp_path / "votes.tsv"
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(ValueError, match="got 2 rows, but no votes of image 1; a file was cut short"):
        read_votes(tmp_path)


@pytest.mark.parametrize("label", ["1", "3"])
def test_votes_with_another_label_than_rows_are_refused(tmp_path, label):
    start(tmp_path, rows=[0])
    path = tmp_path / "votes.tsv"
    path.write_text(path.read_text().replace("\n0\t0\t", f"\n0\t{label}\t"))
    with pytest.raises(ValueError, match=f"got label {label} with the votes of image 0, expected that of its row, 0"):
        read_votes(tmp_path)


@pytest.mark.parametrize("kind", ["rows", "votes"])
def test_an_image_has_one_result(tmp_path, kind):
    start(tmp_path, shard=(0, 2), rows=[0])
    start(tmp_path, shard=(1, 2), rows=[1])
    first, second = tmp_path / f"{kind}-0-of-2.tsv", tmp_path / f"{kind}-1-of-2.tsv"
    whole = second.read_text()
    second.write_text(whole + first.read_text().splitlines()[1] + "\n")  # the same again
    assert read_rows(tmp_path)["idx"].tolist() == read_votes(tmp_path).idx.tolist() == [0, 1]
    line = first.read_text().splitlines()[1].split("\t")
    line[3] = "5"
    second.write_text(whole + "\t".join(line) + "\n")
    with pytest.raises(ValueError, match=r"for image 0, which has .* in another line; they are not of the same run"):
        (read_rows if kind == "rows" else read_votes)(tmp_path)


@pytest.mark.parametrize("cell", ["3:1", "0:0", "-1:2", "0:-2", "x", "0:3,0:4", f"0:{2**63}"])
def test_impossible_votes_are_refused(tmp_path, cell):
    start(tmp_path, rows=[0])
    with (tmp_path / "votes.tsv").open("a") as handle, (tmp_path / "rows.tsv").open("a") as rows:
        handle.write(f"1\t0\t0\t10\t-\t{cell}\n")
        rows.write(row(1).line() + "\n")
    with pytest.raises(ValueError, match=r"stored votes|invalid literal|not enough values"):
        read_votes(tmp_path)


@given(st.lists(st.dictionaries(st.integers(0, 39), st.integers(1, 2**63 - 1), max_size=9), max_size=5))
def test_stored_counts_are_read_class_by_class(images):
    texts = [",".join(f"{c}:{n}" for c, n in image.items()) or "-" for image in images]
    dense = stored_module._parse_counts(texts, 40)
    assert dense.dtype == torch.int64
    assert dense.tolist() == [[image.get(c, 0) for c in range(40)] for image in images]


def test_no_votes(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json: no such run"):
        read_votes(tmp_path)
    start(tmp_path)
    with pytest.raises(ValueError, match="got no stored votes"):
        read_votes(tmp_path)


# Reading rows


def test_rows_round_trip(tmp_path):
    start(tmp_path)
    rows = [Row(2, 1, 1, 85 / 255, 1, 0.5, 1, 0.9, 0.75), Row(0, 3, -1, -1.0, 0, 0.25, -1, math.nan, 0.5)]
    with ResultFolder(tmp_path) as run:
        run.start(CONFIG, resume=True)
        for r in rows:
            run.append(r, one_vote(r.idx))
    for source in (tmp_path, tmp_path / "rows.tsv", str(tmp_path)):
        read = read_rows(source)
        assert tuple(read) == ROW_COLUMNS
        assert all(column.dtype == np.float64 for column in read.values())
        assert read["idx"].tolist() == [0, 2]
        assert read["predict"].tolist() == [-1, 1]
        assert read["radius"].tolist() == [-1, 85 / 255]
        assert np.array_equal(read["p_lower"], [math.nan, 0.9], equal_nan=True)


def test_rows_of_all_shards_are_merged(tmp_path):
    for shard in range(3):
        start(tmp_path, shard=(shard, 3), rows=range(20 - shard, 0, -3))
    assert read_rows(tmp_path)["idx"].tolist() == list(range(1, 21))


def test_other_files_are_not_shards(tmp_path):
    start(tmp_path, rows=[0])
    for name in ("rows-old.tsv", "rows2.tsv", "rows-0-of-2.tsv.bak", "votes-old.tsv", "votes-a-of-b.tsv"):
        (tmp_path / name).write_text("something else\n")
    assert read_rows(tmp_path)["idx"].tolist() == [0]
    assert read_votes(tmp_path).idx.tolist() == [0]


@pytest.mark.parametrize("header", ["idx\tlabel\tpredict\tradius\tcorrect\ttime\n", ""], ids=["header", "none"])
def test_rows_of_cohen(tmp_path, header):
    path = tmp_path / "sigma_0.25"
    path.write_text(
        f"{header}0\t3\t3\t0.655\t1\t0:00:12.345678\n"
        "20\t7\t-1\t0.0\t0\t0:00:11.9\n"
        "40\t8\t1\t0.21\t0\t1 day, 0:01:12\n"
        "60\t5\t5\t0.9"
    )
    rows = read_rows(path)
    assert list(rows) == ["idx", "label", "predict", "radius", "correct", "time"]
    assert rows["idx"].tolist() == [0, 20, 40]
    assert rows["label"].tolist() == [3, 7, 8]
    assert rows["predict"].tolist() == [3, -1, 1]
    assert rows["radius"].tolist() == [0.655, 0, 0.21]
    assert rows["correct"].tolist() == [1, 0, 0]
    assert rows["time"].tolist() == [12.345678, 11.9, 86472]
    logged = read_log(path)
    assert logged["radius"].tolist() == [0.655, -1, 0.21]  # an abstention certifies nothing, not even itself


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0\t3\t3\t0.5\t0\t1", "correct is 0 for image 0, but class 3 is predicted for label 3"),
        ("0\t3\t4\t0.5\t1\t1", "correct is 1 for image 0"),
        ("7\t3\t3\t-0.5\t1\t1", "radius of image 7 is -0.5, expected at least 0"),
        ("7\t3\t3\tnan\t1\t1", "radius of image 7 is nan"),
        ("7\t3\t3.5\t1\t1\t1", "predict of image 7 is 3.5, expected a class or -1"),
        ("7\tcat\t3\t1\t1\t1", "label of image 7 is nan, expected a class"),
        ("seven\t3\t3\t1\t1\t1", "expected the index of an image as idx"),
        ("7\t3\t3\t1", "got 4 cells, expected 6"),
    ],
)
def test_damaged_logs(tmp_path, line, message):
    path = tmp_path / "log"
    path.write_text(f"idx\tlabel\tpredict\tradius\tcorrect\ttime\n{line}\n")
    with pytest.raises(ValueError, match=re.escape(message)):
        read_log(path)
    path.write_text(f"idx\tlabel\tmagnitude\n{line}\n".replace(line, "1\t2\t3"))
    with pytest.raises(ValueError, match="got columns idx, label, magnitude, expected idx, label, predict, radius"):
        read_log(path)


def test_no_rows(tmp_path):
    for source in (tmp_path, tmp_path / "rows.tsv", tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=r"no rows\*\.tsv; certify first"):
            read_rows(source)
    start(tmp_path)
    with pytest.raises(ValueError, match="got no finished row; resume the run first"):
        read_rows(tmp_path)
    (tmp_path / "rows.tsv").write_text("")
    with pytest.raises(ValueError, match=r"rows\.tsv: got an empty file"):
        read_rows(tmp_path)


def test_no_configuration(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such run; certify one with 'python -m scripts\.certify'"):
        read_config(tmp_path)


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("kept", ["rows.tsv", "votes.tsv", "rows-0-of-2.tsv"])
def test_results_without_their_configuration_are_not_continued(tmp_path, resume, kept):
    shard = (0, 2) if "of" in kept else (0, 1)
    start(tmp_path, rows=[1, 2], shard=shard)
    for path in tmp_path.iterdir():
        if path.name != kept:
            path.unlink()
    before = (tmp_path / kept).read_bytes()
    with pytest.raises(ValueError, match=r"holds results without their config\.json; restore it"):
        start(tmp_path, resume=resume)
    assert (tmp_path / kept).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [kept]


@pytest.mark.parametrize("gone", ["rows.tsv", "votes.tsv"])
@pytest.mark.parametrize("emptied", [True, False])
def test_half_of_the_results_is_not_taken_for_none(tmp_path, gone, emptied):
    """What is left took all the work."""
    start(tmp_path, rows=[1, 2, 3])
    kept = "votes.tsv" if gone == "rows.tsv" else "rows.tsv"
    before = (tmp_path / kept).read_bytes()
    if emptied:
        (tmp_path / gone).write_text((tmp_path / gone).read_text().splitlines(keepends=True)[0])
    else:
        (tmp_path / gone).unlink()
    with pytest.raises(ValueError, match=rf"{gone}: got no images, but {kept} has some; restore it"):
        start(tmp_path, resume=True)
    with pytest.raises(ValueError, match="holds results; add --resume"):
        start(tmp_path)
    assert (tmp_path / kept).read_bytes() == before


def test_the_last_rows_that_are_lost_are_made_again_once(tmp_path):
    start(tmp_path, rows=[1, 2, 3])
    votes, rows = (tmp_path / "votes.tsv").read_bytes(), (tmp_path / "rows.tsv").read_text().splitlines(keepends=True)
    (tmp_path / "rows.tsv").write_text("".join(rows[:2]))
    assert start(tmp_path, resume=True, rows=[2, 3]) == {1}
    assert (tmp_path / "votes.tsv").read_bytes() == votes


@pytest.mark.parametrize("content", ["", "{", "[1]", '"text"'])
def test_damaged_configurations_are_named(tmp_path, content):
    start(tmp_path, rows=[1])
    (tmp_path / "config.json").write_text(content)
    for read in (read_config, lambda folder: start(folder, resume=True)):
        with pytest.raises(ValueError, match=r"config\.json: (is not JSON|holds a (list|str), expected names)"):
            read(tmp_path)


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "rows.tsv").write_bytes(b"idx\tlabel\n1\t\xff\n")
    with pytest.raises(ValueError, match=r"rows\.tsv: is not a text table"):
        read_table(tmp_path / "rows.tsv")


def test_folders_that_cannot_be_written_are_told_in_words(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"out: cannot write to .*file"):
        start(tmp_path / "file" / "run")
