"""The two generators behind all random numbers, as functions of counters and keys.

Each has two implementations with the same output: NumPy's unsigned integers on the CPU, which take about half the time
per core, and tensors on other devices, whose signed products and sums wrap around to the same bits.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_GAMMA = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))  # shifts, each with the multiplier that follows
_CHUNK = 1 << 14  # counters processed at once on the CPU, to fit a core's L2 cache


def philox4x32(counter: Tensor, key: tuple[int, int]) -> Tensor:
    """Philox4x32-10 of a batch of counters.

    Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).

    Args:
        counter: int64 ``[4, N]``, each entry in [0, 2^32).
        key: two 32-bit words.

    Returns:
        int64 ``[4, N]``: four independent 32-bit words for each counter, on the device of ``counter``.
    """
    assert counter.dtype == torch.int64
    if counter.device.type != "cpu":
        return _philox_of_tensors(counter, *_constants(key, counter.device))
    words = counter.clone()
    for part in words.split(_CHUNK, dim=1):
        _philox_in_place(part.numpy().view(np.uint64), _keys(key))
    return words


@lru_cache(maxsize=16)
def _keys(key: tuple[int, int]) -> NDArray[np.uint64]:
    """The keys of all rounds, ``[rounds, 2, 1]``."""
    rounds = [[[word + i * step & _WORD] for word, step in zip(key, _WEYL, strict=True)] for i in range(_ROUNDS)]
    return np.array(rounds, dtype=np.uint64)


def _philox_in_place(counter: NDArray[np.uint64], rounds: NDArray[np.uint64]) -> None:
    even, odd = counter[::2], counter[1::2]
    multipliers = np.array(_MULTIPLIERS, dtype=np.uint64)[:, None]
    product = np.empty(even.shape, dtype=np.uint64)
    swapped = product[::-1]
    for key in rounds:
        np.multiply(even, multipliers, out=product)
        np.right_shift(swapped, np.uint64(32), out=even)
        np.bitwise_xor(even, odd, out=even)
        np.bitwise_xor(even, key, out=even)
        np.bitwise_and(swapped, np.uint64(_WORD), out=odd)


@lru_cache(maxsize=16)
def _constants(key: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """The multipliers ``[2, 1]`` and the keys of all rounds ``[rounds, 2, 1]`` on a device other than the CPU.

    They are kept there, since each transfer would make Python wait until a GPU has done all work in its queue.
    """
    with torch.inference_mode(False):  # they outlive the caller's mode
        rounds = torch.from_numpy(_keys(key).view(np.int64)).to(device)
        return torch.tensor(_MULTIPLIERS, device=device)[:, None], rounds


def _philox_of_tensors(counter: Tensor, multipliers: Tensor, rounds: Tensor) -> Tensor:
    even, odd = counter[::2], counter[1::2]
    for key in rounds.unbind():
        swapped = (even * multipliers).flip(0)
        # the mask drops the copies of the sign bit
        even = (swapped >> 32).bitwise_xor_(odd).bitwise_xor_(key).bitwise_and_(_WORD)
        odd = swapped.bitwise_and_(_WORD)
    return torch.stack((even, odd), 1).view_as(counter)


def splitmix64(keys: Tensor, count: int) -> Tensor:
    """Many numbers per key, far cheaper than Philox: the first outputs of SplitMix64 with the key as its state.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014).

    Args:
        keys: int64 ``[..., 1]``, any numbers; random keys (:meth:`~certify.draws.Draws.keys`) practically never share
            an output.

    Returns:
        int64 ``[..., count]``, uniform on [-2^63, 2^63).
    """
    return splitmix64_at(keys, torch.arange(1, count + 1, device=keys.device))


def splitmix64_at(keys: Tensor, positions: Tensor) -> Tensor:
    """The outputs at given positions, counted from 1; at negative ones, they are never outputs of :func:`splitmix64`.

    Args:
        keys, positions: int64, of shapes that broadcast together, not both zero-dimensional.
    """
    assert keys.dtype == positions.dtype == torch.int64
    if keys.device.type != "cpu":
        return _splitmix_of_tensors(keys, positions)
    numbers = keys.numpy().view(np.uint64) + positions.numpy().view(np.uint64) * np.uint64(_GAMMA)
    shifted = np.empty_like(numbers)
    for shift, multiplier in _MIX:
        np.right_shift(numbers, np.uint64(shift), out=shifted)
        np.bitwise_xor(numbers, shifted, out=numbers)
        if multiplier != 1:
            np.multiply(numbers, np.uint64(multiplier), out=numbers)
    return torch.from_numpy(numbers.view(np.int64))


def _splitmix_of_tensors(keys: Tensor, positions: Tensor) -> Tensor:
    numbers = keys + positions * _signed(_GAMMA)
    shifted = torch.empty_like(numbers)
    for shift, multiplier in _MIX:
        # the mask drops the copies of the sign bit
        torch.bitwise_right_shift(numbers, shift, out=shifted).bitwise_and_((1 << (64 - shift)) - 1)
        numbers.bitwise_xor_(shifted)
        if multiplier != 1:
            numbers.mul_(_signed(multiplier))
    return numbers


def _signed(word: int) -> int:
    """The signed 64-bit integer with the bits of an unsigned one."""
    return word - (word >> 63 << 64)
