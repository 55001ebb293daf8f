from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from certify import generators
from certify.draws import ESTIMATION, Draws
from certify.generators import philox4x32, splitmix64, splitmix64_at

WORDS, LONGS = st.integers(0, 2**32 - 1), st.integers(-(2**63), 2**63 - 1)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        # the known-answer vectors of the Random123 distribution
        ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, (0xFFFFFFFF,) * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_known_answers(counter, key, expected):
    assert philox4x32(torch.tensor(counter)[:, None], key)[:, 0].tolist() == expected
    constants = generators._constants(key, torch.device("cpu"))
    assert generators._philox_of_tensors(torch.tensor(counter)[:, None], *constants)[:, 0].tolist() == expected


@given(counters=st.lists(st.tuples(WORDS, WORDS, WORDS, WORDS), min_size=1, max_size=9), key=st.tuples(WORDS, WORDS))
def test_philox_is_the_same_with_tensors_and_in_parts(counters, key):
    counter = torch.tensor(counters).T.contiguous()
    before = counter.clone()
    words = philox4x32(counter, key)
    constants = generators._constants(key, torch.device("cpu"))
    assert torch.equal(generators._philox_of_tensors(counter, *constants), words)
    assert torch.equal(counter, before)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generators, "_CHUNK", 2)
        assert torch.equal(philox4x32(counter, key), words)


class Transfers(TorchDispatchMode):
    """Counts tensors that are brought from the CPU to another device: Python waits for all work in a GPU's queue."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.device.type != "cpu":
            self.count += any(isinstance(own, torch.Tensor) and own.device.type == "cpu" for own in args)
        return result


def test_constants_stay_on_the_device():
    counter = torch.empty((4, 3), dtype=torch.int64, device="meta")
    counts = []
    for key in ((77, 1), (77, 1), (77, 2)):
        with Transfers() as transfers:
            assert philox4x32(counter, key).shape == (4, 3)
        counts.append(transfers.count)
    assert counts[0] == counts[2] > counts[1] == 0


def test_splitmix_known_answers():
    """The first outputs for the state 1234567, as the authors' reference prints them; and a state above 2^63."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [n % 2**64 for n in splitmix64(torch.tensor([1234567]), 4).tolist()] == expected
    for key in (0, -1, 2**63 - 1, -(2**63)):
        state, outputs = key, []
        for _ in range(5):
            state = (state + 0x9E3779B97F4A7C15) % 2**64
            z = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
            z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
            outputs.append(z ^ z >> 31)
        assert [n % 2**64 for n in splitmix64(torch.tensor([[key]]), 5)[0].tolist()] == outputs


@given(keys=st.lists(LONGS, min_size=1, max_size=4), positions=st.lists(LONGS, min_size=1, max_size=5))
def test_splitmix_is_the_same_with_tensors(keys, positions):
    starts, places = torch.tensor(keys)[:, None], torch.tensor(positions)
    numbers = splitmix64_at(starts, places)
    assert torch.equal(generators._splitmix_of_tensors(starts, places), numbers)
    assert torch.equal(splitmix64_at(starts[:, 0], places[:1]), numbers[:, 0])
    assert torch.equal(splitmix64_at(starts, torch.arange(1, 8)), splitmix64(starts, 7))


@pytest.mark.gpu
def test_cuda_gives_the_same_numbers():
    cpu, cuda = (
        Draws.of(0, ESTIMATION, torch.arange(3), range(100)),
        Draws.of(0, ESTIMATION, torch.arange(3, device="cuda"), range(100)),
    )
    assert torch.equal(splitmix64(cuda.keys(), 33).cpu(), splitmix64(cpu.keys(), 33))
