"""Margins per place of a patch, against their definition and against the certificates they explain."""

from __future__ import annotations

import pytest
import torch

from certify import LInf
from certify.places import at_risk, covered, grid_of_places, margins
from tests.test_patch import CASES, IDS, SIZES, masks, places, random_votes
from tests.test_patch import at_risk as at_risk_literally


@pytest.mark.parametrize(("scheme", "shape"), CASES, ids=IDS)
@pytest.mark.parametrize("patch", SIZES)
def test_margins_certify_iff_certify_votes_does(scheme, shape, patch):
    votes = random_votes(60, scheme.num_copies(shape), 4, seed=3)
    found = margins(scheme, votes, patch, shape=shape)
    clipped = (min(patch[0], shape[1]), min(patch[1], shape[2]))
    assert found.shape == (60, *grid_of_places(shape, clipped))
    held = scheme.certify_votes(votes, patch, shape=shape).certified
    assert torch.equal(found.flatten(1).amin(1) >= 0, held)
    assert torch.equal(margins(scheme, votes[7:9], patch, shape=shape), found[7:9])


@pytest.mark.parametrize(("scheme", "shape"), CASES, ids=IDS)
def test_margins_by_counting(scheme, shape):
    patch = (1, 2) if min(shape[1:]) < 2 else (2, 2)
    patch = (min(patch[0], shape[1]), min(patch[1], shape[2]))
    votes = random_votes(2, scheme.num_copies(shape), 3, seed=4)
    found = margins(scheme, votes, patch, shape=shape).flatten(1)
    risk = at_risk_literally(scheme, shape, patch)
    for i, label in enumerate(votes.sum(1).argmax(1).tolist()):
        for place, touched in enumerate(risk):
            safe, lost = (votes[i] & ~touched[:, None]).sum(0).tolist(), int(touched.sum())
            gaps = [safe[label] - safe[c] - lost - (c < label) for c in range(3) if c != label]
            assert found[i, place] == min(gaps)


@pytest.mark.parametrize(("scheme", "shape"), CASES, ids=IDS)
def test_places_and_copies_at_risk(scheme, shape):
    patch = (min(2, shape[1]), min(3, shape[2]))
    rows, columns = grid_of_places(shape, patch)
    found = covered(shape, patch, torch.arange(rows * columns))
    assert torch.equal(found, torch.stack(places(shape, patch)))
    kept = masks(scheme, shape)
    assert torch.equal(at_risk(scheme, shape, found), (kept[None] & found[:, None]).flatten(2).any(2))


def test_linf_distance():
    x, y = torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
    y[1, 0, 0, 1], y[1, 0, 1, 1] = 51, 3
    assert LInf().distance(x, y).tolist() == [0, 0.2]
    assert str(LInf()) == "l-inf"
