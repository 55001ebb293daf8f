"""Votes copy by copy as text: every vote comes back, and nothing else is accepted."""

from __future__ import annotations

import base64
import json
import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from certify.packed import pack_votes, unpack_votes
from certify.results import ResultFolder, Row, read_votes, votes_line
from certify.votes import Votes


@given(st.integers(1, 40), st.integers(2, 11), st.integers(0, 10**6))
def test_round_trip(n, classes, seed):
    votes = torch.rand(n, classes, generator=torch.Generator().manual_seed(seed)) > 0.5
    assert torch.equal(unpack_votes(pack_votes(votes), n, classes), votes)


def test_format():
    """One bit per vote, row by row, the most significant bit first."""
    votes = torch.tensor([[1, 0, 0, 0, 0], [0, 0, 0, 1, 1]]).bool()
    assert zlib.decompress(base64.b64decode(pack_votes(votes))) == bytes([0b10000000, 0b11000000])


def test_size_on_disk():
    """1,024 positions and 10 classes, one vote each: 1,280 bytes packed, fewer where neighbours vote alike."""
    classes = (torch.arange(1024) // 300).clamp(max=9)
    assert len(pack_votes(torch.nn.functional.one_hot(classes, 10).bool())) < 200


@pytest.mark.parametrize(
    "text",
    [
        "",
        "!",
        "AAAA",
        base64.b64encode(zlib.compress(b"")).decode(),
        base64.b64encode(zlib.compress(bytes(4))).decode(),
        base64.b64encode(zlib.compress(bytes(10**6))).decode(),
        base64.b64encode(zlib.compress(bytes(3)) + b"more").decode(),
        base64.b64encode(zlib.compress(bytes(3))[:-2]).decode(),
    ],
)
def test_damaged_votes_are_refused(text):
    with pytest.raises(ValueError, match="stored votes: got"):
        unpack_votes(text, 6, 4)


def written(folder, by_copy: torch.Tensor) -> None:
    votes = Votes(by_copy.sum(1), None, (1, 2, by_copy.shape[1]), by_copy.shape[1], by_copy=by_copy)
    config = {"shape": [1, 2, by_copy.shape[1]], "num_classes": by_copy.shape[2]}
    with ResultFolder(folder, by_copy=True) as run:
        run.start(config, resume=False)
        for i in reversed(range(len(by_copy))):
            run.append(Row(i, 0, 0, 0.0, 1, 0.0, 0, float("nan"), 0.5), votes_line(i, 0, votes, i, 0))


def test_a_run_keeps_votes_copy_by_copy(tmp_path):
    by_copy = torch.rand(3, 7, 4) > 0.6
    written(tmp_path, by_copy)
    votes = read_votes(tmp_path).votes
    assert votes.by_copy is not None
    assert torch.equal(votes.by_copy, by_copy)
    assert votes.by_copy.dtype == torch.bool
    assert torch.equal(votes.counts, by_copy.sum(1))
    assert votes.selection is None


def test_votes_that_do_not_add_up_are_refused(tmp_path):
    by_copy = torch.zeros(2, 7, 4, dtype=torch.bool)
    by_copy[:, :5, 1] = True
    written(tmp_path, by_copy)
    path = tmp_path / "votes.tsv"
    path.write_text(path.read_text().replace("1:5", "1:6"))
    with pytest.raises(ValueError, match="got votes of image 0 that do not add up"):
        read_votes(tmp_path)


def test_a_run_without_positions_is_not_continued_with_them(tmp_path):
    with ResultFolder(tmp_path) as run:
        run.start({}, resume=False)
    assert json.loads((tmp_path / "config.json").read_text()) == {}
    with pytest.raises(ValueError, match="got another header"), ResultFolder(tmp_path, by_copy=True) as run:
        run.start({}, resume=True)
